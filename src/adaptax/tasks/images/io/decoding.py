"""Decoding the bytes of a picture to an array. Format, size and mode are checked first, before any pixel is decoded."""

import io
import warnings

import numpy as np

from adaptax._tree import first_line
from adaptax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".ppm", ".pgm", ".webp")
# Pictures that are not read.
OTHER_PICTURES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jpe", ".pbm", ".pnm")
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
# Limits on a file and on its sides, against damaged headers and decompression bombs.
MAX_BYTES = 32 << 20
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000


def decode(data: bytes, name: str, size: int, channels: int, crop: bool) -> np.ndarray:
    """Decode a picture to a uint8 array of shape (size, size, channels).

    The picture is turned and mirrored as its EXIF orientation says, so that it lies as it is meant to be seen. Of an
    animation the first picture is taken.

    Arguments:
        data: the bytes of the file.
        name: name of the file, for messages.
        size: side of the result in pixels; the picture is resized with antialiasing (Lanczos).
        channels: 1 (grey) or 3 (colour). Transparent pixels are laid over white.
        crop: True takes the largest square in the middle; False scales each side by its own factor.

    Errors: `InputError` that names the file, if it is not a picture, is damaged, or is too large.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from adaptax.tasks.images.io.decoding import decode
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (60, 40), (255, 0, 0)).save(file, "png")
        >>> decode(file.getvalue(), "red.png", 8, 3, False)[0, 0].tolist()
        [255, 0, 0]

    Source: scaling both sides to 84 pixels by Lanczos' filter, as for mini-ImageNet in Finn, Abbeel, Levine (2017), ICML.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        # Pillow warns of EXIF data that are damaged.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise ValueError(f"it has {width} x {height} pixels, which is too large")
            if image.mode not in MODES:
                raise ValueError(f"its mode is {image.mode}, which is not 8-bit grey or colour")
            return fit(opaque(upright(image)), size, channels, crop)
    except Exception as error:  # Pillow documents no list of what a damaged picture may raise
        reason = "it is not a picture" if isinstance(error, UnidentifiedImageError) else first_line(error)
        message = f"{name!r} cannot be read ({reason})"
        raise InputError(f"{message}: replace it by a PNG or JPEG, or remove it.") from error


def fit(image, size: int, channels: int, crop: bool) -> np.ndarray:
    """Convert a Pillow picture to a uint8 array of shape (size, size, channels), as `decode` describes."""
    from PIL import Image

    image = image.convert("RGB" if channels == 3 else "L")
    width, height = image.size
    side, box = min(width, height), None
    if crop:
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    if image.size != (size, size) or box not in (None, (0, 0, size, size)):
        image = image.resize((size, size), Image.Resampling.LANCZOS, box)
    return np.asarray(image).reshape(size, size, channels)


def upright(image):
    """A Pillow picture turned and mirrored as its EXIF orientation says; one without a readable orientation as it is."""
    from PIL import Image

    image.load()
    try:
        orientation = image.getexif().get(274, 1)
    except Exception:  # Pillow documents no list of what damaged EXIF data may raise
        orientation = 1
    ways = Image.Transpose
    turned = {
        2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE, 6: ways.ROTATE_270,
        7: ways.TRANSVERSE, 8: ways.ROTATE_90,
    }.get(orientation)  # fmt: skip
    return image if turned is None else image.transpose(turned)


def opaque(image):
    """Lay a picture that has transparent pixels over white; return any other as it is."""
    from PIL import Image

    if image.mode not in ("LA", "PA", "RGBA") and "transparency" not in image.info:
        return image
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
