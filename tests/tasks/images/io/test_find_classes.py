"""One class is never read as several: splits, spellings, nested folders, thumbnails and copies."""

import jax
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import DataWarning, ImageClasses, few_shot, held_out, read_images
from adaptax.tasks.images.io.class_names import class_key


@pytest.fixture
def folders(picture, write, tmp_path):
    """A function from names of folders to a source with `each` pictures in each, all different."""

    def make(names, kind="folder", more=None, each=2):
        pictures = {f"{name}/{i}.png": picture(each * j + i, (6, 6)) for j, name in enumerate(names) for i in range(each)}
        return write(tmp_path / f"{len(list(tmp_path.iterdir()))}{kind}", pictures | (more or {}))

    return make


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        read_images(path, 6, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "splits", ["train val test", "training validation", "Train valid", "meta-train meta-test", "train2017 val2017"]
)
@pytest.mark.parametrize("form", ["{split}/{c}", "{c}/{split}", "animals/{split}/{c}", "{split}/animals/{c}"])
@pytest.mark.parametrize("kind", ["folder", "a.zip"])
def test_a_class_in_several_splits_is_read_by_split(folders, splits, form, kind):
    splits = splits.split()
    path = folders([form.format(split=split, c=c) for split in splits for c in ("cat", "dog")], kind)
    refused(path, f"holds the same class in several splits, as .*: give split='{min(splits)}' or split=")
    for split in splits:
        data = read_images(path, 6, split=split)
        assert [name.removeprefix("animals/") for name in data.names] == ["cat", "dog"] and data.counts == (2, 2)


def test_a_task_of_a_split_holds_each_class_once(folders):
    path = folders([f"{split}/{c}" for split in ("train", "val", "test") for c in ("cat", "dog")])
    problem = few_shot(read_images(path, 6, split="val"), ways=2, shots=1, queries=1, rotations=False)
    assert sorted(problem.sample_task(jax.random.key(0)).support[1].tolist()) == [0, 1]
    with pytest.raises(InputError, match="only 2 classes"):
        few_shot(read_images(path, 6, split="val"), ways=3, rotations=False)


def test_splits_without_a_common_class_are_read_together_as_before(folders):
    assert read_images(folders(["train/cat", "test/emu"]), 6).names == ("test/emu", "train/cat")
    # Words of splits are also names of classes.
    assert read_images(folders(["bus", "train", "car"]), 6).names == ("bus", "car", "train")
    assert read_images(folders(["train/bus", "train/train", "test/boat"]), 6, split="train").names == ("bus", "train")
    assert read_images(folders(["train/bus", "train/boat", "test/train"]), 6, split="train").names == ("boat", "bus")


