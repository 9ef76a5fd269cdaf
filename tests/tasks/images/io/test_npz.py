"""Images and labels in an npz: order, resizing, and every refusal."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from adaptax.errors import InputError
from adaptax.tasks import read_images
from adaptax.tasks.images.io import npz


@pytest.fixture
def save(tmp_path):
    """A function that writes arrays to an npz and returns its path."""

    def write(compressed=False, **values):
        (np.savez_compressed if compressed else np.savez)(tmp_path / "data.npz", **values)
        return tmp_path / "data.npz"

    return write


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        read_images(path, 8, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("compressed", [False, True])
def test_classes_come_by_label_and_images_in_order(save, compressed):
    images = pixels(6, 8, 8, 3)
    path = save(compressed, images=images, labels=np.array([10, 2, 10, 2, 7, 2], np.int16))
    data = read_images(path, 8)
    assert data.names == ("2", "7", "10") and data.counts == (3, 1, 2)
    np.testing.assert_array_equal(data.images, images[[1, 3, 5, 4, 0, 2]])
    named = read_images(save(images=images, labels=list("cacbba")), 8)
    assert named.names == ("a", "b", "c") and named.counts == (2, 2, 2)
    np.testing.assert_array_equal(named.of("c"), images[[0, 2]])


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (12, 10, 3)])
def test_other_sizes_and_channels(save, shape):
    images = pixels(2, *shape)
    path = save(images=images, labels=[0, 1])
    for channels, mode in ((1, "L"), (3, "RGB")):
        picture = Image.fromarray(images[1].squeeze()).convert(mode).resize((8, 8), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(read_images(path, 8, channels).images[1].squeeze(), np.asarray(picture))


def test_refusals(save, tmp_path, monkeypatch):
    good = {"images": pixels(3, 8, 8), "labels": [0, 0, 1]}
    for change, match in [
        ({"images": np.zeros((3, 8, 8))}, r"images in .* are float64\[3, 8, 8\]: give a uint8 array"),
        ({"images": pixels(3, 8)}, "give a uint8 array of shape"),
        ({"images": pixels(3, 8, 8, 2)}, "give a uint8 array of shape"),
        ({"images": pixels(0, 8, 8), "labels": np.zeros(0, int)}, "give a uint8 array of shape"),
        ({"images": np.asfortranarray(pixels(3, 8, 8))}, "Fortran order"),
        ({"images": np.array([None, 1])}, "holds objects: save it as"),
        ({"labels": [0, 1]}, "labels in .* are int64.*: give 3 whole numbers or names, one for each image"),
        ({"labels": [0.0, 1.0, 1.0]}, "give 3 whole numbers"),
        ({"labels": [[0], [1], [1]]}, "give 3 whole numbers"),
        ({"labels": np.array([None] * 3)}, "holds objects"),
        ({"labels": ["a", "", "b"]}, "is empty or cannot be printed"),
        ({"labels": ["a", "\x1b", "b"]}, "is empty or cannot be printed"),
    ]:
        refused(save(**good | change), match)
    refused(save(x=np.zeros(3)), r"has no array 'images' but x: write it by np.savez\(")
    refused(save(images=good["images"]), "has no array 'labels' but images")
    refused(save(**good), "is an npz, which has no splits", split="train")
    refused(tmp_path / "absent.npz", "There is no '.*absent.npz'")
    for limit, value in (("MAX_FILES", 2), ("MAX_SIDE", 7)):
        with monkeypatch.context() as patch:
            patch.setattr(npz, limit, value)
            refused(save(**good), "too many or too large")


def test_headers_that_lie(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array(file, pixels(3, 8, 8))
    body, labels = file.getvalue(), io.BytesIO()
    np.lib.format.write_array(labels, np.zeros(3, int))
    for lie in (body[:-1], body + b"x", body.replace(b"(3, 8, 8)", b"(9, 8, 8)"), body.replace(b"(3, 8, 8)", b"(-3,8, 8)")):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("images.npy", lie)
            archive.writestr("labels.npy", labels.getvalue())
        refused(tmp_path / "a.npz", "images.*(not as long as its header says|give a uint8 array)")
