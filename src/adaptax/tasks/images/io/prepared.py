"""Prepared images: a source is decoded once, into an array on disk that later runs map into memory.

An entry of the cache is a folder with the array and a manifest of its shape, classes and checksums.
"""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adaptax.errors import InputError
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.io.reading import ImageSpec, Progress, open_contents, warn_of
from adaptax.tasks.images.io.sources import open_source, reading_errors

ARRAY, MANIFEST = "images.u8", "manifest.json"
# Format 1 did not turn pictures as their EXIF orientation says, and knew fewer lists.
FORMAT, FORMATS = 2, (1, 2)
MAX_MANIFEST = 64 << 20


def prepare_images(
    source: str | os.PathLike,
    cache: str | os.PathLike,
    size: int = 84,
    channels: int = 3,
    split: str | None = None,
    crop: bool = False,
    progress: Progress | None = None,
) -> ImageClasses:
    """Decode the images of a source into a file in `cache` the first time, and map that file into memory.

    An entry of the cache is one folder. It is written under a name that ends in `.part` and renamed when it is complete.
    It holds the array (`images.u8`, the bytes of a uint8 array of shape (n, size, size, channels)) and `manifest.json`:
    the shape, the classes, their counts, the array's sha256, and the fingerprint of the source and of these options. An
    entry with the same fingerprint is used again; the sha256 of its array is checked every time. An entry that an earlier
    version wrote without turning pictures as their EXIF orientation says is left as it is and not used; `open_prepared`
    opens it.

    Arguments:
        source: as for `read_images`.
        cache: folder for prepared images; it is made if it does not exist.
        size, channels, split, crop: as for `read_images`.
        progress: called as `progress(done, total)` while the entry is written; not called if there is one already.

    Returns: `ImageClasses` whose images are mapped from the file, read-only.

    Warns: as `read_images`, every time.

    Errors: `InputError` as for `read_images`; if an entry of the cache has been changed; if the disk has no room.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> from adaptax.tasks import prepare_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = pathlib.Path(folder, "small.npz")
        ...     np.savez(source, images=np.arange(256, dtype=np.uint8).reshape(4, 8, 8), labels=["a", "a", "b", "b"])
        ...     data = prepare_images(source, pathlib.Path(folder, "cache"), size=8, channels=1)
        ...     data.names, data.counts, int(data.images.max()), type(data.images).__name__
        (('a', 'b'), (2, 2), 255, 'memmap')
    """
    spec = ImageSpec(size, channels, split, crop)
    mark = _mark(spec, fingerprint(source))
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(os.path.abspath(source)).name)[:40].strip("-") or "images"
    folder = Path(cache, f"{stem}-{mark[:16]}")
    if os.path.lexists(folder):
        return open_prepared(folder, mark)
    try:
        Path(cache).mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=".part", dir=cache))
    except OSError as error:
        raise InputError(f"'{cache}' cannot be written to ({error.strerror}): choose another folder.") from error
    try:
        _write(source, spec, mark, part, progress)
        try:
            part.rename(folder)
        except OSError:
            # Another process has written the entry meanwhile; open_prepared checks it below.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_prepared(folder, mark)


