"""Training by the recipe of `recipe.py` with adaptax, or in plain JAX without it; `time_to_accuracy.py` calls it."""

import argparse
import functools
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peer_jax
import recipe
from jax import lax


def batch_of(support: np.ndarray, target: np.ndarray) -> tuple:
    """Images and labels of support and target."""
    tasks = len(support)
    return (support, recipe.labels(recipe.SHOTS, tasks)), (target, recipe.labels(recipe.QUERIES, tasks))


def adapted_logits(params: peer_jax.Params, support: tuple, images: jax.Array, adapt: str) -> jax.Array:
    """The logits of the images after the inner steps, in plain JAX; features under an adapting head are formed once."""
    head = {name: jnp.repeat(params[f"params/head/{name}"], recipe.WAYS, axis=-1) for name in ("weight", "bias")}
    spread = params | {f"params/head/{name}": leaf for name, leaf in head.items()}
    if adapt == "everything":
        network, start, inputs, outputs = peer_jax.conv4, spread, support[0], images
    else:
        network, start = lambda head, rows: rows @ head["weight"] + head["bias"], head
        inputs, outputs = (peer_jax.conv4_features(params, x) for x in (support[0], images))

    def step(w, _):
        grad = jax.grad(lambda w: peer_jax.cross_entropy(network(w, inputs), support[1]))(w)
        return jax.tree.map(lambda w, g: w - recipe.ALPHA * g, w, grad), None

    return network(lax.scan(step, start, length=recipe.INNER_STEPS)[0], outputs)


def train_plain(folder: Path, clock: recipe.Clock, adapt: str, in_turn: bool) -> None:
    """`jit(vmap(grad(scan)))`, or `lax.map` for `vmap`, the tasks shared by all devices; optax outside."""

    def loss(params, task):
        support, target = task
        return peer_jax.cross_entropy(adapted_logits(params, support, target[0], adapt), target[1])

    gradient = peer_jax.over_tasks(jax.value_and_grad(loss), in_turn, jax.device_count())
    optimizer, params = optax.adam(recipe.RATE), jax.tree.map(jnp.asarray, recipe.initial())
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for step, images in enumerate(recipe.batches(folder), 1):
        params, state = update(params, state, gradient(params, batch_of(*images))[1])
        if step % clock.every == 0 and not clock.look(step, {name: np.asarray(leaf) for name, leaf in params.items()}):
            return


def train_adaptax(folder: Path, clock: recipe.Clock, adapt: str) -> None:
    """`ax.train`, a few meta-steps at a time."""
    import adaptax as ax

    network = ax.models.conv4(1, key=jax.random.key(0), channels=recipe.WIDTH)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(network)
    names = [f"params/{jax.tree_util.keystr(path, simple=True, separator='/')}" for path, _ in leaves]
    params = jax.tree.unflatten(treedef, [jnp.asarray(recipe.initial()[name]) for name in names])

    def loss(net, batch):
        return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]).mean()

    def of_head(path: str) -> bool:
        return path.startswith("head")

    problem, optimizer = ax.FiniteSum(loss, lambda key: None), optax.adam(recipe.RATE)
    start = ax.models.shared_head(recipe.WAYS)
    inner = ax.Inner(recipe.INNER_STEPS, recipe.ALPHA, of_head if adapt == "head" else None, start=start)
    method, state, batches = ax.MetaGradient(inner), None, recipe.batches(folder)
    for step in itertools.count(clock.every, clock.every):
        some = [ax.Task(*batch_of(*images)) for images in itertools.islice(batches, clock.every)]
        if len(some) < clock.every:
            return
        state, _ = ax.train(
            problem, params, method, optimizer=optimizer, steps=step, tasks_per_step=recipe.TASKS, tasks=some, state=state
        )
        found = dict(zip(names, map(np.asarray, jax.tree.leaves(state.params)), strict=True))
        if not clock.look(step, found):
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=("adaptax", "vmap", "map"), required=True)
    parser.add_argument("--adapt", choices=recipe.ADAPT, required=True)
    parser.add_argument("--batches", type=Path, required=True, help="folder of the batches")
    parser.add_argument("--every", type=int, required=True, help="meta-steps between looks")
    parser.add_argument("--seconds", type=float, required=True, help="longest training")
    parser.add_argument("--out", type=Path, required=True, help="folder for the looks")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    clock = recipe.Clock(args.out, args.every, args.seconds)
    if args.side == "adaptax":
        train_adaptax(args.batches, clock, args.adapt)
    else:
        train_plain(args.batches, clock, args.adapt, args.side == "map")


if __name__ == "__main__":
    main()
