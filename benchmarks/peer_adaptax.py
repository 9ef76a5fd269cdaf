"""The meta-gradient of `peer_torch.py` by adaptax, as `ax.train` forms it; `peers.py` calls it."""

import argparse
import dataclasses
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptax as ax
from adaptax import _devices as devices


def adaptax_meta_gradient(problem, method, params, tasks, count: int) -> Callable[[], tuple]:
    """A function that computes the loss and the meta-gradient once: one meta-step of `ax.train` on these tasks.

    The tasks are spread over all devices, as in training; the optimiser only remembers the gradient it is given.
    """
    zeros = optax.tree.zeros_like
    remember = optax.GradientTransformation(zeros, lambda grad, state, params=None: (zeros(grad), grad))
    mesh = devices.mesh_of(None, count)
    step = dataclasses.replace(ax.make_step(problem, method, remember, tasks_per_step=count), mesh=mesh)
    state = devices.replicate(mesh, step.init(params, seed=0))
    tasks = devices.replicate(mesh, tasks)
    arrays, rest = eqx.partition(state, eqx.is_array)

    # Compiled as a whole, as in `ax.train` and as on the other sides.
    @jax.jit
    def program(arrays, tasks):
        new, info = step(eqx.combine(arrays, rest), tasks)
        return info["loss"], new.opt_state

    def once():
        return jax.block_until_ready(program(arrays, tasks))

    return once


def load(case: str, path: Path, dtype: str, mode: str = "recursion"):
    """The problem, the method, the parameters and the tasks of the inputs file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    key = jax.random.key(0)
    if case == "sinusoid":
        sizes = [1, *(len(arrays[f"params/layers/{i}/bias"]) for i in range(3))]
        params = ax.models.mlp(sizes, key=key)

        def loss(net, batch):
            return jnp.mean((net(batch[0]) - batch[1]) ** 2)
    else:
        ways, image = arrays["params/head/weight"].shape[1], arrays["support_x"].shape[2:]
        make, first = (ax.models.resnet12, "units/0/") if case == "resnet12" else (ax.models.conv4, "")
        channels = len(arrays[f"params/blocks/0/{first}scale"])
        params = make(ways, key=key, channels=channels, image=image)

        def loss(net, batch):
            return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]).mean()

    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [f"params/{jax.tree_util.keystr(path, simple=True, separator='/')}" for path, _ in leaves]
    filled = [jnp.asarray(arrays[name], dtype) for name in names]
    different = [n for n, x, (_, leaf) in zip(names, filled, leaves, strict=True) if x.shape != leaf.shape]
    if different:
        raise SystemExit(f"The inputs do not fit the model in {', '.join(different)}: write them anew.")
    params = jax.tree.unflatten(treedef, filled)

    def part(name):
        x, y = arrays[f"{name}_x"], arrays[f"{name}_y"]
        return jnp.asarray(x, dtype), jnp.asarray(y, dtype if case == "sinusoid" else "int32")

    method = ax.MetaGradient(ax.Inner(steps=int(arrays["inner_steps"]), stepsize=float(arrays["stepsize"])), mode=mode)
    problem = ax.FiniteSum(loss, sample_task=lambda key: None)
    tasks = ax.Task(part("support"), part("target"))
    return problem, method, params, tasks, names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("sinusoid", "conv4", "conv4-84", "resnet12"), required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="the .npz file that peer_inputs.py writes")
    parser.add_argument("--repeats", type=int, default=5, help="timed meta-gradients, after the warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="meta-gradients before the timed ones")
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="host devices (default: one a core)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--mode", choices=("recursion", "backprop"), default="recursion")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the meta-gradient goes beside it as .npz")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    problem, method, params, tasks, names = load(args.case, args.inputs, args.dtype, args.mode)
    count = len(jax.tree.leaves(tasks)[0])
    once = adaptax_meta_gradient(problem, method, params, tasks, count)
    (loss, grad), times = once(), []
    for _ in range(args.warmup - 1 + args.repeats):
        start = time.perf_counter()
        loss, grad = once()
        times.append(time.perf_counter() - start)
    record = {
        "seconds": times[args.warmup - 1 :],
        "loss": float(loss),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {"python": platform.python_version(), "adaptax": ax.__version__, "jax": version("jax")},
    }
    np.savez(args.out.with_suffix(".npz"), **dict(zip(names, map(np.asarray, jax.tree.leaves(grad)), strict=True)))
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
