"""How many tasks at a time: the automatic choice of `in_flight` beside 1, 2, 4, 8 and all.

    python benchmarks/in_flight.py [--rounds 15] [--case sinusoids images]

One exact meta-gradient of a task batch on one device (N = 5): sinusoids with an MLP (25 tasks), images with Conv4-64 (16
tasks, 5-way 1-shot, 5 queries a class). Settings are interleaved; the ratio is of medians. Prints one table and writes
results/in_flight.json; cases that are not measured stay.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import optax
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax


def sinusoids():
    """Problem, parameters, tasks and step size."""
    problem = ax.tasks.sinusoid()
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(1), 25))
    return problem, ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0)), tasks, 0.001


def images():
    """Problem, parameters, tasks and step size."""

    def loss(net, batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]))

    def batch(key, n):
        return jax.random.uniform(key, (16, n, 28, 28, 1)), jnp.broadcast_to(jnp.arange(n) % 5, (16, n))

    a, b = jax.random.split(jax.random.key(1))
    problem = ax.FiniteSum(loss, lambda key: None)
    return problem, ax.models.conv4(5, key=jax.random.key(0), channels=64), ax.Task(batch(a, 5), batch(b, 25)), 0.1


CASES = {"sinusoids": ("sinusoid MLP", sinusoids, 20), "images": ("Conv4-64", images, 1)}


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Median times by size of the groups."""
    sizes = sorted({int(size) for case in result["cases"].values() for size in case["seconds"]})
    rows = []
    for name, case in result["cases"].items():
        cells = [case["seconds"].get(str(size)) for size in sizes]
        shown = ["" if cell is None else f"{1e3 * statistics.median(cell):.2f}" for cell in cells]
        marked = [f"**{text}**" if size == case["chosen"] else text for size, text in zip(sizes, shown, strict=True)]
        rows.append([f"{name}, {case['tasks']} tasks", *marked])
    return ["", *(f"{size} at a time" for size in sizes)], rows


def measure(name: str, rounds: int) -> dict:
    """Seconds of each size, round by round."""
    from adaptax._batching import in_flight_for
    from adaptax._keys import first

    _, make, repeats = CASES[name]
    problem, params, tasks, alpha = make()
    count = jax.tree.leaves(tasks)[0].shape[0]
    method = ax.MetaGradient(ax.Inner(5, alpha))
    chosen = in_flight_for(problem, params, first(tasks), jax.tree.leaves(tasks)[0].shape[0], method.samples)
    programs = {}
    for size in sorted({1, 2, 4, 8, count, chosen}):
        run = jax.jit(lambda p, t, size=size: method.batch(problem, p, t, in_flight=size)[:2])
        programs[size] = run.lower(params, tasks).compile()
        jax.block_until_ready(programs[size](params, tasks))
    times: dict[int, list[float]] = {size: [] for size in programs}
    for _ in range(rounds):
        for size, program in programs.items():
            start = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(program(params, tasks))
            times[size].append((time.perf_counter() - start) / repeats)
    medians = {size: statistics.median(values) for size, values in times.items()}
    return {
        "tasks": count,
        "chosen": chosen,
        "chosen_over_best": medians[chosen] / min(medians.values()),
        "temporaries_mib": {str(n): p.memory_analysis().temp_size_in_bytes / 2**20 for n, p in programs.items()},
        "seconds": {str(size): values for size, values in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    options = parser.parse_args()
    path = RESULTS / "in_flight.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    for name in options.case:
        cases[CASES[name][0]] = measure(name, options.rounds)
        print(f"{name}: {cases[CASES[name][0]]['chosen_over_best']:.2f} x the best", flush=True)
    result = measurement(parser, options) | {"cases": cases}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
