"""`adaptax train`."""

import contextlib
import sys
from typing import Any

import adaptax as ax
from adaptax._processes import on_first
from adaptax.cli import saved
from adaptax.cli.building import Built
from adaptax.cli.evaluate import judge, judged_with, load
from adaptax.cli.processes import is_silent
from adaptax.cli.progress import Progress
from adaptax.cli.training import Training
from adaptax.learner.load import FILE
from adaptax.report import tables
from adaptax.training.loop import Diverged
from adaptax.training.run import Run
from adaptax.training.shared_run import open_run
from adaptax.training.step import State


def train(config: Training) -> int:
    """Train from the beginning or from where the run stopped; then evaluate, print and save. Returns the exit code."""
    built = config.build()
    described = saved.describe(config)
    run = None if config.out is None else open_run(config.out)
    if run is not None and run.is_run(run.folder):
        _agree(run, config)
        if (result := run.evaluation()) is not None and result.get("trained", result["step"]) == config.steps == run.newest():
            on_first(lambda: _add_learner(Run(run.folder), config, result))
            print(tables.evaluation(result))
            print(f"{config.out} is finished: nothing was changed (--resume with more --steps goes on).")
            return 0
        with run:
            run.lock.take()  # so that nothing is said of a run that is in use
        _tell(run, config)
        # The run keeps its file as it was written.
        described = {**run.config(), "steps": config.steps}
    try:
        with Progress(config.task, config.steps, config.tasks_per_step, built.environment_steps) as progress:
            state, history = ax.train(
                built.problem, built.params, built.method,
                optimizer=built.optimizer, steps=config.steps, tasks_per_step=config.tasks_per_step, seed=config.seed,
                out=config.out, resume=run is not None, checkpoint_every=None if run is None else config.checkpoint_every,
                evaluate_every=config.evaluate_every, validation=built.validation, monitor_every=config.monitor_every,
                callback=progress, config=described, parameter_shards=config.parameter_shards,
            )  # fmt: skip
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
    with run or contextlib.nullcontext():
        if run is not None:
            run.lock.take()
        result = judge(config, built, state, history["skipped"].sum(), trained=config.steps)
        text = tables.evaluation(result)
        if run is not None:
            on_first(lambda: _save_learner(run, config, built, state, result))
            run.write_evaluation(result, text)
    print(text)
    return 0


def _save_learner(run: Run, config: Training, built: Built, state: State, result: dict[str, Any]) -> None:
    params, inner = judged_with(built, state)
    about = {"task": config.task, "step": result["step"], "seed": config.seed, "evaluation": result, **built.reading}
    ax.Learner(built.held_out, params, inner, samples=built.method.samples, about=about).save(run.folder / FILE)


def _add_learner(run: Run, config: Training, result: dict[str, Any]) -> None:
    """Write the learner of a run that was finished before there were learners."""
    if not (run.folder / FILE).is_file():
        _save_learner(run, config, *load(run, run.config(), config), result)


def _agree(run: Run, config: Training) -> None:
    """Refuse other options than those of the run; `--resume` may raise the number of meta-steps."""
    there = run.config()
    if config.resume and config.steps > there.get("steps", config.steps):
        there["steps"] = config.steps
    run.refuse(saved.differences(there, config, run.folder.name))


def _tell(run: Run, config: Training) -> None:
    message = f"{config.out}: going on from meta-step {run.newest()} of {config.steps}"
    if changes := run.changed_environment():
        message += f"; not bit for bit, for this run began with another environment ({'; '.join(changes)})"
    if not is_silent():
        print(message, file=sys.stderr)
