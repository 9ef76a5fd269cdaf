"""`adaptax train`."""

import sys
from typing import Any

import adaptax as ax
from adaptax.cli import settings
from adaptax.cli.build import build
from adaptax.cli.configs import Training
from adaptax.cli.evaluate import judge
from adaptax.cli.progress import Progress
from adaptax.errors import InputError
from adaptax.report import tables
from adaptax.training.run import Run


def train(config: Training) -> int:
    """Train from the beginning or from where the run stopped; then evaluate, print and save."""
    settings.check(config)
    built = build(config)
    described = settings.describe(config)
    run = None if config.out is None else Run(config.out)
    if run is not None and run.is_run(run.folder):
        described = _agree(run, described, config.resume)
        if (result := run.evaluation()) is not None and result.get("trained", result["step"]) == config.steps == run.newest():
            print(tables.evaluation(result))
            print(f"{config.out} is finished: nothing was changed (--resume with more --steps goes on).")
            return 0
        _tell(run, config)
        run.raise_steps(config.steps)
    with Progress(config.task, config.steps, config.tasks_per_step, built.environment_steps) as progress:
        state, history = ax.train(
            built.problem, built.params, built.method,
            optimizer=built.optimizer, steps=config.steps, tasks_per_step=config.tasks_per_step, seed=config.seed,
            out=config.out, resume=run is not None, checkpoint_every=None if run is None else config.checkpoint_every,
            evaluate_every=config.evaluate_every, validation=built.validation, monitor_every=config.monitor_every,
            callback=progress, config=described,
        )  # fmt: skip
    result = judge(config, built, state, history["skipped"].sum(), trained=config.steps)
    text = tables.evaluation(result)
    if run is not None:
        run.write_evaluation(result, text)
    print(text)
    return 0


def _agree(run: Run, described: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Refuse another configuration; `--resume` may raise the number of meta-steps, and data may have been moved."""
    saved = run.config()
    settings.from_saved(saved, run.folder.name)
    for name in ("data", "test_data"):
        digest = name + settings.DIGEST
        if digest in saved and saved[digest] == described.get(digest):
            described = {**described, name: saved.get(name)}
    steps = saved["steps"] if resume and described["steps"] > saved["steps"] else described["steps"]
    run.check({**described, "steps": steps}, resume=True)
    return described


def _tell(run: Run, config: Training) -> None:
    message = f"{config.out}: going on from meta-step {run.newest()} of {config.steps}"
    if changes := run.changed_environment():
        message += f"; not bit for bit, for this run began with another environment ({'; '.join(changes)})"
    print(message, file=sys.stderr)


def complete(config: Training, given: Any) -> Training:
    """The configuration with what lies under the given options: a run's saved ones (`--resume`) and a file's.

    Arguments:
        config: as parsed over the defaults.
        given: parses the given options over another configuration.
    """
    base, values = type(config)(), {}
    if config.config is not None:
        values = settings.read_file(config.config)
        out = settings.overlay(base, values, str(config.config)).out if config.out is None else config.out
    else:
        out = config.out
    if config.resume and out is not None:
        if not Run.is_run(out):
            raise InputError(f"There is no run in {out} to go on with: leave out --resume to start one.")
        saved = Run(out).config()
        settings.from_saved(saved, str(out))
        base = settings.overlay(base, settings.as_saved(saved), str(out))
    return given(settings.overlay(base, values, str(config.config)))
