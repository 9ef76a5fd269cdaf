"""What checkpoints cost: their share of a run of Conv4, and how soon a run that was finished goes on.

    python benchmarks/checkpoint_cost.py [--every 50] [--rounds 5] [--tasks 4 16] [--steps 10000]

A Conv4 of 64 channels on 5-way 1-shot tasks of 28 x 28 images is trained for a few meta-steps at N = 5, and its state is saved
after each; the share is the time of one checkpoint over that of itself and `--every` meta-steps. The command's default is 16
tasks a meta-step. Then sinusoids are trained on the command line for `--steps` meta-steps, and commands are timed from start to
end in processes of their own: the same command again, which finds the run finished, the same with one meta-step more,
and `adaptax --help` beside them. Prints two tables and writes results/checkpoint_cost.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import measurement
from tables import RESULTS, rows_of

PROGRAM = "import sys; from adaptax.cli.main import main; sys.exit(main(sys.argv[1:]))"


def conv4(tasks: int, rounds: int, every: int) -> dict:
    """Seconds of a meta-step and of a checkpoint."""
    import jax
    import jax.numpy as jnp
    import optax

    import adaptax as ax
    from adaptax.training.run import Run

    def loss(network, batch):
        images, labels = batch
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(network(images)), labels[:, None], axis=1))

    def sample_task(key):
        images = jax.random.normal(key, (2, 5, 28, 28, 1))
        return ax.Task((images[0], jnp.arange(5)), (images[1], jnp.arange(5)))

    network = ax.models.conv4(5, key=jax.random.key(0), channels=64)
    step = ax.make_step(
        ax.FiniteSum(loss, sample_task), ax.MetaGradient(ax.Inner(5, 0.01)), optax.adam(1e-3), tasks_per_step=tasks
    )
    state = step.init(network, seed=0)
    state, _ = step(state)
    steps, saves = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        with run:
            run.create({"steps": rounds})
            for _ in range(rounds):
                start = time.perf_counter()
                state, _ = step(state)
                jax.block_until_ready(state)
                steps.append(time.perf_counter() - start)
                start = time.perf_counter()
                run.save(state)
                saves.append(time.perf_counter() - start)
    share = statistics.median(saves) / (every * statistics.median(steps) + statistics.median(saves))
    return {"meta_step_seconds": steps, "checkpoint_seconds": saves, "share": share}


def sinusoid(steps: int) -> dict:
    """Seconds of commands on a finished run, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as folder:

        def timed(*more: str) -> float:
            words = [sys.executable, "-c", PROGRAM, "train", "sinusoid", *more]
            start = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            return time.perf_counter() - start

        run = ["--steps", str(steps), "--inner-steps", "5", "--out", str(Path(folder) / "run")]
        return {
            "steps": steps,
            "first_seconds": timed(*run),
            "again_seconds": timed(*run),
            "one_more_seconds": timed(*run[2:], "--resume", "--steps", str(steps + 1)),
            "help_seconds": timed("--help"),
        }


def table(result: dict) -> str:
    """The share of checkpoints by tasks of a meta-step, and seconds of commands on a finished run, as markdown."""
    rows = []
    for tasks, found in result["conv4"].items():
        step, save = (statistics.median(found[name]) for name in ("meta_step_seconds", "checkpoint_seconds"))
        rows.append([tasks, f"{step:.3g} s", f"{save:.3g} s", f"{100 * found['share']:.2g} %"])
    every, sinusoids = result["settings"]["every"], result["sinusoid"]
    shares = rows_of(["tasks a meta-step", "a meta-step", "a checkpoint", f"share, one every {every} meta-steps"], rows)
    names = {
        "first": "the run",
        "again": "the same command again",
        "one_more": "one meta-step more",
        "help": "`adaptax --help`",
    }
    seconds = [[title, f"{sinusoids[f'{name}_seconds']:.3g} s"] for name, title in names.items()]
    return f"{shares}\n\n{rows_of(['sinusoids', 'from start to end'], seconds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="*", default=[4, 16], help="tasks of a meta-step")
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    by_tasks = {str(tasks): conv4(tasks, options.rounds, options.every) for tasks in options.tasks}
    result = measurement(parser, options) | {"conv4": by_tasks, "sinusoid": sinusoid(options.steps)}
    print(table(result))
    (RESULTS / "checkpoint_cost.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
