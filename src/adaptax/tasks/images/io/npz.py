"""Reading images and labels from an `.npz` file, row by row. Nothing in it is unpickled."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from adaptax.errors import InputError
from adaptax.tasks.images.io.decoding import MAX_SIDE, fit
from adaptax.tasks.images.io.sources import MAX_FILES

# Labels take at most this many bytes.
MAX_LABELS = 256 << 20


class NpzImages:
    """An open `.npz` file with the arrays `images` and `labels`.

    `images` has shape (n, H, W), (n, H, W, 1) or (n, H, W, 3) and type uint8; `labels` has shape (n,) and holds whole
    numbers or text. The headers are checked, and the labels read, when the object is made; `pictures` reads the images.

    Arguments:
        path: path of the file, or a binary file object.
        stack: an `ExitStack` that closes the file.

    Attributes:
        shape: (n, H, W, channels) of the images.
        classes: the rows of each class by its name; classes in the order of their labels, rows in rising order.

    Errors: `InputError` if an array is missing or does not have this form.

    Example:
        >>> import io, numpy as np
        >>> from contextlib import ExitStack
        >>> from adaptax.tasks.images.io.npz import NpzImages
        >>> file = io.BytesIO()
        >>> np.savez(file, images=np.zeros((3, 8, 8), np.uint8), labels=[7, 2, 7])
        >>> with ExitStack() as stack:
        ...     NpzImages(file, stack).classes
        {'2': [1], '7': [0, 2]}

    Source: numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
    """

    def __init__(self, path: Any, stack: ExitStack):
        self.path = path
        self.archive = stack.enter_context(zipfile.ZipFile(path))
        shape, dtype, _ = self._header("images")
        if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)) or 0 in shape:
            message = f"The images in '{path}' are {dtype}{list(shape)}"
            raise InputError(f"{message}: give a uint8 array of shape (n, height, width) or (n, height, width, 1 or 3).")
        if shape[0] > MAX_FILES or max(shape[1:3]) > MAX_SIDE:
            raise InputError(f"The images in '{path}' are too many or too large ({list(shape)}): split or shrink them.")
        self.shape = (*shape, 1) if len(shape) == 3 else shape
        self.classes = self._classes()

    def pictures(self, size: int, channels: int, crop: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each row and its image, resized as `decoding.decode` resizes pictures."""
        from PIL import Image

        _, height, width, own = self.shape
        row = height * width * own
        with self.archive.open("images.npy") as file:
            file.read(self._header("images")[2])
            for i in range(self.shape[0]):
                data = file.read(row)
                if len(data) < row:
                    raise InputError(f"The images in '{self.path}' end after {i} of {self.shape[0]} rows: download it again.")
                pixels = np.frombuffer(data, np.uint8).reshape(height, width, own)
                if (height, width, own) != (size, size, channels):
                    pixels = fit(Image.fromarray(pixels[..., 0] if own == 1 else pixels), size, channels, crop)
                yield i, pixels
            # Reading to the end makes zipfile compare the checksum.
            if file.read(1):
                raise InputError(f"The images in '{self.path}' have bytes after the last one: download it again.")

    def _classes(self) -> dict[str, list[int]]:
        """Read the labels and group the rows by them."""
        shape, dtype, _ = self._header("labels")
        if dtype.kind not in "iuU" or shape != self.shape[:1] or dtype.itemsize * shape[0] > MAX_LABELS:
            message = f"The labels in '{self.path}' are {dtype}{list(shape)}"
            raise InputError(f"{message}: give {self.shape[0]} whole numbers or names, one for each image.")
        with self.archive.open("labels.npy") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
        values, places = np.unique(labels, return_inverse=True)
        order = np.argsort(places, kind="stable")
        rows = np.split(order, np.cumsum(np.bincount(places))[:-1])
        names = [str(value) for value in values]
        if not all(name and name.isprintable() for name in names):
            raise InputError(f"A label in '{self.path}' is empty or cannot be printed: rename the class.")
        return {name: [int(i) for i in row] for name, row in zip(names, rows, strict=True)}

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype, int]:
        """Shape, type and header length in bytes of an array, checked against the member's size in the zip."""
        try:
            member = self.archive.getinfo(f"{name}.npy")
        except KeyError:
            found = ", ".join(sorted(n.removesuffix(".npy") for n in self.archive.namelist())[:8]) or "nothing"
            message = f"'{self.path}' has no array '{name}' but {found}"
            raise InputError(f"{message}: write it by np.savez(file, images=..., labels=...).") from None
        with self.archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise InputError(f"The array '{name}' in '{self.path}' is in format {version}: save it with plain types.")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
        if dtype.hasobject:
            raise InputError(f"The array '{name}' in '{self.path}' holds objects: save it as numbers or text of one length.")
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize + start != member.file_size:
            raise InputError(f"The array '{name}' in '{self.path}' is not as long as its header says: download it again.")
        if fortran and len(shape) > 1:
            raise InputError(f"The array '{name}' in '{self.path}' is in Fortran order: save np.ascontiguousarray of it.")
        return shape, dtype, start
