"""Minutes of training until 90 % on unseen alphabets, 5-way 1-shot: adaptax with its defaults, and the peers' own examples.

    make bench-env && python benchmarks/time_to_accuracy.py --data FOLDER [--minutes 12]

FOLDER holds images_background_small1.zip, on which all sides train, and images_background_small2.zip, whose alphabets that
are not in the first one give 500 fixed tasks by which all are judged (5 queries a class, the batch's statistics), with the
best number of inner steps for each. A side's clock runs from its first compilation to the end of its last meta-step and
stands still while it is judged; adaptax trains as `adaptax train images` does, every side until it is at 90 %, a peer until
--minutes are over at most. The peers' algorithm is learn2learn's, the fastest of them (`peers.py`), with the settings of two of
their published Omniglot examples and Conv4-64; classes are turned in all of them. Writes results/time_to_accuracy.json.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import description
from peers import PEER_PYTHON, require_peers
from tables import rows_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "time_to_accuracy.json"
WAYS, SHOTS, QUERIES, TASKS = 5, 1, 5, 500
GOAL = 0.9
# Inner steps, inner step size, outer learning rate, tasks a meta-step, queries a class.
PEERS = {
    "learn2learn's example": (1, 0.5, 0.003, 32, 1),
    "TorchOpt's and higher's example": (5, 0.1, 0.001, 32, 15),
}


class Reached(Exception):
    """The goal is reached."""


def write(data: Path, path: Path):
    """The training images, and the tasks to judge by, which are returned with their alphabets."""
    import jax

    import adaptax as ax

    train, other = (ax.tasks.read_characters(data / f"images_background_small{n}.zip") for n in (1, 2))
    test, _ = ax.tasks.held_out(other, train)
    problem = ax.tasks.few_shot(test, WAYS, SHOTS, QUERIES, rotations=False)
    tasks = jax.jit(jax.vmap(problem.sample_task))(jax.random.split(jax.random.key(1), TASKS))
    arrays = {"train": train.images} | {
        f"{part}_{axis}": np.asarray(value)
        for part in ("support", "target")
        for axis, value in zip("xy", getattr(tasks, part), strict=True)
    }
    np.savez(path, **arrays)
    return tasks, list(test.alphabets)


def adaptax(data: Path, tasks, every: int) -> dict:
    """Train with the defaults of `adaptax train images`, and judge every few meta-steps."""
    import jax

    import adaptax as ax
    from adaptax.cli.families import Images

    config = Images(data=data / "images_background_small1.zip", test_data=data / "images_background_small2.zip")
    built = config.build()
    counts = sorted({config.inner_steps, 2 * config.inner_steps})
    judged_on = ax.Task(tasks.support, (tasks.support, tasks.target))
    record, spent = [], 0.0
    began = time.perf_counter()

    def judge(state, _):
        nonlocal spent
        jax.block_until_ready(state.params)
        start = time.perf_counter()
        if int(state.step) - (record[-1]["step"] if record else 0) < every:
            return
        best = float(ax.evaluate(built.held_out, state.params, state.inner, counts, judged_on).mean["accuracy"].max())
        record.append({"step": int(state.step), "seconds": start - began - spent, "accuracy": best})
        print(record[-1], flush=True)
        spent += time.perf_counter() - start
        if best >= GOAL:
            raise Reached

    with contextlib.suppress(Reached):
        ax.train(
            built.problem, built.params, built.method, optimizer=built.optimizer, steps=config.steps,
            tasks_per_step=config.tasks_per_step, seed=config.seed, callback=judge,
        )  # fmt: skip
    settings = (
        f"defaults: N = {config.inner_steps}, step sizes by {config.stepsize}, Conv4-{config.channels}, {config.adapt} adapts"
    )
    return {"settings": settings, "curve": record}


def peer(name: str, inputs: Path, minutes: float) -> dict:
    """One of the peers' examples, in a process of its own."""
    steps, stepsize, rate, tasks, queries = PEERS[name]
    out = inputs.with_name("out.json")
    numbers = [steps, stepsize, rate, tasks, queries, 60 * minutes, GOAL, os.cpu_count()]
    subprocess.run([str(PEER_PYTHON), str(HERE / "accuracy_torch.py"), str(inputs), str(out), *map(str, numbers)], check=True)
    images = "query image" if queries == 1 else "query images"
    settings = f"N = {steps}, α = {stepsize}, Adam {rate}, {tasks} tasks, {queries} {images} a class"
    return {"settings": settings, "curve": json.loads(out.read_text())}


def reached(curve: list[dict]) -> float | None:
    """Seconds until the goal, if it was reached; accuracies are sums of single-precision numbers."""
    return next((entry["seconds"] for entry in curve if entry["accuracy"] >= GOAL - 1e-6), None)


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    ours = reached(result["sides"]["adaptax"]["curve"])
    rows = []
    for name, side in result["sides"].items():
        time, last = reached(side["curve"]), side["curve"][-1]
        best = max(entry["accuracy"] for entry in side["curve"])
        if time is None:
            when = f"not in {last['seconds'] / 60:.1f} minutes (best {100 * best:.1f} %)"
            ratio = "" if ours is None else f"over {last['seconds'] / ours:.1f} x"
        else:
            when, ratio = f"{time / 60:.1f} minutes", "" if ours is None else f"{time / ours:.1f} x"
        rows.append([name, side["settings"], when, ratio])
    return ["", "settings", f"{100 * GOAL:.0f} % after", "adaptax is sooner by"], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two zips")
    parser.add_argument("--minutes", type=float, default=12, help="longest training of a peer")
    parser.add_argument("--every", type=int, default=50, help="meta-steps between looks at adaptax")
    options = parser.parse_args()
    require_peers()
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "data.npz"
        tasks, alphabets = write(options.data, inputs)
        sides = {"adaptax": adaptax(options.data, tasks, options.every)}
        for name in PEERS:
            sides[name] = peer(name, inputs, options.minutes)
    result = {"machine": description(), "tasks": TASKS, "alphabets": alphabets, "sides": sides}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
