"""Sources of images as people make them: right by what is known of each picture, or refused, or said in a warning.

Every picture has one colour of its own, so that what was read says which pictures are in which class.
"""

import functools
import io
import os
import tempfile
import unicodedata
import warnings
import zipfile
from collections import defaultdict
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adaptax.errors import InputError
from adaptax.tasks import DataWarning, read_images

N = int(os.environ.get("ADAPTAX_FUZZ", "20"))
FUZZ = settings(derandomize=True, deadline=None, max_examples=5 * N)
WORDS = ("cat", "wild cat", "café", "ﬁn²", "Straße", "Ωmega", "犬", "train", "n0144")
SPLITS = [(), ("train", "test"), ("train", "val", "test"), ("Training", "valid"), ("meta-train", "meta-test")]
FORMS = [
    str,
    *(functools.partial(unicodedata.normalize, form) for form in ("NFC", "NFD", "NFKC", "NFKD")),
    str.upper,
    str.title,
]


@functools.cache
def png(number):
    """A picture of the colour of this number."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256, 7)).save(file, "png")
    return file.getvalue()


def read(files, **options):
    """What is read from a zip of these files: the numbers of the pictures by class, and the warnings; or a sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                data = read_images(path, 2, **options)
            except InputError as error:
                sentence = str(error)
                assert "\n" not in sentence and sentence.endswith(".") and ": " in sentence
                return None, sentence
    assert all(warning.category is DataWarning and str(warning.message).endswith(".") for warning in caught)
    found = {name: sorted(int(i[0, 0, 0]) + 256 * int(i[0, 0, 1]) for i in data.of(name)) for name in data.names}
    return found, " ".join(str(warning.message) for warning in caught)


def check(found, said, truth):
    """Each class that was read is one true class, each true class is read once, and copies are said."""
    at = defaultdict(set)
    for name, numbers in found.items():
        owners = {truth[number] for number in numbers if number in truth}
        assert len(owners) <= 1 or "in several classes" in said, f"{name} mixes {owners}"
        for owner in owners if len(owners) == 1 else ():
            at[owner].add(name)
        if len(set(numbers)) < len(numbers):
            assert "more than once in a class" in said or "in several classes" in said
    for owner, names in at.items():
        assert len(names) == 1 or "in several classes" in said or "are read as" in said, f"{owner} is read as {names}"


@st.composite
def trees(draw):
    """Folders of classes: the files, the class of each picture by its number, its split, and whether anything is odd."""
    splits = draw(st.sampled_from(SPLITS))
    words = draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=4, unique=True))
    above = draw(st.sampled_from(["", "data/", "a/b/"]))
    under = draw(st.booleans())
    files, truth, where, odd, copied, number = {}, {}, {}, set(), set(), 0
    for word in words:
        present = draw(st.lists(st.sampled_from(splits), min_size=1, unique=True)) if splits else [""]
        if len(present) > 1:
            odd.add("shared")
        for split in present:
            spelling = draw(st.sampled_from(FORMS)) if draw(st.integers(0, 9)) == 0 else str
            if spelling(word) != word:
                odd.add("spelling")
            parts = [split, spelling(word)] if under else [spelling(word), split]
            folder = above + "/".join(filter(None, parts))
            for _ in range(draw(st.integers(1, 3))):
                suffix = draw(st.sampled_from([".png", ".PNG"]))
                files[f"{folder}/{number}{suffix}"] = png(number)
                truth[number], where[number] = word, split
                number += 1
            extra = draw(st.sampled_from([None] * 6 + ["hidden", "copy", "nested", "away", "text", "gif"]))
            if extra == "hidden":
                hidden = draw(st.sampled_from(["@eaDir", ".thumbnails", "__MACOSX", ".@__thumb"]))
                at = draw(st.sampled_from([f"{folder}/{hidden}", f"{above}{hidden}/{word}"]))
                files[f"{at}/{number}.png"] = png(number)
            elif extra == "copy":
                one = draw(st.sampled_from(sorted(truth)))
                copied.add(one)
                files[f"{folder}/copy.png"] = png(one)
            elif extra == "nested":
                files[f"{folder}/thumbs/{number}.png"] = png(number)
                truth[number], where[number] = word, split
            elif extra == "away" and word != "train":  # small/train may well be the training part of a class `small`
                files[f"{above}small/{word}/{number}.png"] = png(number)
                truth[number], where[number] = word, split
            elif extra == "text":
                files[f"{above}README.txt"] = b"Pictures, by class.\n"
            elif extra == "gif":
                files[f"{above}gifs/{number}.gif"] = b"GIF"
            if extra:
                number += 1
                odd |= {extra} - {"hidden", "text"}
    return files, truth, where, odd, copied, splits, under


