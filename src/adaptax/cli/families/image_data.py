"""Reads the images that the options of `adaptax train images` name: to train on, to choose by, and to judge by."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from adaptax.cli.naming import as_typed
from adaptax.cli.progress import Reading
from adaptax.errors import InputError
from adaptax.tasks.images import Characters, ImageClasses, held_out, prepare_images, read_characters, read_images
from adaptax.tasks.images.io.sources import TARS

if TYPE_CHECKING:
    from adaptax.cli.families.images import Images

Data = Characters | ImageClasses
# Folded into the seed's key to draw the classes that are kept for validation.
_VALIDATION = 2**32 - 2


class Parts(NamedTuple):
    """The images to train on, to choose the network by (or None), and to judge by; and the classes left out of the last."""

    train: Data
    validation: Data | None
    test: Data
    left_out: tuple[str, ...] = ()


def load(config: "Images") -> Parts:
    """The data of a run; without test data the network is judged on its training data."""
    assert config.data is not None  # checked by check_together
    read = _reader(config)
    train, validation = read(config.data, config.split), None
    if config.validation is not None:
        train, validation = _hold_out(config, config.validation, train, read)
    if config.test_data is None and config.test_split is None:
        return Parts(train, validation, train)
    with as_typed(type(config), split="test_split", path="test_data"):
        test = read(config.test_data or config.data, config.test_split)
    # One reader makes both, so that they are of one kind.
    test, left_out = held_out(test, train)  # pyright: ignore[reportArgumentType]
    if validation is not None:
        # Classes that choose the network are no more to be judged by than those that train it.
        test, more = held_out(test, validation)  # pyright: ignore[reportArgumentType]
        left_out = (*left_out, *more)
    return Parts(train, validation, test, left_out)


def judged_on(train: Data, test: Data) -> str:
    """The images that a network is judged on, in words."""
    if test is train:
        return f"the training {'characters' if isinstance(train, Characters) else 'classes'}, for want of --test-data"
    if isinstance(test, Characters):
        return f"{len(test.names)} characters of {', '.join(test.alphabets)}"
    return f"{len(test)} classes with {sum(test.counts):,} images"


def how_read(data: Data) -> dict[str, Any]:
    """How pictures become inputs: the side, the channels, and whether ink is bright."""
    characters = isinstance(data, Characters)
    size, channels = (data.images.shape[-1], 1) if characters else (data.size, data.channels)
    return {"size": size, "channels": channels, "inverted": characters}


def _hold_out(config: "Images", wanted: str, train: Data, read: Any) -> tuple[Data, Data]:
    """The classes that are left to train on, and those that are kept for validation."""
    number, key = wanted.isdecimal(), jax.random.fold_in(jax.random.key(config.seed), _VALIDATION)
    if isinstance(train, Characters):
        names = train.alphabets
        if number:
            if not 0 < int(wanted) < len(names):
                raise InputError(f"--validation {wanted} must leave some of {len(names)} alphabets to train on: keep fewer.")
            kept = {names[i] for i in jax.random.permutation(key, len(names))[: int(wanted)].tolist()}
        elif wanted not in names:
            raise InputError(f"--validation {wanted} must be a number, or one of {', '.join(names)}.")
        else:
            kept = {wanted}
        return train.without_alphabets(kept), train.without_alphabets(set(names) - kept)
    if number:
        if not 0 < int(wanted) < len(train):
            raise InputError(f"--validation {wanted} must leave some of {len(train)} classes to train on: keep fewer.")
        validation, rest = train.split(int(wanted), len(train) - int(wanted), key=key)
        return rest, validation
    with as_typed(type(config), split="validation"):
        validation = read(config.data, wanted)
    return train, held_out(validation, train)[0]


def _reader(config: "Images"):
    """A function that reads a path and a split.

    It reads Omniglot's characters if every source is a zip and no option asks for anything else.
    """
    paths = [path for path in (config.data, config.test_data) if path is not None]
    plain = config.size is None and not config.colour and config.split is config.test_split is config.cache is None
    if plain and not any(map(_general, paths)):
        return lambda path, _: read_characters(path)
    return functools.partial(_read, config)


def _general(path: Path) -> bool:
    return path.is_dir() or path.name.lower().endswith((".npz", *TARS))


def _read(config: "Images", path: Path, split: str | None) -> ImageClasses:
    size, channels = 84 if config.size is None else config.size, 3 if config.colour else 1
    progress = Reading(path.name)
    if config.cache is None:
        return read_images(path, size, channels, split, progress=progress)
    return prepare_images(path, config.cache, size, channels, split, progress=progress)
