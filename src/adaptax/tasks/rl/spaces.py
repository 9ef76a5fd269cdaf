"""Gymnasium's spaces as arrays: what a policy sees of an observation, and what an environment gets of an action."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from adaptax.errors import InputError

_MOST_ONE_HOT = 1 << 20
_AGREE = "make its spaces agree with what reset() and step() return"


class _Misfit(Exception):
    """A value that its space does not hold: `_Misfit(what, remedy)`."""


@contextlib.contextmanager
def _told(giver: str, where: str) -> Iterator[None]:
    """Tell a misfit as a sentence."""
    try:
        yield
    except _Misfit as error:
        what, remedy = error.args
        raise InputError(f"{giver} gave {what} {where}: {remedy}.") from error


class Observations:
    """What a policy sees of the observations of a space.

    - `Box`: the numbers in their shape, as they are; a single number of shape () has shape (1,).
    - `Discrete`: the index from 0, a whole number, for policies that are tables.
    - `MultiDiscrete`, `MultiBinary`, and `Dict` and `Tuple` of all these: the vector of `gymnasium.spaces.utils.flatten`,
      where a `Discrete` is one-hot.

    Numbers are single precision. Under JAX's double precision, those of a box that single precision cannot hold are double.

    Arguments:
        space: a gymnasium space.

    Errors: `InputError` for a space of any other kind, or without numbers.
    """

    def __init__(self, space: Any):
        self.space, self.index = space, isinstance(space, spaces.Discrete)
        self.parts = dict(_parts(space, "observation_space"))
        boxes = [part for part in self.parts.values() if isinstance(part, spaces.Box)]
        wide = not all(np.can_cast(part.dtype, np.float32) for part in boxes)
        self.dtype = np.dtype(np.int32 if self.index else np.float64 if wide else np.float32)
        self.size = sum(map(spaces.flatdim, self.parts.values()))
        in_shape = isinstance(space, spaces.Box) and space.shape
        self.shape: tuple[int, ...] = () if self.index else space.shape if in_shape else (self.size,)
        name = f"The environment's observation_space, {_short(space)},"
        if self.size == 0:
            raise InputError(f"{name} holds no number: give it at least one.")
        most = np.iinfo(np.int32).max if self.index else _MOST_ONE_HOT
        if sum(spaces.flatdim(part) for part in self.parts.values() if not isinstance(part, spaces.Box)) > most:
            raise InputError(f"{name} has more than {most} values to choose from: describe them by the numbers of a Box.")

    def read(self, value: Any, giver: str, where: str) -> np.ndarray:
        """An observation as the policy sees it; `InputError`, "(giver) gave ... (where)", where the space does not hold it."""
        with _told(giver, where):
            values = list(_values(self.space, value, "observation_space"))
            rows = [_read(part, value, path) for (path, part), value in zip(self.parts.items(), values, strict=True)]
        if self.index:
            return rows[0].astype(self.dtype).reshape(())
        encoded = [_encoded(part, row) for part, row in zip(self.parts.values(), rows, strict=True)]
        return np.concatenate(encoded, dtype=self.dtype, casting="unsafe").reshape(self.shape)


class Actions:
    """What an environment gets for the numbers that a policy chose.

    - `Box` of floats: the numbers, clipped to the bounds.
    - `Discrete`, `MultiDiscrete`, `MultiBinary`: the policy chooses indices from 0, to which `start` is added.
    - `Dict` and `Tuple` of boxes alone, or of the finite spaces alone: the numbers of the parts, one after another.

    Arguments:
        space: a gymnasium space.

    `choices` is None for boxes, the number of actions for `Discrete`, and the numbers of choices otherwise.

    Errors: `InputError` for a space of any other kind, without numbers, or with bounds that are not finite.
    """

    def __init__(self, space: Any):
        self.space, name = space, f"The environment's action_space, {_short(space)},"
        self.parts = dict(_parts(space, "action_space"))
        # A subclass may hold less than its base does.
        self.ours = all(type(part).__module__.startswith("gymnasium.") for part in (space, *self.parts.values()))
        boxes = {isinstance(part, spaces.Box) for part in self.parts.values()}
        if len(boxes) > 1:
            raise InputError(f"{name} mixes boxes with finitely many choices: let the environment round numbers of one Box.")
        self.sizes = [math.prod(part.shape) for part in self.parts.values()]
        self.size = sum(self.sizes)
        if self.size == 0:
            raise InputError(f"{name} holds no number: give it at least one.")
        self.shape: tuple[int, ...] = (self.size,) if space.shape is None else space.shape
        self.choices: int | tuple[int, ...] | None = None
        if boxes == {False}:
            counts = tuple(count for part in self.parts.values() for count in _counts(part))
            self.choices = counts[0] if isinstance(space, spaces.Discrete) else counts
            self.bounds = np.zeros(self.size, int), np.asarray(counts) - 1
            return
        for path, part in self.parts.items():
            if part.dtype.kind != "f":
                whole = "MultiBinary" if part.dtype.kind == "b" else "MultiDiscrete with start="
                raise InputError(f"The environment's {path}, {_short(part)}, holds no real numbers: make it a {whole}.")
        sides = ([getattr(part, side).ravel() for part in self.parts.values()] for side in ("low", "high"))
        self.bounds = tuple(np.concatenate(side, dtype=np.float64) for side in sides)
        if not np.isfinite(self.bounds).all():
            raise InputError(f"The bounds of the environment's action_space, {_short(space)}, must be finite: mend its space.")

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for an action: one for each entry of a box, or a logit for each choice."""
        return self.size if self.choices is None else sum(np.atleast_1d(self.choices).tolist())

    def make(self, row: np.ndarray, where: str) -> Any:
        """The action of a flat row of numbers; `InputError`, "The policy gave ... (where)", where it is none of the space."""
        with _told("The policy", where):
            low, high = self.bounds
            if self.choices is None:
                if not np.isfinite(row).all():
                    remedy = "its parameters are no longer finite, so use a smaller step size"
                    raise _Misfit(f"an action that is not finite ({_short(row.tolist())})", remedy)
                row = np.clip(row.astype(np.float64), low, high)
            elif ((row < low) | (row > high)).any():
                most = f"{_short(self.space)} takes indices up to {_short(high.tolist())}"
                what = f"the action {_short(row.tolist())}, where {most},"
                raise _Misfit(what, f"make it for {_short(self.choices)} choices, counted from 0")
            rows = np.split(row, np.cumsum(self.sizes)[:-1])
            action = _assembled(self.space, (_action(part, x) for part, x in zip(self.parts.values(), rows, strict=True)))
            if not (self.ours or self.space.contains(action)):
                what = f"the action {_short(action)}, which its space, {type(self.space).__name__}, does not contain,"
                raise _Misfit(what, "use a space of gymnasium itself, and let the environment change its actions")
        return action


