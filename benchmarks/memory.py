"""Memory against N: temporaries of the compiled meta-gradient of one task, Conv4-64 on 28x28 images.

    python benchmarks/memory.py [--steps 1 4 16 64]

The compiler's own analysis, for adaptax's recursion (three stores), for adaptax's backpropagation through the loop, and for
plain JAX (`peer_jax.py`: its own network, `grad` through a `scan`), with `jax.checkpoint` around the inner step and without.
Nothing is run. Prints one table and writes results/memory.json.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import optax
import peer_jax
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax

ALPHA = 0.1
KINDS = {
    "recursion": "adaptax, recursion",
    "recursion_sqrt": 'adaptax, recursion, `store="sqrt"`',
    "recursion_8": "adaptax, recursion, `store=8`",
    "backpropagation": 'adaptax, `mode="backprop"`',
    "plain_jax": "plain JAX",
    "plain_jax_checkpoint": "plain JAX, checkpoint",
}


def images(count: int) -> tuple[jax.Array, jax.Array]:
    """A batch of images and labels."""
    return jnp.zeros((count, 28, 28, 1)), jnp.zeros((count,), jnp.int32)


def loss(net, batch) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]).mean()


def temporaries(program, *arguments) -> int:
    """Bytes of temporaries of the compiled program."""
    return jax.jit(program).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def row(steps: int) -> dict[str, int]:
    """Every kind at one N."""
    problem, params = ax.FiniteSum(loss, lambda key: None), ax.models.conv4(5, key=jax.random.key(0), channels=64)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    plain = {f"params/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf for path, leaf in leaves}
    task = images(5), images(25)

    def ours(**options) -> int:
        method = ax.MetaGradient(ax.Inner(steps, ALPHA), **options)
        return temporaries(lambda p, t: method(problem, p, t)[:2], params, ax.Task(*task))

    def theirs(checkpoint: bool) -> int:
        return temporaries(peer_jax.meta_gradient(peer_jax.loss_of("conv4"), steps, ALPHA, checkpoint), plain, task)

    return {
        "inner_steps": steps,
        "recursion": ours(),
        "recursion_sqrt": ours(store="sqrt"),
        "recursion_8": ours(store=8),
        "backpropagation": ours(mode="backprop"),
        "plain_jax": theirs(False),
        "plain_jax_checkpoint": theirs(True),
    }


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """MiB by kind and N."""
    kinds = [kind for kind in KINDS if kind in result["rows"][0]]
    rows = [[KINDS[kind], *(f"{row[kind] / 2**20:.0f}" for row in result["rows"])] for kind in kinds]
    return ["N", *(str(row["inner_steps"]) for row in result["rows"])], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 4, 16, 64))
    options = parser.parse_args()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(ax.models.conv4(5, key=jax.random.key(0), channels=64)))
    rows = []
    for steps in options.steps:
        rows.append(row(steps))
        print(rows[-1], flush=True)
    result = measurement(parser, options) | {"parameter_bytes": size, "rows": rows}
    (RESULTS / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"parameters: {size / 2**20:.2f} MiB\n{rows_of(*table(result))}")


if __name__ == "__main__":
    main()
