"""Hundreds of command lines, right and wrong: parsed to the values that were typed, or one sentence that names an option."""

import os
import re
from typing import Literal, get_args, get_origin

from hypothesis import given, settings
from hypothesis import strategies as st

from adaptax.cli import options
from adaptax.cli.commands import COMMANDS
from adaptax.cli.parse import Group, _plain, as_arguments, find, parse
from adaptax.errors import InputError

N = int(os.environ.get("ADAPTAX_FUZZ", "20"))


def commands(group, *prefix):
    for name, member in group.members.items():
        yield from commands(member, *prefix, name) if isinstance(member, Group) else [([*prefix, name], member)]


COMMAND = st.sampled_from(list(commands(COMMANDS)))
ODD = st.sampled_from(
    ["", " ", "nan", "-inf", "1e400", "0", "-1", "2.5", "many", "true", "--", "-", "é", "1,2", "[1]", "0x1F", "1_000", "٣"]
)
TEXT = st.one_of(
    ODD, st.integers(-3, 2**33).map(str), st.floats().map(repr), st.text(max_size=6).filter(lambda t: "\0" not in t)
)


def value(hint):
    """Values of an option's type, most of them right, and any text."""
    plain = _plain(hint)
    if get_origin(plain) is Literal:
        return st.one_of(st.sampled_from(get_args(plain)), TEXT)
    return TEXT


@st.composite
def line(draw):
    command, kind = draw(COMMAND)
    run = ["RUN"] if command[0] in ("evaluate", "measure", "video") else []
    typed = {}
    for name in draw(st.lists(st.sampled_from(sorted(set(options.hints(kind)) - {"run", "resume"})), max_size=3, unique=True)):
        typed[name] = draw(value(options.hints(kind)[name]))
    return command, kind, run, typed


def outcome(call):
    """What a call returns, or its sentence."""
    try:
        return call(), None
    except InputError as error:
        message = str(error)
        assert message.endswith((".", "?")) and "\n" not in message and not re.search(r"\b[a-z_]+=", message), message
        return None, message


def expected(hint, text):
    """What this text is as a value of the option's type, by Python alone; None if it is none."""
    plain = _plain(hint)
    if get_origin(plain) is Literal:
        return text if text in get_args(plain) else None
    read = {int: int, float: float, str: str}.get(get_args(plain)[0] if get_origin(plain) is tuple else plain)
    try:
        found = None if read is None else read(text)
    except ValueError:
        return None
    return (found,) if get_origin(plain) is tuple and found is not None else found


def same(a, b):
    return a == b or (a != a and b != b) or repr(a) == repr(b)


@settings(derandomize=True, deadline=None, max_examples=2 * N)
@given(line())
def test_a_command_line_is_parsed_or_refused_by_the_option(drawn):
    command, kind, run, typed = drawn
    prog, found, rest = find(COMMANDS, [*command, *run, *(f"{options.flag(n)}={text}" for n, text in typed.items())])
    parsed, message = outcome(lambda: parse(found, rest, prog))
    if message is None:
        for name, text in typed.items():
            wanted = expected(options.hints(kind)[name], text)
            assert wanted is None or same(getattr(parsed, name), wanted), (name, text)
        _, message = outcome(lambda: options.check(parsed))
    if message is not None and typed:
        assert (
            any(options.flag(name) in message or repr(text) in message for name, text in typed.items()) or "--data" in message
        )


FILE_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**12), st.floats(), st.text(max_size=5),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=2 * N)
@given(COMMAND, st.data())
def test_values_of_a_file_are_parsed_or_refused_by_the_option(command, data):
    _, kind = command
    name = data.draw(st.sampled_from(sorted(set(options.hints(kind)) - {"run"})))
    given_value = data.draw(FILE_VALUE)
    run = ["RUN"] * ("run" in options.hints(kind))
    parsed, message = outcome(lambda: parse(kind, [*run, *as_arguments({name: given_value}, kind, "it")], "it"))
    if message is None:
        kept = getattr(parsed, name)
        assert kept is not None or given_value is None
        if isinstance(given_value, int) and isinstance(kept, int | float):
            assert kept == given_value
    else:
        assert options.flag(name) in message
