"""Operations, bytes and rates of the parts of an exact meta-gradient, beside the limits of the machine.

    python benchmarks/roofline.py [--case sinusoid conv4 conv4-84 resnet12] [--rounds 5]

For each network the inner gradient, the Hessian-vector product and the target gradient, each compiled alone and run on all
tasks of the batch, on all cores as in training, and the whole meta-gradient. Operations are counted by formula
(`operations.py`), bytes by the compiler for the program of one group of tasks, and the machine's limits are measured here:
the fastest float32 matrix product of several sizes, and a sum over an array that no cache holds. Prints one table and writes
results/roofline.json.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import operations
import peer_inputs
from machine import measurement
from tables import RESULTS, rows_of

TITLES = {
    "sinusoid": "MLP 1-40-40-1, 25 tasks of 10 + 10 points",
    "conv4": "Conv4-64, 28×28, 32 tasks, 5 queries",
    "conv4-84": "Conv4-32, 84×84, 4 tasks, 15 queries",
    "resnet12": "ResNet-12, 84×84, one task, 15 queries",
}


def seconds(function, rounds: int) -> float:
    """Median time of a call after the first."""
    function()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def limits() -> dict:
    """The most operations and bytes a second that this machine reaches on all cores."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a: a @ a)
    best = 0.0
    for n in (500, 1000, 2000, 3000):
        a = jnp.ones((n, n))
        best = max(best, 2 * n**3 / seconds(lambda a=a: product(a).block_until_ready(), 9))
    x = jnp.ones(2**27)
    total = jax.jit(jnp.sum)
    return {"product_flops": best, "bytes_per_second": x.nbytes / seconds(lambda: total(x).block_until_ready(), 9)}


def parts(case: str, folder: Path, rounds: int) -> dict:
    """Time, operations and bytes of each part of one meta-gradient of this case."""
    import jax
    import jax.numpy as jnp
    from peer_adaptax import adaptax_meta_gradient, load

    from adaptax import _devices as devices
    from adaptax._batching import Traced, map_tasks

    inputs = folder / f"{case}.npz"
    peer_inputs.write(case, inputs)
    problem, method, params, tasks, _ = load(case, inputs, "float32")
    count = len(jax.tree.leaves(tasks)[0])
    mesh = devices.mesh_of(None, count)
    # Tasks that cannot be shared evenly stay on one device, which has all cores.
    mesh = None if mesh is None or count % mesh.size else mesh

    def gradient(w, batch):
        return jax.value_and_grad(problem.loss)(w, batch)

    programs = {
        "inner gradient": lambda w, task: gradient(w, task.support),
        "Hessian-vector product": lambda w, task: jax.jvp(lambda w: gradient(w, task.support)[1], (w,), (w,)),
        "target gradient": lambda w, task: gradient(w, task.target),
    }
    # In the recursion every task has its own parameters.
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)) + 0, params)
    split = devices.replicate(mesh, (own, tasks))

    def on_all_devices(program, at_once):
        def local(_, split):
            return (), map_tasks(lambda pair: program(*pair), split, at_once)

        run = jax.jit(lambda split: devices.spread(mesh, local, (), split)[1])
        return lambda: jax.block_until_ready(run(split))

    found = {}
    for name, program in programs.items():
        # As many at a time as where the meta-gradients of a batch are summed.
        traced = Traced(lambda pair, program=program: program(*pair), (own, tasks))
        at_once = traced.at_a_time(devices.share(mesh, count), summed=True)
        group = jax.tree.map(lambda leaf, at_once=at_once: leaf[:at_once], (own, tasks))
        one = jax.jit(jax.vmap(traced)).lower(group).compile()
        times, each = operations.phases(case, count)[name]
        found[name] = {
            "times": times, "operations": each, "bytes": one.cost_analysis()["bytes accessed"] * count / at_once,
            "temporaries": one.memory_analysis().temp_size_in_bytes,
            "seconds": seconds(on_all_devices(program, at_once), rounds), "in_flight": at_once,
        }  # fmt: skip
    whole = seconds(adaptax_meta_gradient(problem, method, params, tasks, count), rounds)
    found["meta-gradient"] = {"times": 1, "operations": operations.meta_gradient(case, count), "seconds": whole}
    return {"case": case, "tasks": count, "devices": 1 if mesh is None else mesh.size, "parts": found}


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the printed table."""
    header = ["network", "part", "times", "GFLOP", "GB", "ms", "GFLOP/s", "of the matrix product's rate", "GB/s"]
    rows = []
    for case in result["cases"]:
        for name, part in case["parts"].items():
            rate, gigabytes = part["operations"] / part["seconds"], part.get("bytes", 0) / 1e9
            rows.append([
                TITLES[case["case"]] if name == "inner gradient" else "", name, str(part["times"]),
                f"{part['operations'] / 1e9:,.3g}", f"{gigabytes:.2g}" if gigabytes else "",
                f"{1e3 * part['seconds']:,.3g}", f"{rate / 1e9:,.0f}", f"{100 * rate / result['product_flops']:.0f} %",
                f"{gigabytes / part['seconds']:.0f}" if gigabytes else "",
            ])  # fmt: skip
    return header, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=tuple(TITLES), default=tuple(TITLES))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    result = measurement(parser, options) | limits() | {"cases": []}
    with tempfile.TemporaryDirectory() as folder:
        for case in options.case:
            result["cases"].append(parts(case, Path(folder), options.rounds if case != "resnet12" else 1))
            print(json.dumps(result["cases"][-1]), flush=True)
    print(rows_of(*table(result)))
    (RESULTS / "roofline.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
