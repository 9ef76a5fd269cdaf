"""From the options of `adaptax train images` to the data that they name."""

import functools
from pathlib import Path

from adaptax.cli.configs import Images
from adaptax.cli.progress import Reading
from adaptax.errors import InputError
from adaptax.tasks.images import Characters, ImageClasses, held_out, prepare_images, read_characters, read_images
from adaptax.tasks.images.sources import TARS

Data = Characters | ImageClasses


def load(config: Images) -> tuple[Data, Data, tuple[str, ...]]:
    """What to train on, what to judge by, and what was left out of that; without test data the two are one."""
    assert config.data is not None  # settings.check
    read = _reader(config)
    train = read(config.data, config.split)
    if config.test_data is None and config.test_split is None:
        return train, train, ()
    test = read(config.test_data or config.data, config.test_split)
    # One reader makes both, so that they are of one kind.
    test, left_out = held_out(test, train)  # pyright: ignore[reportArgumentType]
    return train, test, left_out


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
