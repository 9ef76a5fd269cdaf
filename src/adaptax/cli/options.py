"""The types of options, and the checks that follow from them. Imports no JAX.

An option is a field of a dataclass. Its annotation says all that there is to say about it: the type, the bounds (`Whole`,
`Real`), whether it is a folder to be made (`NewFolder`), a step size (`StepSizeText`), a file whose checksum is kept
(`Mark.DATA`), or nothing that a run's file keeps (`Mark.UNSAVED`). Parser, checks and saved runs read it from there, so
that a new option is one field.
"""

import dataclasses
import enum
import functools
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from adaptax.errors import InputError


class Mark(enum.Enum):
    """Properties of an option beside its type and bounds."""

    UNSAVED = "says how a run is started, not what it is"
    DATA = "a file or folder of data: a run keeps its checksum, and it may be moved"


@dataclasses.dataclass(frozen=True)
class Whole:
    """Bounds of a whole number, both included."""

    least: int
    most: int | None = None

    def check(self, name: str, value: int) -> None:
        if value < self.least or (self.most is not None and value > self.most):
            bounds = f"of at least {self.least}" if self.most is None else f"from {self.least} to {self.most}"
            raise InputError(f"{name} {value} must be a whole number {bounds}.")


@dataclasses.dataclass(frozen=True)
class Real:
    """Bounds of a finite number: `least` and `most` are included, `above` and `below` are not."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def check(self, name: str, value: float) -> None:
        if not (math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below):
            words = {"of at least": self.least, "of at most": self.most, "above": self.above, "below": self.below}
            bounds = " and ".join(f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound))
            if math.isfinite(self.least) and math.isfinite(self.most):
                bounds = f"from {self.least:g} to {self.most:g}"
            raise InputError(f"{name} {value} must be a finite number {bounds}.")


class NewFolder:
    """A folder that is to be made; it may be there already."""

    def check(self, name: str, value: Path) -> None:
        nearest = next(path for path in (value.absolute(), *value.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"{name} {value} cannot be a folder, for {nearest.name} is a file: choose another one.")


class StepSizeText:
    """A number, or a rule that measures curvature, with or without its factor."""

    def check(self, name: str, value: str) -> None:
        canonical_stepsize(value, name)


@dataclass(frozen=True)
class NetworkText:
    """A network of the library, or a function of one's own."""

    known: tuple[str, ...] = ("conv4", "resnet12")

    def check(self, name: str, value: str) -> None:
        module, colon, function = value.partition(":")
        if value not in self.known and not (
            colon and function.isidentifier() and all(map(str.isidentifier, module.split(".")))
        ):
            others = "".join(f"{known}, " for known in self.known) + "or " * bool(self.known)
            raise InputError(f"{name} {value} must be {others}MODULE:FUNCTION for a network of your own.")


# The rules of step sizes and their factors.
RULES = {"auto": 1.0, "edge": 1.0, "guaranteed": 1 / 8}


def is_rule(text: str) -> bool:
    """Whether a step size is a rule, not a number."""
    return canonical_stepsize(text).partition(":")[0] in RULES


def canonical_stepsize(text: str, name: str = "--stepsize") -> str:
    """One spelling for each step size: a number, or a rule, with its factor unless that is the default.

    Example:
        >>> [canonical_stepsize(text) for text in ("1e-1", "AUTO", "edge:1.50", "guaranteed:0.125")]
        ['0.1', 'auto', 'edge:1.5', 'guaranteed']
    """
    rule, colon, gamma = text.strip().lower().partition(":")
    by_rule = rule in RULES
    default = RULES.get(rule, 1.0)
    try:
        value = default if by_rule and not colon else float(gamma if by_rule else text)
    except ValueError:
        raise InputError(f"{name} {text} must be a number, auto, edge or guaranteed (edge:1.5 for a factor).") from None
    if not 0 < value < math.inf:
        raise InputError(f"{name} {text} must be positive and finite; without adaptation use --inner-steps 0.")
    return str(value) if not by_rule else rule if value == default else f"{rule}:{value}"


Count = Annotated[int, Whole(1)]
CountOrZero = Annotated[int, Whole(0)]
Seed = Annotated[int, Whole(0, 2**32 - 1)]
Positive = Annotated[float, Real(above=0)]
NotNegative = Annotated[float, Real(least=0)]
Fraction = Annotated[float, Real(least=0, most=1)]
Widths = Annotated[tuple[int, ...], Whole(1)]
StepSize = Annotated[str, tyro.conf.arg(metavar="NUMBER|auto|edge|guaranteed"), StepSizeText()]
OwnNetwork = Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint=""), NetworkText(())]
NetworkName = Annotated[str, tyro.conf.arg(metavar="conv4|resnet12|MODULE:FUNCTION"), NetworkText()]
OutputFolder = Annotated[Path, NewFolder()]

# Options that may be left out: their help says in words what happens then.
_INT = tyro.conf.arg(metavar="INT", help_behavior_hint="")
_PATH = tyro.conf.arg(metavar="PATH", help_behavior_hint="")
OptionalInt = Annotated[int | None, _INT]
OptionalCount = Annotated[int | None, _INT, Whole(1)]
OptionalCountOrZero = Annotated[int | None, _INT, Whole(0)]
OptionalPositive = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=""), Real(above=0)]
OptionalName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
OptionalAddress = Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, _PATH]
OptionalData = Annotated[Path | None, _PATH, Mark.DATA]
UnsavedPath = Annotated[Path | None, _PATH, Mark.UNSAVED]


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The annotations of a class's options by name, bounds and marks included."""
    annotations = typing.get_type_hints(kind, include_extras=True)
    return {field.name: annotations[field.name] for field in dataclasses.fields(kind)}


def notes(hint: Any) -> tuple[Any, ...]:
    """The bounds and marks of an annotation."""
    return getattr(hint, "__metadata__", ())


def marked(kind: type, mark: Mark) -> tuple[str, ...]:
    """The options of a class that have a mark."""
    return tuple(name for name, hint in hints(kind).items() if mark in notes(hint))


def check(options: Any) -> None:
    """Refuse values out of bounds, then options that do not go together (`check_together`, if the class has it).

    Errors: `InputError`, which names the option as it is typed.
    """
    for name, hint in hints(type(options)).items():
        value = getattr(options, name)
        for bounds in [note for note in notes(hint) if hasattr(note, "check")]:
            for entry in value if isinstance(value, tuple) else (value,):
                if entry is not None:
                    bounds.check(flag(name), entry)
    if hasattr(options, "check_together"):
        options.check_together()
