"""One run on every number of devices and processes of this machine: how far its parameters lie apart, and how long it takes.

    python benchmarks/equal.py [--steps 200]

The sinusoid problem with the default network and step sizes, N = 10, 24 tasks a meta-step, in single and in double precision.
All share the cores of this machine, so devices beyond their number add no speed. The distance is that of the parameters (and
learned step sizes) from those of one device, relative to how far they have moved. Prints one table and writes
results/equal.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from machine import measurement
from scaling import free_port
from tables import RESULTS, rows_of

import adaptax as ax

# Processes, and devices of each.
SHAPES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (4, 1), (4, 2))


def work(index: int, count: int, devices: int, port: int, steps: int, double: int, out: str) -> None:
    """Be one of the processes; process 0 writes what it finds."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_x64", bool(double))
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=3600)
    dtype = float if double else np.float32
    problem, params = ax.tasks.sinusoid(), ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0), dtype=dtype)
    ends = []
    state, _ = ax.train(
        problem, params, ax.MetaGradient(ax.Inner(10)), steps=steps, tasks_per_step=24,
        callback=lambda state, record: ends.append((time.perf_counter(), int(state.step))),
    )  # fmt: skip
    if index == 0:
        (start, before), (end, after) = ends[0], ends[-1]
        flat, begun = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (state.params, params))
        rates = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.inner.stepsize)])
        seconds = (end - start) / max(after - before, 1)
        np.savez(out, params=np.concatenate([flat, rates]), moved=np.linalg.norm(flat - begun), seconds=seconds)


def measure(shape: tuple[int, int], steps: int, double: bool, folder: Path) -> dict:
    """What process 0 found."""
    count, devices = shape
    out = folder / f"{count} {devices} {double}.npz"
    numbers = [str(number) for number in (count, devices, free_port(), steps, int(double))]
    running = [subprocess.Popen([sys.executable, __file__, "--work", str(index), *numbers, out]) for index in range(count)]
    try:
        codes = [process.wait(timeout=3600) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    if any(codes):
        raise SystemExit(f"{count} processes with {devices} devices failed.")
    with np.load(out) as found:
        return dict(found)


def table(result: dict) -> str:
    """Distances and times by shape, as markdown."""
    rows = []
    for row in result["rows"]:
        single, double = row["single"], row["double"]
        cells = [f"{single['distance']:.1e}", f"{double['distance']:.1e}", f"{1e3 * single['seconds']:.3g}"]
        rows.append([str(row["processes"]), str(row["devices"]), *cells])
    return rows_of(["processes", "devices of each", "distance, single", "distance, double", "ms a meta-step, single"], rows)


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        *numbers, out = sys.argv[2:]
        index, count, devices, port, steps, double = map(int, numbers)
        work(index, count, devices, port, steps, double, out)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="meta-steps")
    options = parser.parse_args()
    result = measurement(parser, options) | {"rows": []}
    with tempfile.TemporaryDirectory() as folder:
        one = {}
        for shape in SHAPES:
            row: dict = {"processes": shape[0], "devices": shape[1]}
            for name, double in (("single", False), ("double", True)):
                found = measure(shape, options.steps, double, Path(folder))
                first = one.setdefault(name, found)
                distance = np.linalg.norm(found["params"] - first["params"]) / first["moved"]
                row[name] = {"distance": float(distance), "seconds": float(found["seconds"])}
            result["rows"].append(row)
            print(row, flush=True)
    print(table(result))
    (RESULTS / "equal.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