@FUZZ
@given(trees(), st.data())
def test_folders(tree, data):
    files, truth, where, odd, copied, splits, under = tree
    split = data.draw(st.sampled_from([None, *splits])) if splits else None
    found, said = read(files, split=split)
    if found is None:
        chosen = {truth[n] for n in truth if split in (None, where[n])}
        plain = under and (split is None or chosen) and not odd - {"shared", "gif", "copy"}
        assert not plain or (split is None and "shared" in odd and "same class in several splits" in said), said
        return
    # A picture that was copied out of another split is not known as a copy there.
    check(found, said, truth if split is None else {n: c for n, c in truth.items() if n not in copied})
    read_numbers = {number for numbers in found.values() for number in numbers}
    wanted = {number for number in truth if split in (None, where[number])}
    assert read_numbers <= set(truth)
    if "copy" not in odd and "away" not in odd:
        assert read_numbers == wanted
    if "gif" in odd and split is None:
        assert "of a kind that is not read" in said
    if "away" in odd and split is None:
        assert any(word in said for word in ("are read as", "in several classes")) or len(found) <= 2 * len(set(truth.values()))


HEADERS = [
    ("filename", "label"), ("file", "class"), ("FilePath", "Category"), ("image_name", "class_name"), ("IMAGE", "LABEL"),
    ("img path", "species"), ("picture", "target"), ("image_id", "breed"), None,
]  # fmt: skip
STYLES = [
    "{name}", "images/{name}", "./images/{name}", "images\\{name}", "/home/me/birds/images/{name}", "C:\\birds\\images\\{name}",
    "https://host/images/{name}",
]  # fmt: skip


@st.composite
def lists(draw):
    """Pictures in one folder with lists: the files, the class and list of each picture, and what is wrong with a list."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=4, unique=True))
    stems = draw(st.sampled_from([("labels",), ("train",), ("train", "test"), ("train", "val", "test"), ("a", "b")]))
    files, truth, rows, number = {}, {}, defaultdict(list), 0
    for i, word in enumerate(words):
        for stem in [stems[i % len(stems)]] if draw(st.booleans()) else stems:
            for _ in range(draw(st.integers(1, 3))):
                name = f"{draw(st.sampled_from(['img_', 'a b,', 'é', 'P']))}{number}.png"
                files[f"images/{name}"] = png(number)
                truth[number] = (word, stem)
                rows[stem].append([name, word])
                number += 1
    defect = draw(
        st.sampled_from([None] * 5 + ["absent", "twice", "label", "header", "unlisted", "empty", "bytes", "wide", "case"])
    )
    header, style = draw(st.sampled_from(HEADERS)), draw(st.sampled_from(STYLES))
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    last = draw(st.sampled_from(sorted(rows)))
    if defect == "absent":
        rows[last].append(["gone.png", words[0]])
    elif defect == "twice":
        rows[last].append([rows[last][0][0], draw(st.sampled_from(words))])
    elif defect == "label":
        rows[last].append([rows[last].pop()[0], ""])
    elif defect == "header":
        header = draw(st.sampled_from([("photo", "kind"), ("x", "y"), ("path", "width")]))
    elif defect == "unlisted":
        files["images/more.png"] = png(number)
    elif defect == "case":
        other = rows[last][0][1].swapcase()
        rows[last].append(["more.png", other])
        files["images/more.png"] = png(number)
        defect = "case" if other != rows[last][0][1] else "more"
    swap = draw(st.booleans())
    bare = draw(st.booleans()) and header is not None
    for stem, lines in rows.items():
        table = [[style.format(name=name.removesuffix(".png") if bare else name), label] for name, label in lines]
        table = ([list(header)] if header else []) + table
        if defect == "wide" and stem == last:
            table = [[*row, str(i % 2), "x"] for i, row in enumerate(table)]
        table = [row[::-1] if swap else row for row in table]
        quoted = [
            separator.join(f'"{cell}"' if draw(st.integers(0, 3)) == 0 or separator in cell else cell for cell in row)
            for row in table
        ]
        text = draw(st.sampled_from(["\n", "\r\n"])).join(quoted) + draw(st.sampled_from(["", "\n"]))
        encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
        raw = text.encode(encoding) if not (defect == "bytes" and stem == last) else text.encode() + b"\xff"
        files[stem + draw(st.sampled_from([".csv", ".tsv", ".CSV"]))] = b"" if defect == "empty" and stem == last else raw
    return files, truth, defect, sorted(rows)


@FUZZ
@given(lists(), st.data())
def test_lists(source, data):
    files, truth, defect, stems = source
    split = data.draw(st.sampled_from([None, *stems]))
    found, said = read(files, split=split)
    if found is None:
        assert defect not in (None, "unlisted"), said
        return
    if defect == "empty":
        assert split is not None or "leave out" in said
    assert defect not in ("header", "twice", "absent", "label", "case", "bytes") or split is not None, (defect, found)
    expected = defaultdict(list)
    for number, (word, stem) in truth.items():
        if split in (None, stem):
            expected[word].append(number)
    if defect in (None, "unlisted"):
        assert found == dict(expected)
        assert ("leave out 'images/more.png'" in said) == (defect == "unlisted" and split is None)
    check(found, said, {number: word for number, (word, _) in truth.items()})
