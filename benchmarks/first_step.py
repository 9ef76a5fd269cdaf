"""Seconds and memory from a process's start to the end of its first meta-step, with and without JAX's compilation cache.

    python benchmarks/first_step.py [--rounds 3]

Conv4-32 as `adaptax train images --adapt everything` trains it: 5-way 1-shot, 5 queries, N = 5, 16 tasks, turned and distorted
images (of random pixels), one host device a core. Then 3 meta-steps of N = 1,000 with 2 tasks. Prints one table and writes
results/first_step.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from machine import measurement
from tables import RESULTS, rows_of, spread

CASES = {"cold": (5, 16, 1), "warm": (5, 16, 1), "N = 1,000": (1000, 2, 3)}


def run(began: float, steps: int, tasks: int, meta_steps: int) -> None:
    """One process imports, makes data and network, takes meta-steps, and prints seconds and memory."""
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    import numpy as np

    import adaptax as ax

    images = np.random.default_rng(0).integers(0, 256, (150, 20, 28, 28), np.uint8)
    data = ax.tasks.Characters(images, tuple(f"A/{i}" for i in range(150)))
    problem = ax.tasks.few_shot(data, 5, 1, 5, distortion=ax.tasks.Affine(0.25, 0.2, 2.0, 0.0))
    params = ax.models.conv4(1, key=jax.random.key(0), channels=32)
    alpha = 0.1 if steps < 100 else 0.01
    method = ax.MetaGradient(ax.Inner(steps, alpha, start=ax.models.shared_head(5)))
    state, history = ax.train(problem, params, method, steps=meta_steps, tasks_per_step=tasks)
    jax.block_until_ready(state.params)
    # The clock began just before the parent started this process.
    record = {"seconds": time.time() - began, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    print(json.dumps(record | {"loss": history["loss"].tolist()}))


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Seconds and memory of each case."""
    rows = []
    for name, records in result["cases"].items():
        seconds, peaks = ([record[key] for record in records] for key in ("seconds", "peak_mib"))
        rows.append([name, spread(seconds, "{:.1f}"), f"{statistics.median(peaks):,.0f} MiB"])
    return ["", "seconds", "most memory resident"], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", type=float, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return run(arguments.run[0], *map(int, arguments.run[1:]))
    found: dict = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
            for name, sizes in CASES.items():
                command = [sys.executable, __file__, "--run", str(time.time()), *map(str, sizes)]
                printed = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
                found[name].append(json.loads(printed.splitlines()[-1]))
                print(name, found[name][-1], flush=True)
    result = measurement(parser, arguments) | {"cases": found}
    (RESULTS / "first_step.json").write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
