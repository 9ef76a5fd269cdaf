"""How training scales over devices and over processes of this machine, and what a model predicts for larger ones.

    python benchmarks/scaling.py [--rounds 3] [--case sinusoid conv4] [--steps 20] [--tasks 16] [--model-only]

Measured: seconds a meta-step at N = 5, exact meta-gradients, with one core for each device, on one process with one device, one
process with two, and two processes with one each (gloo between them): free to move between the two cores, as the command line
leaves them, or each bound to one, as launchers do. Strong scaling keeps the tasks of a meta-step (--tasks), weak scaling those
of a device (half of them). `sum` is the time of one sum of an array as long as the parameters over the two processes. Compiling
is left out.

Predicted: a meta-step takes c / d + s seconds on d devices, c the time of its tasks on one device, s that of the sum of
meta-gradients, which begins when the tasks are done.

- c = FLOPs / rate. A task's FLOPs are (2 N + 1) gradients and N Hessian-vector products; a gradient counts as 3 forward passes,
  a product as 6 (2 gradients), in each of which all support examples pass once (the target examples in the last gradient).
- s = 2 (d - 1) / d x bytes / link + 2 log2(d) x latency: a ring for the volume, a tree for the latency. The bytes are those of
  what is trained, in float32: all parameters, or the adapters alone.
- the rate is what one GPU sustains on such networks in float32, the link the slowest on the way: NVLink within a machine of 8
  GPUs, one network card for each of 64 hosts with one GPU. They are options; the defaults are assumptions, no measurements.
- drawing tasks, the optimiser and the host's work between compiled programs are left out; the slowest device is as fast as any.

Prints two tables and writes results/scaling.json. With --model-only the measurement that is saved there stays.
"""

import argparse
import functools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import measurement
from tables import RESULTS, load, rows_of, spread

import adaptax as ax

INNER = 5
# Processes, devices of each, and whether each process is bound to as many cores.
WAYS = {
    "one device": (1, 1, True),
    "two devices": (1, 2, True),
    "two processes": (2, 1, False),
    "two processes, each bound to a core": (2, 1, True),
}
RANK = 8


def case(name: str) -> tuple[ax.FiniteSum, Any, float]:
    """Problem, parameters and step size."""
    if name == "sinusoid":
        return ax.tasks.sinusoid(), ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0)), 0.003
    random = np.random.default_rng(0)
    images = ax.tasks.ImageClasses(random.integers(0, 256, (400, 28, 28, 1), np.uint8), tuple(map(str, range(20))), (20,) * 20)
    return ax.tasks.few_shot(images, 5, 1, 5), ax.models.conv4(5, key=jax.random.key(0)), 0.1


def work(name: str, index: int, count: int, devices: int, bound: int, port: int, tasks: int, steps: int, rounds: int) -> None:
    """Be one of the processes; process 0 prints seconds a meta-step and seconds a sum, by round."""
    allowed = sorted(os.sched_getaffinity(0))
    if count * devices > len(allowed):
        raise SystemExit(f"{count * devices} devices need as many cores, and there are {len(allowed)}.")
    mine = allowed[index * devices : (index + 1) * devices] if bound else allowed[: count * devices]
    os.sched_setaffinity(0, set(mine))
    jax.config.update("jax_num_cpu_devices", devices)
    if count > 1:
        # A machine that stops its processes for a while must not make them count as dead.
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=3600)
    problem, params, alpha = case(name)
    method, ends = ax.MetaGradient(ax.Inner(INNER, alpha)), []

    def note(state, record):
        ends.append((time.perf_counter(), int(state.step)))

    # Checkpoint-free runs of one length: the first compiles, the others are timed.
    found = []
    for turn in range(rounds + 1):
        ends.clear()
        ax.train(problem, params, method, steps=steps, tasks_per_step=tasks, callback=note)
        # From the first program's end: what comes before is also the step sizes' first measurement and the connection.
        (start, before), (end, after) = ends[0], ends[-1]
        if turn:
            found.append((end - start) / (after - before))
    size = sum(leaf.size for leaf in jax.tree.leaves(params) if hasattr(leaf, "size"))
    result = {"seconds": found, "sum": sums(size, rounds) if count > 1 else None, "bytes": 4 * size}
    if index == 0:
        print(json.dumps(result))


