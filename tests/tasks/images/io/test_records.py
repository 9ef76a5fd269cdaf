"""Images from random-access sources: pairs, mappings, and what a dataset of Hugging Face looks like."""

import io
import types

import numpy as np
import pytest
from PIL import Image

import adaptax as ax
from adaptax.tasks import DataWarning, read_images


def picture(seed, shape=(12, 12, 3)):
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class Dataset:
    """The part of `datasets.Dataset` that is used; it counts how often an image is read."""

    def __init__(self, columns, names=None):
        self.columns_, self.column_names, self.reads = columns, list(columns), 0
        self.features = {"kind": types.SimpleNamespace(names=names)}

    def __len__(self):
        return len(self.columns_["picture"])

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns_[key]
        self.reads += 1
        return {name: column[key] for name, column in self.columns_.items()}


def test_a_dataset_with_columns_and_names():
    pixels = [picture(i) for i in range(5)]
    pictures = [Image.fromarray(x) for x in pixels]
    source = Dataset({"picture": pictures, "kind": [1, 0, 1, 2, 0]}, ["wren", "crow", "owl"])
    seen = []
    data = read_images(source, 12, image="picture", label="kind", progress=lambda done, total: seen.append((done, total)))
    assert data.names == ("crow", "owl", "wren") and data.counts == (2, 1, 2)
    np.testing.assert_array_equal(data.images, np.stack([pixels[i] for i in (0, 2, 3, 1, 4)]))
    assert source.reads == 5 and seen[-1] == (5, 5)
    task = ax.tasks.few_shot(data.at_least(2), 2, 1, 1)
    assert task.sample_task is not None


@pytest.mark.parametrize("form", ["array", "grey", "bytes", "mapping", "picture"])
def test_kinds_of_images(form):
    """All of them are the same picture."""
    pixels = picture(0, (12, 12))
    image = {
        "array": pixels, "grey": pixels[..., None], "bytes": encoded(pixels),
        "mapping": {"bytes": encoded(pixels), "path": None}, "picture": Image.fromarray(pixels),
    }[form]  # fmt: skip
    data = read_images([(image, "a"), (picture(1, (12, 12)), "b")], 12, channels=1)
    np.testing.assert_array_equal(data.of("a")[0, ..., 0], pixels)


def test_numbers_are_sorted_as_numbers_and_names_of_classes_are_taken():
    records = [(picture(i), np.int64(label)) for i, label in enumerate([10, 2, 2, 10])]
    assert read_images(records, 12).names == ("2", "10")

    class Torchvision(list):
        classes = ("zero", "one", "two")

    assert read_images(Torchvision((picture(i), i % 3) for i in range(6)), 12).names == ("one", "two", "zero")


def test_resizing_and_copies():
    big = picture(0, (40, 30, 3))
    with pytest.warns(DataWarning, match="record"):
        data = read_images([{"image": big, "label": "a"}, {"image": big, "label": "b"}], 20, crop=True)
    assert data.images.shape == (2, 20, 20, 3)


class Broken(list):
    def __getitem__(self, i):
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "has no records"),
        ([{"picture": picture(0), "label": 1}], "has no field 'image' but 'picture', 'label'"),
        ([{"image": picture(0)}], "has no field 'label'"),
        ([5], "Record 0 of list is int"),
        ([(picture(0), 0.5)], "label of record 0 of list is float"),
        ([(picture(0), "")], "empty or cannot be printed"),
        ([(picture(0).astype(np.float32), 1)], r"is float32\[12, 12, 3\]: give a Pillow picture"),
        ([(np.moveaxis(picture(0), -1, 0), 1)], r"is uint8\[3, 12, 12\]: give a Pillow picture"),
        ([(b"no picture", 1)], "it is not a picture"),
        (Broken([1]), "Record 0 of Broken cannot be read .*the disk is gone"),
        ({"train": [], "test": []}, "a mapping of 'train', 'test': give one of its values"),
        (iter([]), "give one"),
    ],
)  # fmt: skip
def test_refusals(source, message):
    with pytest.raises(ax.InputError, match=message):
        read_images(source, 12)


def test_a_source_has_no_splits():
    with pytest.raises(ax.InputError, match="has no splits"):
        read_images([(picture(0), 1)], 12, split="train")


def test_a_source_of_grain():
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source([(picture(i), i % 2) for i in range(4)]).map(lambda r: {"image": r[0], "label": r[1]})
    data = read_images(source, 12)
    assert data.counts == (2, 2)
