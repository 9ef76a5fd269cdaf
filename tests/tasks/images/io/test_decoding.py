"""Pictures as they are meant to be seen: orientation, palettes, depth, transparency, animations."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from adaptax.errors import InputError
from adaptax.tasks import read_images
from adaptax.tasks.images.io.decoding import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation, kind="png", mode="RGB", **options):
    exif = Image.Exif()
    exif[274] = orientation
    return saved(Image.fromarray(PIXELS).convert(mode), kind, exif=exif, **options)


@pytest.mark.parametrize(
    "kind, mode", [("png", "RGB"), ("png", "P"), ("png", "L"), ("png", "RGBA"), ("jpeg", "RGB"), ("webp", "RGB")]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(kind, mode, orientation):
    data = turned(orientation, kind, mode)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    expected = np.asarray(upright.resize((8, 8), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(decode(data, "x", 8, 3, False), expected)
    side = min(upright.size)
    left, top = ((length - side) // 2 for length in upright.size)
    cropped = upright.resize((8, 8), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    np.testing.assert_array_equal(decode(data, "x", 8, 3, True), np.asarray(cropped))


def test_the_first_row_of_orientation_six_comes_to_the_right():
    # Written out: row r of the stored picture is column (5 - r) of the picture as it is seen.
    square = decode(turned(6), "x", 9, 3, False)
    by_hand = Image.fromarray(np.ascontiguousarray(PIXELS[::-1].transpose(1, 0, 2)))
    np.testing.assert_array_equal(square, np.asarray(by_hand.resize((9, 9), Image.Resampling.LANCZOS)))


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_changes_nothing(orientation):
    np.testing.assert_array_equal(decode(turned(orientation), "x", 9, 3, False), decode(turned(1), "x", 9, 3, False))


def test_damaged_exif_changes_nothing():
    plain = saved(Image.fromarray(PIXELS), "jpeg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01", b"Exif\0\0junk" * 9):
            data = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
            np.testing.assert_array_equal(decode(data, "x", 9, 3, False), decode(plain, "x", 9, 3, False))


def test_a_folder_and_a_zip_are_turned_alike(write, tmp_path):
    files = {
        f"{c}/{o}.JPG": turned(o, "jpeg", quality=95)
        for c, orientations in (("a", (1, 6)), ("b", (3, 8)))
        for o in orientations
    }
    for kind in ("folder", "a.zip", "a.tar.gz"):
        data = read_images(write(tmp_path / kind, files), 9)
        for name, i, orientation in (("a", 1, 6), ("b", 0, 3), ("b", 1, 8)):
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(files[f"{name}/{orientation}.JPG"])))
            np.testing.assert_array_equal(data.of(name)[i], np.asarray(upright.resize((9, 9), Image.Resampling.LANCZOS)))


def test_palettes_cmyk_and_transparency_are_converted():
    palette = Image.fromarray(PIXELS).quantize(4)
    np.testing.assert_array_equal(
        decode(saved(palette, "png"), "x", 9, 3, True)[4, 4],
        decode(saved(palette.convert("RGB"), "png"), "x", 9, 3, True)[4, 4],
    )
    blue = np.zeros((6, 6, 4), np.uint8) + np.array([255, 255, 0, 0], np.uint8)
    assert np.abs(decode(saved(Image.fromarray(blue, "CMYK"), "jpeg"), "x", 6, 3, False).astype(int) - (0, 0, 255)).max() < 4
    clear = Image.new("P", (6, 6), 1)
    clear.putpalette([9, 9, 9, 0, 0, 0])
    assert np.all(decode(saved(clear, "png", transparency=1), "x", 6, 1, False) == 255)


def test_sixteen_bits_are_refused_rather_than_cut():
    deep = Image.fromarray(np.full((6, 6), 40_000, np.uint16))
    with pytest.raises(
        InputError, match=r"'x' cannot be read \(its mode is I;16, which is not 8-bit grey or colour\): replace"
    ):
        decode(saved(deep, "png"), "x", 6, 1, False)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_the_first_picture_of_an_animation_is_taken(kind):
    first, second = (Image.new("RGB", (6, 6), colour) for colour in ("red", "blue"))
    data = saved(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "webp" else {}))
    assert np.all(decode(data, "x", 6, 3, False) == (255, 0, 0))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_a_picture_that_ends_early_is_refused_also_with_an_orientation(kind):
    data = turned(6, kind) if kind != "bmp" else saved(Image.fromarray(PIXELS), kind)
    for length in (0, 1, 20, len(data) - 40):
        with pytest.raises(InputError, match="'x' cannot be read"):
            decode(data[:length], "x", 6, 3, False)