@pytest.mark.parametrize(
    "names, match",
    [
        (["Cat", "cat"], "'Cat' and 'cat' .* differ only in capital letters"),
        (["caf\u00e9", "cafe\u0301"], "differ only in capital letters, spaces or the form of Unicode"),
        (["big cat", "big  cat"], "differ only in capital letters, spaces"),
        (["train/caf\u00e9", "test/cafe\u0301"], "same class in several splits"),
        (["train/Cat", "test/cat"], "same class in several splits, as 'test/cat' and 'train/Cat'"),
        (["cat", "cat/tabby", "dog"], "The class folder 'cat' in .* holds pictures, and so does 'cat/tabby' in it"),
        (["cat", "cat/thumbs", "dog/thumbs", "dog"], "holds pictures, and so does 'cat/thumbs' in it"),
        (["train", "test"], "The folders 'test' and 'train' in .* hold pictures and no class folders: sort"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "a.tar"])
def test_folders_that_are_one_class_are_refused(folders, names, match, kind):
    refused(folders(names, kind), match)


def test_letters_and_numbered_classes_stay_classes_of_their_own(folders):
    assert len(read_images(folders(["A", "a", "b"], "a.zip"), 6)) == 3
    assert len(read_images(folders([f"{a}/character{i}" for a in ("Greek", "Latin") for i in (1, 2)]), 6)) == 4


def test_a_class_that_is_named_as_a_split_is_told_from_it_by_the_other_folders(folders):
    path = folders(["cat/train", "train/train", "train/val"])
    assert read_images(path, 6, split="train").names == ("cat", "train") and read_images(path, 6, split="val").counts == (2,)
    refused(path, "same class in several splits, as 'train/train' and 'train/val'")
    path = folders(["cat/train", "train/train", "cat/other"])
    refused(path, "has folders 'train' above class folders and in them, such as 'train/train' and 'cat/train'", split="train")


def test_one_name_in_two_folders_is_said(folders):
    with pytest.warns(DataWarning, match="The folders 'pets/cat' and 'wild/Cat' in .* are read as 2 classes: if they are one"):
        assert read_images(folders(["pets/cat", "wild/Cat", "wild/lion"]), 6).names == ("pets/cat", "wild/Cat", "wild/lion")


def test_hidden_folders_and_thumbnails_of_systems_are_passed_over(folders, picture):
    names = ("@eaDir/cat", "cat/@eaDir/1.png", "__MACOSX/cat", "cat/.thumbnails", "$RECYCLE.BIN", "dog/.@__thumb")
    more = {f"{name}/x.png": picture(50 + i, (6, 6)) for i, name in enumerate(names)} | {"cat/Thumbs.db": b"x"}
    for kind in ("folder", "a.zip", "a.tar"):
        data = read_images(folders(["cat", "dog"], kind, more), 6)
        assert data.names == ("cat", "dog") and data.counts == (2, 2)


def test_copies_are_said(folders, picture):
    one = picture(0, (6, 6))
    for name, match in [
        ("cat/copy.png", "A picture is more than once in a class of .*, such as 'cat/0.png' and 'cat/copy.png'"),
        ("dog/copy.png", "A picture is in several classes of .*, such as 'cat/0.png' and 'dog/copy.png'"),
    ]:
        with pytest.warns(DataWarning, match=match):
            assert sum(read_images(folders(["cat", "dog"], more={name: one}), 6).counts) == 5
    with pytest.warns(
        DataWarning, match="A picture is in several classes of .*, such as 'test/dog/0.png' and 'train/cat/0.png'"
    ):
        read_images(folders(["train/cat", "test/owl"], more={"test/dog/0.png": one}), 6)


def test_pictures_that_would_be_left_out_are_named(folders):
    with pytest.warns(DataWarning, match="holds 'owl/1.gif' and 'owl/2.tif', of a kind that is not read: convert"):
        assert read_images(folders(["cat", "dog"], more={"owl/1.gif": b"x", "owl/2.tif": b"x"}), 6).names == ("cat", "dog")
    path = folders(["train/cat", "train/dog"], more={"train/loose.png": b"x"})
    refused(path, "'train/loose.png' in .* is in no class folder", split="train")


def test_labels_of_an_npz_that_differ_in_spelling_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.arange(3 * 36, dtype=np.uint8).reshape(3, 6, 6), labels=["cat", "Cat", "dog"])
    refused(tmp_path / "a.npz", "'Cat' and 'cat' .* differ only in capital letters")


def test_held_out_classes_are_compared_without_splits_and_spellings():
    def classes(names, seed):
        return ImageClasses(
            np.random.default_rng(seed).integers(0, 256, (len(names), 4, 4, 1), np.uint8), names, (1,) * len(names)
        )

    test, left_out = held_out(classes(("train/cat", "Caf\u00e9", "emu"), 0), classes(("cat", "cafe\u0301"), 1))
    assert test.names == ("emu",) and left_out == ("Caf\u00e9", "train/cat")
    with pytest.warns(DataWarning, match="1 of the pictures to judge by is also among those to train on, in classes of other"):
        held_out(classes(("a",), 0), classes(("b",), 0))


def test_keys_of_classes_keep_what_tells_them_apart():
    assert class_key("train/train") == class_key("test/train") != class_key("train/test")
    assert class_key("train") == ("train",) and class_key("cat/train") == class_key("cat/val") == ("cat",)
