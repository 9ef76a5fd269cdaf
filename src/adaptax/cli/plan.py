"""`adaptax plan`: the most that an accuracy can cost."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptax import theory
from adaptax.cli.families import FAMILIES
from adaptax.cli.naming import told
from adaptax.cli.options import Mark, marked
from adaptax.cli.saved import read_file
from adaptax.errors import InputError
from adaptax.report import tables

if TYPE_CHECKING:
    from adaptax.cli.commands import Plan

_NAMES = [field.name for field in dataclasses.fields(theory.Constants)]
_LOCAL = (
    "The constants were measured at the parameters at hand and along inner paths there: lower estimates of suprema over all "
    "parameters, so that this plan is a diagnostic, not a guarantee."
)


def plan(options: "Plan") -> int:
    """Print the plan for constants from a file or measured ones. Without measuring, JAX is not imported."""
    if (options.constants is None) == (options.measure is None):
        raise InputError("adaptax plan needs constants: give either --constants FILE or --measure TASK (or a run folder).")
    if (options.rule == "two-sided") != (options.adapted_gradient is not None):
        raise InputError("--rule two-sided needs --adapted-gradient NUMBER, and no other rule takes it: give both or neither.")
    if options.rule == "guaranteed" and options.spread is not None:
        raise InputError("--spread is for --rule two-sided: leave it out.")
    if options.constants is not None:
        constants, said = read_constants(options.constants), []
    else:
        constants, said = measured(options), [_LOCAL]
    made = theory.plan(
        constants, epsilon=options.epsilon, steps=options.inner_steps, case=options.case, gamma=options.gamma,
        C_beta=None if options.optimise_c_beta else options.c_beta, rule=options.rule, gamma_plus=options.gamma_plus,
        adapted_gradient=options.adapted_gradient, spread=options.spread,
    )  # fmt: skip
    if options.format == "json":
        print(json.dumps(dataclasses.asdict(made) | {"oracle_calls": made.oracle_calls}, indent=2))
        return 0
    known = ", ".join(f"{name} = {value:.4g}" for name in _NAMES if (value := getattr(constants, name)) is not None)
    table = tables.table(["quantity", "value", "meaning"], made.rows(), left=(0, 2))
    print("\n".join([f"Constants: {known}.", "", table, "", made.explain(), *said]))
    return 0


def read_constants(path: Path) -> theory.Constants:
    """Constants from a JSON or TOML file with L, rho, sigma, gap, and any of the others that are known."""
    values = read_file(path, "--constants")
    if unknown := sorted(set(values) - set(_NAMES)):
        raise InputError(f"--constants {path} sets {unknown[0]!r}, which is no constant: use {', '.join(_NAMES)}.")
    if missing := [name for name in ("L", "rho", "sigma", "gap") if name not in values]:
        raise InputError(f"--constants {path} does not say {missing[0]}: add it.")
    known: dict[str, Any] = values
    try:
        return theory.Constants(**known)
    except InputError as error:
        raise InputError(f"--constants {path}: {told(str(error), {name: name for name in _NAMES})}") from None


def measured(options: "Plan") -> theory.Constants:
    """Constants as measured on a task or a run."""
    name, family = options.measure or "", FAMILIES.get(options.measure or "")
    if family is None and not Path(name, "config.json").is_file():
        known = [n for n, kind in FAMILIES.items() if kind.not_measured is None and not marked(kind, Mark.DATA)]
        raise InputError(f"There is no task and no run {name!r}: give {', '.join(known)}, or the folder of a run.")
    if family is not None and marked(family, Mark.DATA):
        raise InputError(f"--measure {name} has no data to measure on: train first, and give the run folder instead.")
    from adaptax.cli.measure import for_plan

    return for_plan(options, name)
