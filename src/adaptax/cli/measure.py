"""`adaptax measure`: the theory's constants and a certificate of stationarity, at the newest checkpoint of a run."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adaptax as ax
from adaptax import theory
from adaptax.cli.building import Built, mean_stepsize
from adaptax.cli.evaluate import finite, load, of_run, open_run
from adaptax.cli.families import FAMILIES
from adaptax.cli.saved import from_saved, with_network
from adaptax.cli.training import Training
from adaptax.errors import InputError
from adaptax.report import tables
from adaptax.theory.powers import power
from adaptax.training.step import State

if TYPE_CHECKING:
    from adaptax.cli.commands import Measure, Plan

_CONSTANTS = ("L", "lam", "mu", "rho", "sigma", "b")


def measure(options: "Measure") -> int:
    """Measure, and print the result."""
    run, saved = open_run(options.run)
    config = _measurable(with_network(from_saved(saved, str(options.run)), options.model, options.run))
    with of_run(config, options.run):
        built, state = load(run, saved, config)
        result = measured(config, built, state, options)
    print(json.dumps(result, indent=2) if options.format == "json" else tables.measured(result))
    return 0


def measured(config: Training, built: Built, state: State, options: "Measure") -> dict[str, Any]:
    """Constants and certificate as a dict for JSON; None where a number is not finite."""
    inner, few = state.inner, min(options.tasks, config.constants_tasks)
    constants = ax.measure.constants(built.problem, state.params, inner, tasks=few, seed=options.seed)
    # The mean of biased products is no meta-gradient, so the norm is that of the exact one.
    found = ax.measure.stationarity(
        built.problem, state.params, ax.MetaGradient(inner), epsilon=options.epsilon, tasks=options.tasks, seed=options.seed
    )
    alpha, several = mean_stepsize(inner), isinstance(inner.stepsize, ax.stepsize.LearnedRates)
    L, lam, mu = (getattr(constants, name).value for name in ("L", "lam", "mu"))
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
        # The bounds are those of one step size; with one for each parameter their mean says nothing of them.
        "q": None if several else finite(power(alpha * L, 2 * inner.steps)),
        "r": None if several else finite(1 + max(alpha * mu, alpha * lam - 2)),
        "two_sided_q": None if several else finite(power(max(alpha * mu, alpha * lam - 2), 2 * inner.steps)),
        "two_sided_alpha": finite(theory.two_sided_alpha(lam, mu, max(inner.steps, 1))) if lam > 0 else None,
        "tasks": found.tasks,
        **{name: finite(getattr(found, name)) for name in names},
        "epsilon": options.epsilon,
        "stationary": found.stationary,
        "more_tasks": found.more_tasks,
        "verdict": found.verdict,
        "limits": list(config.limits()),
    }


def for_plan(options: "Plan", name: str) -> theory.Constants:
    """Constants of a task at its initial parameters, or of a run at its newest checkpoint.

    All losses of these tasks are at least 0, so that the loss after adaptation bounds the gap.
    """
    if name in FAMILIES:
        built = _measurable(dataclasses.replace(FAMILIES[name](), seed=options.seed)).build()
        params = built.params
    else:
        run, saved = open_run(Path(name))
        config = _measurable(from_saved(saved, name))
        with of_run(config, Path(name)):
            built, state = load(run, saved, config)
        params = state.params
    known = built.method.inner
    inner = ax.Inner(options.inner_steps, ax.stepsize.Guaranteed(options.gamma), start=known.start)
    found = ax.measure.constants(built.problem, params, inner, tasks=options.tasks, seed=options.seed)
    loss = ax.evaluate(built.problem, params, inner, [options.inner_steps], max(options.tasks, 2), options.seed).mean["loss"][0]
    values = {n: getattr(found, n).value for n in ("L", "lam", "mu", "rho", "sigma", "sigma_g", "sigma_H", "b")}
    if bad := [n for n, value in {**values, "gap": loss}.items() if not math.isfinite(value)]:
        raise InputError(f"{bad[0]} is not finite at these parameters: measure other ones, or train with another step size.")
    # Where all curvature met is negative, the inner loss has none from above.
    values["lam"] = max(values["lam"], 0.0)
    return theory.Constants(**values, gap=float(loss))


def _measurable(config: Training) -> Training:
    """The options; `InputError` if the constants of their family cannot be measured."""
    if config.not_measured is not None:
        raise InputError(config.not_measured)
    return config
