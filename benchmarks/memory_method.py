"""Memory of meta-gradients beside plain stochastic gradients: constant outer step size, few tasks a meta-step.

    python benchmarks/memory_method.py [--steps 10000] [--seeds 5]

The cosine problem (known constants) with a pool of 64 tasks, as a finite sum and with noisy samples inside tasks. Every run is
`ax.train` with `optax.sgd` of one constant step size, in double precision. Reported is the norm of the exact gradient of the
meta-objective over the whole pool, for each batch size B after --steps meta-gradients of tasks, and after --steps meta-steps.
Prints one table (as markdown) and writes results/memory_method.json.
"""

import argparse
import json
import math
import time

from machine import measurement
from tables import RESULTS, rows_of

BATCHES = (1, 4, 16)
TASKS, DIM, INNER_STEPS, ALPHA, BETA = 64, 10, 5, 0.05, 0.05
# Standard deviations (s_x, s_z) of the samples inside tasks; None: the finite-sum problem.
PROBLEMS = {"finite-sum": None, "resampling, noise 0.1": (0.1, 0.1), "resampling, noise 0.5": (0.5, 0.5)}
# Name, rate, and whether a meta-gradient is remembered for each task of the pool.
METHODS = (
    ("plain", None, False),
    ("gradient memory, b = 0.1", 0.1, False),
    ("task memory, b = 1", 1.0, True),
    ("task memory, b = 0.1", 0.1, True),
)


def measure(steps: int, seeds: int) -> list[dict]:
    """The norms at the end, one row for each problem, method, batch size and seed."""
    import jax.numpy as jnp
    import optax

    import adaptax as ax

    exact = ax.MetaGradient(ax.Inner(INNER_STEPS, ALPHA))
    start, optimizer, rows = 3 * jnp.ones(DIM), optax.sgd(BETA), []
    for kind, noise in PROBLEMS.items():
        cosine = ax.tasks.cosine(dim=DIM, tasks=TASKS, noise=noise or (0.0, 0.0))
        loss, target = cosine.finite_sum.loss, cosine.tasks.target
        problem, judged, method = cosine.finite_sum, cosine.finite_sum, exact
        if noise is not None:
            # The noise has mean zero, so that the objective is that of the noiseless losses.
            problem, judged = cosine.resampling, ax.FiniteSum(loss, ax.Pool(ax.Task(target, target)))
            method = ax.MetaGradient(exact.inner, samples=ax.Samples(1, 1, 1))

        def norm(w, judged=judged) -> float:
            return float(jnp.linalg.norm(exact.batch(judged, w, judged.sample_task.tasks)[1]))

        # The same draws from a sampler that does not show its pool.
        def hidden(key, pool=problem.sample_task):
            return pool(key)

        plain = ax.FiniteSum(loss, hidden) if noise is None else ax.Resampling(loss, hidden, problem.draw)
        for name, rate, by_task in METHODS:
            memory = None if rate is None else ax.Memory(rate)
            for batch in BATCHES:
                began = time.perf_counter()
                for seed in range(seeds):
                    options = {"optimizer": optimizer, "tasks_per_step": batch, "seed": seed, "memory": memory}
                    state, row = None, {"problem": kind, "method": name, "tasks_per_step": batch, "seed": seed}
                    for label, until in (("equal_gradients", max(steps // batch, 1)), ("equal_steps", steps)):
                        chosen = problem if by_task else plain
                        state, _ = ax.train(chosen, start, method, steps=until, state=state, **options)
                        row[label] = norm(state.params)
                    rows.append(row)
                mean = sum(r["equal_steps"] for r in rows[-seeds:]) / seeds
                print(f"{kind}, {name}, B = {batch}: {mean:.2g} ({time.perf_counter() - began:.0f} s)", flush=True)
        print(f"{kind}: {norm(start):.2f} at the start")
    return rows


def cell(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / max(len(values) - 1, 1))
    return f"{mean:.1e} ± {spread:.0e}"


def table(result: dict) -> str:
    """Norms by problem, method and batch size, as markdown."""
    steps = result["meta_steps"]
    header = ["problem, method"]
    header += [f"B = {b}, {steps // b:,} meta-steps" for b in BATCHES] + [f"B = {b}, {steps:,} meta-steps" for b in BATCHES[1:]]

    def norms(kind: str, name: str, batch: int, label: str) -> str:
        place = (kind, name, batch)
        return cell([r[label] for r in result["rows"] if (r["problem"], r["method"], r["tasks_per_step"]) == place])

    rows = []
    for kind in PROBLEMS:
        for name, *_ in METHODS:
            cells = [norms(kind, name, b, "equal_gradients") for b in BATCHES]
            rows.append([f"{kind}, {name}", *cells, *(norms(kind, name, b, "equal_steps") for b in BATCHES[1:])])
    return rows_of(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="meta-steps a run")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)

    settings = measurement(parser, arguments) | {
        "meta_steps": arguments.steps, "pool": TASKS, "dim": DIM, "inner_steps": INNER_STEPS,
        "alpha": ALPHA, "beta": BETA, "samples": 1,
    }  # fmt: skip
    result = {**settings, "rows": measure(arguments.steps, arguments.seeds)}
    (RESULTS / "memory_method.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
