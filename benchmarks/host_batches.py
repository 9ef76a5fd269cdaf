"""Tasks a second from batches of the host: `ax.train(tasks=)` beside a loop of one meta-step a batch.

    python benchmarks/host_batches.py [--rounds 3]

Rows: 25 sinusoid tasks of 10 points a batch, made by NumPy. Rows, slow host: the same, and the host needs two milliseconds more
for each batch, as one that decodes does. Images: `ax.tasks.episodes` of random pictures of 28 x 28 pixels, 4 tasks of 5-way
1-shot a batch, `conv4` with 8 channels. N = 5 at a fixed step size, one device. The loop calls `ax.make_step` for each batch
and reads nothing back. Compiling is left out. Prints one table and writes results/host_batches.json.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from machine import measurement
from tables import RESULTS, rows_of, spread

import adaptax as ax

DELAY = 0.002


def waves(delay: float = 0.0, tasks: int = 25, points: int = 10) -> Iterator[ax.Task]:
    """Batches of sinusoid tasks."""
    random = np.random.default_rng(0)
    while True:
        time.sleep(delay)
        amplitude, phase = random.uniform((0.1, 0.0), (5.0, np.pi), (tasks, 2)).astype(np.float32).T[..., None, None]
        x = random.uniform(-5, 5, (2, tasks, points, 1)).astype(np.float32)
        y = amplitude * np.sin(x - phase)
        yield ax.Task((x[0], y[0]), (x[1], y[1]))


def cases() -> dict[str, tuple[ax.FiniteSum, Any, float, int, Any, int]]:
    """Problem, parameters, step size, tasks a batch, a function that begins the batches, and meta-steps of one measurement."""
    sinusoid, mlp = ax.tasks.sinusoid(), ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
    random = np.random.default_rng(0)
    images = ax.tasks.ImageClasses(random.integers(0, 256, (400, 28, 28, 1), np.uint8), tuple(map(str, range(20))), (20,) * 20)
    characters = ax.tasks.few_shot(images, 5, 1, 5, keep="host")
    conv4 = ax.models.conv4(5, key=jax.random.key(0), channels=8)
    return {
        "rows": (sinusoid, mlp, 0.003, 25, waves, 800),
        "rows, slow host": (sinusoid, mlp, 0.003, 25, lambda: waves(DELAY), 800),
        "images": (characters, conv4, 0.1, 4, lambda: ax.tasks.episodes(characters, 4), 64),
    }


def seconds(name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of both sides, in turns."""
    problem, params, alpha, tasks, begin, steps = cases()[name]
    method, adam = ax.MetaGradient(ax.Inner(5, alpha)), optax.adam(1e-3)
    step = ax.make_step(problem, method, adam, tasks_per_step=tasks)

    def loop(steps):
        state = step.init(params, seed=0)
        for batch in itertools.islice(begin(), steps):
            state, _ = step(state, batch)
        return state

    def trained(steps):
        more = {"optimizer": adam, "devices": jax.devices()[:1], "tasks": begin()}
        return ax.train(problem, params, method, steps=steps, tasks_per_step=tasks, seed=0, **more)[0]

    found: dict[str, list[float]] = {"loop": [], "train": []}
    for turn in range(rounds + 1):
        for side, run in (("loop", loop), ("train", trained)):
            start = time.perf_counter()
            jax.block_until_ready(run(steps).params)
            if turn:
                found[side].append(time.perf_counter() - start)
    return {side: [s / steps for s in values] for side, values in found.items()}


def table(result: dict) -> str:
    """Tasks a second of both sides and the ratio, as markdown."""
    body = []
    for name, row in result["cases"].items():
        rates = [[row["tasks"] / s for s in row[side]] for side in ("loop", "train")]
        ratios = [a / b for a, b in zip(row["loop"], row["train"], strict=True)]
        body.append([name, *(spread(rate, "{:,.0f}") for rate in rates), spread(ratios, "{:.2f}")])
    return rows_of(["batches", "a loop of one step a batch, tasks a second", "`ax.train(tasks=)`", "ratio"], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result = measurement(parser, options) | {"cases": {}}
    for name, case in cases().items():
        result["cases"][name] = {"tasks": case[3], **seconds(name, options.rounds)}
        print(table(result), flush=True)
    (RESULTS / "host_batches.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
