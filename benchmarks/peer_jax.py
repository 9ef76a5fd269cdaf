"""The meta-gradient of `peer_torch.py` as a JAX user writes it without adaptax: `jit(vmap(grad(scan)))`; `peers.py` calls it.

The networks are plain functions of a dictionary of arrays, with `lax.conv_general_dilated` and `lax.reduce_window`. The inner
steps are one `lax.scan`, and `jax.grad` differentiates through it. `--checkpoint` wraps `jax.checkpoint` around the step, which
then keeps no intermediate values; `--map` goes through the tasks in turn with `lax.map` instead of all together with `vmap`.
"""

import argparse
import functools
import json
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

Params = dict[str, jax.Array]


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Dense layers with relu between them."""
    layers = sum(name.endswith("weight") for name in params)
    for i in range(layers):
        x = x @ params[f"params/layers/{i}/weight"] + params[f"params/layers/{i}/bias"]
        x = jax.nn.relu(x) if i < layers - 1 else x
    return x


def unit(params: Params, name: str, x: jax.Array) -> jax.Array:
    """A convolution, and normalisation by the statistics of the batch."""
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, params[f"{name}/weight"], (1, 1), "SAME", dimension_numbers=layout)
    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    return (y - mean) * (params[f"{name}/scale"] * lax.rsqrt(variance + 1e-5)) + params[f"{name}/shift"]


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of 2 x 2 pixels."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def conv4(params: Params, x: jax.Array) -> jax.Array:
    """Four blocks of convolution, batch normalisation, relu and max pool; a linear head."""
    return conv4_features(params, x) @ params["params/head/weight"] + params["params/head/bias"]


def conv4_features(params: Params, x: jax.Array) -> jax.Array:
    """What Conv4's head is applied to."""
    for i in range(4):
        x = max_pool(jax.nn.relu(unit(params, f"params/blocks/{i}", x)))
    return x.reshape(len(x), -1)


def resnet12(params: Params, x: jax.Array) -> jax.Array:
    """Four residual blocks, the mean over pixels; a linear head."""
    leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.1)
    for i in range(4):
        name, y = f"params/blocks/{i}", x
        for k in range(3):
            y = unit(params, f"{name}/units/{k}", y)
            y = leaky(y) if k < 2 else y
        x = leaky(max_pool(y + unit(params, f"{name}/shortcut", x)))
    return x.mean((1, 2)) @ params["params/head/weight"] + params["params/head/bias"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over images."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def loss_of(case: str) -> Callable:
    """loss(params, (x, y))."""
    if case == "sinusoid":
        return lambda params, batch: jnp.mean((mlp(params, batch[0]) - batch[1]) ** 2)
    network = resnet12 if case == "resnet12" else conv4
    return lambda params, batch: cross_entropy(network(params, batch[0]), batch[1])


def meta_gradient(loss: Callable, steps: int, stepsize: float, checkpoint: bool = False) -> Callable:
    """A function of (params, (support, target)): the target loss after `steps` inner steps, and its gradient."""

    def adapted_loss(params, task):
        support, target = task

        def step(params, _):
            grad = jax.grad(loss)(params, support)
            return jax.tree.map(lambda w, g: w - stepsize * g, params, grad), None

        body = jax.checkpoint(step) if checkpoint else step
        return loss(lax.scan(body, params, length=steps)[0], target)

    return jax.value_and_grad(adapted_loss)


def over_tasks(gradient: Callable, in_turn: bool = False, devices: int = 1) -> Callable:
    """A function of (params, tasks): the mean loss and the mean meta-gradient, on devices that share the tasks."""

    def means(tree):
        return jax.tree.map(lambda leaf: leaf.mean(0), tree)

    def local(params, tasks):
        if in_turn:
            return means(lax.map(lambda task: gradient(params, task), tasks))
        return means(jax.vmap(gradient, (None, 0))(params, tasks))

    if devices == 1:
        return jax.jit(local)
    mesh = jax.make_mesh((devices,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))

    def share(params, tasks):
        # The parameters differ from device to device inside, so that their derivatives are not summed in every inner step.
        params = lax.pcast(params, "tasks", to="varying")
        return lax.pmean(local(params, tasks), "tasks")

    split = PartitionSpec("tasks")
    return jax.jit(jax.shard_map(share, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=PartitionSpec()))


def load(case: str, path: Path, dtype: str) -> tuple[Params, tuple, int, float]:
    """Parameters, tasks, number of steps and step size of the inputs file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    params = {name: jnp.asarray(array, dtype) for name, array in arrays.items() if name.startswith("params/")}
    labels = dtype if case == "sinusoid" else "int32"
    parts = [(jnp.asarray(arrays[f"{p}_x"], dtype), jnp.asarray(arrays[f"{p}_y"], labels)) for p in ("support", "target")]
    return params, tuple(parts), int(arrays["inner_steps"]), float(arrays["stepsize"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("sinusoid", "conv4", "conv4-84", "resnet12"), required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="the .npz file that peer_inputs.py writes")
    parser.add_argument("--repeats", type=int, default=5, help="timed meta-gradients, after the warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="meta-gradients before the timed ones")
    parser.add_argument("--devices", type=int, default=1, help="host devices that share the tasks")
    parser.add_argument("--checkpoint", action="store_true", help="jax.checkpoint around the inner step")
    parser.add_argument("--map", action="store_true", help="tasks in turn instead of all together")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the meta-gradient goes beside it as .npz")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    params, tasks, steps, stepsize = load(args.case, args.inputs, args.dtype)
    run = over_tasks(meta_gradient(loss_of(args.case), steps, stepsize, args.checkpoint), args.map, args.devices)
    seconds = []
    for _ in range(args.warmup + args.repeats):
        start = time.perf_counter()
        loss, grad = jax.block_until_ready(run(params, tasks))
        seconds.append(time.perf_counter() - start)
    record = {
        "seconds": seconds[args.warmup :],
        "first_s": seconds[0],
        "loss": float(loss),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"python": platform.python_version(), "jax": version("jax")},
    }
    np.savez(args.out.with_suffix(".npz"), **{name: np.asarray(leaf) for name, leaf in grad.items()})
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