def _parts(space: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The boxes and finite spaces within a space, by their paths, in the order of gymnasium's `flatten`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, inner in _items(space):
            yield from _parts(inner, f"{path}[{key!r}]")
        return
    if not isinstance(space, spaces.Space):
        kind = f"{type(space).__module__}.{type(space).__qualname__}"
        raise InputError(f"The environment's {path} is a {kind} and not a gymnasium space: make it from gymnasium.spaces.")
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        text = "a kind that is not served: wrap the environment so that it has Box, Discrete, MultiDiscrete, MultiBinary"
        raise InputError(f"The environment's {path} is {_short(space)}, {text}, or Dict and Tuple of these.")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        last, most = np.ravel(space.start).astype(object) + _counts(space) - 1, np.iinfo(space.dtype).max
        if max(last, default=0) > most:
            raise InputError(f"The environment's {path}, {_short(space)}, ends beyond its type's {most}: widen its dtype.")
    yield path, space


def _items(space: Any) -> Any:
    return space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)


def _values(space: Any, value: Any, path: str) -> Iterator[Any]:
    """The values of the parts, in the order of `_parts`."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        yield value
        return
    if isinstance(space, spaces.Dict):
        keys, given = list(space.spaces), list(value) if isinstance(value, Mapping) else None
    else:
        # Gymnasium takes the entries of an array, too.
        rows = isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim)
        keys, given = list(range(len(space))), list(range(len(value))) if rows else None
    if given is None:
        raise _Misfit(f"an observation of type {type(value).__name__} for {path}, {_short(space)},", _AGREE)
    if set(given) != set(keys):
        raise _Misfit(f"an observation with the entries {_short(given)} where {path} has {_short(keys)}", _AGREE)
    for key, inner in _items(space):
        yield from _values(inner, value[key], f"{path}[{key!r}]")


def _read(part: Any, value: Any, path: str) -> np.ndarray:
    """The numbers of a box, or the indices from 0 of a finite space, as a flat row."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        kind = array.dtype if hasattr(value, "dtype") else type(value).__name__
        raise _Misfit(f"an observation of type {kind} for {path}, {_short(part)},", _AGREE)
    if array.shape != part.shape:
        raise _Misfit(f"an observation of shape {array.shape} where {path} has {part.shape}", _AGREE)
    if isinstance(part, spaces.Box):
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(array.astype(np.float32))
        if wrong.any():
            where = f"{array[wrong][0]} at {np.argwhere(wrong)[0].tolist()} of {path}"
            raise _Misfit(f"an observation that is not finite ({where})", "make its observations finite")
        return array.ravel()
    with np.errstate(invalid="ignore"):
        whole = array.ravel().astype(np.int64)
    index = whole - np.ravel(getattr(part, "start", 0)).astype(np.int64)
    fraction = array.dtype.kind == "f" and (whole != array.ravel()).any()
    if fraction or ((index < 0) | (index >= _counts(part))).any():
        raise _Misfit(f"the observation {_short(array.tolist())}, which {path}, {_short(part)}, does not contain,", _AGREE)
    return index


def _counts(part: Any) -> list[int]:
    """The numbers of choices of a finite space."""
    if isinstance(part, spaces.MultiBinary):
        return [2] * math.prod(part.shape)
    return [int(n) for n in np.ravel(part.n if isinstance(part, spaces.Discrete) else part.nvec)]


def _encoded(part: Any, row: np.ndarray) -> np.ndarray:
    """The numbers of a box or of a binary space, or one-hot vectors of indices."""
    if isinstance(part, spaces.Box | spaces.MultiBinary):
        return row
    counts = _counts(part)
    hot = np.zeros(sum(counts), np.float32)
    hot[np.cumsum([0, *counts[:-1]]) + row] = 1
    return hot


def _action(part: Any, row: np.ndarray) -> Any:
    if isinstance(part, spaces.Discrete):
        return int(row[0]) + int(part.start)
    row = row.astype(part.dtype).reshape(part.shape)
    return row + part.start if isinstance(part, spaces.MultiDiscrete) else row


def _assembled(space: Any, actions: Iterator[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _assembled(inner, actions) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_assembled(inner, actions) for inner in space.spaces)
    return next(actions)


def _short(value: Any) -> str:
    """A space or a value on one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
