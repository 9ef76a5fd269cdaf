"""Test-time training: a byte-level transformer reads a text chunk by chunk, and learns from each chunk before the next one.

    python benchmarks/test_time_training.py [--base FILE] [--meta-steps 200]

Texts are modules of Python's standard library, 30 of them held out and 15 for choosing settings. Meta-training is on short
modules that the language model has not seen: on texts that it knows, other step sizes are best. A chunk is two stretches of
128 bytes, one after the other; each chunk's loss is taken before the step on it, so that every letter is predicted by a network
that has not seen it. All networks begin with the same language model. One is meta-trained: its outer loss is the mean of the
losses along the path (`ax.Sequential(outer="path")`), the meta-gradient is of first order, and one factor for each array of
step sizes is learned. Another one goes on as a language model for as many seconds. Networks that are not meta-trained are
adapted by whichever of three ways and step sizes does best on the validation texts; the meta-trained one begins with the best
preconditioned one of the common start. Prints a table and writes results/test_time_training.json.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
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
    train,
)
from machine import measurement
from tables import RESULTS, rows_of

import adaptax as ax

STRETCHES, CHUNKS = 2, 32
# Chunks of a text in meta-training, and where settings are chosen.
FEW, TUNED = 8, 16
# Ways to adapt, with the step sizes at which the search on the validation texts begins. That of the last one is divided
# for each parameter by the root mean square of its gradients on training texts, to which the mean over its array is added.
WAYS = {"gradient descent": 0.25, "Adam": 4e-4, "preconditioned": 7e-4}
CURVATURES = {"first": ax.curvature.FirstOrder(), "exact": ax.curvature.Exact()}
# The columns of the table: the first and the last chunk, counted from 1.
SPANS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32))
# The largest outer step sizes of Adam, of the parameters and of the step sizes; the baseline's.
OUTER, OUTER_RATES, GOING_ON = 1e-4, 3e-2, 5e-4


def chunks_of(text: Any, first: int, chunks: int) -> Any:
    """Chunks (chunks, stretches, 129) of a text from a place on."""
    return cut(text, first, chunks * STRETCHES).reshape(chunks, STRETCHES, -1)


def problem_of(texts: Sequence[np.ndarray], chunks: int = FEW) -> ax.Sequential:
    """A task is the chunks of a text from a random place on."""
    draw = sampler(texts, chunks * STRETCHES)
    return ax.Sequential(loss, lambda key: ax.Task(draw(key).reshape(chunks, STRETCHES, -1)), outer="path")


def scale(w: Any, texts: Sequence[np.ndarray], chunks: int = 64) -> Any:
    """One over the root mean square of each parameter's gradient on chunks of these texts, with an array's mean added to it."""
    tasks = jax.vmap(problem_of(texts, 1).sample_task)(jax.random.split(jax.random.key(3), chunks))
    squares = jax.tree.map(jnp.zeros_like, w)
    gradient = jax.jit(jax.grad(loss))
    for chunk in tasks.support[:, 0]:
        squares = jax.tree.map(lambda s, g: s + g**2 / chunks, squares, gradient(w, chunk))
    return jax.tree.map(lambda s: 1 / (jnp.sqrt(s) + jnp.mean(jnp.sqrt(s))), squares)


def inner_of(kind: str, stepsize: float, chunks: int, scales: Any) -> ax.Inner:
    """The inner loop of this kind."""
    if kind == "Adam":
        return ax.Inner(chunks, stepsize, optimizer=_ADAM)
    if kind == "preconditioned":
        return ax.Inner(chunks, ax.stepsize.LearnedRates.of(jax.tree.map(lambda s: stepsize * s, scales)))
    return ax.Inner(chunks, stepsize)


_ADAM = optax.adam(1.0)
_PROBLEM = ax.Sequential(loss, lambda key: None, outer="path")


@eqx.filter_jit
def _adapted(params, inner, chunks):
    return ax.adapt(_PROBLEM, params, ax.Task(chunks), inner).losses


@jax.jit
def _fixed(params, chunks):
    return jax.lax.map(lambda chunk: loss(params, chunk), chunks)


def losses(params: Any, inner: ax.Inner | None, texts: Sequence[np.ndarray], chunks: int, places: int) -> np.ndarray:
    """Losses (texts, chunks) before each step, the mean over places that are spread over each text; None takes no steps."""
    found = []
    for text in texts:
        for first in np.linspace(0, len(text) - chunks * STRETCHES * LENGTH - 1, places).astype(int):
            batch = chunks_of(text, int(first), chunks)
            found.append(_fixed(params, batch) if inner is None else _adapted(params, inner, batch))
    return np.asarray(jax.device_get(found)).reshape(len(texts), places, chunks).mean(1)


def tuned(params: Any, texts: Sequence[np.ndarray], scales: Any, first: dict[str, float]) -> dict[str, dict]:
    """For each way to adapt the step size with the lowest mean loss on the validation texts, that loss, and all tried.

    Step sizes are searched by factors of two, and then those of the best way by the root of two.
    """
    found = {}

    def search(kind, stepsize, factor):
        best, tried = climb(
            lambda a: losses(params, inner_of(kind, a, TUNED, scales), texts, TUNED, 1).mean(), stepsize, factor
        )
        tried = dict(found.get(kind, {"tried": []})["tried"]) | tried
        found[kind] = {"stepsize": best, "loss": tried[best], "tried": sorted(tried.items())}
        print(kind, {f"{a:.2g}": round(value, 4) for a, value in sorted(tried.items())}, flush=True)

    for kind, stepsize in first.items():
        search(kind, stepsize, 2.0)
    best = min(found, key=lambda kind: found[kind]["loss"])
    search(best, found[best]["stepsize"], 2**0.5)
    return found


def meta_train(params: Any, texts: Sequence[np.ndarray], rates: Any, options: argparse.Namespace) -> tuple[ax.Meta, list]:
    """Meta-train a network and one factor for each array of these step sizes; the outer loss of each meta-step too."""
    free, steps = jax.tree.map(lambda leaf: jnp.zeros(()), params), options.meta_steps
    optimizer = outer_optimizer(steps, OUTER, OUTER_RATES)
    method = ax.MetaGradient(ax.Inner(FEW, ax.stepsize.Learned(1.0, growth=None)), curvature=CURVATURES[options.curvature])
    start, seen = time.perf_counter(), []

    def report(state, record):
        seen.extend(record["loss"].tolist())
        if len(seen) % 20 == 0:
            print(f"{len(seen)} meta-steps, {time.perf_counter() - start:.0f} s: {np.mean(seen[-20:]):.3f} nats", flush=True)

    state, history = ax.train(
        problem_of(texts), ax.Meta(params, ax.stepsize.LearnedRates(rates, free)), method, optimizer=optimizer, steps=steps,
        tasks_per_step=options.tasks_per_step, seed=0, callback=report,
    )  # fmt: skip
    return state.params, history["loss"].tolist()


def spans(found: np.ndarray) -> list[list[float]]:
    """Means over texts with half intervals: in each span of chunks, and over all chunks."""
    return [interval(found[:, a - 1 : b].mean(1)) for a, b in SPANS] + [interval(found.mean(1))]


def table(result: dict) -> str:
    """Losses by position, then differences, as markdown."""
    header = [f"chunk {a}" if a == b else f"{a}-{b}" for a, b in SPANS] + [f"all {CHUNKS}"]
    rows = [[row["name"], *(f"{mean:.3f} ± {half:.3f}" for mean, half in row["spans"])] for row in result["rows"]]
    differences = [[d["name"], *(f"{mean:+.3f} ± {half:.3f}" for mean, half in d["spans"])] for d in result["differences"]]
    return rows_of(["nats a byte", *header], rows) + "\n\n" + rows_of(["difference, by text", *header], differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--meta-steps", type=int, default=200)
    parser.add_argument("--tasks-per-step", type=int, default=1)
    parser.add_argument("--curvature", choices=CURVATURES, default="first", help="the order of the meta-gradient")
    parser.add_argument("--texts", type=int, default=30, help="held-out texts")
    parser.add_argument("--places", type=int, default=1, help="places of each held-out text where reading begins")
    options = parser.parse_args()
    held_out, validation, training, short = parts(standard_library())
    held_out, validation = held_out[: options.texts], validation[: options.texts]
    start, steps, seconds = base(options, training)
    result = measurement(parser, options) | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(start)),
        "texts": [len(training), len(short), len(validation), len(held_out)],
        "pretraining": {"steps": steps, "seconds": seconds}, "ways": {}, "rows": [], "differences": [],
    }  # fmt: skip
    found = {}

    def add(name, params, inner):
        for how, steps_of in (("as it is", None), ("adapted", inner)):
            found[name, how] = losses(params, steps_of, held_out, CHUNKS, options.places)
            row = {"name": f"{name}, {how}", "chunks": found[name, how].mean(0).tolist(), "spans": spans(found[name, how])}
            result["rows"].append(row)
        change = spans(found[name, "adapted"] - found[name, "as it is"])
        result["differences"].append({"name": f"{name}: adapted less as it is", "spans": change})
        save()

    def save():
        print(table(result), flush=True)
        (RESULTS / "test_time_training.json").write_text(json.dumps(result, indent=1) + "\n")

    def chosen(name, params, scales, first):
        ways = tuned(params, validation, scales, first)
        kind = min(ways, key=lambda kind: ways[kind]["loss"])
        result["ways"][name] = {"chosen": kind} | ways
        return inner_of(kind, ways[kind]["stepsize"], CHUNKS, scales), {kind: way["stepsize"] for kind, way in ways.items()}

    scales = scale(start, training)
    inner, first = chosen("common start", start, scales, WAYS)
    add("common start", start, inner)
    clock = time.perf_counter()
    rates = jax.tree.map(lambda s: first["preconditioned"] * s, scales)
    meta, history = meta_train(start, short, rates, options)
    seconds = time.perf_counter() - clock
    factors = jax.tree.map(lambda theta: float(np.exp(ax.stepsize.learned.SPEED * theta)), meta.stepsize.free)
    result["meta_training"] = {"seconds": seconds, "stepsize": first["preconditioned"], "losses": history, "factors": factors}
    add("meta-trained", meta.params, ax.Inner(CHUNKS, meta.stepsize))
    clock = time.perf_counter()
    further, steps = train(start, training + short, GOING_ON, seconds=seconds, seed=1)
    result["going_on"] = {"steps": steps, "seconds": time.perf_counter() - clock}
    scales = scale(further, training)
    add("language model for as long", further, chosen("language model for as long", further, scales, first)[0])
    gap = found["meta-trained", "adapted"] - found["language model for as long", "adapted"]
    result["differences"].append({"name": "adapted: meta-trained less language model for as long", "spans": spans(gap)})
    save()


if __name__ == "__main__":
    main()
