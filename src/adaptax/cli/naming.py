"""What the library says of its functions' arguments (`ways=`), said of the options as typed (`--ways`). Imports no JAX."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptax.cli.options import flag, hints
from adaptax.errors import InputError

# Arguments that options of another name fill, with the function or class where it is not the same everywhere.
_FILLED_BY = {
    "Inner.steps": "inner_steps", "plan.steps": "inner_steps", "guaranteed_alpha.steps": "inner_steps",
    "Expansion.steps": "inner_steps", "evaluate.steps": "evaluation_steps", "tasks": "evaluation_tasks", "sizes": "hidden",
    "Samples.step": "trajectories", "Samples.curvature": "trajectories", "Samples.target": "trajectories",
    "gamma": "stepsize", "C_beta": "c_beta", "image": "size",
}  # fmt: skip
# What only Python offers goes, and a remedy that is given for both is that of the command line.
_PYTHON_ONLY = [
    (r", or let it measure more often \(every=\)", ""),
    (r"(?:a rule such as )?ax(?:\.\w+)+(?:\(\))? \((--[^()]+)\)", r"\1"),
]
_VALUE = r"""'[^']*'|"[^"]*"|\([^()]*\)|\[[^\]]*\]|[^\s,;:()'"\[\]]+"""
_CALL = re.compile(rf"\b(\w+)\((\w+)(?:\[\d+\])?=({_VALUE})\)")
_ARGUMENT = re.compile(rf"(?<![\w.\-(])(\w+)(?:\[\d+\])?=({_VALUE})?")


@contextlib.contextmanager
def as_typed(kind: type, sources: Callable[[], Mapping[str, Any]] = dict, **renamed: str) -> Iterator[None]:
    """Refusals and warnings from inside are told in the options of a class.

    Arguments:
        kind: the class of options.
        sources: the file or run that options come from, by name; asked for where a refusal is told.
        renamed: the options that arguments come from, where it is not the usual one.
    """
    shown, known = warnings.showwarning, {name: flag(name) for name in hints(kind)}

    def show(message, category, *rest, **more):
        if not category.__module__.startswith("adaptax"):
            return shown(message, category, *rest, **more)
        import sys

        return print(told(str(message), known, renamed), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except InputError as error:
            raise InputError(_with_source(told(str(error), known, renamed), sources())) from error


def told(message: str, known: Mapping[str, str], renamed: Mapping[str, str] | None = None) -> str:
    """A message with options in place of the arguments that they fill.

    Arguments:
        message: in the library's words.
        known: the options as they are typed, by name.
        renamed: as for `as_typed`.

    Example:
        >>> known = {"ways": "--ways", "steps": "--steps", "inner_steps": "--inner-steps"}
        >>> told("few_shot(ways=1) must be a whole number of at least 2: change ways=.", known)
        '--ways 1 must be a whole number of at least 2: change --ways.'
        >>> told("Inner(steps=-1) must be a whole number of at least 0: change steps=.", known)
        '--inner-steps -1 must be a whole number of at least 0: change --inner-steps.'
    """
    where = ""
    for pattern, text in _PYTHON_ONLY:
        message = re.sub(pattern, text, message)

    def option(name: str) -> str | None:
        for wanted in ((renamed or {}).get(name), _FILLED_BY.get(f"{where}.{name}"), name, _FILLED_BY.get(name)):
            if wanted is not None and wanted in known:
                return known[wanted]
        return None

    def call(found: re.Match) -> str:
        nonlocal where
        where = found[1]
        name = option(found[2])
        return found[0] if name is None else _written(name, found[3])

    def argument(found: re.Match) -> str:
        name, value = option(found[1]), found[2] or ""
        if name is None:
            return found[0]
        end = value[len(value.rstrip(".")) :]
        return _written(name, value.rstrip(".")) + end

    message = _ARGUMENT.sub(argument, _CALL.sub(call, message))
    return message.replace("C_beta", known.get("c_beta", "C_beta"))


def _written(name: str, value: str) -> str:
    if value in ("", "True", "..."):
        return name
    if value == "False":
        return name.replace("--", "--no-", 1)
    words = value.strip("()[]'\"").replace(",", " ").split()
    return " ".join([name, *words])


def _with_source(message: str, sources: Mapping[str, Any]) -> str:
    """The message after the file that the first option in it comes from, unless it begins with a path."""
    for name, where in sources.items():
        if re.search(rf"(?<![\w-]){flag(name)}(?![\w-])", message) and not message.startswith(str(where)):
            return f"{where}: {message}"
    return message


def origins(arguments: list[str], names: Mapping[str, Any], where: Path | str) -> dict[str, Any]:
    """The options among `names` that are not among the arguments, each with the file or run that they come from."""
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    return {name: where for name in names if not {flag(name), flag(f"no_{name}")} & typed}
