"""The meta-gradient beside the twenty lines of plain JAX that it replaces: time and compiled memory against N.

    python benchmarks/plain_jax.py [--case sinusoid transformer conv4] [--steps 2 8 32 128] [--rounds 3]

Plain JAX is `jit(vmap(grad(scan)))` (`peer_jax.py`), without and with `jax.checkpoint` around the inner step; the tasks of
Conv4 and of the transformer also go in turn (`lax.map`), which takes less memory. Every side has the same inputs, one device
and one core, and the sides take turns in every round. Memory is what a compiled program sets aside for temporary values. A form
that asks for more than --most-gib, or that would take more than --most-seconds, is compiled and not run. Prints one table and
writes results/plain_jax.json row by row; other rows in it are kept.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_transformer as text
import peer_adaptax
import peer_inputs
import peer_jax
from machine import measurement
from tables import RESULTS, kept, rows_of, spread

TITLES = {
    "sinusoid": "MLP 1-40-40-1, 25 tasks of 10 + 10 points",
    "transformer": "transformer, 4 layers, 128 wide, 64 letters, 2 tasks of 4 + 4 texts",
    "conv4": "Conv4-64, 2 tasks of 5 + 25 pictures, 28×28",
}
MODES = ("auto", "backprop")
PLAIN = {
    "plain": (False, False),
    "checkpoint": (True, False),
    "plain, in turn": (False, True),
    "checkpoint, in turn": (True, True),
}


def transformer(steps: int) -> tuple[dict[str, Callable], Callable]:
    """Ours by mode, and plain JAX by (checkpoint, in turn), on the same parameters and tasks."""
    import jax

    import adaptax as ax

    params = text.initial(jax.random.key(0), width=128)
    support, target = jax.random.randint(jax.random.key(1), (2, 2, 4, 65), 0, text.LETTERS)
    problem, stepsize = ax.FiniteSum(text.loss, lambda key: None), 0.01

    def ours(mode: str) -> Callable:
        method = ax.MetaGradient(ax.Inner(steps, stepsize), mode=mode)
        return lambda params: method.batch(problem, params, ax.Task(support, target))[:2]

    def plain(checkpoint: bool, in_turn: bool) -> Callable:
        run = peer_jax.over_tasks(peer_jax.meta_gradient(text.loss, steps, stepsize, checkpoint), in_turn)
        return lambda params: run(params, (support, target))

    return {name: (ours(name), params) for name in MODES} | {
        name: (plain(*how), params) for name, how in PLAIN.items()
    }  # fmt: skip


def from_inputs(case: str, steps: int, count: int, path: Path) -> dict[str, tuple[Callable, Any]]:
    """The same for a case of `peer_inputs.py`."""
    import jax

    import adaptax as ax

    problem, method, params, tasks = peer_adaptax.load(case, path, "float32")[:4]
    tasks = jax.tree.map(lambda leaf: leaf[:count], tasks)
    stepsize = method.inner.stepsize

    def ours(mode: str) -> Callable:
        method = ax.MetaGradient(ax.Inner(steps, stepsize), mode=mode)
        return lambda params: method.batch(problem, params, tasks)[:2]

    other, pairs, _, alpha = peer_jax.load(case, path, "float32")
    pairs = jax.tree.map(lambda leaf: leaf[:count], pairs)

    def plain(checkpoint: bool, in_turn: bool) -> Callable:
        run = peer_jax.over_tasks(peer_jax.meta_gradient(peer_jax.loss_of(case), steps, alpha, checkpoint), in_turn)
        return lambda params: run(params, pairs)

    kinds = {name: how for name, how in PLAIN.items() if case != "sinusoid" or not how[1]}
    return {name: (ours(name), params) for name in MODES} | {name: (plain(*how), other) for name, how in kinds.items()}


def measure(case: str, steps: int, rounds: int, most: tuple[float, float], folder: Path, before: dict | None) -> dict:
    """Seconds and temporaries of every form at one number of steps; `before` is the row of fewer steps."""
    import jax
    import jax.numpy as jnp

    if case == "transformer":
        forms = transformer(steps)
    else:
        path = folder / f"{case}.npz"
        if not path.exists():
            peer_inputs.write(case, path)
        forms = from_inputs(case, steps, {"sinusoid": 25, "conv4": 2}[case], path)
    programs, bytes_, norms = {}, {}, {}
    for name, (function, params) in forms.items():
        programs[name] = jax.jit(function).lower(params).compile(), params
        bytes_[name] = programs[name][0].memory_analysis().temp_size_in_bytes
        # A form that was left out before takes no less now.
        known = before["seconds"].get(name) if before is not None else [0.0]
        expected = None if known is None else statistics.median(known) * steps / (before or {"steps": steps})["steps"]
        if bytes_[name] > most[0] * 2**30 or expected is None or expected > most[1]:
            programs.pop(name)
            continue
        value, grad = programs[name][0](params)
        norms[name] = float(value), float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grad))))
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    # As many calls in a row as take about half a second.
    for _ in range(rounds):
        for name, (program, params) in programs.items():
            start, calls = time.perf_counter(), 0
            while calls < 1 or time.perf_counter() - start < 0.5:
                jax.block_until_ready(program(params))
                calls += 1
            seconds[name].append((time.perf_counter() - start) / calls)
    return {"case": case, "steps": steps, "seconds": seconds, "bytes": bytes_, "loss_and_norm": norms}


def table(rows: list[dict]) -> str:
    """Time and memory of the default, and of each form of plain JAX over it."""
    body = []
    for row in rows:
        ours = row["seconds"]["auto"]
        cells = [f"{1e3 * statistics.median(ours):.3g} ms, {row['bytes']['auto'] / 2**20:.3g} MiB"]
        for name in (*MODES[1:], *PLAIN):
            if name not in row["bytes"]:
                cells.append("")
                continue
            memory = f"{row['bytes'][name] / 2**20:.3g} MiB"
            found = row["seconds"].get(name)
            ratios = [b / a for a, b in zip(ours, found, strict=True)] if found else []
            cells.append(f"{spread(ratios, '{:.2f}')}, {memory}" if found else f"not run, {memory}")
        body.append([TITLES[row["case"]], str(row["steps"]), *cells])
    return rows_of(["network", "N", "adaptax", *(f"mode={name!r}" for name in MODES[1:]), *PLAIN], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=tuple(TITLES), default=list(TITLES))
    parser.add_argument("--steps", type=int, nargs="*", default=[2, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most-gib", type=float, default=6.0, help="forms that need more memory are not run")
    parser.add_argument("--most-seconds", type=float, default=40.0, help="forms whose calls take longer are not run")
    parser.add_argument("--core", type=int, default=None, help="the core (default: the first that may be used)")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0)) if options.core is None else options.core})
    described, rows, path = measurement(parser, options), kept("plain_jax", "rows"), RESULTS / "plain_jax.json"
    with tempfile.TemporaryDirectory() as folder:
        for case in options.case:
            row = None
            for steps in sorted(options.steps):
                row = measure(case, steps, options.rounds, (options.most_gib, options.most_seconds), Path(folder), row)
                rows = [old for old in rows if (old["case"], old["steps"]) != (case, steps)] + [row | {"measured": described}]
                rows.sort(key=lambda row: (list(TITLES).index(row["case"]), row["steps"]))
                path.write_text(json.dumps(described | {"rows": rows}, indent=1) + "\n")
                print(table([row]), row["loss_and_norm"], sep="\n", flush=True)


if __name__ == "__main__":
    main()