def open_prepared(folder: str | os.PathLike, mark: str | None = None) -> ImageClasses:
    """Map the images in a folder that `prepare_images` wrote into memory.

    Arguments:
        folder: an entry of the cache: the folder with the array and its manifest.
        mark: the fingerprint that the manifest must have (default: any).

    Returns: `ImageClasses`.

    Errors: `InputError` if the folder is not as it was written.

    Example:
        >>> from adaptax.tasks import open_prepared
        >>> open_prepared("nowhere")
        Traceback (most recent call last):
        adaptax.errors.InputError: 'nowhere' holds no prepared images: give a folder that prepare_images wrote.
    """
    folder = Path(folder)
    if folder.is_symlink() or not folder.is_dir() or not (folder / MANIFEST).is_file():
        raise InputError(f"'{folder}' holds no prepared images: give a folder that prepare_images wrote.")
    remedy = "remove the folder, and prepare the images again"
    with reading_errors(str(folder)):
        try:
            manifest = _checked(json.loads(_text(folder / MANIFEST)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"The manifest of '{folder}' is damaged: {remedy}.") from error
        if mark not in (None, manifest["fingerprint"]):
            raise InputError(f"'{folder}' was prepared from another source: {remedy}.")
        shape, array = tuple(manifest["shape"]), folder / ARRAY
        count = math.prod(shape)
        if array.is_symlink() or not array.is_file() or array.stat().st_size != count:
            raise InputError(f"'{array}' is not {count} bytes long, as its manifest says: {remedy}.")
        if _sha256(array) != manifest["sha256"]:
            raise InputError(f"'{array}' differs from its manifest's sha256: {remedy}.")
        images = np.memmap(array, np.uint8, "r", shape=shape)
        data = ImageClasses(images, tuple(manifest["names"]), tuple(manifest["counts"]))
    if manifest["format"] < FORMAT:
        doubt = f"'{folder}' was prepared by an earlier version, which did not turn pictures as their EXIF orientation says"
        warn_of([f"{doubt}: prepare photographs again."])
    warn_of(manifest.get("doubts", []))
    return data


def fingerprint(source: str | os.PathLike, contents: bool = False) -> str:
    """A sha256 that identifies a source: of a file's bytes, or of the names, sizes and modification times in a folder.

    Arguments:
        source: a folder or a file.
        contents: True reads a folder's files in place of their times, so that copies have the same fingerprint.

    Errors: `InputError` if the source cannot be read.
    """
    if not isinstance(source, str | os.PathLike) or "\0" in os.fspath(source):
        raise InputError(
            "prepare_images takes the path of a folder, zip, tar or npz: give one, or read a source by read_images."
        )
    path = os.fspath(source)
    with reading_errors(path):
        if not os.path.isdir(path):
            return _sha256(Path(path))
        digest = hashlib.sha256()
        with open_source(path) as files:
            for name, size in files.sizes.items():
                state = hashlib.sha256(files.read(name)).hexdigest() if contents else os.stat(Path(path, name)).st_mtime_ns
                digest.update(json.dumps([name, size, state]).encode())
        return digest.hexdigest()


def _mark(spec: ImageSpec, source: str) -> str:
    """The fingerprint of an entry, from the options and the fingerprint of the source."""
    # Entries on disk are found by exactly this text, so it must not follow the names of the code.
    text = f"Look(size={spec.size}, channels={spec.channels}, split={spec.split!r}, crop={spec.crop})"
    return hashlib.sha256(f"{FORMAT} {text} {source}".encode()).hexdigest()


def _write(source: Any, spec: ImageSpec, mark: str, part: Path, progress: Progress | None) -> None:
    """Write the array and the manifest of an entry into the folder `part`."""
    with open_contents(source, spec) as contents:
        shape = (sum(contents.counts), spec.size, spec.size, spec.channels)
        _reserve(part / ARRAY, math.prod(shape))
        images = np.memmap(part / ARRAY, np.uint8, "r+", shape=shape)
        contents.fill(images, progress)
        images.flush()
    manifest = {
        "format": FORMAT, "fingerprint": mark, "source": Path(source).name, "shape": list(shape), "crop": spec.crop,
        "split": spec.split, "sha256": _sha256(part / ARRAY),
        "names": list(contents.names), "counts": list(contents.counts), "doubts": contents.doubts,
    }  # fmt: skip
    manifest["check"] = _check(manifest)
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _reserve(path: Path, count: int) -> None:
    """Make a file of `count` bytes and allocate its blocks, because writing to a map of a full disk kills the process."""
    try:
        if count > shutil.disk_usage(path.parent).free:
            raise OSError
        with open(path, "wb") as file:
            file.truncate(count)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        where, need = path.parent.parent, count / 2**30
        raise InputError(f"'{where}' has no room for {need:.1f} GiB: choose another folder for the cache.") from error


def _checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest itself; a `ValueError`, `KeyError` or `TypeError` if it is not one that `_write` makes."""
    numbers = [*manifest["shape"], *manifest["counts"]]
    texts = [manifest["fingerprint"], manifest["sha256"], *manifest["names"], *manifest.get("doubts", [])]
    good = (
        manifest["format"] in FORMATS
        and len(manifest["shape"]) == 4
        and all(type(number) is int and 0 < number < 1 << 40 for number in numbers)
        and all(isinstance(text, str) and text and text.isprintable() for text in texts)
        and len(manifest["names"]) == len(manifest["counts"])
        and sum(manifest["counts"]) == manifest["shape"][0]
        and manifest["check"] == _check(manifest)
    )
    if not good:
        raise ValueError
    return manifest


def _check(manifest: dict[str, Any]) -> str:
    """A sha256 of all other entries of a manifest."""
    rest = {name: value for name, value in manifest.items() if name != "check"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _text(path: Path) -> str:
    """The text of a file; a `ValueError` if it is too long for a manifest."""
    with open(path, "rb") as file:
        data = file.read(MAX_MANIFEST + 1)
    if len(data) > MAX_MANIFEST:
        raise ValueError
    return data.decode("utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
