"""Few-shot characters without an inner loop, and by fine-tuning: Omniglot's small background sets.

    python benchmarks/images.py --data FOLDER [--only prototypical pretrain] [--seeds 0 1 2]

FOLDER holds images_background_small1.zip, which trains, and images_background_small2.zip, which judges, as published. Runs
`adaptax train images` on 5-way 1-shot tasks, as a user would: prototypical networks, and networks that are trained to tell all
characters apart and then fine-tuned. `learning.py` has MAML on the same tasks, which the same program judges.

The fine-tuning of the pre-trained network is tuned as adaptax's own inner loop was (`ablations.py`): a network is trained with
one alphabet of set 1 held out, every number of steps and step size of the grid is judged on tasks of that alphabet, what adapts
too, and the best setting serves the network that is trained on all of set 1. The choice and the whole grid are saved with the
run. Writes results/images.json; other runs in it are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import measurement
from tables import RESULTS, kept

# The options that differ from the defaults, and the seeds.
RUNS: dict[str, tuple[list, tuple[int, ...]]] = {
    "prototypical": (["--method", "prototypical", "--inner-steps", 0], (0, 1, 2)),
    "pretrain": (["--method", "pretrain"], (0,)),
}
# Meta-steps, as the command line has them.
META_STEPS = 5000
# The alphabets that choose the fine-tuning, each held out in turn, and how many tasks of each.
HELD_OUT, TUNING_TASKS = ("Latin", "Korean"), 200
# The grid: step sizes, and numbers of steps for each choice of what adapts.
STEP_SIZES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
STEPS = {"head": (1, 2, 5, 10, 20, 50, 100), "everything": (1, 2, 5, 10, 20)}


def _of_head(path: str) -> bool:
    return path.startswith("head")


def tune(data: Path, meta_steps: int) -> list[dict]:
    """Every setting of the fine-tuning with its mean accuracy over the held-out alphabets, the best first."""
    import adaptax as ax

    everything = ax.tasks.read_characters(data / "images_background_small1.zip")
    found: dict[tuple, list[float]] = {}
    for alphabet in HELD_OUT:
        judged = everything.without_alphabets([name for name in everything.alphabets if name != alphabet])
        problem = ax.tasks.few_shot(judged, 5, 1, 5, rotations=False)
        params = ax.models.fresh_head(pretrained(everything.without_alphabets([alphabet]), meta_steps))
        for adapt, counts in STEPS.items():
            mask = _of_head if adapt == "head" else None
            for stepsize in STEP_SIZES:
                inner = ax.Inner(max(counts), stepsize, mask, start=ax.models.shared_head(5))
                curve = ax.evaluate(problem, params, inner, steps=counts, tasks=TUNING_TASKS, seed=1)
                for steps, accuracy in zip(counts, curve.mean["accuracy"].tolist(), strict=True):
                    found.setdefault((adapt, stepsize, steps), []).append(accuracy)
            print(f"tuning on {alphabet}, {adapt}: done", flush=True)
    rows = [
        {"adapt": adapt, "stepsize": stepsize, "inner_steps": steps, "accuracy": sum(each) / len(each)}
        for (adapt, stepsize, steps), each in found.items()
    ]
    return sorted(rows, key=lambda row: -row["accuracy"])


def pretrained(train: Any, meta_steps: int) -> Any:
    """A network that tells all these characters apart, trained as the command line trains it."""
    import jax
    import optax

    import adaptax as ax

    problem = ax.tasks.joint_classification(ax.tasks.few_shot(train, 5, 1, 5, distortion=ax.tasks.Affine()))
    params = ax.models.conv4(problem.loss.ways, key=jax.random.key(0), channels=32)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, meta_steps))
    method = ax.MetaGradient(ax.Inner(0, 1.0))
    return ax.train(problem, params, method, optimizer=optimizer, steps=meta_steps, tasks_per_step=16)[0].params


def run(name: str, seed: int, archives: Path, steps: int | None) -> dict:
    """Train and judge one run of the command line; with tuning before that of the pre-trained network."""
    adaptax, chosen = str(Path(sys.executable).parent / "adaptax"), {}
    data, test = (archives / f"images_background_small{n}.zip" for n in (1, 2))
    options = ["--data", data, "--test-data", test, "--seed", seed, *RUNS[name][0]]
    options += [] if steps is None else ["--steps", steps]
    if name == "pretrain":
        tuned = tune(archives, META_STEPS if steps is None else steps)
        best = tuned[0]
        options += ["--inner-steps", best["inner_steps"], "--stepsize", best["stepsize"], "--adapt", best["adapt"]]
        chosen = {"tuned_on": list(HELD_OUT), "tuned": tuned}
    with tempfile.TemporaryDirectory() as out:
        folder = Path(out) / "run"
        subprocess.run([adaptax, "train", "images", *map(str, options), "--out", str(folder)], check=True)
        told = subprocess.run(
            [adaptax, "evaluate", str(folder), "--format", "json"], check=True, capture_output=True, text=True
        )
        saved = json.loads((folder / "config.json").read_text())
    config = {key: (saved["defaults"] | saved)[key] for key in ("ways", "shots", "queries", "channels", "adapt")}
    # The evaluation's own seed, that of the held-out tasks, is the same for all.
    told = json.loads(told.stdout)
    return {**told, **chosen, "name": name, "seed": seed, "config": config}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder with the two zips")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", help="seeds of each (default: 0; of prototypical also 1 and 2)")
    parser.add_argument("--steps", type=int, help="meta-steps of each run (default: as the command line has them)")
    options = parser.parse_args()
    path = RESULTS / "images.json"
    runs = kept("images", "runs")
    for name in options.only:
        for seed in options.seeds or RUNS[name][1]:
            new = run(name, seed, options.data, options.steps) | {"measured": measurement(parser, options)}
            runs = [old for old in runs if (old["name"], old["seed"]) != (name, seed)] + [new]
            path.write_text(json.dumps(measurement(parser, options) | {"runs": runs}, indent=1) + "\n")
            print(f"{name}, seed {seed}: accuracy {new['scores']['accuracy']['mean'][-1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
