"""Arguments become options by tyro; a mistake becomes one sentence instead of a page. Imports no JAX."""

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import tyro

from adaptax.cli import options
from adaptax.errors import InputError

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class Group:
    """A choice between commands, by name.

    Arguments:
        noun: what one of them is called.
        about: what they do, for the help.
        members: classes of options, or other groups, by name.
    """

    noun: str
    about: str
    members: Mapping[str, "type | Group"]


def find(group: Group, arguments: list[str], prog: str = "adaptax") -> tuple[str, type, list[str]]:
    """The command that the first arguments name.

    Returns: the command as it is typed, its class of options, and the arguments that are left. Where help is asked for
        before a command is named, that is printed and `SystemExit` raised.

    Errors: `InputError` if no command of that name is there.
    """
    found: type | Group = group
    while isinstance(found, Group):
        if arguments and (arguments[0] in ("-h", "--help") or arguments[0].startswith("--tyro-")):
            tyro.cli(_page(found, prog), args=arguments, prog=prog, description=found.about)
        names = "|".join(found.members)
        if not arguments or arguments[0].startswith("-"):
            article = "an" if found.noun[0] in "aeiou" else "a"
            raise InputError(f"{prog} needs {article} {found.noun} first: {prog} {names}.")
        name, *arguments = arguments
        if name not in found.members:
            remedy = _suggestion(name, found.members, f"use {prog} {names}.")
            raise InputError(f"There is no {found.noun} {name!r}: {remedy}")
        prog, found = f"{prog} {name}", found.members[name]
    return prog, found, arguments


def parse(kind: type[Options], arguments: list[str], prog: str, default: Options | None = None) -> Options:
    """The options that the arguments give.

    Arguments:
        kind: the class of options.
        arguments: what follows the command.
        prog: the command, for help and messages.
        default: the options that hold where none are given (default: those of the class).

    Errors: `InputError` for an argument that cannot be used; the sentence names the option as it is typed.

    Example:
        >>> from adaptax.cli.commands import Demo
        >>> parse(Demo, ["--steps", "100"], "adaptax demo").steps
        100
        >>> parse(Demo, ["--step", "100"], "adaptax demo")
        Traceback (most recent call last):
        adaptax.errors.InputError: adaptax demo has no option --step: did you mean --steps?
        >>> parse(Demo, ["--steps", "many"], "adaptax demo")
        Traceback (most recent call last):
        adaptax.errors.InputError: --steps must be followed by a whole number.
    """
    _check_switches(arguments, kind)
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            read: Any = tyro.cli(kind, args=arguments, prog=prog, default=default, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (0, None):  # after --help
            raise
        raise InputError(_sentence(page.getvalue(), kind, prog)) from None
    parsed, unknown = read
    if unknown:
        written = unknown[0].partition("=")[0]
        if not written.startswith("-"):
            raise InputError(f"{prog} can do nothing with {written!r}: leave it out, or see {prog} --help.")
        raise InputError(_no_option(written, kind, prog))
    return parsed


def _check_switches(arguments: list[str], kind: type) -> None:
    """Refuse a value after an option that takes none."""
    names = [name for name, hint in options.hints(kind).items() if _plain(hint) is bool]
    switches = {options.flag(no + name): name for name in names for no in ("", "no_")}
    for i, argument in enumerate(arguments):
        written, _, value = argument.partition("=")
        name = switches.get(written.replace("_", "-"))
        word = arguments[i + 1] if i + 1 < len(arguments) and not value else value
        if name is not None and word and (value or word.lower() in ("true", "false", "yes", "no", "on", "off", "0", "1")):
            choice = [options.flag(name)] if tyro.conf.FlagCreatePairsOff in options.notes(options.hints(kind)[name]) else []
            choice = choice or [options.flag(name), options.flag(f"no_{name}")]
            raise InputError(f"{options.flag(name)} takes no value: give {' or '.join(choice)} alone.")


def as_arguments(values: Mapping[str, Any], kind: type, prog: str) -> list[str]:
    """Values from a file, by option, as somebody would type them.

    Errors: `InputError` for a name that is no option, and for values that nobody can type.
    """
    arguments = []
    for name, value in values.items():
        flag, hint = options.flag(name), options.hints(kind).get(name)
        if hint is None:
            raise InputError(_no_option(flag, kind, prog))
        if _plain(hint) is bool:
            if not isinstance(value, bool):
                raise InputError(f"{flag} must be true or false.")
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
            continue
        several = get_origin(_plain(hint)) is tuple
        typed = (
            several and all(isinstance(x, int | float) for x in value)
            if isinstance(value, list)
            else not isinstance(value, dict)
        )
        if not typed or "\0" in str(value):
            raise InputError(f"{flag} must be followed by {_words(hint)}.")
        arguments += [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
    return arguments


def _page(group: Group, prog: str) -> type:
    """The group as one class, from which tyro makes the page of help and the completion of shells."""
    members = {n: _page(k, f"{prog} {n}") if isinstance(k, Group) else k for n, k in group.members.items()}
    choices = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in members.items()]
    choice: Any = functools.reduce(operator.or_, choices)
    hint = tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[choice]]
    page = dataclasses.make_dataclass(group.noun, [(group.noun, hint)])
    page.__doc__ = f"{group.about}: {prog} {'|'.join(members)}."
    return page


def _sentence(page: str, kind: type, prog: str) -> str:
    """One sentence for the page that tyro wrote: a title, what is wrong with which option, and, below a line, more."""
    lines = [line.strip(" │") for line in page.splitlines()]
    # Below the title there may be a rule; the next rule ends what is wrong.
    rows = [line.strip("─-") for line in lines if line][1:]
    rows = rows[1:] if rows and not rows[0] else rows
    said = " ".join(itertools.takewhile(bool, rows))
    names = {options.flag(name): hint for name, hint in options.hints(kind).items()}
    for name in re.findall(r"--[\w-]+", said):
        if name in names:
            return f"{name} must be followed by {_words(names[name])}."
    if said.startswith("Missing from") and "run" in options.hints(kind):
        return f"{prog} needs a run folder: {prog} RUN."
    return f"{said.rstrip('.:') or 'The arguments cannot be parsed'}: see {prog} --help."


def _no_option(written: str, kind: type, prog: str) -> str:
    known = []
    for name, hint in options.hints(kind).items():
        known.append(options.flag(name))
        if _plain(hint) is bool and tyro.conf.FlagCreatePairsOff not in options.notes(hint):
            known.append(options.flag(f"no_{name}"))
    remedy = _suggestion(written.replace("_", "-"), known, f"see {prog} --help.")
    return f"{prog} has no option {written}: {remedy}"


def _suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.7)
    return f"did you mean {near[0]}?" if near else otherwise


def _plain(hint: Any) -> Any:
    """The type without what is said about it, and without None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if type(None) in get_args(hint):
        hint = next(argument for argument in get_args(hint) if argument is not type(None))
    return hint


def _words(hint: Any) -> str:
    """The values that an option takes, in words."""
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return {int: "whole numbers", float: "numbers"}[get_args(hint)[0]]
    return {int: "a whole number", float: "a number", str: "a number or a name"}.get(hint, "a path")