def sums(size: int, rounds: int) -> list[float]:
    """Seconds of one sum of so many numbers over all devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    spec = jax.sharding.PartitionSpec()
    everywhere = jax.sharding.NamedSharding(mesh, spec)
    array = jax.make_array_from_callback((size,), everywhere, lambda _: np.ones(size, np.float32))

    def many(x):
        return jax.lax.fori_loop(0, 10, lambda i, x: jax.lax.psum(x, "all") / mesh.size, x)

    program = jax.jit(jax.shard_map(many, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    found = []
    for turn in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(array))
        if turn:
            found.append((time.perf_counter() - start) / 10)
    return found


def free_port() -> int:
    """A port for processes to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@functools.cache
def measure(name: str, way: tuple[int, int, bool], tasks: int, steps: int, rounds: int) -> dict:
    """One way, in processes of its own; none is left behind."""
    numbers = [str(int(number)) for number in (*way, free_port(), tasks, steps, rounds)]
    running = [
        subprocess.Popen([sys.executable, __file__, "--work", name, str(index), *numbers], stdout=subprocess.PIPE, text=True)
        for index in range(way[0])
    ]
    try:
        said = [process.communicate(timeout=3600)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    if any(process.returncode for process in running):
        raise SystemExit(f"{name} on {way} failed.")
    return json.loads(next(line for line in said[0].splitlines() if line.startswith("{")))


def forward(network: Any, image: tuple[int, ...]) -> tuple[float, int]:
    """FLOPs of one image's forward pass, as the compiler counts them, and the number of parameters."""
    lowered = jax.jit(lambda x: network(x)).lower(jax.ShapeDtypeStruct((32, *image), jnp.float32))
    size = sum(leaf.size for leaf in jax.tree.leaves(network) if hasattr(leaf, "size"))
    return float((lowered.cost_analysis() or {})["flops"]) / 32, size


def networks() -> dict[str, dict]:
    """FLOPs of a meta-gradient of one task, and bytes that are summed."""
    key, found = jax.random.key(0), {}
    # 5-way 5-shot with 15 target images a class, on 84 x 84 pixels.
    convolutional = {"Conv4": ax.models.conv4(5, key=key, image=(84, 84, 3)), "ResNet-12": ax.models.resnet12(5, key=key)}
    for name, network in convolutional.items():
        flops, size = forward(network, (84, 84, 3))
        found[name] = entry(flops, 25, 75, 4 * size, size)
    # A causal transformer: 14 layers of width 768, 12 width^2 parameters each, sequences of 512; adapters on its 4 matrices.
    width, layers, length = 768, 14, 512
    size = 12 * layers * width**2
    adapters = layers * RANK * sum((width + 3 * width, 2 * width, width + 4 * width, width + 4 * width))
    flops = 2 * (size + adapters) * length + 4 * layers * length**2 * width
    found[f"Transformer of {size / 1e6:.0f} M, adapters of rank {RANK}"] = entry(flops, 8, 8, 4 * adapters, size)
    return found


def entry(flops: float, support: int, target: int, summed: int, size: int) -> dict:
    """One network of the model; the support examples pass in every gradient and product, the target ones in one gradient."""
    task = flops * (support * INNER * (2 * 3 + 6) + target * 3)
    return {"forward": flops, "task": task, "support": support, "target": target, "summed_bytes": summed, "parameters": size}


def predict(network: dict, devices: int, tasks: int, rate: float, link: float, latency: float) -> dict:
    """Seconds of a meta-step, and the efficiency beside one device with its share of the tasks."""
    alone = network["task"] * math.ceil(tasks / devices) / rate
    ring = 2 * (devices - 1) / devices * network["summed_bytes"] / link + 2 * math.log2(devices) * latency
    return {"tasks": tasks, "compute": alone, "sum": ring, "efficiency": alone / (alone + ring)}


def model(options: argparse.Namespace) -> dict:
    """The predictions, by network and machine."""
    machines = {
        "8 GPUs": (8, 1e9 * options.nvlink, 1e-6 * options.nvlink_latency),
        "64 hosts": (64, 1e9 / 8 * options.network, 1e-6 * options.network_latency),
    }
    found: dict[str, Any] = {"networks": networks(), "predicted": {}}
    for name, network in found["networks"].items():
        for machine, (devices, link, latency) in machines.items():
            given = options.gpu * 1e12, link, latency
            weak = predict(network, devices, 4 * devices, *given)
            found["predicted"][f"{name}, {machine}"] = {"strong": predict(network, devices, 64, *given), "weak": weak}
    return found


def tables(result: dict) -> str:
    """What was measured and what is predicted, as markdown."""
    rows = []
    for name, by_way in result.get("cases", {}).items():
        for kind, found in by_way.items():
            one = found["one device"]
            for way, row in found.items():
                devices = math.prod(WAYS[way][:2])
                gain = [a / b * (row["tasks"] / one["tasks"]) for a, b in zip(one["seconds"], row["seconds"], strict=True)]
                total = "" if row["sum"] is None else f"{1e3 * statistics.median(row['sum']):.3g}"
                cells = spread([1e3 * s for s in row["seconds"]]), f"{spread(gain)} of {devices}", total
                rows.append([name, kind, way, str(row["tasks"]), *cells])
    measured = rows_of(["network", "scaling", "on", "tasks", "ms a meta-step", "tasks a second beside one", "ms a sum"], rows)
    rows = []
    for name, kinds in result["model"]["predicted"].items():
        for kind, row in kinds.items():
            cells = [f"{1e3 * row['compute']:,.4g}", f"{1e3 * row['sum']:.3g}", f"{row['efficiency']:.1%}"]
            rows.append([name, kind, str(row["tasks"]), *cells])
    predicted = rows_of(["predicted", "scaling", "tasks", "ms of tasks", "ms of the sum", "efficiency"], rows)
    return f"{measured}\n\n{predicted}"


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        name, *numbers = sys.argv[2:]
        work(name, *map(int, numbers))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs="*", default=["sinusoid", "conv4"], choices=["sinusoid", "conv4"])
    parser.add_argument("--steps", type=int, default=20, help="meta-steps of a round")
    parser.add_argument("--tasks", type=int, default=16, help="tasks of a meta-step, for strong scaling; a multiple of two")
    parser.add_argument("--model-only", action="store_true", help="predict, and measure nothing")
    parser.add_argument("--gpu", type=float, default=20.0, help="TFLOP/s that one GPU sustains in float32")
    parser.add_argument("--nvlink", type=float, default=300.0, help="GB/s between the GPUs of a machine")
    parser.add_argument("--nvlink-latency", type=float, default=10.0, help="microseconds of one message")
    parser.add_argument("--network", type=float, default=100.0, help="Gbit/s between hosts")
    parser.add_argument("--network-latency", type=float, default=30.0, help="microseconds of one message")
    options = parser.parse_args()
    result = measurement(parser, options)
    if options.model_only and (saved := load("scaling")) is not None:
        result = saved
    result["model"] = model(options)
    length = options.steps, options.rounds
    for name in [] if options.model_only else options.case:
        counts = {
            "strong": dict.fromkeys(WAYS, options.tasks),
            "weak": {way: options.tasks // 2 * math.prod(shape[:2]) for way, shape in WAYS.items()},
        }
        ways = {
            kind: {way: {"tasks": tasks, **measure(name, WAYS[way], tasks, *length)} for way, tasks in by_way.items()}
            for kind, by_way in counts.items()
        }
        result.setdefault("cases", {})[name] = ways
        (RESULTS / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result), flush=True)
    (RESULTS / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
