"""Reading images by class from a folder, a zip, a tar or an npz."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptax._checks import check_true_or_false, check_whole
from adaptax.errors import InputError
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.io.class_names import DataWarning, check_told_apart
from adaptax.tasks.images.io.copies import checksum, find_copies
from adaptax.tasks.images.io.decoding import MAX_BYTES, decode
from adaptax.tasks.images.io.find_classes import find_classes
from adaptax.tasks.images.io.npz import NpzImages
from adaptax.tasks.images.io.records import Records, is_source
from adaptax.tasks.images.io.sources import open_source, reading_errors, refuse_pickle

Progress = Callable[[int, int], None]
# The most bytes of images that are read into memory; larger data are mapped from a file by `prepare_images`.
MAX_MEMORY = 16 << 30


@dataclass(frozen=True)
class ImageSpec:
    """How pictures are read: the size, channels and crop of the images, and the split. Checked when it is made."""

    size: int
    channels: int
    split: str | None
    crop: bool

    def __post_init__(self):
        object.__setattr__(self, "size", check_whole("", "size", self.size, most=1024))
        object.__setattr__(self, "channels", check_whole("", "channels", self.channels))
        object.__setattr__(self, "crop", check_true_or_false("", "crop", self.crop))
        if self.channels not in (1, 3):
            raise InputError(f"channels={self.channels} must be 1 (grey) or 3 (colour): change channels=.")
        if self.split is not None and (not isinstance(self.split, str) or not self.split.isprintable() or not self.split):
            raise InputError(f"split={self.split!r} must be the name of a split such as 'train', or None: change split=.")


@dataclass(frozen=True)
class Contents:
    """The contents of a source.

    Arguments:
        path: of the source, for messages.
        names: the classes.
        counts: number of images of each class.
        pictures: yields each image with its row in the array of all images, in which one class comes after another.
        items: what each row was read from.
        doubts: sentences on what was read and may be other than it seems, for warnings.
    """

    path: str
    names: tuple[str, ...]
    counts: tuple[int, ...]
    pictures: Iterator[tuple[int, np.ndarray]]
    items: list[str]
    doubts: list[str]

    def fill(self, images: np.ndarray, progress: Progress | None) -> None:
        """Write every image to its row of `images`, and add a doubt if two are equal."""
        checksums = [b""] * len(images)
        for done, (row, picture) in enumerate(self.pictures, 1):
            images[row] = picture
            checksums[row] = checksum(picture)
            if progress is not None:
                progress(done, len(images))
        classes = np.repeat(np.arange(len(self.counts)), self.counts).tolist()
        self.doubts.extend(find_copies(checksums, classes, self.items, self.path))


def read_images(
    path: Any,
    size: int = 84,
    channels: int = 3,
    split: str | None = None,
    crop: bool = False,
    progress: Progress | None = None,
    *,
    image: str = "image",
    label: str = "label",
) -> ImageClasses:
    """Read images by class into memory, from a folder, a zip, a tar, an npz or a random-access source. Nothing is written.

    A folder, `.zip`, `.tar`, `.tar.gz` or `.tar.bz2` holds class folders, `class/image.jpg`, at any depth; or lists
    `train.csv`, `val.csv`, `test.csv` of `filename,label`, as mini-ImageNet does. CIFAR-FS, FC100, CUB-200-2011 and
    tiered-ImageNet can therefore be read as published, where they are published as pictures. An `.npz` holds `images`
    of shape (n, H, W), (n, H, W, 1) or (n, H, W, 3) and type uint8, and `labels` of shape (n,). Pickles are refused,
    because loading one may run any code. Pictures are PNG, JPEG, BMP, PPM or WebP, and are turned as their EXIF
    orientation says; other files among them are refused, hidden ones and folders of thumbnails that systems make are
    passed over. Classes and images are sorted by their names.

    Lists may be CSV with any separator, text or JSON, with a header that tells files and classes apart (`image_name`,
    `class`, ...) or none, and perhaps a column of splits. Lists of files or classes alone (`train.txt`) say what belongs
    to a split of class folders. A list that cannot be used is named in an error, or in a warning if folders tell classes.
    A class that is in several splits has to be read by `split=`, so that it is never two classes.

    A random-access source has `len(source)` and `source[i]`: a dataset of Hugging Face or of torchvision, a source of grain, a
    list. A record is a mapping with the fields `image` and `label`, or a pair of an image and a label. An image is a Pillow
    picture, an array of uint8 of shape (H, W), (H, W, 1) or (H, W, 3), or the bytes of a picture. A label is a text or a whole
    number; numbers get the names of `source.features[label].names` or `source.classes`, where there are such.

    Arguments:
        path: the folder or file, or the source.
        size: side of the images in pixels, 1 to 1024 (default 84); pictures are resized with antialiasing (Lanczos).
        channels: 3 (colour, the default) or 1 (grey).
        split: take only the classes in folders below one of this name, or in the list or its column of splits (default: all).
        crop: True takes the largest square in the middle; False (default) scales each side by its own factor.
        progress: called as `progress(done, total)`, in numbers of images, after each image.
        image, label: the names of the fields in the records of a source (default "image" and "label").

    Returns: `ImageClasses`.

    Errors: `InputError` that names the file, if the source or a picture in it cannot be read, is damaged, leads out of
        its folder, or is too large; if two folders or labels mean one class; if an argument is out of its range.

    Warns: `DataWarning` of a picture that occurs twice, of one that is left out, and of a list that is not used.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> from adaptax.tasks import read_images
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name, colour in (("wren/1.png", "red"), ("wren/2.png", "tan"), ("crow/1.png", "blue")):
        ...         path = pathlib.Path(root, name)
        ...         path.parent.mkdir(exist_ok=True)
        ...         Image.new("RGB", (100, 80), colour).save(path)
        ...     data = read_images(root, size=32)
        >>> data.names, data.counts, data.images.shape
        (('crow', 'wren'), (1, 2), (3, 32, 32, 3))

    Source: layouts: Ravi, Larochelle (2017); Bertinetto et al. (2019); Oreshkin et al. (2018); Wah et al. (2011); Ren et
    al. (2018).
    """
    spec = ImageSpec(size, channels, split, crop)
    with open_contents(Records(path, image, label) if is_source(path) else path, spec) as contents:
        shape = (sum(contents.counts), spec.size, spec.size, spec.channels)
        if (count := math.prod(shape)) > MAX_MEMORY:
            message = f"'{contents.path}' at size {spec.size} takes {count / 2**30:.0f} GiB"
            raise InputError(f"{message}: use prepare_images, which keeps the images in a file, or a smaller size.")
        images = np.empty(shape, np.uint8)
        contents.fill(images, progress)
    warn_of(contents.doubts)
    return ImageClasses(images, contents.names, contents.counts)


def warn_of(doubts: list[str]) -> None:
    """Warn of every sentence; the caller's caller is named."""
    for doubt in doubts:
        warnings.warn(doubt, DataWarning, stacklevel=3)


