"""Bounds of options, and the step sizes that text stands for."""

from dataclasses import dataclass

import pytest

import adaptax as ax
from adaptax.cli import options
from adaptax.cli.building import parse_stepsize
from adaptax.cli.commands import COMMANDS
from adaptax.cli.parse import Group
from adaptax.errors import InputError


@pytest.mark.parametrize(
    "text, same",
    [("0.10", "1e-1"), ("edge", "EDGE:1.0"), ("edge:1.5", " Edge:1.50"), ("guaranteed", "guaranteed:0.125")],
)
def test_one_spelling_for_each_step_size(text, same):
    assert options.canonical_stepsize(text) == options.canonical_stepsize(same)
    assert options.canonical_stepsize(options.canonical_stepsize(text)) == options.canonical_stepsize(text)


def test_what_step_sizes_stand_for():
    assert parse_stepsize("0.25") == 0.25
    assert parse_stepsize("auto") == ax.stepsize.Auto() and parse_stepsize("auto:0.5") == ax.stepsize.Auto(0.5)
    assert parse_stepsize("edge") == ax.stepsize.Edge() and parse_stepsize("edge:1.5") == ax.stepsize.Edge(1.5)
    assert parse_stepsize("guaranteed") == ax.stepsize.Guaranteed()
    assert parse_stepsize("guaranteed:0.25") == ax.stepsize.Guaranteed(0.25)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "edge:0", "guaranteed:nan", "", "edge:", "1:2", "sharp"])
def test_step_sizes_that_cannot_be(text):
    with pytest.raises(InputError, match="--stepsize") as caught:
        options.canonical_stepsize(text)
    assert str(caught.value).endswith(".")


@dataclass(frozen=True)
class Several:
    some_count: options.Count = 1
    seed: options.Seed = 0
    fraction: options.Fraction = 0.5
    widths: options.Widths = (1,)
    maybe: options.OptionalCount = None
    free: float = -1.0


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"some_count": 0}, "--some-count 0 must be a whole number of at least 1."),
        ({"seed": 2**32}, "--seed 4294967296 must be a whole number from 0 to 4294967295."),
        ({"fraction": 1.5}, "--fraction 1.5 must be a finite number from 0 to 1."),
        ({"fraction": float("nan")}, "--fraction nan must be a finite number from 0 to 1."),
        ({"widths": (3, 0)}, "--widths 0 must be a whole number of at least 1."),
        ({"maybe": 0}, "--maybe 0 must be a whole number of at least 1."),
    ],
)
def test_bounds_name_the_option_as_it_is_typed(values, sentence):
    options.check(Several())
    with pytest.raises(InputError) as caught:
        options.check(Several(**values))
    assert str(caught.value) == sentence


def kinds(group):
    for member in group.members.values():
        yield from kinds(member) if isinstance(member, Group) else [member]


def test_numbers_have_bounds():
    """A number without bounds is one that the library checks itself."""
    unbounded = {
        f"{kind.__name__}.{name}"
        for kind in kinds(COMMANDS)
        for name, hint in options.hints(kind).items()
        if {int, float} & set(_types(hint)) and not any(hasattr(note, "check") for note in options.notes(hint))
    }
    assert unbounded == {"Video.goal", "Plan.gamma", "Plan.c_beta"}


def _types(hint):
    inner = getattr(hint, "__args__", ()) if not isinstance(hint, type) else ()
    return [hint, *(kind for argument in inner for kind in _types(argument))]
