"""`adaptax measure`: the theory's constants and a certificate of stationarity, at the newest checkpoint of a run."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import adaptax as ax
from adaptax import theory
from adaptax.cli import settings
from adaptax.cli.build import Built, build
from adaptax.cli.configs import TASKS, Measure, Plan, Training
from adaptax.cli.environment_configs import Reinforcement
from adaptax.cli.evaluate import load, open_run
from adaptax.errors import InputError
from adaptax.report import tables
from adaptax.training.step import State

# Tasks that the constants are measured on, at most: each takes hundreds of products, which are dear on images.
_TASKS = {"images": 4}
_MOST = 32
_CONSTANTS = ("L", "lambda_max", "rho", "sigma", "b")


def measure(options: Measure) -> int:
    """Print what is measured."""
    run, saved = open_run(options.run)
    config = settings.from_saved(saved, str(options.run))
    _refuse_environments(config)
    settings.check_seed(options.seed)
    settings.check_count("--tasks", options.tasks, 8)
    if options.epsilon is not None and not 0 < options.epsilon < math.inf:
        raise InputError(f"--epsilon {options.epsilon} must be a positive number such as 0.1.")
    built, state = load(run, saved, config)
    result = measured(config, built, state, options)
    print(json.dumps(result, indent=2) if options.format == "json" else tables.measured(result))
    return 0


def measured(config: Training, built: Built, state: State, options: Measure) -> dict[str, Any]:
    """Constants and certificate as JSON has them; None where a number is not finite."""
    inner, few = state.inner, min(options.tasks, _TASKS.get(config.task, _MOST))
    constants = ax.measure.constants(built.problem, state.params, inner, tasks=few, seed=options.seed)
    # The mean of biased products is no meta-gradient, so the norm is that of the exact one.
    found = ax.measure.stationarity(
        built.problem, state.params, ax.MetaGradient(inner), epsilon=options.epsilon, tasks=options.tasks, seed=options.seed
    )
    alpha = float(np.mean(inner.stepsize))
    finite = lambda x: float(x) if x is not None and math.isfinite(x) else None  # noqa: E731
    growth = 2 * inner.steps * math.log1p(alpha * constants.L.value)
    names = ("squared_norm", "standard_error", "upper", "low", "high", "confidence")
    return {
        "task": config.task,
        "step": int(state.step),
        "inner_steps": inner.steps,
        "seed": options.seed,
        "constants_tasks": few,
        "constants": {n: [finite(x) for x in getattr(constants, n)] for n in _CONSTANTS},
        "points_skipped": constants.points_skipped,
        "alpha": finite(alpha),
        "q": finite(math.exp(growth)) if growth < 700 else None,
        "tasks": found.tasks,
        **{name: finite(getattr(found, name)) for name in names},
        "epsilon": options.epsilon,
        "stationary": found.stationary,
        "more_tasks": found.more_tasks,
        "verdict": found.verdict,
        "limits": list(_limits(config)),
    }


def for_plan(options: Plan, name: str) -> theory.Constants:
    """Constants of a task at its initial parameters, or of a run at its newest checkpoint.

    All losses of these tasks are at least 0, so that the loss after adaptation bounds the gap.
    """
    if name in TASKS:
        config = dataclasses.replace(TASKS[name](), seed=options.seed)
        _refuse_environments(config)
        built = build(config)
        params = built.params
    else:
        run, saved = open_run(Path(name))
        config = settings.from_saved(saved, name)
        _refuse_environments(config)
        built, state = load(run, saved, config)
        params = state.params
    known = built.method.inner
    inner = ax.Inner(options.steps, ax.stepsize.Guaranteed(options.gamma), start=known.start)
    found = ax.measure.constants(built.problem, params, inner, tasks=options.tasks, seed=options.seed)
    loss = ax.evaluate(built.problem, params, inner, [options.steps], max(options.tasks, 2), options.seed).mean["loss"][0]
    values = {n: getattr(found, n).value for n in ("L", "rho", "sigma", "sigma_g", "sigma_H", "b")}
    if bad := [n for n, value in {**values, "gap": loss}.items() if not math.isfinite(value)]:
        raise InputError(f"{bad[0]} is not finite at these parameters: measure other ones, or train with another step size.")
    return theory.Constants(**values, gap=float(loss))


def _refuse_environments(config: Training) -> None:
    if isinstance(config, Reinforcement):
        raise InputError(
            f"{config.task} has no support sets to measure constants on, and its losses have no known lower bound: "
            "use ax.measure.constants from Python, with a loss that is not normalised."
        )


def _limits(config: Training):
    """What these numbers are not."""
    yield "measured at one w and on its inner paths: lower estimates of suprema over all w"
    if config.task != "matrix":
        yield "the network has relu units and so no finite rho: its measured value grows as the radius of the difference falls"
    outside = [f"the {name} step size"] if (name := settings.canonical_stepsize(config.stepsize)).startswith("edge") else []
    outside += ["outer Adam"] if config.optimizer == "adam" else []
    if outside:
        yield f"no convergence theorem covers {' or '.join(outside)}"
