"""Memory and time of the meta-gradient of a transformer over many inner steps, by how many iterates are kept.

    python benchmarks/store.py [--steps 1024] [--rounds 3]

The transformer of `byte_transformer.py`, 4 layers of width 128 on texts of 64 letters (0.8 million parameters), one task, exact
products. Memory is what the compiled program sets aside for temporary values. Prints one table and writes results/store.json.
"""

import argparse
import json
import statistics
import time

import byte_transformer as text
import jax
from machine import measurement
from tables import RESULTS, rows_of, spread

import adaptax as ax

KEPT = (4, 8, 32, "sqrt", "iterates")


def measure(steps: int, store: str | int, rounds: int) -> dict:
    """Temporaries of the compiled program, the gradients it takes, and seconds."""
    params = text.initial(jax.random.key(0), width=128)
    task = ax.Task(*jax.random.randint(jax.random.key(1), (2, 1, 65), 0, text.LETTERS))
    method = ax.MetaGradient(ax.Inner(steps, 1e-3), store=store)
    problem = ax.FiniteSum(text.loss, lambda key: None)
    program = jax.jit(lambda params, task: method(problem, params, task)[:2]).lower(params, task).compile()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(program(params, task))
        seconds.append(time.perf_counter() - start)
    temporaries = program.memory_analysis().temp_size_in_bytes
    return {"steps": steps, "store": store, "bytes": temporaries, "gradients": method.cost().gradients, "seconds": seconds}


def table(result: dict) -> str:
    """Memory against that of eight steps, and time for each step against that of all iterates."""
    few, *rows = result["rows"]
    whole = statistics.median(next(row for row in rows if row["store"] == "iterates")["seconds"])
    body = [
        [str(row["store"]), f"{row['bytes'] / 2**20:.0f}", f"{row['bytes'] / few['bytes']:.2f}", f"{row['gradients']:,}",
         spread([1e3 * s / row["steps"] for s in row["seconds"]], "{:.1f}"), f"{statistics.median(row['seconds']) / whole:.2f}"]
        for row in rows
    ]  # fmt: skip
    header = ["store", "MiB", f"of {few['steps']} steps with all iterates", "gradients", "ms a step", "of all iterates"]
    return rows_of(header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result = measurement(parser, options) | {"rows": [measure(8, "iterates", 1)]}
    for store in KEPT:
        result["rows"].append(measure(options.steps, store, options.rounds))
        print(result["rows"][-1], flush=True)
    (RESULTS / "store.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
