"""`adaptax evaluate`, and the evaluation that ends `adaptax train`."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adaptax as ax
from adaptax.cli.building import Built, mean_stepsize
from adaptax.cli.naming import as_typed, origins
from adaptax.cli.options import Mark, canonical_stepsize, flag, hints, is_rule, marked
from adaptax.cli.saved import check_data, from_saved, with_network
from adaptax.cli.training import Training
from adaptax.errors import InputError
from adaptax.learner.load import read_state
from adaptax.models.protocol import HasMoments, offers
from adaptax.report import tables
from adaptax.training import shared_run
from adaptax.training.run import Run
from adaptax.training.step import State

if TYPE_CHECKING:
    from adaptax.cli.commands import Evaluate

# The seed of the held-out tasks, whatever the seed of the run.
SEED = 1


def evaluate(options: "Evaluate") -> int:
    """Print the evaluation of a run's newest checkpoint, or of its best one if it was validated."""
    run, saved = open_run(options.run)
    config = _changed(with_network(from_saved(saved, str(options.run)), options.model, options.run), options)
    with of_run(config, options.run, options):
        built, state = load(run, saved, config)
        skipped = run.history(int(state.step))["skipped"]
        result = judge(config, built, state, sum(skipped), options.seed, run.newest())
    print(json.dumps(result, indent=2) if options.format == "json" else tables.evaluation(result))
    return 0


def of_run(config: Training, folder: Path, options: Any = None) -> contextlib.AbstractContextManager[None]:
    """Refusals name the options that the run was begun with, after the run, and paths of data that are given here."""
    given = [flag(name) for name in marked(type(options), Mark.DATA) if getattr(options, name)] if options else []
    return as_typed(type(config), lambda: origins(given, hints(type(config)), folder))


def open_run(folder: Path) -> tuple[Run, dict[str, Any]]:
    """The run in a folder, and its saved options."""
    run = shared_run.open_run(folder)
    if not run.is_run(run.folder):
        raise InputError(f"There is no run in {folder}: give the folder that adaptax train --out was given.")
    return run, run.config()


def load(run: Run, saved: dict[str, Any], config: Training) -> tuple[Built, State]:
    """Build what the options describe, and read the newest checkpoint, or the best one of a run with --validation."""
    built = config.build()
    check_data(saved, config)
    step = built.step(config.tasks_per_step)
    return built, read_state(run, step, built.params, best=built.validation is not None)


def judge(
    config: Training, built: Built, state: State, skipped: int, seed: int = SEED, trained: int | None = None
) -> dict[str, Any]:
    """Held-out scores after 0..M inner steps; two calls return the same, since no times and no paths are in them."""
    chosen = {} if built.validation is None else {"trained": trained}
    # The step size in use at the end of training, never one measured on the held-out tasks.
    params, inner = judged_with(built, state)
    steps, held_out = range(config.last_step() + 1), built.held_out
    if isinstance(held_out, ax.FiniteSum) and built.calibration is not None and offers(params, HasMoments):
        held_out = ax.tasks.with_statistics(held_out, ax.training.step_statistics(built.calibration, params, inner, steps))
    options = {"samples": built.method.samples, "parameter_shards": config.parameter_shards}
    curve = ax.evaluate(held_out, params, inner, steps, config.evaluation_tasks, seed, **options)
    rule = canonical_stepsize(config.stepsize)
    return {
        "task": config.task,
        "step": int(state.step),
        **chosen,
        "skipped": int(skipped),
        "inner_steps": config.inner_steps,
        "stepsize": finite(mean_stepsize(inner)),
        "stepsize_rule": rule if is_rule(rule) else "number",
        "tasks": config.evaluation_tasks,
        "seed": seed,
        "judged_on": built.judged_on,
        "left_out": list(built.left_out),
        "steps": curve.steps.tolist(),
        "scores": scores(curve),
        **({"not_finite": curve.not_finite.tolist()} if curve.not_finite.any() else {}),
    }


def judged_with(built: Built, state: State) -> tuple[Any, ax.Inner]:
    """The parameters and the inner loop that a state is judged with."""
    return (state.params, state.inner) if built.tuned is None else built.tuned(state)


def scores(curve: ax.Curve) -> dict[str, dict[str, list[float | None]]]:
    """A curve as a dict for JSON: by metric, then mean, low and high; None where a number is not finite."""
    parts = {"mean": curve.mean, "low": curve.low, "high": curve.high}
    names = sorted(curve.mean)
    return {name: {part: [finite(x) for x in by_name[name].tolist()] for part, by_name in parts.items()} for name in names}


def finite(number: Any) -> float | None:
    """A number for JSON: None where there is none, or it is not finite."""
    return float(number) if number is not None and math.isfinite(number) else None


def _changed(config: Training, options: "Evaluate") -> Training:
    """The configuration with other numbers of tasks and steps, and the data where they lie now."""
    data = {name: path for name in marked(type(options), Mark.DATA) if (path := getattr(options, name)) is not None}
    for name in data:
        if name not in marked(type(config), Mark.DATA):
            raise InputError(f"{flag(name)} is for runs that read data from files: leave it out for {config.task}.")
    numbers = {"evaluation_tasks": options.tasks, "evaluation_steps": options.inner_steps}
    return dataclasses.replace(config, **{name: value for name, value in numbers.items() if value is not None}, **data)
