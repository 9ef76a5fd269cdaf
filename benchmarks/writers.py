"""A byte-level transformer adapts to a new writer: low-rank adapters beside all parameters, meta-trained and not.

    python benchmarks/writers.py [--base FILE] [--meta-steps 100]

Writers are the modules of Python's standard library, 30 of them held out and 15 for choosing step sizes. A task is a writer:
the support set is four stretches of 128 bytes from a random place, the target set the four after them. All rows begin with
the same language model and adapt it by five steps of Adam on the whole support set. Step sizes of the rows without
meta-training are those with the lowest loss on the validation writers. Meta-training begins there: it trains what adapts and
one step size for each array, with a meta-gradient of first order, on short modules that the language model has not seen. Prints
a table and writes results/writers.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from byte_transformer import (
    LENGTH,
    add_options,
    base,
    climb,
    cut,
    interval,
    loss,
    outer_optimizer,
    parts,
    sampler,
    standard_library,
)
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax

STRETCHES, STEPS, RANK = 4, 5, 8
# Step sizes of Adam at which the search begins, and the largest outer ones, of what adapts and of its step sizes.
FIRST, OUTER, OUTER_RATES = {"all": 4e-4, "adapters": 4e-3}, {"all": 1e-4, "adapters": 1e-3}, 3e-2
# Places of a held-out writer, and of one for choosing step sizes, where a support set begins.
PLACES, FEW = 2, 1
# The root in Adam has a finite derivative only with a small number under it.
_ADAM = optax.adam(1.0, eps_root=1e-12)


def task_of(stretches: Any) -> ax.Task:
    """The first half of some stretches, and the second."""
    return ax.Task(stretches[:STRETCHES], stretches[STRETCHES:])


def problem_of(texts: Sequence[np.ndarray], of: Callable[[Any], Any]) -> ax.FiniteSum:
    """Tasks of these writers; `of` makes the network's parameters of what is trained."""
    draw = sampler(texts, 2 * STRETCHES)
    return ax.FiniteSum(lambda w, text: loss(of(w), text), lambda key: task_of(draw(key)))


@eqx.filter_jit
def _before_and_after(problem, params, inner, task):
    return problem.loss(params, task.target), problem.loss(ax.adapt(problem, params, task, inner).params, task.target)


def judged(problem: ax.FiniteSum, params: Any, inner: ax.Inner, texts: Sequence[np.ndarray], places: int) -> np.ndarray:
    """Losses (texts, 2) on target sets before and after the steps, the mean over places that are spread over each text."""
    found = []
    for text in texts:
        for first in np.linspace(0, len(text) - 2 * STRETCHES * LENGTH - 1, places).astype(int):
            found.append(_before_and_after(problem, params, inner, task_of(cut(text, int(first), 2 * STRETCHES))))
    return np.asarray(jax.device_get(found)).reshape(len(texts), places, 2).mean(1)


def table(result: dict) -> str:
    """One row for each way to adapt, as markdown."""
    body = []
    for row in result["rows"]:
        cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in (row["before"], row["after"])]
        body.append([row["name"], f"{row['adapting']:,}", *cells, f"{row['change'][0]:+.4f} ± {row['change'][1]:.4f}"])
    header = ["what adapts", "numbers that adapt", "nats a byte before", f"after {STEPS} steps", "change, by writer"]
    return rows_of(header, body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--meta-steps", type=int, default=100)
    parser.add_argument("--tasks-per-step", type=int, default=1)
    options = parser.parse_args()
    held_out, validation, training, short = parts(standard_library())
    start, steps, seconds = base(options, training)
    adapters = ax.models.lora(
        start, rank=RANK, where=lambda path: path.startswith("layers.") and "scale" not in path, key=jax.random.key(1)
    )
    sizes = {"adapters": adapters.size, "all": sum(leaf.size for leaf in jax.tree.leaves(start))}
    result = measurement(parser, options) | {
        "writers": [len(training), len(short), len(validation), len(held_out)],
        "pretraining": {"steps": steps, "seconds": seconds}, "rows": [],
    }  # fmt: skip

    def add(name, kind, problem, params, inner, seconds, **more):
        found = judged(problem, params, inner, held_out, PLACES)
        before, after, change = (interval(x) for x in (found[:, 0], found[:, 1], found[:, 1] - found[:, 0]))
        row = {"name": name, "adapting": sizes[kind], "before": before, "after": after, "change": change, "seconds": seconds}
        result["rows"].append(row | more)
        print(table(result), flush=True)
        (RESULTS / "writers.json").write_text(json.dumps(result, indent=1) + "\n")

    for kind, params, of in (("adapters", adapters, lambda w: w.merged()), ("all", start, lambda w: w)):
        what, problem = "low-rank adapters" if kind == "adapters" else "all parameters", problem_of(short, of)

        def after(stepsize, problem=problem, params=params):
            inner = ax.Inner(STEPS, stepsize, optimizer=_ADAM)
            return judged(problem, params, inner, validation, FEW)[:, 1].mean()

        alpha, tried = climb(after, FIRST[kind])
        print(what, {a: round(value, 4) for a, value in sorted(tried.items())}, flush=True)
        inner = ax.Inner(STEPS, alpha, optimizer=_ADAM)
        add(f"{what}, α = {alpha:g}", kind, problem, params, inner, 0.0, validation=sorted(tried.items()))
        clock = time.perf_counter()
        state = meta_train(problem, params, alpha, OUTER[kind], options)
        seconds = time.perf_counter() - clock
        inner = ax.Inner(STEPS, state.params.stepsize, optimizer=_ADAM)
        add(f"{what}, meta-trained", kind, problem, state.params.params, inner, seconds)


def meta_train(problem: ax.FiniteSum, params: Any, alpha: float, rate: float, options: argparse.Namespace) -> Any:
    """The state after meta-training from these parameters, with one learned step size for each array."""
    steps, seen, start = options.meta_steps, [], time.perf_counter()
    inner = ax.Inner(STEPS, ax.stepsize.Learned(alpha, per="leaf"), optimizer=_ADAM)

    def report(state, record):
        seen.extend(record["loss"].tolist())
        if len(seen) % 25 == 0:
            print(f"{len(seen)} meta-steps, {time.perf_counter() - start:.0f} s: {np.mean(seen[-25:]):.3f} nats", flush=True)

    return ax.train(
        problem, params, ax.MetaGradient(inner, curvature=ax.curvature.FirstOrder()), steps=steps,
        optimizer=outer_optimizer(steps, rate, OUTER_RATES), tasks_per_step=options.tasks_per_step,
        seed=0, callback=report,
    )[0]  # fmt: skip


if __name__ == "__main__":
    main()
