"""Reading characters from a zip: layout, polarity, order, and everything a bad file can be."""

import io
import os
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptax.errors import InputError
from adaptax.tasks import DataWarning, held_out, read_characters
from adaptax.tasks.images.io import omniglot

# Most drawings here are alike, which one test looks at.
pytestmark = pytest.mark.filterwarnings("ignore:.*remove the copies")


def png(pixels=None, mode="1", **save):
    """A PNG; by default one bit, white, with a black bar over the upper fifth."""
    if pixels is None:
        pixels = np.ones((105, 105), bool)
        pixels[:21] = False
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "png", **save)
    return file.getvalue()


def write(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def archive(tmp_path):
    """A function from entries to the path of a zip with them."""
    return lambda entries: write(tmp_path / "characters.zip", entries)


def layout(counts, root="images/"):
    return {f"{root}{name}/{i:04}_{j:02}.png": png() for i, (name, n) in enumerate(counts.items()) for j in range(n)}


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        read_characters(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_names_shape_and_polarity(archive):
    path = archive(layout({"Latin/character02": 3, "Latin/character01": 3, "Greek/character01": 3}))
    characters = read_characters(path, size=21)
    assert characters.names == ("Greek/character01", "Latin/character01", "Latin/character02")
    assert characters.alphabets == ("Greek", "Latin")
    assert characters.images.shape == (3, 3, 21, 21) and characters.images.dtype == np.uint8
    # 105 / 21 = 5: the bar covers four rows and a fifth exactly; far from its edge ink is 255 and paper 0.
    assert np.all(characters.images[:, :, :2] == 255) and np.all(characters.images[:, :, 7:] == 0)


def test_resizing_is_antialiased(archive):
    pixels = np.ones((112, 112), bool)
    pixels[50] = False  # a line one pixel wide, a quarter of an output pixel
    image = read_characters(archive({"r/A/c/1.png": png(pixels)})).images[0, 0].astype(float)
    assert image[:, 14].sum() == pytest.approx(255 / 4, abs=8)
    assert 0 < image.max() < 255


def test_order_of_drawings_and_the_common_minimum(archive):
    shades = {f"r/A/c1/{j}.png": png(np.full((8, 8), 10 * j, np.uint8), "L") for j in (3, 1, 2)}
    path = archive(shades | {"r/A/c2/1.png": png(), "r/A/c2/2.png": png()})
    images = read_characters(path, size=8).images
    assert images.shape == (2, 2, 8, 8)
    assert np.all(images[0, 0] == 255 - 10) and np.all(images[0, 1] == 255 - 20)


def test_other_files_are_passed_over_and_a_root_is_not_needed(archive):
    entries = layout({"A/c1": 2}, root="") | {"README.txt": b"x", "__MACOSX/A/c1/._1.png": b"x", "A/c1/.x.png": b"x"}
    assert read_characters(archive(entries)).images.shape == (1, 2, 28, 28)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_other_opaque_modes(archive, mode):
    one, other = archive({"r/A/c/1.png": png()}), png(mode=mode)
    expected = read_characters(one).images
    np.testing.assert_array_equal(read_characters(archive({"r/A/c/1.png": other})).images, expected)


def test_nothing_is_written(archive, monkeypatch):
    path = archive(layout({"A/c1": 2}))
    before = sorted(path.parent.rglob("*"))
    monkeypatch.chdir(path.parent)
    read_characters(path)
    assert sorted(path.parent.rglob("*")) == before


def test_files_that_are_no_zip(tmp_path):
    text = tmp_path / "text.zip"
    text.write_bytes(b"not a zip")
    refused(text, "is not a zip or is damaged: download")
    text.write_bytes(b"")
    refused(text, "is not a zip")
    refused(tmp_path / "absent.zip", "There is no file .*absent.zip': give the path")
    refused(tmp_path, "cannot be read .*give the path")
    refused(None, "takes the path of a zip, not NoneType")


@pytest.mark.parametrize("size", [0, -1, 2000, 28.0, True])
def test_wrong_sizes(archive, size):
    refused(archive(layout({"A/c1": 1})), r"size=.* must be a whole number from 1 to 1024", size=size)


def test_numpys_numbers_are_numbers(archive):
    assert read_characters(archive(layout({"A/c1": 1})), size=np.int32(9)).images.shape == (1, 1, 9, 9)


@pytest.mark.parametrize(
    "name", ["../A/c/1.png", "r/A/../../c/1.png", "/A/c/1.png", "C:/A/c/1.png", r"..\A\c\1.png", "r/A/c\x1b[2J/1.png"]
)
def test_unsafe_names(archive, name):
    refused(archive({name: png()}), "leads out of its folder or cannot be printed: use the zip as published")


def test_no_images_or_another_layout(archive):
    for entries in ({}, {"r/A/c/1.txt": b"x"}, {"A/1.png": png()}):
        refused(archive(entries), "holds no <Alphabet>/<character>/.*png")
    refused(archive({"r1/A/c/1.png": png(), "r2/A/c/1.png": png()}), "holds 'A/c' in two folders")


def test_pictures_and_lists_that_would_be_left_out_are_named(archive):
    for other in ("r/A/c/2.jpg", "r/A/c/2.gif", "loose.png", "r/train.csv"):
        refused(archive({"r/A/c/1.png": png(), other: b"x"}), f"also holds '{other}', which is no PNG in <Alphabet>")


def test_one_character_in_two_splits_is_refused(archive):
    names = ("train/cat", "test/cat", "train/dog")
    refused(archive({f"{name}/1.png": png() for name in names}), "same class in several splits, as 'test/cat' and 'train/cat'")


def test_a_drawing_that_occurs_twice_is_named(archive):
    path = archive({"r/A/c/1.png": png(), "r/A/d/1.png": png()})
    with pytest.warns(DataWarning, match="A picture is in several classes of .*'r/A/c/1.png' and 'r/A/d/1.png': remove"):
        read_characters(path)


def test_drawings_are_turned_as_exif_says(archive):
    exif = Image.Exif()
    exif[274] = 6
    turned = read_characters(archive({"r/A/c/1.png": png(exif=exif)}), size=105).images[0, 0]
    # The bar over the upper fifth comes to lie on the right.
    assert np.all(turned[:, 84:] == 255) and not turned[:, :84].any()


def test_pictures_that_cannot_be_read(archive):
    good = png()
    for bad, reason in [
        (b"text", "it is not a PNG"),
        (b"", "it is not a PNG"),
        (good[:-40], "truncated|broken|incomplete"),
        (good[:20], ""),
        (png(np.zeros((1, 1025), bool)), "larger than 1 MiB or 1024 pixels"),
        (png(np.zeros((8, 8), bool), "RGBA"), "its mode is RGBA, or it is transparent"),
        (png(np.zeros((8, 8), np.uint8), "L", transparency=0), "transparent"),
    ]:
        match = rf"'r/A/c/2.png' in '.*' cannot be read \(.*({reason}).*\): replace it"
        refused(archive({"r/A/c/1.png": good, "r/A/c/2.png": bad}), match)


def test_another_format_named_png_is_refused(archive):
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "bmp")
    refused(archive({"r/A/c/1.png": file.getvalue()}), "it is not a PNG")


def test_bombs(archive, monkeypatch):
    refused(archive({"r/A/c/1.png": bytes(omniglot.MAX_BYTES + 1)}), "'r/A/c/1.png' in .* is larger than 1 MiB")
    path = archive(layout({"A/c1": 3, "A/c2": 3}))
    for limit, value, match in [
        ("MAX_FILES", 5, "more than 5 files: split it"),
        ("MAX_TOTAL", 6 * 28**2 - 1, "choose a smaller size"),
        ("MAX_TOTAL", 6 * len(png()) - 1, "take more than .* split it"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(omniglot, limit, value)
            refused(path, match)
    assert read_characters(path).images.shape == (2, 3, 28, 28)


def test_a_size_in_the_directory_that_lies_does_not_help(archive):
    path = archive({"r/A/c/1.png": bytes(3 * omniglot.MAX_BYTES)})
    raw, size = path.read_bytes(), (3 * omniglot.MAX_BYTES).to_bytes(4, "little")
    path.write_bytes(raw.replace(size, (100).to_bytes(4, "little")))
    refused(path, "'r/A/c/1.png' in .* cannot be read")


def test_an_encrypted_zip(archive):
    path = archive({"r/A/c/1.png": png()})
    raw = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(header) + flags] |= 1
    path.write_bytes(raw)
    refused(path, r"cannot be read \(.*encrypted")


def test_damaged_files_raise_nothing_else(archive):
    path = archive({f"r/A/c{i}/{j}.png": png(np.eye(9) > 0) for i in range(2) for j in range(2)})
    raw, dice, refusals = path.read_bytes(), random.Random(0), []
    for _ in range(300):
        damaged = bytearray(raw[: dice.randrange(len(raw))] if dice.random() < 0.2 else raw)
        for _ in range(dice.randint(1, 4) if damaged else 0):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            read_characters(path, size=9)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 200 and not any("\n" in message for message in refusals)


def _real(name):
    folder = Path(os.environ.get("ADAPTAX_DATA", Path(__file__).parents[5] / "shared" / "data"))
    path = folder / "omniglot" / f"images_background_{name}.zip"
    if not path.is_file():
        pytest.skip(f"omniglot/{path.name} is not in ADAPTAX_DATA nor in ../shared/data")
    return path


def test_the_published_files():
    small1, small2 = (read_characters(_real(name)) for name in ("small1", "small2"))
    assert small1.images.shape == (136, 20, 28, 28) and small2.images.shape == (156, 20, 28, 28)
    assert small1.alphabets == ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    assert all(re.fullmatch(r"[^/]+/character\d\d", name) for name in small1.names + small2.names)
    # Thin strokes on an empty ground: little ink in all, but some in every drawing.
    assert 0.02 < small1.images.mean() / 255 < 0.15 and small1.images.max((2, 3)).min() > 128
    assert np.median(small1.images) == 0
    fresh, left_out = held_out(small2, small1)
    assert left_out == ("Greek", "Latin")
    assert fresh.alphabets == ("Japanese_(katakana)", "Sanskrit", "Tagalog") and len(fresh.names) == 106
