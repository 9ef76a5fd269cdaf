"""How many tasks at a time: the automatic choice of `in_flight` beside 1, 2, 4, 8 and all.

    python benchmarks/in_flight.py [--rounds 15] [--case sinusoids images]

One exact meta-gradient of a task batch on one device (N = 5): sinusoids with an MLP (25 tasks), images with Conv4-64 (16
tasks, 5-way 1-shot, 5 queries a class). Settings are interleaved; the ratio is of medians. Prints one table and writes
results/in_flight.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from machine import description

import adaptax as ax
from adaptax._batching import in_flight_for

RESULTS = Path(__file__).parent / "results"


def sinusoids():
    problem = ax.tasks.sinusoid()
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(1), 25))
    return problem, ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0)), tasks, 0.001


def images():
    def loss(net, batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1]))

    def batch(key, n):
        return jax.random.uniform(key, (16, n, 28, 28, 1)), jnp.broadcast_to(jnp.arange(n) % 5, (16, n))

    a, b = jax.random.split(jax.random.key(1))
    problem = ax.FiniteSum(loss, lambda key: None)
    return problem, ax.models.conv4(5, key=jax.random.key(0), channels=64), ax.Task(batch(a, 5), batch(b, 25)), 0.1


CASES = {"sinusoids": ("sinusoid MLP", sinusoids, 20), "images": ("Conv4-64", images, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", nargs="*", choices=tuple(CASES), default=tuple(CASES))
    arguments = parser.parse_args()
    path = RESULTS / "in_flight.json"
    kept = json.loads(path.read_text())["cases"] if path.exists() else {}
    result: dict = {"machine": description(), "cases": kept}
    for name, make, repeats in (CASES[case] for case in arguments.case):
        problem, params, tasks, alpha = make()
        count = jax.tree.leaves(tasks)[0].shape[0]
        method = ax.MetaGradient(ax.Inner(5, alpha))
        chosen = in_flight_for(problem, params, tasks, None, method.samples, None)
        sizes = sorted({1, 2, 4, 8, count, chosen})
        programs = {}
        for size in sizes:
            run = jax.jit(lambda p, t, size=size: method.batch(problem, p, t, in_flight=size)[:2])  # noqa: B023
            programs[size] = run.lower(params, tasks).compile()
            jax.block_until_ready(programs[size](params, tasks))
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(arguments.rounds):
            for size in sizes:
                start = time.perf_counter()
                for _ in range(repeats):
                    jax.block_until_ready(programs[size](params, tasks))
                times[size].append((time.perf_counter() - start) / repeats)
        medians = {size: statistics.median(values) for size, values in times.items()}
        ratio = medians[chosen] / min(medians.values())
        print(f"\n{name}, {count} tasks: chosen {chosen}, {ratio:.2f} x the best\n| in flight | ms | MiB of temporaries |")
        print("| --- | --- | --- |")
        for size in sizes:
            memory = programs[size].memory_analysis().temp_size_in_bytes / 2**20
            print(f"| {size} | {1e3 * medians[size]:.2f} | {memory:.1f} |")
        result["cases"][name] = {
            "tasks": count,
            "chosen": chosen,
            "chosen_over_best": ratio,
            "seconds": {str(size): values for size, values in times.items()},
        }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
