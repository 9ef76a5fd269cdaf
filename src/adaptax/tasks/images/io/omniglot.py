"""Reading characters from a zip in Omniglot's layout. Nothing is written to disk."""

import io
import os
import struct
import warnings
import zipfile
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from adaptax._checks import check_whole
from adaptax._tree import first_line
from adaptax.errors import InputError
from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.io.class_names import DataWarning, check_told_apart, listed
from adaptax.tasks.images.io.copies import checksum, find_copies
from adaptax.tasks.images.io.decoding import OTHER_PICTURES, SUFFIXES, upright
from adaptax.tasks.images.io.lists import TABLES
from adaptax.tasks.images.io.safe_paths import hidden, unsafe

# Limits beyond which a file is a mistake or a zip bomb; all of Omniglot is 32,460 images of about 300 bytes.
MAX_FILES = 100_000
MAX_BYTES = 1 << 20
MAX_SIDE = 1024
MAX_TOTAL = 1 << 30
MODES = ("1", "L", "P", "RGB")


def read_characters(path: str | os.PathLike, size: int = 28) -> Characters:
    """Read characters from a zip with the layout `<root>/<Alphabet>/<character>/*.png`, dark ink on light paper.

    Drawings are turned as their EXIF orientation says. The images are inverted, so that ink is 255 and the background 0,
    and resized with antialiasing (Lanczos). Nothing is extracted to disk. Classes are sorted by name, drawings by file
    name. Where classes differ in their number of drawings, the first n of each are taken, where n is the number of the
    smallest class.

    Arguments:
        path: a zip file, for instance Omniglot's `images_background.zip`.
        size: side of the images in pixels, 1 to 1024 (default 28).

    Returns: `Characters` with images of shape (classes, drawings, size, size).

    Errors: `InputError` if there is no such file; if it is not a zip, is damaged or encrypted, has an entry that leads
        out of the folder or is too large; if it holds no PNG in this layout, or one that cannot be read; if it holds
        other pictures or lists, or one class in several splits.

    Warns: `DataWarning` of a drawing that occurs twice.

    Example:
        >>> import io, tempfile, zipfile, pathlib
        >>> from PIL import Image
        >>> from adaptax.tasks import read_characters
        >>> png = io.BytesIO()
        >>> Image.new("1", (105, 105), 1).save(png, "png")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "small.zip")
        ...     with zipfile.ZipFile(path, "w") as archive:
        ...         archive.writestr("images/Greek/character01/0001_01.png", png.getvalue())
        ...     characters = read_characters(path)
        >>> characters.names, characters.images.shape, int(characters.images.max())
        (('Greek/character01',), (1, 1, 28, 28), 0)

    Source: Lake, Salakhutdinov, Tenenbaum (2015), Science 350; github.com/brendenlake/omniglot.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"read_characters takes the path of a zip, not {type(path).__name__}: give a path.")
    size = check_whole("read_characters", "size", size, most=1024)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, os.fspath(path), size)
    except FileNotFoundError as error:
        raise InputError(f"There is no file '{path}': give the path of an Omniglot zip.") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"'{path}' cannot be read ({reason}): give the path of a zip that you may read.") from error
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, struct.error) as error:
        raise InputError(f"'{path}' is not a zip or is damaged: download it again and check its sha256.") from error


def _read(archive: zipfile.ZipFile, path: str, size: int) -> Characters:
    classes = _classes(archive, path)
    drawings = min(map(len, classes.values()))
    if len(classes) * drawings * size**2 > MAX_TOTAL:
        raise InputError(f"'{path}' at size {size} needs more than {MAX_TOTAL >> 20} MiB: choose a smaller size.")
    images = np.empty((len(classes), drawings, size, size), np.uint8)
    names, checksums = list[str](), list[bytes]()
    # Alphabets may well have characters of one name.
    check_told_apart(classes, path, say=None)
    for row, (_, entries) in zip(images, sorted(classes.items()), strict=True):
        for image, (_, entry) in zip(row, sorted(entries.items())[:drawings], strict=True):
            image[:] = _image(archive, entry, path, size)
            names.append(entry.filename)
            checksums.append(checksum(image))
    for doubt in find_copies(checksums, [i // drawings for i in range(len(names))], names, path):
        warnings.warn(doubt, DataWarning, stacklevel=3)
    return Characters(images, tuple(sorted(classes)))


def _classes(archive: zipfile.ZipFile, path: str) -> dict[str, dict[str, zipfile.ZipInfo]]:
    """The zip's entries that are drawings, by class and by file name. Names, numbers and sizes are checked."""
    folders, others = dict[str, PurePosixPath](), list[str]()
    classes: dict[str, dict[str, zipfile.ZipInfo]] = defaultdict(dict)
    for count, entry in enumerate(e for e in archive.infolist() if not e.is_dir()):
        file = PurePosixPath(entry.filename)
        if unsafe(entry.filename):
            message = f"'{path}' holds {entry.filename!r}, a name that leads out of its folder or cannot be printed"
            raise InputError(f"{message}: use the zip as published.")
        if count >= MAX_FILES:
            raise InputError(f"'{path}' holds more than {MAX_FILES:,} files: split it.")
        suffix = file.suffix.lower()
        if hidden(file) or suffix not in (*SUFFIXES, *OTHER_PICTURES, *TABLES):
            continue
        if suffix != ".png" or len(file.parts) < 3:
            others.append(entry.filename)
            continue
        if entry.file_size > MAX_BYTES:
            raise InputError(f"{entry.filename!r} in '{path}' is larger than {MAX_BYTES >> 20} MiB: make it smaller.")
        name = "/".join(file.parts[-3:-1])
        if folders.setdefault(name, file.parent) != file.parent:
            raise InputError(f"'{path}' holds '{name}' in two folders: keep one of them.")
        classes[name][file.name] = entry
    if sum(entry.file_size for entries in classes.values() for entry in entries.values()) > MAX_TOTAL:
        raise InputError(f"The images in '{path}' take more than {MAX_TOTAL >> 20} MiB: split it.")
    if not classes:
        raise InputError(f"'{path}' holds no <Alphabet>/<character>/*.png: give an Omniglot zip as published.")
    if others:
        message = f"'{path}' also holds {listed(others)}, which is no PNG in <Alphabet>/<character>"
        raise InputError(f"{message}: remove it, or read the zip by read_images (adaptax train: add --size 28).")
    return classes


def _image(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, size: int) -> np.ndarray:
    """One drawing, inverted and resized."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with archive.open(entry) as file:
            data = file.read(MAX_BYTES + 1)
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _check(image, len(data))
            ink = ImageOps.invert(upright(image).convert("L"))
    except Exception as error:  # the libraries document no list of what a damaged zip or PNG may raise
        reason = "it is not a PNG" if isinstance(error, UnidentifiedImageError) else first_line(error)
        message = f"{entry.filename!r} in '{path}' cannot be read ({reason})"
        raise InputError(f"{message}: replace it by a PNG of black ink on white, or download the zip again.") from error
    return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))


def _check(image: Any, count: int) -> None:
    """Raise `ValueError` for a picture that is too large, before it is decoded, or that is transparent."""
    if count > MAX_BYTES or max(image.size) > MAX_SIDE:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB or {MAX_SIDE} pixels")
    if image.mode not in MODES or "transparency" in image.info:
        raise ValueError(f"its mode is {image.mode}, or it is transparent")
