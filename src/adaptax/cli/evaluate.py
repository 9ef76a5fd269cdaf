"""`adaptax evaluate`, and the evaluation that ends `adaptax train`."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import adaptax as ax
from adaptax.cli import settings
from adaptax.cli.build import Built, build
from adaptax.cli.configs import Evaluate, Images, Training
from adaptax.errors import InputError
from adaptax.report import tables
from adaptax.training.run import Run
from adaptax.training.step import State, Step

# Of the held-out tasks, whatever the seed of the run.
SEED = 1


def evaluate(options: Evaluate) -> int:
    """Print the evaluation of a run's newest checkpoint, or of its best one if it was validated."""
    run, saved = open_run(options.run)
    config = _changed(settings.from_saved(saved, str(options.run)), options)
    settings.check_seed(options.seed)
    settings.check_count("--tasks", options.tasks, 2)
    settings.check_count("--steps", options.steps, 0)
    built, state = load(run, saved, config)
    skipped = run.history()["skipped"][: int(state.step)]
    result = judge(config, built, state, sum(skipped), options.seed, run.newest())
    print(json.dumps(result, indent=2) if options.format == "json" else tables.evaluation(result))
    return 0


def open_run(folder: Path) -> tuple[Run, dict[str, Any]]:
    """The run in a folder, and its saved options."""
    run = Run(folder)
    if not Run.is_run(run.folder):
        raise InputError(f"There is no run in {folder}: give the folder that adaptax train --out was given.")
    return run, run.config()


def load(run: Run, saved: dict[str, Any], config: Training) -> tuple[Built, State]:
    """What the options stand for, and the newest checkpoint, or with validation the best one."""
    built = build(config)
    _check_data(config, saved)
    like = _blank(built.step(config.tasks_per_step), built.params)
    best = None if built.validation is None else run.load_best(like)
    return built, run.load(like) if best is None else best


def judge(
    config: Training, built: Built, state: State, skipped: int, seed: int = SEED, trained: int | None = None
) -> dict[str, Any]:
    """Held-out scores after 0..M inner steps, with nothing in them that differs between two calls."""
    chosen = {} if built.validation is None else {"trained": trained}
    last = 2 * config.inner_steps if config.evaluation_steps is None else config.evaluation_steps
    # The step size in use at the end of training, never one measured on the held-out tasks.
    params, inner = (state.params, state.inner) if built.tuned is None else built.tuned(state)
    steps, held_out = range(last + 1), built.held_out
    if isinstance(held_out, ax.FiniteSum) and built.calibration is not None and hasattr(params, "moments"):
        held_out = ax.tasks.with_statistics(held_out, ax.training.step_statistics(built.calibration, params, inner, steps))
    curve = ax.evaluate(held_out, params, inner, steps, config.evaluation_tasks, seed, samples=built.method.samples)
    rule = settings.canonical_stepsize(config.stepsize)
    return {
        "task": config.task,
        "step": int(state.step),
        **chosen,
        "skipped": int(skipped),
        "inner_steps": config.inner_steps,
        "stepsize": float(np.mean(inner.stepsize)),
        "stepsize_rule": rule if rule.startswith(("edge", "guaranteed")) else "number",
        "tasks": config.evaluation_tasks,
        "seed": seed,
        "judged_on": built.judged_on,
        "left_out": list(built.left_out),
        "steps": curve.steps.tolist(),
        "scores": scores(curve),
    }


def scores(curve: ax.Curve) -> dict[str, dict[str, list[float | None]]]:
    """A curve as JSON has it: by metric, then mean, low and high; None where a number is not finite."""
    finite = lambda values: [x if math.isfinite(x) else None for x in values.tolist()]  # noqa: E731
    parts = {"mean": curve.mean, "low": curve.low, "high": curve.high}
    return {name: {part: finite(by_name[name]) for part, by_name in parts.items()} for name in sorted(curve.mean)}


def _changed(config: Training, options: Evaluate) -> Training:
    """The configuration with other numbers of tasks and steps, and the data where it lies now."""
    changes = {
        "evaluation_tasks": options.tasks,
        "evaluation_steps": options.steps,
        "data": options.data,
        "test_data": options.test_data,
    }
    for name in ("data", "test_data"):
        if changes[name] is not None and not isinstance(config, Images):
            raise InputError(f"{settings.option(name)} is for runs on images: leave it out for {config.task}.")
    return dataclasses.replace(config, **{name: value for name, value in changes.items() if value is not None})


def _check_data(config: Training, saved: dict[str, Any]) -> None:
    digests = settings.digests(config) if isinstance(config, Images) else {}
    for name, digest in digests.items():
        if saved.get(name) not in (None, digest):
            path = getattr(config, name.removesuffix(settings.DIGEST))
            raise InputError(f"'{path}' is not the file of this run, for its checksum differs: give the path of that one.")


def _blank(step: Step, params: Any) -> State:
    """A state of the right shapes; nothing is measured for it."""
    shapes = eqx.filter_eval_shape(step.init, params, 0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(fill, shapes)
