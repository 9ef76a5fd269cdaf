"""A byte-level transformer adapts to a new writer: low-rank adapters beside all parameters, meta-trained and not.

    python benchmarks/writers.py [--pretrain 600] [--meta-steps 80]

Writers are the modules of Python's standard library, 30 of them held out and 15 for choosing step sizes. A task is a writer:
the support set is two stretches of 128 bytes from a random place, the target set the two after them. The network is first
trained on all writers together, as language models are; each row then adapts it by three steps. Meta-training goes on from
there, with an outer step size of 1e-3: the default of 1e-2 is for networks that begin at random. Prints a table and writes
results/writers.json.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from byte_transformer import LENGTH, initial, loss, standard_library
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax
from adaptax.training.outer_defaults import outer_optimizer

STRETCHES, STEPS, RANK = 2, 3, 8
HELD_OUT, VALIDATION = 30, 15
# Step sizes that are tried on the validation writers, for the rows without meta-training.
GRID = (0.01, 0.1, 0.3, 1.0, 10.0, 30.0, 100.0)
# Tasks of evaluation, and of the choice of a step size.
TASKS, FEW = 60, 12


def problem_of(texts: list[np.ndarray], of: Any, stretches: int = STRETCHES) -> ax.FiniteSum:
    """Tasks of these writers; `of` makes the network's parameters of what is trained."""
    starts = jnp.asarray(np.concatenate([[0], np.cumsum([len(text) for text in texts])[:-1]]))
    sizes, letters = jnp.asarray([len(text) for text in texts]), jnp.asarray(np.concatenate(texts))
    span = 2 * stretches * LENGTH + 1

    def sample_task(key):
        who, where = jax.random.split(key)
        writer = jax.random.randint(who, (), 0, len(texts))
        first = starts[writer] + jax.random.randint(where, (), 0, sizes[writer] - span)
        rows = first + LENGTH * jnp.arange(2 * stretches)[:, None] + jnp.arange(LENGTH + 1)
        return ax.Task(letters[rows[:stretches]], letters[rows[stretches:]])

    return ax.FiniteSum(lambda w, text: loss(of(w), text), sample_task)


def curve(problem: ax.FiniteSum, params: Any, inner: ax.Inner, tasks: int, seed: int) -> dict:
    """The loss on the target sets before and after the steps, by task."""
    found = ax.evaluate(problem, params, inner, steps=[0, 1, STEPS], tasks=tasks, seed=seed)
    half = (found.high["loss"] - found.low["loss"]) / 2
    return {"steps": [0, 1, STEPS], "mean": found.mean["loss"].tolist(), "half_width": half.tolist()}


def tuned(problem: ax.FiniteSum, params: Any) -> float:
    """The step size of the grid with the lowest loss on the validation writers."""
    found = {alpha: curve(problem, params, ax.Inner(STEPS, alpha), FEW, 7)["mean"][-1] for alpha in GRID}
    return min(found, key=lambda alpha: found[alpha] if np.isfinite(found[alpha]) else np.inf)


def table(result: dict) -> str:
    """One row for each way to adapt, as markdown."""
    body = []
    for row in result["rows"]:
        losses = [f"{m:.3f} ± {h:.3f}" for m, h in zip(row["mean"], row["half_width"], strict=True)]
        body.append([row["name"], f"{row['adapting']:,}", *losses, f"{row['seconds']:.0f}"])
    return rows_of(["what adapts", "numbers", "before", "after 1 step", f"after {STEPS} steps", "seconds to train"], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrain", type=int, default=600, help="steps on all writers together")
    parser.add_argument("--meta-steps", type=int, default=80)
    parser.add_argument("--tasks-per-step", type=int, default=2)
    options = parser.parse_args()
    texts = list(standard_library().values())
    order = np.random.default_rng(0).permutation(len(texts))
    held_out, validation, training = ([texts[i] for i in part] for part in np.split(order, [HELD_OUT, HELD_OUT + VALIDATION]))
    own, merged = (lambda w: w), (lambda w: w.merged())
    base, pooled = initial(jax.random.key(0)), problem_of(training, own, 1)
    start = time.perf_counter()
    without = ax.MetaGradient(ax.Inner(0, 1.0))
    adam = outer_optimizer(optax.adam, 2e-3, options.pretrain, 1.0)
    slower = outer_optimizer(optax.adam, 1e-3, options.meta_steps, 1.0)
    base = ax.train(pooled, base, without, steps=options.pretrain, tasks_per_step=8, optimizer=adam, seed=0)[0].params
    pretraining = time.perf_counter() - start
    print(f"trained on all writers in {pretraining:.0f} s", flush=True)
    adapters = ax.models.lora(base, rank=RANK, where=lambda path: path.startswith("layers.") and "scale" not in path,
                              key=jax.random.key(1))  # fmt: skip
    sizes = {"all": sum(leaf.size for leaf in jax.tree.leaves(base)), "adapters": adapters.size}
    result = measurement(parser, options) | {
        "writers": [len(training), len(validation), len(held_out)], "pretraining_seconds": pretraining, "rows": [],
    }  # fmt: skip

    def add(name, kind, params, inner, of, seconds):
        found = curve(problem_of(held_out, of), params, inner, TASKS, 11)
        result["rows"].append({"name": name, "adapting": sizes[kind], "seconds": seconds, **found})
        print(table(result | {"rows": result["rows"][-1:]}), flush=True)
        (RESULTS / "writers.json").write_text(json.dumps(result, indent=1) + "\n")

    for kind, params, of in (("adapters", adapters, merged), ("all", base, own)):
        what = "low-rank adapters" if kind == "adapters" else "all parameters"
        alpha = tuned(problem_of(validation, of), params)
        add(f"{what}, not meta-trained, α = {alpha:g}", kind, params, ax.Inner(STEPS, alpha), of, pretraining)
        start = time.perf_counter()
        state, _ = ax.train(
            problem_of(training, of), params, ax.MetaGradient(ax.Inner(STEPS)), steps=options.meta_steps,
            tasks_per_step=options.tasks_per_step, optimizer=slower, seed=0,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        add(f"{what}, meta-trained", kind, state.params, state.inner, of, pretraining + seconds)


if __name__ == "__main__":
    main()
