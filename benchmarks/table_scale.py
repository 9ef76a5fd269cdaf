"""The time and the peak memory of MetaRegressor on large tables of simulated groups.

    python benchmarks/table_scale.py

Each table is made, fitted and predicted in a process of its own; writes results/table_scale.json.
"""

import argparse
import json
import multiprocessing
import resource
import time

import numpy as np
from machine import measurement
from tables import RESULTS

# Groups, rows of each, columns.
SIZES = ((1_000, 200, 50), (100_000, 20, 20))
MODELS = ("auto", "additive", "ridge")


def peak() -> float:
    """The most memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(job: tuple[str, int, int, int]) -> dict:
    """Fit, then predict ten rows of each of 1,000 new groups from five."""
    model, groups, rows, columns = job
    import adaptax as ax

    random = np.random.default_rng(0)

    def table(count: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = random.normal(size=(count * rows, columns)).astype(np.float32)
        height, slope = random.normal(size=(2, count))
        which = np.repeat(np.arange(count), rows)
        return x, height[which] + slope[which] * x[:, 0] + 0.3 * np.sin(3 * x[:, 1]), which

    x, y, which = table(groups, rows)
    before, start = peak(), time.perf_counter()
    fitted = ax.MetaRegressor(support=5, model=model).fit(x, y, groups=which)
    seconds, memory = time.perf_counter() - start, peak() - before
    x, y, which = table(1000, 15)
    known = np.tile(np.arange(15) < 5, 1000)
    start = time.perf_counter()
    found = fitted.adapt(x[known], y[known], which[known]).predict(x[~known], which[~known])
    return {
        "model": model, "groups": groups, "rows": rows, "columns": columns, "fit_seconds": seconds, "fit_mib": memory,
        "table_mib": groups * rows * columns * 4 / 2**20, "predict_seconds": time.perf_counter() - start,
        "chosen": fitted.model_, "error": float(np.abs(found - y[~known]).mean()),
        "mean_error": float(np.abs(y - y.mean()).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["auto"])
    arguments = parser.parse_args()
    rows = []
    for job in [(model, *size) for size in SIZES for model in arguments.models]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.map(measure, [job])
        print(rows[-1], flush=True)
        (RESULTS / "table_scale.json").write_text(json.dumps(measurement(parser, arguments) | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
