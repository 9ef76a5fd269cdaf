"""Reading images by class from a random-access source, such as a dataset of Hugging Face or a source of grain."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adaptax._tree import first_line
from adaptax.errors import InputError
from adaptax.tasks.images.io.decoding import MAX_PIXELS, decode, fit, opaque, upright


def is_source(value: Any) -> bool:
    """Whether a value is read record by record: `len(source)` and `source[i]`, as opposed to a path."""
    return not isinstance(value, str | bytes | Mapping) and hasattr(value, "__len__") and hasattr(value, "__getitem__")


class Records:
    """The records of a random-access source, each with an image and a label.

    A record is a mapping with the fields `image` and `label`, or a sequence that begins with the two. An image is a Pillow
    picture, an array of uint8 of shape (H, W), (H, W, 1) or (H, W, 3), or the bytes of a picture. A label is a text or a whole
    number; the names of numbers come from `source.features[label].names` or `source.classes`, where there are such.

    Arguments:
        source: has `len(source)` and `source[i]`.
        image, label: the names of the fields.

    Attributes:
        path: the type of the source, for messages.
        classes: the rows of each class by its name, in the order of names.

    Errors: `InputError` if a record has no such fields, or a label is neither a text nor a whole number.

    Example:
        >>> import numpy as np
        >>> from adaptax.tasks.images.io.records import Records
        >>> Records([(np.zeros((8, 8), np.uint8), name) for name in ("wren", "crow", "wren")], "image", "label").classes
        {'crow': [1], 'wren': [0, 2]}
    """

    def __init__(self, source: Any, image: str, label: str):
        self.source, self.image, self.label, self.path = source, image, label, type(source).__name__
        if not len(source):
            raise InputError(f"{self.path} has no records: give a source with images.")
        # Tables by column give all labels without decoding an image.
        if label in (getattr(source, "column_names", None) or ()):
            labels = list(source[label])
        else:
            labels = [self._field(self._record(i), i, label, 1) for i in range(len(source))]
        names, found = self._names(), {}
        for i, value in enumerate(labels):
            found.setdefault(self._name(value, names, i), []).append(i)
        numbers = all(name.isdecimal() for name in found)
        self.classes = dict(sorted(found.items(), key=lambda pair: int(pair[0]) if numbers else pair[0]))

    def pictures(self, size: int, channels: int, crop: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each record and its image, resized as `decoding.decode` resizes pictures."""
        for i in range(len(self.source)):
            yield i, self._picture(self._field(self._record(i), i, self.image, 0), i, size, channels, crop)

    def _record(self, i: int) -> Any:
        try:
            return self.source[i]
        except Exception as error:  # a source may raise anything
            raise InputError(f"Record {i} of {self.path} cannot be read ({first_line(error)}): repair or remove it.") from error

    def _field(self, record: Any, i: int, name: str, place: int) -> Any:
        if isinstance(record, Mapping):
            if name in record:
                return record[name]
            fields = ", ".join(map(repr, record)) or "none"
            raise InputError(f"Record {i} of {self.path} has no field {name!r} but {fields}: name it by image= or label=.")
        if isinstance(record, tuple | list) and len(record) >= 2:
            return record[place]
        message = f"Record {i} of {self.path} is {type(record).__name__}"
        raise InputError(
            f"{message}: a record is a mapping with {self.image!r} and {self.label!r}, or a pair of an image and a label."
        )

    def _names(self) -> list[str] | None:
        """The names of the classes, where the source has them for the numbers that its records hold."""
        features = getattr(self.source, "features", None)
        kind = features.get(self.label) if isinstance(features, Mapping) else None
        return getattr(kind, "names", None) or getattr(self.source, "classes", None)

    def _name(self, value: Any, names: list[str] | None, i: int) -> str:
        value = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
        if isinstance(value, str):
            name = value
        elif isinstance(value, int) and not isinstance(value, bool):
            name = str(names[value]) if names and 0 <= value < len(names) else str(value)
        else:
            text = f"The label of record {i} of {self.path} is {type(value).__name__}"
            raise InputError(f"{text}: a label is a whole number or a text; name its field by label=.")
        if not name or not name.isprintable():
            raise InputError(f"The label of record {i} of {self.path} is empty or cannot be printed: rename the class.")
        return name

    def _picture(self, image: Any, i: int, size: int, channels: int, crop: bool) -> np.ndarray:
        from PIL import Image

        name = f"record {i} of {self.path}"
        if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):
            image = image["bytes"]
        if isinstance(image, bytes):
            return decode(image, name, size, channels, crop)
        if not isinstance(image, Image.Image):
            pixels = np.asarray(image)
            flat = pixels.ndim in (2, 3) and pixels.shape[2:] in ((), (1,), (3,)) and pixels.size
            if pixels.dtype != np.uint8 or not flat:
                raise InputError(
                    f"The image of {name} is {pixels.dtype}{list(pixels.shape)}: give a Pillow picture, or an array of uint8 "
                    "of shape (height, width), (height, width, 1) or (height, width, 3)."
                )
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        try:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, which is too large")
            return fit(opaque(upright(image)), size, channels, crop)
        except Exception as error:  # Pillow documents no list of what a damaged picture may raise
            raise InputError(f"The image of {name} cannot be read ({first_line(error)}): replace or remove it.") from error