@contextmanager
def open_contents(path: "str | os.PathLike | Records", spec: ImageSpec) -> Iterator[Contents]:
    """Open a folder, zip, tar, npz or source. Its pictures can be read until the end of the `with` block."""
    if isinstance(path, Records):
        if spec.split is not None:
            raise InputError(
                f"{path.path} is a source, which has no splits: leave out split=, and give the source of one split."
            )
        doubts: list[str] = []
        check_told_apart(path.classes, path.path, doubts.append)
        rows = _rows(path.classes)
        found = ((rows[i], picture) for i, picture in path.pictures(spec.size, spec.channels, spec.crop))
        yield Contents(path.path, *_sizes(path.classes), found, [f"record {i}" for i in rows], doubts)
        return
    if not isinstance(path, str | os.PathLike) or isinstance(path := os.fspath(path), bytes) or "\0" in path:
        if isinstance(path, Mapping) and path:
            raise InputError(f"{type(path).__name__} is a mapping of {', '.join(map(repr, path))}: give one of its values.")
        raise InputError(
            "Images are read from the path of a folder, zip, tar or npz, or from a source with len() and [i]: give one."
        )
    if path.lower().endswith(".npz"):
        with ExitStack() as stack:
            with reading_errors(path):
                refuse_pickle(path)
                npz = NpzImages(path, stack)
            if spec.split is not None:
                raise InputError(f"'{path}' is an npz, which has no splits: leave out split=, or split what is read.")
            doubts = []
            check_told_apart(npz.classes, path, doubts.append)
            rows = _rows(npz.classes)
            read = _with_input_errors(path, npz.pictures(spec.size, spec.channels, spec.crop))
            found = ((rows[i], picture) for i, picture in read)
            yield Contents(path, *_sizes(npz.classes), found, [f"row {i}" for i in rows], doubts)
        return
    with open_source(path) as source:
        doubts = []
        classes = find_classes(source.sizes, source.read, spec.split, path, doubts.append)
        rows = _rows(classes)
        for name in rows:
            if source.sizes[name] > MAX_BYTES:
                raise InputError(f"{name!r} in '{path}' is larger than {MAX_BYTES >> 20} MiB: make it smaller.")
        # Files are read in the order in which they lie in an archive, which is the fastest.
        order = (name for name in source.sizes if name in rows)
        decoded = ((rows[n], decode(source.read(n), n, spec.size, spec.channels, spec.crop)) for n in order)
        yield Contents(path, *_sizes(classes), decoded, list(rows), doubts)


def _with_input_errors(path: str, items: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """The same items. An error in making an item becomes an `InputError`; an error in its use, outside, stays as it is."""
    while True:
        with reading_errors(path):
            item = next(items, None)
        if item is None:
            return
        yield item


def _rows(classes: dict) -> dict:
    """The row of each item in the array of all images, in which one class comes after another."""
    return {item: row for row, item in enumerate(item for items in classes.values() for item in items)}


def _sizes(classes: dict) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of the classes, and the number of images of each."""
    return tuple(classes), tuple(map(len, classes.values()))
