"""Ablations on characters (what adapts, N, step sizes, augmentation), judged on a held-out alphabet of Omniglot's set 1.

    python benchmarks/ablations.py --data FOLDER [--steps 1500] [--only NAME ...] [--held-out ALPHABET]

FOLDER holds images_background_small1.zip. The recipes are compared on an alphabet of it that none of them trained on; set 2, by
which the result is judged (`learning.py`), chooses nothing. Writes results/ablations.json; rows of other recipes are kept.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import optax
from machine import measurement
from tables import RESULTS, kept

import adaptax as ax

WAYS, SHOTS, QUERIES, TASKS, HELD_OUT = 5, 1, 5, 16, 1000


def _of_head(path: str) -> bool:
    return path.startswith("head")


def _by_leaf_and_step() -> ax.stepsize.Learned:
    return ax.stepsize.Learned(0.1, per="leaf", per_step=True)


# Differences from the base: five steps of 0.1 on the last layer, which all classes share at first; classes turned, images
# distorted; Conv4-32; 5 queries; Adam at 0.001.
RECIPES: dict[str, dict] = {
    "base": {},
    "the whole network adapts": {"adapt": None},
    "the whole network adapts, α = 0.4": {"adapt": None, "stepsize": lambda: 0.4},
    "a vector for each class from the start": {"shared": False},
    "N = 1": {"steps": 1},
    "N = 10": {"steps": 10},
    "α = 0.4": {"stepsize": lambda: 0.4},
    "N = 10, α = 0.4": {"steps": 10, "stepsize": lambda: 0.4},
    "Edge": {"stepsize": lambda: ax.stepsize.Edge()},
    "N = 10, Edge": {"steps": 10, "stepsize": lambda: ax.stepsize.Edge()},
    "N = 10, learned α by leaf and step": {"steps": 10, "stepsize": _by_leaf_and_step},
    "Guaranteed": {"stepsize": lambda: ax.stepsize.Guaranteed()},
    "learned α by leaf and step": {"stepsize": _by_leaf_and_step},
    "outer rate falls as a cosine": {"cosine": True},
    "not distorted": {"distort": None},
    "distorted more": {"distort": (0.35, 0.3, 2.0, 0.2)},
    "not turned": {"rotations": False},
    "15 queries": {"queries": 15},
    "64 channels": {"channels": 64},
    "prototypical network": {"prototypical": True},
}


def run(recipe: dict, train: ax.tasks.Characters, test: ax.tasks.Characters, steps: int, seed: int) -> dict:
    """Train on some characters and judge on others, which are neither turned nor distorted."""
    distort = recipe.get("distort", (0.25, 0.2, 2.0, 0.0))
    distortion = None if distort is None else ax.tasks.Affine(*distort)
    queries = recipe.get("queries", QUERIES)
    problem = ax.tasks.few_shot(train, WAYS, SHOTS, queries, rotations=recipe.get("rotations", True), distortion=distortion)
    judged = ax.tasks.few_shot(test, WAYS, SHOTS, QUERIES, rotations=False)
    shared = recipe.get("shared", True)
    params = ax.models.conv4(1 if shared else WAYS, key=jax.random.key(seed), channels=recipe.get("channels", 32))
    start = ax.models.shared_head(WAYS) if shared else None
    inner = ax.Inner(recipe.get("steps", 5), recipe.get("stepsize", lambda: 0.1)(), recipe.get("adapt", _of_head), start=start)
    if recipe.get("prototypical"):
        problem, judged, inner = ax.tasks.prototypical(problem), ax.tasks.prototypical(judged), ax.Inner(0, 1.0)
    rate = optax.cosine_decay_schedule(1e-3, steps) if recipe.get("cosine") else 1e-3
    began = time.perf_counter()
    state, history = ax.train(
        problem, params, ax.MetaGradient(inner), optimizer=optax.adam(rate), steps=steps, tasks_per_step=TASKS, seed=seed
    )
    minutes = (time.perf_counter() - began) / 60
    counts = sorted({0, inner.steps, 2 * inner.steps})
    curve = ax.evaluate(judged, state.params, state.inner, counts, HELD_OUT)

    def part(which) -> list[float]:
        return [round(float(x), 5) for x in which["accuracy"]]

    return {
        "steps": steps, "seed": seed, "minutes": round(minutes, 2), "skipped": int(history["skipped"].sum()),
        "inner_steps": curve.steps.tolist(), "accuracy": part(curve.mean), "low": part(curve.low), "high": part(curve.high),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder with the two zips")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", default="Latin", metavar="ALPHABET", help="alphabet of set 1 to judge by (default: Latin)"
    )
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    everything = ax.tasks.read_characters(options.data / "images_background_small1.zip")
    train = everything.without_alphabets([options.held_out])
    test = everything.without_alphabets([a for a in everything.alphabets if a != options.held_out])
    path = RESULTS / "ablations.json"
    rows = kept("ablations", "rows")
    for name in options.only:
        row = {"recipe": name, "judged_on": list(test.alphabets)}
        row |= run(RECIPES[name], train, test, options.steps, options.seed)
        row["accelerator"] = None if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
        row["measured"] = measurement(parser, options)
        key = ("recipe", "judged_on", "steps", "seed")
        rows = [r for r in rows if [r[k] for k in key] != [row[k] for k in key]] + [row]
        path.write_text(json.dumps(measurement(parser, options) | {"rows": rows}, indent=1) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
