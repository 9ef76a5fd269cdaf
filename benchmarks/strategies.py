"""Oracle calls, time on sinusoids and images, and memory against N of every method and estimator.

    python benchmarks/strategies.py [--rounds 7] [--case sinusoids images memory]

Time: one meta-gradient of a task batch, N = 5, on one device: sinusoids with an MLP 1-40-40-1 (25 tasks), images with
Conv4-64 (8 tasks, 5-way 1-shot, 5 queries a class). The methods take turns; ratios are of medians to the exact
meta-gradient. Memory: temporaries of the compiled meta-gradient of one sinusoid task, by the compiler's own analysis.
Prints two tables and writes results/strategies.json.
"""

import argparse
import json
import statistics
import time

import jax
import optax
from in_flight import images, sinusoids
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax

STEPS, IMAGE_TASKS = 5, 8
MEMORY_STEPS = (1, 16, 64, 256)


def rows(alpha: float, steps: int, head: str) -> dict:
    """The methods by name."""
    c, adam = ax.curvature, optax.adam(alpha, eps_root=1e-8)
    inner = ax.Inner(steps, alpha)
    values_only = ax.Inner(steps, alpha, gradients=ax.gradients.Smoothed(samples=10))
    return {
        "exact": ax.MetaGradient(inner),
        'exact, store="sqrt"': ax.MetaGradient(inner, store="sqrt"),
        "first order": ax.MetaGradient(inner, c.FirstOrder()),
        "finite difference": ax.MetaGradient(inner, c.FiniteDifference()),
        "GGS, Q = 10": ax.MetaGradient(inner, c.GaussianSmoothing()),
        "GGS, Q = 10, δ = 1e-3": ax.MetaGradient(inner, c.GaussianSmoothing(delta=1e-3)),
        "zeroth order, Q = 10": ax.MetaGradient(inner, c.ZerothOrder()),
        "losses alone, Q = 10": ax.MetaGradient(values_only, c.ZerothOrder()),
        "ANIL": ax.MetaGradient(ax.Inner(steps, alpha, adapt=lambda path: head in path)),
        "Meta-SGD": ax.MetaGradient(ax.Inner(steps, ax.stepsize.Learned(alpha, per="parameter"))),
        "rates per layer and step": ax.MetaGradient(ax.Inner(steps, ax.stepsize.Learned(alpha, per="leaf", per_step=True))),
        "multi-step loss": ax.MetaGradient(inner, multi_step=ax.MultiStep()),
        "inner momentum": ax.MetaGradient(ax.Inner(steps, optimizer=optax.sgd(alpha, momentum=0.9))),
        "inner Adam": ax.MetaGradient(ax.Inner(steps, optimizer=adam)),
        "proximal": ax.MetaGradient(ax.Inner(steps, alpha, proximal=1.0)),
        "implicit, 10 iterations": ax.Implicit(ax.Inner(steps, alpha, proximal=1.0)),
        "Reptile": ax.Reptile(inner),
        "backpropagation": ax.MetaGradient(inner, mode="backprop"),
    }


def outer(method: ax.MetaGradient, params):
    """The outer parameters, which include the rates where these are learned."""
    rule = method.inner.stepsize
    return ax.Meta(params, rule.start(params, method.inner.steps)) if isinstance(rule, ax.stepsize.Learned) else params


def timed(make, count: int | None, repeats: int, head: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each method in every round."""
    problem, params, tasks, alpha = make()
    tasks = jax.tree.map(lambda leaf: leaf[:count], tasks)
    keys = jax.random.split(jax.random.key(3), jax.tree.leaves(tasks)[0].shape[0])
    programs = {}
    for name, method in rows(alpha, STEPS, head).items():
        run = jax.jit(lambda p, t, k, method=method: method.batch(problem, p, t, k)[:2])
        given = (outer(method, params), tasks, keys)
        programs[name] = run.lower(*given).compile(), given
        jax.block_until_ready(programs[name][0](*given))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (program, given) in programs.items():
            began = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(program(*given))
            seconds[name].append((time.perf_counter() - began) / repeats)
    return seconds


def temporaries() -> dict[str, list[int]]:
    """Bytes of temporaries of each method at each N."""
    problem, params, tasks, alpha = sinusoids()
    task, key, found = jax.tree.map(lambda leaf: leaf[0], tasks), jax.random.key(0), {}
    for n in MEMORY_STEPS:
        for name, method in rows(alpha, n, "layers.2").items():
            run = jax.jit(lambda p, t, k, method=method: method(problem, p, t, k)[:2])
            program = run.lower(outer(method, params), task, key).compile()
            found.setdefault(name, []).append(program.memory_analysis().temp_size_in_bytes)
    return found


CASES = {"sinusoids": (sinusoids, None, 20, "layers.2"), "images": (images, IMAGE_TASKS, 1, "head")}


def table(result: dict) -> str:
    """Calls and times as markdown."""
    cases = [name for name in CASES if name in result]
    rows = []
    for name, calls in result["calls"].items():
        cells = [name, *map(str, calls)]
        for case in cases:
            median = statistics.median(result[case][name])
            cells.append(f"{1e3 * median:.3g} ({median / statistics.median(result[case]['exact']):.2f} x)")
        rows.append(cells)
    return rows_of(["", "losses", "gradients", "HVPs", *(f"{name}, ms (ratio)" for name in cases)], rows)


def memory_table(result: dict) -> str:
    """Temporaries as markdown."""
    rows = [[name, *(f"{size / 1024:,.0f}" for size in sizes)] for name, sizes in result["memory"].items()]
    return rows_of(["KiB of temporaries at N =", *map(str, MEMORY_STEPS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", nargs="*", choices=(*CASES, "memory"), default=(*CASES, "memory"))
    arguments = parser.parse_args()
    path = RESULTS / "strategies.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    result = kept | measurement(parser, arguments) | {"inner_steps": STEPS}
    result["calls"] = {name: list(method.cost()) for name, method in rows(0.1, STEPS, "").items()}
    for name in arguments.case:
        result[name] = temporaries() if name == "memory" else timed(*CASES[name], arguments.rounds)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    if "memory" in result:
        print("\n" + memory_table(result))


if __name__ == "__main__":
    main()
