"""Images by class, of any size, grey or colour, with as many images of a class as there are."""

import itertools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from adaptax._tree import first_line
from adaptax.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageClasses:
    """Images by class, kept on the host, in memory or in a file; `few_shot` makes tasks of them.

    The images of class c are rows `starts[c]` to `starts[c] + counts[c]`. What is taken or split off shares them.

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

    Source: disjoint classes for training and judging; Vinyals et al. (2016), NeurIPS.
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
            raise InputError("ImageClasses need at least one name, all of them different: mend names=.")
        counts = _whole(self.counts, "counts")
        starts = tuple(itertools.accumulate(counts[:-1], initial=0)) if self.starts is None else _whole(self.starts, "starts")
        if not len(names) == len(counts) == len(starts):
            raise InputError(f"ImageClasses need counts= and starts= for each of the {len(names)} names: mend them.")
        if min(counts) < 1 or min(starts) < 0 or max(map(sum, zip(starts, counts, strict=True))) > shape[0]:
            raise InputError(f"The counts of ImageClasses must be at least 1 and lie within the {shape[0]} images: mend them.")
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
        """The images of one class; an `InputError` if there is none of that name."""
        (c,) = self._places([name])
        return self.images[self._starts[c] : self._starts[c] + self.counts[c]]

    def take(self, names: Iterable[str]) -> "ImageClasses":
        """The classes of these names, in the order of the whole; an `InputError` if one is unknown or none is given."""
        return self._choose(sorted(self._places([names] if isinstance(names, str) else names)))

    def at_least(self, count: int) -> "ImageClasses":
        """The classes with at least `count` images; an `InputError` if there is none."""
        chosen = [c for c, n in enumerate(self.counts) if n >= count]
        if not chosen:
            raise InputError(f"No class has {count} images; the largest has {max(self.counts)}: ask for fewer.")
        return self._choose(chosen)

    def split(self, *parts: int | Iterable[str], key: Key[Array, ""] | None = None) -> "tuple[ImageClasses, ...]":
        """Parts without a common class, each given by its names, or by a number of classes that `key` draws from the rest.

        An `InputError` if a name is unknown or in two parts, or if there are too few classes.
        """
        return tuple(map(self._choose, partition(self.names, parts, key)))

    def compact(self) -> "ImageClasses":
        """The same classes, with an array that holds their images only, one class after another."""
        if self._starts == tuple(itertools.accumulate(self.counts[:-1], initial=0)) and sum(self.counts) == len(self.images):
            return self
        rows = [self.images[start : start + count] for start, count in zip(self._starts, self.counts, strict=True)]
        return ImageClasses(np.concatenate(rows), self.names, self.counts)

    @property
    def _starts(self) -> tuple[int, ...]:
        assert self.starts is not None  # __post_init__
        return self.starts

    def _places(self, names: Iterable[str]) -> set[int]:
        places = {name: c for c, name in enumerate(self.names)}
        if unknown := sorted(set(names := list(names)) - set(places)):
            raise InputError(f"There is no class '{unknown[0]}': choose from {_some(self.names)}.")
        return {places[name] for name in names}

    def _choose(self, chosen: list[int]) -> "ImageClasses":
        if not chosen:
            raise InputError("No class is left: name at least one.")
        pick = lambda values: tuple(values[c] for c in chosen)  # noqa: E731
        return ImageClasses(self.images, pick(self.names), pick(self.counts), pick(self._starts))


def partition(names: tuple[str, ...], parts: tuple[int | Iterable[str], ...], key: Key[Array, ""] | None) -> list[list[int]]:
    """Disjoint sets of indices of `names`, sorted, one for each part: its names, or so many drawn from those not named."""
    places, taken = {name: c for c, name in enumerate(names)}, dict[str, int]()
    named: dict[int, list[str]] = {}
    wanted: dict[int, int] = {}
    for i, part in enumerate(parts):
        if isinstance(part, Iterable):
            named[i] = [part] if isinstance(part, str) else list(part)
        elif hasattr(part, "__index__") and not isinstance(part, bool):
            wanted[i] = operator.index(part)
        else:
            raise InputError(f"A part of a split is a number of classes or a list of names, not {part!r}: give one of them.")
        for name in named.get(i, []):
            if name not in places:
                raise InputError(f"There is no class '{name}': choose from {_some(names)}.")
            if taken.setdefault(name, i) != i:
                raise InputError(f"The class '{name}' is in two parts of the split: leave it out of one.")
    rest = [c for c, name in enumerate(names) if name not in taken]
    if not parts or min([*map(len, named.values()), *wanted.values()]) < 1:
        raise InputError("Every part of a split needs at least one class: give names, or a number of at least 1.")
    if sum(wanted.values()) > len(rest):
        raise InputError(f"The split asks for {sum(wanted.values())} classes, but only {len(rest)} are free: ask for fewer.")
    if wanted:
        if key is None:
            raise InputError("A split by numbers needs a key to draw the classes with: give key=jax.random.key(0).")
        try:
            rest = [rest[i] for i in jax.random.permutation(key, len(rest)).tolist()]
        except (TypeError, ValueError) as error:
            raise InputError(f"key= is no key ({first_line(error)}): give key=jax.random.key(0).") from error
    drawn = iter(rest)
    chosen = lambda i: [places[n] for n in named[i]] if i in named else itertools.islice(drawn, wanted[i])  # noqa: E731
    return [sorted(set(chosen(i))) for i in range(len(parts))]


def _whole(values: Iterable[int], name: str) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, values))
    except TypeError:
        raise InputError(f"ImageClasses take {name}= as whole numbers, one for each class: mend it.") from None


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
