"""`adaptax plan`: what an accuracy costs at most."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from adaptax import theory
from adaptax.cli import settings
from adaptax.cli.configs import TASKS, Plan
from adaptax.errors import InputError
from adaptax.report import tables

_NAMES = [field.name for field in dataclasses.fields(theory.Constants)]
_LOCAL = (
    "The constants were measured at the parameters at hand and along inner paths there: lower estimates of suprema over all "
    "parameters, so that this plan is a diagnostic, not a guarantee."
)


def plan(options: Plan) -> int:
    """Print the plan for constants from a file or measured ones. Without measuring, JAX is not imported."""
    if (options.constants is None) == (options.measure is None):
        raise InputError("adaptax plan needs constants: give either --constants FILE or --measure TASK (or a run folder).")
    settings.check_count("--steps", options.steps, 1)
    settings.check_count("--tasks", options.tasks, 2)
    settings.check_seed(options.seed)
    if options.constants is not None:
        constants, said = read_constants(options.constants), []
    else:
        constants, said = measured(options), [_LOCAL]
    made = theory.plan(
        constants, epsilon=options.epsilon, steps=options.steps, case=options.case, gamma=options.gamma,
        C_beta=None if options.optimise_c_beta else options.c_beta,
    )  # fmt: skip
    if options.format == "json":
        print(json.dumps(dataclasses.asdict(made) | {"oracle_calls": made.oracle_calls}, indent=2))
        return 0
    known = ", ".join(f"{name} = {value:.4g}" for name in _NAMES if (value := getattr(constants, name)) is not None)
    table = tables.table(["quantity", "value", "meaning"], made.rows(), left=(0, 2))
    print("\n".join([f"Constants: {known}.", "", table, "", made.explain(), *said]))
    return 0


def read_constants(path: Path) -> theory.Constants:
    """Constants from a JSON or TOML file with L, rho, sigma, gap, and what else is known."""
    values = settings.read_file(path, "--constants")
    if unknown := sorted(set(values) - set(_NAMES)):
        raise InputError(f"--constants {path} sets {unknown[0]!r}, which is no constant: use {', '.join(_NAMES)}.")
    if missing := [name for name in ("L", "rho", "sigma", "gap") if name not in values]:
        raise InputError(f"--constants {path} does not say {missing[0]}: add it.")
    known: dict[str, Any] = values
    try:
        return theory.Constants(**known)
    except InputError as error:
        raise InputError(f"--constants {path}: {error}") from None


def measured(options: Plan) -> theory.Constants:
    """Constants as measured on a task or a run."""
    name = options.measure or ""
    if name not in TASKS and not Path(name, "config.json").is_file():
        raise InputError(f"There is no task and no run {name!r}: give sinusoid, matrix, or the folder of a run.")
    if name == "images":
        raise InputError("--measure images has no data to measure on: train first, and give the run folder instead.")
    from adaptax.cli.measure import for_plan

    return for_plan(options, name)
