"""Reading images by class from a folder, a zip, a tar or an npz."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from adaptax.errors import InputError
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.io.decoding import MAX_BYTES, decode
from adaptax.tasks.images.io.find_classes import find_classes
from adaptax.tasks.images.io.npz import NpzImages
from adaptax.tasks.images.io.sources import open_source, refuse_pickle, refusing

Progress = Callable[[int, int], None]
# More than this is better mapped than held.
MAX_MEMORY = 16 << 30


@dataclass(frozen=True)
class ImageSpec:
    """What is made of a picture: its size, channels and crop, and which split is read."""

    size: int
    channels: int
    split: str | None
    crop: bool

    def __post_init__(self):
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 1024:
            raise InputError(f"The size of images, {self.size!r}, must be a whole number from 1 to 1024: change size=.")
        if isinstance(self.channels, bool) or self.channels not in (1, 3):
            raise InputError(f"The channels of images, {self.channels!r}, must be 1 (grey) or 3 (colour): change channels=.")
        if self.split is not None and (not isinstance(self.split, str) or not self.split.isprintable() or not self.split):
            raise InputError(f"split={self.split!r} must be the name of a split such as 'train', or None: change it.")
        if not isinstance(self.crop, bool):
            raise InputError(f"crop={self.crop!r} must be True or False: change it.")


@dataclass(frozen=True)
class Contents:
    """What a source holds: names and numbers of images of the classes, and the images with their places."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    pictures: Iterator[tuple[int, np.ndarray]]

    def fill(self, images: np.ndarray, progress: Progress | None) -> None:
        """Put the images in their places, class after class."""
        for done, (place, picture) in enumerate(self.pictures, 1):
            images[place] = picture
            if progress is not None:
                progress(done, len(images))


def read_images(
    path: str | os.PathLike,
    size: int = 84,
    channels: int = 3,
    split: str | None = None,
    crop: bool = False,
    progress: Progress | None = None,
) -> ImageClasses:
    """Images by class, read into memory from a folder, a zip, a tar or an npz. Nothing is written.

    A folder, `.zip`, `.tar`, `.tar.gz` or `.tar.bz2` holds class folders, `class/image.jpg`, at any depth; or lists
    `train.csv`, `val.csv`, `test.csv` of `filename,label`, as mini-ImageNet has them. So CIFAR-FS, FC100, CUB-200-2011
    and tiered-ImageNet are read as published, where they are published as pictures. An `.npz` holds `images`
    (n, H, W[, C]) of uint8 and `labels` (n,). Pickles are refused, for they may run any code. Pictures are PNG, JPEG,
    BMP, PPM or WebP; other files among them are refused, hidden ones passed over. Classes and images come in the order of
    their names.

    Arguments:
        path: the folder or file.
        size: side of the images in pixels, 1 to 1024 (default 84); resized with antialiasing (Lanczos).
        channels: 3 (colour, the default) or 1 (grey).
        split: only the classes in folders below one of this name, or in the list of this name (default: all).
        crop: whether the largest square in the middle is taken (default: the sides are scaled each by its own factor).
        progress: called with the numbers of images done and in all.

    Returns: `ImageClasses`.

    Errors: `InputError` naming the file, if the source or a picture in it cannot be read, is damaged, leads out of its
        folder, or is too large.

    Example:
        >>> import tempfile, pathlib
        >>> from PIL import Image
        >>> from adaptax.tasks import read_images
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("wren/1.png", "wren/2.png", "crow/1.png"):
        ...         path = pathlib.Path(root, name)
        ...         path.parent.mkdir(exist_ok=True)
        ...         Image.new("RGB", (100, 80)).save(path)
        ...     data = read_images(root, size=32)
        >>> data.names, data.counts, data.images.shape
        (('crow', 'wren'), (1, 2), (3, 32, 32, 3))

    Source: layouts: Ravi, Larochelle (2017); Bertinetto et al. (2019); Oreshkin et al. (2018); Wah et al. (2011); Ren et
    al. (2018).
    """
    spec = ImageSpec(size, channels, split, crop)
    with open_contents(path, spec) as contents:
        shape = (sum(contents.counts), size, size, channels)
        if (count := int(np.prod(shape, dtype=object))) > MAX_MEMORY:
            message = f"'{path}' at size {size} takes {count / 2**30:.0f} GiB"
            raise InputError(f"{message}: use prepare_images, which keeps it in a file, or a smaller size.")
        images = np.empty(shape, np.uint8)
        contents.fill(images, progress)
    return ImageClasses(images, contents.names, contents.counts)


@contextmanager
def open_contents(path: str | os.PathLike, spec: ImageSpec) -> Iterator[Contents]:
    """The contents of a source, whose pictures may be read until the end of the `with`."""
    if not isinstance(path, str | os.PathLike) or isinstance(path := os.fspath(path), bytes) or "\0" in path:
        raise InputError("Images are read from the path of a folder, zip, tar or npz: give one.")
    if path.lower().endswith(".npz"):
        with ExitStack() as stack:
            with refusing(path):
                refuse_pickle(path)
                npz = NpzImages(path, stack)
            if spec.split is not None:
                raise InputError(f"'{path}' is an npz, which has no splits: leave out split=, or split what is read.")
            rows = _guarded(path, npz.pictures(spec.size, spec.channels, spec.crop))
            places = _places(npz.classes)
            yield _contents(npz.classes, ((places[i], picture) for i, picture in rows))
        return
    with open_source(path) as source:
        classes = find_classes(source.sizes, source.read, spec.split, path)
        places = _places(classes)
        for name in places:
            if source.sizes[name] > MAX_BYTES:
                raise InputError(f"{name!r} in '{path}' is larger than {MAX_BYTES >> 20} MiB: make it smaller.")
        # In the order in which they lie in an archive, which is the fast one.
        order = (name for name in source.sizes if name in places)
        decoded = ((places[n], decode(source.read(n), n, spec.size, spec.channels, spec.crop)) for n in order)
        yield _contents(classes, decoded)


def _guarded(path: str, items: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """The items; what goes wrong in making them is an `InputError`, what goes wrong in using them is not."""
    while True:
        with refusing(path):
            item = next(items, None)
        if item is None:
            return
        yield item


def _places(classes: dict) -> dict:
    return {item: place for place, item in enumerate(item for items in classes.values() for item in items)}


def _contents(classes: dict, pictures: Iterator[tuple[int, np.ndarray]]) -> Contents:
    return Contents(tuple(classes), tuple(map(len, classes.values())), pictures)
