"""Minutes of training until 90 % on unseen alphabets: one recipe in adaptax, in plain JAX and in PyTorch.

    make bench-env && python benchmarks/time_to_accuracy.py --data FOLDER [--adapt head everything] [--minutes 5]

FOLDER holds images_background_small1.zip, on which all sides train, and images_background_small2.zip, whose alphabets that are
not in the first one give 500 fixed tasks to judge by. The recipe (`recipe.py`) is the same for all: network, initial
parameters, optimiser, number of tasks, N, α, and what adapts, the last layer or the whole network. The batches are the same
too: adaptax's sampler draws them beforehand, classes turned and images distorted as in `adaptax train images`, and all read one
file. A side's clock runs from its first compilation to the end of its last meta-step and stands still while its parameters are
kept; one program judges what all have kept, after N inner steps. Every side may train for --steps meta-steps and --minutes.

The libraries' own published Omniglot examples are not here: those of TorchOpt and higher train on 1,200 of Omniglot's 1,623
characters and test on the rest, which is not what these two archives hold, and learn2learn does not build on Python 3.11.
Writes results/time_to_accuracy.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import recipe
from machine import measurement
from peers import PEER_PYTHON, require_peers
from tables import RESULTS, rows_of

HERE = Path(__file__).parent
JUDGED = 500
GOAL = 0.9
ADAPTS = {"head": "the last layer", "everything": "the whole network"}
SIDES = {
    "adaptax": ("accuracy_jax.py", "--side", "adaptax"),
    "plain JAX": ("accuracy_jax.py", "--side", "vmap"),
    "plain JAX, lax.map": ("accuracy_jax.py", "--side", "map"),
    "PyTorch, a process a core": ("accuracy_torch.py",),
}


def write(data: Path, folder: Path, steps: int):
    """The batches of all meta-steps, written; the tasks to judge by and their alphabets, returned."""
    import jax

    import adaptax as ax

    train, other = (ax.tasks.read_characters(data / f"images_background_small{n}.zip") for n in (1, 2))
    test, _ = ax.tasks.held_out(other, train)
    sizes = recipe.WAYS, recipe.SHOTS, recipe.QUERIES
    problem = ax.tasks.few_shot(train, *sizes, distortion=ax.tasks.Affine())
    judged = ax.tasks.few_shot(test, *sizes, rotations=False)

    @jax.jit
    def draw(key):
        tasks = jax.vmap(problem.sample_task)(jax.random.split(key, recipe.TASKS))
        return [jax.numpy.round(255 * images[..., 0]).astype("uint8") for images, _ in (tasks.support, tasks.target)]

    files = [
        np.lib.format.open_memmap(folder / f"{part}.npy", "w+", np.uint8, (steps, recipe.TASKS, recipe.WAYS * each, 28, 28))
        for part, each in recipe.PARTS.items()
    ]
    for step in range(steps):
        for file, images in zip(files, draw(jax.random.key(step)), strict=True):
            file[step] = np.asarray(images)
    tasks = jax.jit(jax.vmap(judged.sample_task))(jax.random.split(jax.random.key(2**32 - 1), JUDGED))
    return tasks, list(test.alphabets)


def judge(kept: Path, tasks, adapt: str) -> list[dict]:
    """The accuracy after N inner steps of everything that a side has kept."""
    import jax
    import jax.numpy as jnp
    from accuracy_jax import adapted_logits

    @jax.jit
    def accuracy(params):
        def right(task):
            logits = adapted_logits(params, task.support, task.target[0], adapt)
            return (logits.argmax(-1) == task.target[1]).mean()

        return jax.lax.map(right, tasks).mean()

    looks = json.loads((kept / "looks.json").read_text())
    for look in looks:
        with np.load(kept / f"{look['step']}.npz") as file:
            look["accuracy"] = float(accuracy({name: jnp.asarray(file[name]) for name in file.files}))
    return looks


def reached(curve: list[dict]) -> float | None:
    """Seconds until the goal, if it was reached; accuracies are means of single-precision numbers."""
    return next((look["seconds"] for look in curve if look["accuracy"] >= GOAL - 1e-6), None)


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """A row for each side and what adapts."""
    rows = []
    for adapt, sides in result["recipes"].items():
        ours = reached(sides["adaptax"])
        for name, curve in sides.items():
            time, last = reached(curve), curve[-1]
            pace = f"{1e3 * (last['seconds'] - curve[0]['seconds']) / max(last['step'] - curve[0]['step'], 1):,.0f} ms"
            if time is None:
                best = max(look["accuracy"] for look in curve)
                when, ratio = f"not in {last['seconds'] / 60:.1f} minutes (best {100 * best:.1f} %)", ""
            else:
                when, ratio = f"{time / 60:.2f} minutes", "" if ours is None else f"{time / ours:.2f} ×"
            rows.append([ADAPTS[adapt], name, f"{last['step']:,}", pace, when, ratio])
    return ["adapts", "side", "meta-steps", "a meta-step", f"{100 * GOAL:.0f} % after", "ratio to adaptax"], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="folder with the two zips")
    parser.add_argument("--adapt", nargs="*", choices=recipe.ADAPT, default=recipe.ADAPT, help="what the inner steps change")
    parser.add_argument("--steps", type=int, default=1000, help="meta-steps at most")
    parser.add_argument("--every", type=int, default=50, help="meta-steps between looks")
    parser.add_argument("--minutes", type=float, default=5, help="longest training of a side, up to its next look")
    options = parser.parse_args()
    require_peers()
    recipes: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks, alphabets = write(options.data, folder, options.steps)
        for adapt in options.adapt:
            recipes[adapt] = {}
            for side, (script, *words) in SIDES.items():
                kept = folder / f"{adapt} {side}"
                kept.mkdir()
                python = str(PEER_PYTHON) if script == "accuracy_torch.py" else sys.executable
                shared = ["--adapt", adapt, "--batches", str(folder), "--every", str(options.every), "--out", str(kept)]
                limit = ["--seconds", str(60 * options.minutes)]
                subprocess.run([python, str(HERE / script), *words, *shared, *limit], check=True, env=os.environ)
                recipes[adapt][side] = judge(kept, tasks, adapt)
                print(adapt, side, recipes[adapt][side][-1], flush=True)
    result = measurement(parser, options) | {"rounds": 1, "tasks": JUDGED, "alphabets": alphabets, "recipes": recipes}
    (RESULTS / "time_to_accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
