"""The parser, and one sentence instead of its page where the arguments cannot be parsed. Imports no JAX."""

import contextlib
import difflib
import io
import sys
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from adaptax.cli.configs import EXPERIMENTS, TASKS, Demo, Evaluate, Film, Measure, Plan
from adaptax.errors import InputError

_COMMANDS: dict[str, type | None] = {
    "train": None,
    "evaluate": Evaluate,
    "measure": Measure,
    "film": Film,
    "plan": Plan,
    "demo": Demo,
    "reproduce": None,
}
# What a command that is none of its own takes first, and what it is called.
_NEXT: dict[str, tuple[str, dict[str, Any]]] = {"train": ("task", TASKS), "reproduce": ("experiment", EXPERIMENTS)}


def parse(kind: Any, arguments: list[str], whole: list[str], **options: Any) -> Any:
    """`tyro.cli`, whose complaint becomes an `InputError`.

    Arguments:
        kind: what to parse into.
        arguments: what to parse.
        whole: all arguments of the program, from which the complaint is made.
        options: of `tyro.cli`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(kind, args=arguments, **options)
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        raise InputError(complaint(whole) or _reflow(said.getvalue())) from None
    sys.stderr.write(said.getvalue())
    return parsed


def complaint(arguments: list[str]) -> str | None:
    """What is wrong with the arguments and what to change, or None if nothing is found.

    Example:
        >>> complaint(["train", "sinusoid", "--step", "3"])
        'adaptax train sinusoid has no option --step: did you mean --steps?'
        >>> complaint(["train", "sinusoid", "--steps", "many"])
        '--steps many cannot be used: make it a whole number.'
    """
    prog, what, kinds = "adaptax", "command", _COMMANDS
    while True:
        if not arguments or arguments[0].startswith("-"):
            return f"{prog} needs {'an' if what == 'experiment' else 'a'} {what} first: {prog} {'|'.join(kinds)}."
        name, *arguments = arguments
        if name not in kinds:
            return f"There is no {what} {name!r}: {_remedy(name, kinds, f'use {prog} ' + '|'.join(kinds) + '.')}"
        prog, kind = f"{prog} {name}", kinds[name]
        if kind is not None:
            return _complaint(prog, kind, arguments)
        what, kinds = _NEXT[name]


def _complaint(prog: str, kind: type, arguments: list[str]) -> str | None:
    """The same for the arguments of one command."""
    hints = get_type_hints(kind)
    positional = 1 if "run" in hints else 0
    options = {"--" + name.replace("_", "-"): hint for name, hint in hints.items() if name not in ("run", "task")}
    flags = {option.replace("--", prefix, 1) for option, hint in options.items() if hint is bool for prefix in ("--", "--no-")}
    flags.discard("--no-resume")
    while arguments:
        token, *arguments = arguments
        if not token.startswith("-"):
            positional -= 1
            if positional < 0:
                return f"{prog} can do nothing with {token!r}: leave it out, or see {prog} --help."
            continue
        written, equals, value = token.partition("=")
        name = written.replace("_", "-")
        if name in flags or name in ("-h", "--help"):
            continue
        if name not in options:
            return f"{prog} has no option {written}: {_remedy(name, [*options, *flags], f'see {prog} --help.')}"
        values = [value] if equals else arguments[: _run(arguments)]
        several = get_origin(options[name]) is tuple
        if not values and not several:
            return f"{name} needs a value: give it {_words(options[name])}."
        used = len(values) if several else 1
        for value in values[:used]:
            if not _fits(value, options[name]):
                return f"{name} {value} cannot be used: make it {_words(options[name])}."
        arguments = arguments if equals else arguments[used:]
    return f"{prog} needs a run folder: {prog} RUN." if positional > 0 else None


def _run(arguments: list[str]) -> int:
    """How many arguments there are before the next option."""
    return next((i for i, argument in enumerate(arguments) if argument.startswith("--")), len(arguments))


def _remedy(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.7)
    return f"did you mean {near[0]}?" if near else otherwise


def _plain(hint: Any) -> Any:
    """The type of one value."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    return next(a for a in get_args(hint) if a is not type(None)) if type(None) in get_args(hint) else hint


def _fits(text: str, hint: Any) -> bool:
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return text in get_args(hint)
    try:
        return hint not in (int, float) or hint(text) is not None
    except ValueError:
        return False


def _words(hint: Any) -> str:
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    return {int: "a whole number", float: "a number", str: "a number or a name"}.get(hint, "a path")


def _reflow(page: str) -> str:
    """The first words of a page that the parser drew, as one sentence; for what `complaint` does not foresee."""
    lines = [line.strip(" │┃|╭╮╰╯─-") for line in page.splitlines()]
    words = [line for line in lines if line][1:2] or ["The arguments cannot be parsed"]
    return f"{words[0].rstrip('.:')}: see adaptax --help."
