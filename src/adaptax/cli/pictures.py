"""From the options of `adaptax train images` to the data that they name."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax

from adaptax.cli.configs import Images
from adaptax.cli.progress import Reading
from adaptax.errors import InputError
from adaptax.tasks.images import Characters, ImageClasses, held_out, prepare_images, read_characters, read_images
from adaptax.tasks.images.io.sources import TARS

Data = Characters | ImageClasses
# What is folded into the seed's key to draw what is kept for validation.
_VALIDATION = 2**32 - 2


class Parts(NamedTuple):
    """What to train on, to choose by (or None), and to judge by; and what was left out of that."""

    train: Data
    validation: Data | None
    test: Data
    left_out: tuple[str, ...] = ()


def load(config: Images) -> Parts:
    """The data of a run; without test data what is judged by is what is trained on."""
    assert config.data is not None  # settings.check
    read = _reader(config)
    train, validation = read(config.data, config.split), None
    if config.validation is not None:
        train, validation = _hold_out(config, config.validation, train, read)
    if config.test_data is None and config.test_split is None:
        return Parts(train, validation, train)
    test = read(config.test_data or config.data, config.test_split)
    # One reader makes both, so that they are of one kind.
    test, left_out = held_out(test, train)  # pyright: ignore[reportArgumentType]
    if validation is not None:
        # What chooses the network is no more to be judged by than what trains it.
        test, more = held_out(test, validation)  # pyright: ignore[reportArgumentType]
        left_out = (*left_out, *more)
    return Parts(train, validation, test, left_out)


def _hold_out(config: Images, wanted: str, train: Data, read: Any) -> tuple[Data, Data]:
    """What is left to train on, and what is kept for validation."""
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
    validation = read(config.data, wanted)
    return train, held_out(validation, train)[0]


def _reader(config: Images):
    """A function of a path and a split, which reads characters only if every source is a zip and no option says more."""
    paths = [path for path in (config.data, config.test_data) if path is not None]
    plain = config.size is None and not config.colour and config.split is config.test_split is config.cache is None
    if plain and not any(map(_general, paths)):
        return lambda path, _: read_characters(path)
    return functools.partial(_read, config)


def _general(path: Path) -> bool:
    return path.is_dir() or path.name.lower().endswith((".npz", *TARS))


def _read(config: Images, path: Path, split: str | None) -> ImageClasses:
    size, channels = 84 if config.size is None else config.size, 3 if config.colour else 1
    if size > 1024:
        raise InputError(f"--size {size} must be a whole number from 1 to 1024.")
    progress = Reading(path.name)
    if config.cache is None:
        return read_images(path, size, channels, split, progress=progress)
    return prepare_images(path, config.cache, size, channels, split, progress=progress)
