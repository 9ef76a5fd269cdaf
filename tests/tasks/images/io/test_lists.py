"""Lists of images in every form that people bring: used, or named with what was found and what is needed."""

import json
import warnings

import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import DataWarning, read_images
from adaptax.tasks.images.io.tables import NotUsed, parse_table


@pytest.fixture
def flat(picture, write, tmp_path):
    """A function from lists to a folder of eight pictures in `images`, with them; pictures 0-3 are of class c0, 4-7 of c1."""
    pictures = {f"images/p{i}.png": picture(i, (8, 8)) for i in range(8)}

    def make(lists, more=None, kind="folder"):
        texts = {name: text if isinstance(text, bytes) else text.encode() for name, text in lists.items()}
        return write(tmp_path / f"{len(list(tmp_path.iterdir()))}{kind}", pictures | texts | (more or {}))

    return make


@pytest.fixture
def pixels(picture):
    """The pixels of a picture by its number."""
    import io

    from PIL import Image

    return lambda i: np.asarray(Image.open(io.BytesIO(picture(i, (8, 8)))))


def lines(form, header=None, rows=range(8), end="\n"):
    """A list with a line for each picture: `{i}` is its number, `{c}` its class."""
    return end.join(([header] if header else []) + [form.format(i=i, c=f"c{i // 4}") for i in rows]) + end


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        read_images(path, 8, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "name, text",
    [
        ("train.csv", lines("{c},p{i}.png", "class_name,image_name")),
        ("train.csv", lines("{c},p{i}.png", "class_name,image_name", end="\r\n")),
        ("labels.csv", lines("p{i}.png;{c}", "Image;Label")),
        ("labels.csv", lines("p{i}.png;{c}", "sep=;\nImage;Label")),
        ("labels.tsv", lines("{c}\timages/p{i}.png", "Class\tFilePath")),
        ("all.csv", lines('"p{i}.png","{c}"', '"FILENAME","LABEL"')),
        ("all.csv", b"\xef\xbb\xbf" + lines("p{i}.png,{c}", "filename,label").encode()),
        ("all.csv", lines("p{i}.png,{c}", "filename,label").encode("utf-16")),
        ("all.csv", lines("p{i}.png , {c}")),
        ("all.csv", lines("p{i},{c}", "image_id,species")),
        ("all.csv", lines("/home/me/birds/images/p{i}.png,{c}", "path,class")),
        ("all.csv", lines("C:\\data\\images\\p{i}.png,{c}", "path,class")),
        ("all.csv", lines("images\\P{i}.PNG,{c}", "path,class")),
        ("all.csv", lines("p{i}.png,{c},17,8", "file_name,category,width,height")),
        ("all.csv", lines("{i},p{i}.png,0,{c}", "id,image,class_index,class_name").replace("p4.png,0", "p4.png,0")),
        ("lists/all.txt", lines("images/p{i}.png {c}")),
        ("all.json", json.dumps({c: [f"p{i}.png" for i in range(8) if i // 4 == int(c[1])] for c in ("c0", "c1")})),
        ("all.json", json.dumps([{"file_name": f"p{i}.png", "label": f"c{i // 4}"} for i in range(8)])),
        ("all.json", json.dumps({f"p{i}.png": f"c{i // 4}" for i in range(8)})),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": f"p{i}.png", "label": f"c{i // 4}"}) for i in range(8))),
        ("base.json", json.dumps({"image_names": [f"p{i}.png" for i in range(8)], "image_labels": ["c0"] * 4 + ["c1"] * 4})),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "a.zip"])
def test_a_list_in_any_usual_form_gives_its_two_classes(flat, pixels, kind, name, text):
    if "class_index" in str(text):
        text = "\n".join(line.replace(",0,c1", ",1,c1") for line in str(text).split("\n"))
    data = read_images(flat({name: text}, kind=kind), 8)
    assert data.names == ("c0", "c1") and data.counts == (4, 4)
    for i in range(8):
        np.testing.assert_array_equal(data.images[i], pixels(i))


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("train.csv", lines("p{i}.png,{c}", "filename,kind"), "columns are 'filename' and 'kind', and none .* the class"),
        ("train.csv", lines("x{i},{c}", "thing,label"), "none of its columns 'thing' and 'label' names pictures"),
        ("train.csv", lines("p{i}.png,0,1", "image,NV,MEL"), "columns are 'image', 'NV' and 'MEL', and none"),
        ("train.csv", lines("p{i}.png,{c},{i}"), "it has 3 columns without a header, and none"),
        ("train.csv", lines("p{i}.png,{c},{i}", "file,label,class"), "columns 'label' and 'class' may be the class"),
        ("train.csv", lines("p{i}.png,é", "filename,label").encode("latin-1"), "because it is not text in UTF-8"),
        ("train.csv", "", "because it names no picture"),
        ("train.csv", "filename,label\n", "because it names no picture"),
        ("train.json", "{", "because it is not JSON"),
        ("annotations.json", '{"images": {}, "categories": {}}', "because it names no picture"),
        ("train.txt", lines("p{i}.png"), "'train.txt' in .* names pictures and no classes, and no class folders say it"),
        ("labels.txt", lines("{c}"), "'labels.txt' in .* does not say which picture is of which class"),
        ("labels.xlsx", b"PK", "'labels.xlsx' in .* files .xlsx are not read"),
        ("imagelabels.mat", b"MATLAB", "'imagelabels.mat' in .* files .mat are not read"),
    ],
)
def test_a_list_that_cannot_be_used_is_named_with_what_is_needed(flat, name, text, match):
    refused(flat({name: text}), f"{match}.*: give a CSV with the columns filename,label, or remove it")


@pytest.mark.parametrize(
    "text, match",
    [
        (lines("q{i}.png,{c}", "class_file,label"), "none of its columns"),
        (lines("q{i}.png,{c}", "file,label"), "lists 'q0.png', which is not there: add it or remove the line"),
        (lines("q{i}.png,{c}"), "lists 'q0.png', which is not there"),
        (lines("p{i}.png,{c}", "file,class") + "p0.png,c0\n", "lists 'images/p0.png' twice, in 'train.csv': keep one"),
        (lines("p{i}.png,{c}", "file,class") + "p0.png,c1\n", "lists 'images/p0.png' twice"),
        (lines("p{i}.png,{c}", "file,class") + "p0.png,\n", "a line without a file and a label"),
        (lines("p{i}.png,{c}", "file,class") + "p0.png\n", "a line without a file and a label"),
        (lines("p{i}.png,{c}", "file,class").replace("p6.png,c1", "p6.png,C1"), "'C1' and 'c1' .* differ only in capital"),
        (lines("p{i}.png,caf\u00e9", "file,class").replace("p0.png,caf\u00e9", "p0.png,cafe\u0301"), "the form of Unicode"),
    ],
)
def test_lines_that_cannot_be_right_are_refused(flat, text, match):
    refused(flat({"train.csv": text}), match if "none of" not in match else "not there|none of its columns")


def test_names_that_fit_several_pictures_are_refused(flat, picture):
    more = {f"{folder}/q.png": picture(20 + i, (8, 8)) for i, folder in enumerate(("other", "test", "train"))}
    several = "lists 'q.png', which may be 'other/q.png', 'test/q.png' and 'train/q.png': write the whole path"
    refused(flat({"lists/a.csv": "file,class\np0.png,a\nq.png,b\n"}, more), several)
    # A path of another split is no path of this one, though the names agree.
    path = flat({"lists/a.csv": "path,class\n/me/val/q.png,a\n/me/test/q.png,b\n"}, more)
    refused(path, "lists '/me/val/q.png', which is not there")


def test_splits_are_lists_or_a_column_of_a_list(flat):
    two = {"train.csv": lines("p{i}.png,{c}", "image,class", range(4)), "val.csv": lines("p{i}.png;{c}", None, range(4, 8))}
    rows = [f"p{i}.png,{'train' if i < 4 else 'val'},c{i // 4}\n" for i in range(8)]
    column = {"metadata.csv": "file,split,class\n" + "".join(rows)}
    for lists in (two, column):
        path = flat(lists)
        assert read_images(path, 8, split="train").names == ("c0",) and read_images(path, 8, split="val").names == ("c1",)
        assert read_images(path, 8).names == ("c0", "c1")
        refused(path, "no list 'test.csv': choose a split from train, val", split="test")


def test_a_class_that_is_in_the_lists_of_two_splits_is_one_class_and_said(flat):
    path = flat({"train.csv": "file,class\np0.png,cat\np1.png,dog\n", "test.csv": "file,class\np2.png,cat\n"})
    with pytest.warns(DataWarning) as caught:
        data = read_images(path, 8)
    assert data.names == ("cat", "dog") and data.counts == (2, 1)
    text = " ".join(str(warning.message) for warning in caught)
    assert "The class 'cat'" in text and "in the lists of 'test' and 'train', and is read as one class: give split=" in text
    assert "leave out 'images/p3.png', 'images/p4.png', 'images/p5.png', 'images/p6.png' and 1 more: list" in text
    assert read_images(path, 8, split="test").counts == (1,)


def test_lists_of_files_or_classes_alone_say_what_belongs_to_a_split(picture, write, tmp_path):
    names = [f"images/{c}/{i}.jpg" for c in ("apple", "bread", "corn") for i in (1, 2)]
    pictures = {name: picture(i, kind="jpeg") for i, name in enumerate(names)}
    lists = {"meta/train.txt": b"apple/1\nbread/1\nbread/2\n", "meta/test.txt": b"apple/2\ncorn/1\n"}
    food = write(tmp_path / "food", pictures | lists)
    train = read_images(food, 8, split="train")
    assert train.names == ("apple", "bread") and train.counts == (1, 2)
    assert read_images(food, 8).counts == (2, 2, 2)
    cifar = write(tmp_path / "cifar", pictures | {"splits/train.txt": b"apple\ncorn\n", "splits/test.txt": b"bread\n"})
    assert read_images(cifar, 8, split="train").names == ("apple", "corn")
    assert read_images(cifar, 8, split="test").names == ("bread",)
    assert read_images(cifar, 8).names == ("apple", "bread", "corn")
    bad = write(tmp_path / "bad", pictures | {"splits/train.txt": b"apple\npear\n"})
    refused(bad, "'splits/train.txt' in .* lists the class 'pear', which has no folder", split="train")
    bad = write(tmp_path / "bad2", pictures | {"train.txt": b"apple/1.jpg\napple/7.jpg\n"})
    refused(bad, "'train.txt' in .* lists 'apple/7.jpg', which is not there", split="train")


def test_folders_that_tell_classes_keep_their_names_beside_lists_that_agree(picture, write, tmp_path):
    pictures = {f"{c}/{i}.png": picture(2 * j + i) for j, c in enumerate(("wren", "owl")) for i in (0, 1)}
    rows = "path,target\n" + "".join(f"{name},{int('owl' in name)}\n" for name in pictures)
    assert read_images(write(tmp_path / "a", pictures | {"all.csv": rows.encode()}), 8).names == ("owl", "wren")
    # Lists that agree with no folder say the classes.
    rows = "path,target\n" + "".join(f"{name},{name[-5]}\n" for name in pictures)
    assert read_images(write(tmp_path / "b", pictures | {"all.csv": rows.encode()}), 8).names == ("0", "1")


def test_a_list_that_is_not_used_beside_class_folders_is_said_and_other_files_are_not(picture, write, tmp_path):
    pictures = {f"{c}/{i}.png": picture(2 * j + i) for j, c in enumerate(("wren", "owl")) for i in (0, 1)}
    path = write(tmp_path / "a", pictures | {"metadata.csv": b"file,width,height\nowl/0.png,8,8\n"})
    with pytest.warns(DataWarning, match="'metadata.csv' .* because its columns are 'file', 'width' and 'height', and none"):
        assert read_images(path, 8).names == ("owl", "wren")
    others = {"README.txt": b"Birds, photographed.\nBy me, and others.\n", "log.csv": b"epoch,loss\n1,2\n", "notes.json": b"{}"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_images(write(tmp_path / "b", pictures | others), 8).names == ("owl", "wren")


def test_cub_as_published_is_read_by_folders_without_a_word(picture, write, tmp_path):
    names = ["001.Albatross/A_1.jpg", "001.Albatross/A_2.jpg", "002.Auk/B_1.jpg", "002.Auk/B_2.jpg"]
    texts = {
        "images.txt": "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)),
        "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
        "train_test_split.txt": "1 0\n2 1\n3 0\n4 1\n",
        "classes.txt": "1 001.Albatross\n2 002.Auk\n",
        "bounding_boxes.txt": "1 60.0 27.0 325.0 304.0\n",
    }
    files = {f"CUB/images/{name}": picture(i, kind="jpeg") for i, name in enumerate(names)}
    path = write(tmp_path / "CUB.tgz", files | {f"CUB/{name}": text.encode() for name, text in texts.items()})
    data = read_images(path, 8)
    assert data.names == ("001.Albatross", "002.Auk") and data.counts == (2, 2)


def test_a_table_that_is_none_is_refused():
    for name, data in [("a.csv", b'a,"b\x00\xff'), ("a.json", b"[" * 100_000), ("a.jsonl", b"{}\n{")]:
        with pytest.raises(NotUsed):
            parse_table(name, data)
