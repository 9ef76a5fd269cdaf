"""Which head, which inner step sizes, which augmentation: Omniglot's small background set 1, one alphabet of it held out.

    python benchmarks/ablations.py --data FOLDER [--steps 1000] [--only NAME ...]
    python benchmarks/ablations.py --data FOLDER --final NAME --steps 5000

The recipes are compared on an alphabet that none of them trained on; the unseen alphabets of set 2 choose nothing. With --final
one recipe trains on all of set 1 and is judged on the alphabets of set 2 that it has not seen. Writes results/ablations.json;
rows of other recipes are kept.
"""

import argparse
import functools
import json
import os
import time
from pathlib import Path

import jax
import optax
from machine import description

import adaptax as ax

WAYS, SHOTS, QUERIES, TASKS, HELD_OUT = 5, 1, 5, 16, 1000
RESULTS = Path(__file__).parent / "results" / "ablations.json"
_SHARED = {"start": ax.models.shared_head(WAYS)}
_LEAVES = {"stepsize": lambda: ax.stepsize.Learned(0.4, per="leaf", per_step=True)}
# What differs from five steps of 0.4 with a class vector for each class, rotations, distortions and Adam at 0.001.
RECIPES = {
    "one vector for each class": {},
    "shared class vector": _SHARED,
    "shared, learned rates": _SHARED | _LEAVES,
    "shared, learned rates, cosine": _SHARED | _LEAVES | {"cosine": True},
    "shared, Edge": _SHARED | {"stepsize": lambda: ax.stepsize.Edge(2.0)},
    "shared, one step": _SHARED | {"steps": 1},
    "shared, without distortion": _SHARED | {"distort": False},
    "shared, without rotations": _SHARED | {"rotations": False},
}


def run(recipe: dict, train: ax.tasks.Characters, test: ax.tasks.Characters, steps: int, seed: int) -> dict:
    """Train on some characters and judge on others, which are neither turned nor distorted."""
    distortion = ax.tasks.Affine(0.25, 0.2, 2.0, 0.0) if recipe.get("distort", True) else None
    sizes = (WAYS, SHOTS, QUERIES)
    problem = ax.tasks.few_shot(train, *sizes, rotations=recipe.get("rotations", True), distortion=distortion)
    judged = ax.tasks.few_shot(test, *sizes, rotations=False)
    start = recipe.get("start")
    params = ax.models.conv4(WAYS if start is None else 1, key=jax.random.key(seed), channels=32)
    inner = ax.Inner(recipe.get("steps", 5), recipe.get("stepsize", lambda: 0.4)(), start=start)
    rate = optax.cosine_decay_schedule(1e-3, steps) if recipe.get("cosine") else 1e-3
    began = time.perf_counter()
    state, history = ax.train(
        problem, params, ax.MetaGradient(inner), optimizer=optax.adam(rate), steps=steps, tasks_per_step=TASKS, seed=seed
    )
    minutes = (time.perf_counter() - began) / 60
    curve = ax.evaluate(judged, state.params, state.inner, [0, inner.steps, 2 * inner.steps], HELD_OUT)
    part = lambda which: [round(float(x), 5) for x in which["accuracy"]]  # noqa: E731
    return {
        "steps": steps, "seed": seed, "minutes": round(minutes, 2), "skipped": int(history["skipped"].sum()),
        "inner_steps": curve.steps.tolist(), "accuracy": part(curve.mean), "low": part(curve.low), "high": part(curve.high),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two zips")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--final", choices=list(RECIPES), metavar="NAME")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    read = functools.cache(lambda n: ax.tasks.read_characters(options.data / f"images_background_small{n}.zip"))
    everything = read(1)
    if options.final:
        train, (test, _) = everything, ax.tasks.held_out(read(2), everything)
        jobs = [options.final]
    else:
        held = everything.alphabets[-1]
        train = everything.without_alphabets([held])
        test = everything.without_alphabets([a for a in everything.alphabets if a != held])
        jobs = options.only
    saved = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": []}
    for name in jobs:
        row = {"recipe": name, "judged_on": list(test.alphabets), "final": bool(options.final)}
        row |= run(RECIPES[name], train, test, options.steps, options.seed)
        key = ("recipe", "final", "steps", "seed")
        saved["rows"] = [r for r in saved["rows"] if [r[k] for k in key] != [row[k] for k in key]] + [row]
        saved["machine"] = description()
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
