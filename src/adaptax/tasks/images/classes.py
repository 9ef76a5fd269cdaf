"""Images by class: of any size, grey or in colour, with any number of images in each class."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from adaptax._checks import check_whole
from adaptax._tree import first_line
from adaptax.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """Images by class, kept on the host, in memory or in a file. `few_shot` makes tasks of them.

    The images of class c are the rows from `starts[c]` up to, not including, `starts[c] + counts[c]`. `take`, `at_least`
    and `split` return objects that share the array.

    Arguments:
        images: uint8 array of shape (n, size, size, channels), with 1 or 3 channels; may be memory-mapped.
        names: one name for each class, all different.
        counts: number of images of each class, at least 1.
        starts: first row of each class (default: one class after another from row 0).

    Errors: `InputError` if the array, the names or the numbers do not have this form.

    Example:
        >>> import jax, numpy as np
        >>> from adaptax.tasks import ImageClasses
        >>> data = ImageClasses(np.zeros((9, 32, 32, 3), np.uint8), ("bee", "cat", "dog"), (2, 3, 4))
        >>> data.size, data.channels, data.of("cat").shape
        (32, 3, (3, 32, 32, 3))
        >>> train, test = data.split(2, 1, key=jax.random.key(0))
        >>> len(train), sorted(train.names + test.names)
        (2, ['bee', 'cat', 'dog'])
        >>> data.at_least(3).names
        ('cat', 'dog')

    Source: disjoint classes for training and evaluation; Vinyals et al. (2016), NeurIPS.
    """

    images: np.ndarray
    names: tuple[str, ...]
    counts: tuple[int, ...]
    starts: tuple[int, ...] | None = None

    def __post_init__(self):
        shape: Any = getattr(self.images, "shape", ())
        dtype = getattr(self.images, "dtype", None)
        square = len(shape) == 4 and shape[1] == shape[2] and shape[3] in (1, 3) and 0 not in shape
        if not isinstance(self.images, np.ndarray) or dtype != np.uint8 or not square:
            message = "ImageClasses take images as a uint8 NumPy array of shape (n, size, size, 1 or 3)"
            raise InputError(f"{message}, not {dtype or type(self.images).__name__}{list(shape)}: convert them.")
        names = tuple(self.names)
        if not names or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
            raise InputError("ImageClasses need at least one name, all of them different: change names=.")
        counts = _whole(self.counts, "counts", least=1)
        starts = _first_rows(counts) if self.starts is None else _whole(self.starts, "starts", least=0)
        if not len(names) == len(counts) == len(starts):
            raise InputError(f"ImageClasses need counts= and starts= for each of the {len(names)} names: change them.")
        if max(map(sum, zip(starts, counts, strict=True))) > shape[0]:
            raise InputError(f"The rows of every class must lie within the {shape[0]} images: change counts= or starts=.")
        for field, value in (("names", names), ("counts", counts), ("starts", starts)):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return self.images.shape[3]

    def of(self, name: str) -> np.ndarray:
        """The images of the class of this name; an `InputError` if there is no such class."""
        (c,) = self._indices([name])
        return self.images[self._starts[c] : self._starts[c] + self.counts[c]]

    def take(self, names: Iterable[str]) -> "ImageClasses":
        """The classes of these names, in their present order; an `InputError` if one is unknown or none is given."""
        return self._choose(sorted(self._indices([names] if isinstance(names, str) else names)))

    def at_least(self, count: int) -> "ImageClasses":
        """The classes with at least `count` images; an `InputError` if there is none."""
        count = check_whole("at_least", "count", count)
        chosen = [c for c, n in enumerate(self.counts) if n >= count]
        if not chosen:
            raise InputError(f"No class has {count} images; the largest has {max(self.counts)}: ask for fewer.")
        return self._choose(chosen)

    def split(self, *parts: int | Iterable[str], key: Key[Array, ""] | None = None) -> "tuple[ImageClasses, ...]":
        """Split the classes into disjoint parts.

        Arguments:
            parts: each part is a list of names of classes, or a number of classes to draw from those not named.
            key: draws the classes; only needed for parts that are numbers.

        Errors: `InputError` if a name is unknown or in two parts, or if there are too few classes.
        """
        return tuple(map(self._choose, partition(self.names, parts, key)))

    def compact(self) -> "ImageClasses":
        """The same classes with an array that holds only their images, one class after another."""
        if self._starts == _first_rows(self.counts) and sum(self.counts) == len(self.images):
            return self
        rows = [self.images[start : start + count] for start, count in zip(self._starts, self.counts, strict=True)]
        return ImageClasses(np.concatenate(rows), self.names, self.counts)

    @property
    def _starts(self) -> tuple[int, ...]:
        assert self.starts is not None  # __post_init__
        return self.starts

    def _indices(self, names: Iterable[str]) -> set[int]:
        index = {name: c for c, name in enumerate(self.names)}
        if unknown := sorted(set(names := list(names)) - set(index)):
            raise InputError(f"There is no class '{unknown[0]}': choose from {_some(self.names)}.")
        return {index[name] for name in names}

    def _choose(self, chosen: list[int]) -> "ImageClasses":
        if not chosen:
            raise InputError("No class is left: name at least one.")
        counts, starts = (tuple(numbers[c] for c in chosen) for numbers in (self.counts, self._starts))
        return ImageClasses(self.images, tuple(self.names[c] for c in chosen), counts, starts)


def partition(names: tuple[str, ...], parts: tuple[int | Iterable[str], ...], key: Key[Array, ""] | None) -> list[list[int]]:
    """Split the indices of `names` into disjoint sorted lists, one for each part, as `ImageClasses.split` describes."""
    index, taken = {name: c for c, name in enumerate(names)}, dict[str, int]()
    named: dict[int, list[str]] = {}
    drawn: dict[int, int] = {}
    for i, part in enumerate(parts):
        # An array of shape () is a number, though Python counts it among the iterables.
        if isinstance(part, Iterable) and getattr(part, "shape", None) != ():
            named[i] = [part] if isinstance(part, str) else list(part)
        else:
            drawn[i] = _number_of_classes(part)
        for name in named.get(i, []):
            if name not in index:
                raise InputError(f"There is no class '{name}': choose from {_some(names)}.")
            if taken.setdefault(name, i) != i:
                raise InputError(f"The class '{name}' is in two parts of the split: leave it out of one.")
    rest = [c for c, name in enumerate(names) if name not in taken]
    if not parts or min([*map(len, named.values()), *drawn.values()]) < 1:
        raise InputError("Every part of a split needs at least one class: give names, or a number of at least 1.")
    if sum(drawn.values()) > len(rest):
        raise InputError(f"The split asks for {sum(drawn.values())} classes, but only {len(rest)} are free: ask for fewer.")
    if drawn:
        if key is None:
            raise InputError("A split by numbers needs a key to draw the classes with: give key=jax.random.key(0).")
        try:
            rest = [rest[i] for i in jax.random.permutation(key, len(rest)).tolist()]
        except (TypeError, ValueError) as error:
            raise InputError(f"key= is not a key ({first_line(error)}): give key=jax.random.key(0).") from error
    free, chosen = iter(rest), []
    for i in range(len(parts)):
        part = {index[name] for name in named[i]} if i in named else itertools.islice(free, drawn[i])
        chosen.append(sorted(part))
    return chosen


def _number_of_classes(part: Any) -> int:
    try:
        return check_whole("split", "part", part, least=0)
    except InputError:
        message = f"A part of a split is a number of classes or a list of names, not {part!r}"
        raise InputError(f"{message}: give one of them.") from None


def _first_rows(counts: tuple[int, ...]) -> tuple[int, ...]:
    """The first row of each class, where one class comes after another."""
    return tuple(itertools.accumulate(counts[:-1], initial=0))


def _whole(values: Iterable[int], name: str, least: int) -> tuple[int, ...]:
    try:
        values = tuple(values)
    except TypeError:
        raise InputError(f"ImageClasses take {name}= as a tuple, one whole number for each class: change {name}=.") from None
    return tuple(check_whole("ImageClasses", name, value, least) for value in values)


def _some(names: tuple[str, ...]) -> str:
    """The first eight names and how many more there are, for messages."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
