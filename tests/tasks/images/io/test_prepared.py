"""Images made ready once: the same as read, used again, and refused when they have been changed."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from adaptax.errors import InputError
from adaptax.tasks import DataWarning, open_prepared, prepare_images, read_images
from adaptax.tasks.images.io import decoding, prepared
from adaptax.tasks.images.io.reading import ImageSpec


def files(folder):
    """Everything in a folder: bytes by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def source(birds, write, tmp_path):
    return write(tmp_path / "birds", birds)


def test_prepared_is_as_read_and_read_once(source, tmp_path):
    cache, seen = tmp_path / "deep" / "cache", []
    data = prepare_images(source, cache, 8, progress=lambda *n: seen.append(n))
    read = read_images(source, 8)
    assert isinstance(data.images, np.memmap) and not data.images.flags.writeable and seen[-1] == (6, 6)
    assert (data.names, data.counts) == (read.names, read.counts)
    np.testing.assert_array_equal(data.images, read.images)
    before, (entry,) = files(cache), cache.iterdir()
    again = prepare_images(source, cache, 8, progress=lambda *n: seen.append("anew"))
    assert "anew" not in seen and files(cache) == before
    np.testing.assert_array_equal(again.images, read.images)
    np.testing.assert_array_equal(open_prepared(entry).images, read.images)
    assert sorted(path.name for path in entry.iterdir()) == ["images.u8", "manifest.json"]


def test_other_options_and_other_sources_are_other_entries(source, birds, picture, write, tmp_path):
    cache = tmp_path / "cache"
    options = [{"size": 8}, {"size": 9}, {"size": 8, "channels": 1}, {"size": 8, "crop": True}]
    for count, option in enumerate(options, 1):
        prepare_images(source, cache, **option)
        assert len(list(cache.iterdir())) == count
    (source / "owl" / "2.png").write_bytes(picture(9))
    assert prepare_images(source, cache, 8).counts == (3, 2, 2)
    os.utime(source / "owl" / "2.png", ns=(1, 1))
    prepare_images(source, cache, 8)
    assert len(list(cache.iterdir())) == 6
    for name in ("a.zip", "b.tar.gz"):
        prepare_images(write(tmp_path / name, birds), cache, 8)
    moved = shutil.copy(tmp_path / "a.zip", cache.parent / "sub.zip")
    assert prepare_images(moved, cache, 8).counts == (3, 1, 2)


def test_numpys_numbers_are_the_same_options(source, tmp_path):
    prepare_images(source, tmp_path / "cache", 8, 3, None, False)
    data = prepare_images(source, tmp_path / "cache", np.int64(8), np.uint8(3), None, np.False_)
    assert len(list((tmp_path / "cache").iterdir())) == 1 and data.images.shape == (6, 8, 8, 3)


def test_an_entry_keeps_its_fingerprint():
    # The sha256 that format 2 has always had for these options.
    mark = prepared._mark(ImageSpec(84, 3, "train", True), "source")
    assert mark == "ad37d5f46d599e1085e4d74490e7b45b39ffae76c9bdde69f5413ec25d6ecfbf"


def test_entries_that_were_not_turned_are_opened_and_never_used_for_new_ones(picture, write, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[274] = 3
    raw = {f"{c}/{i}.png": picture(i + 2 * (c == "b"), side=(8, 8)) for c in "ab" for i in (0, 1)}
    file = io.BytesIO()
    Image.open(io.BytesIO(raw["a/0.png"])).save(file, "png", exif=exif)
    source = write(tmp_path / "source", raw | {"a/0.png": file.getvalue()})
    with monkeypatch.context() as patch:
        # As format 1 wrote its entries.
        patch.setattr(prepared, "FORMAT", 1)
        patch.setattr(decoding, "upright", lambda image: image)
        old = prepare_images(source, tmp_path / "cache", 8)
    (entry,) = (tmp_path / "cache").iterdir()
    before = files(entry)
    new = prepare_images(source, tmp_path / "cache", 8)
    assert len(list((tmp_path / "cache").iterdir())) == 2 and files(entry) == before
    np.testing.assert_array_equal(new.of("a")[0], old.of("a")[0][::-1, ::-1])
    np.testing.assert_array_equal(new.of("b"), old.of("b"))
    with pytest.warns(DataWarning, match="prepared by an earlier version, which did not turn pictures"):
        np.testing.assert_array_equal(open_prepared(entry).images, old.images)


def test_what_was_said_when_images_were_prepared_is_said_again(source, birds, tmp_path):
    (source / "owl" / "2.png").write_bytes(birds["wren/b.png"])
    for _ in range(2):
        with pytest.warns(DataWarning, match="A picture is in several classes of .*'owl/2.png' and 'wren/b.png': remove"):
            prepare_images(source, tmp_path / "cache", 8)


def test_fingerprints(source, tmp_path):
    one = prepared.fingerprint(source), prepared.fingerprint(source, contents=True)
    copy = shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile)
    two = prepared.fingerprint(copy), prepared.fingerprint(copy, contents=True)
    assert one[0] != two[0] and one[1] == two[1]


def test_a_failure_leaves_nothing(source, tmp_path):
    (source / "owl" / "2.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"'owl/2.png' cannot be read"):
        prepare_images(source, tmp_path / "cache", 8)
    (source / "owl" / "2.png").unlink()

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_images(source, tmp_path / "cache", 8, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_of_two_at_once_the_first_wins(source, tmp_path):
    cache, inner = tmp_path / "cache", []

    def between(done, total):
        if done == total:
            inner.append(prepare_images(source, cache, 8))

    data = prepare_images(source, cache, 8, progress=between)
    np.testing.assert_array_equal(data.images, inner[0].images)
    assert len(list(cache.iterdir())) == 1


def test_what_was_changed_is_refused(source, tmp_path):
    cache = tmp_path / "cache"
    prepare_images(source, cache, 8)
    (entry,) = cache.iterdir()
    array, manifest = entry / "images.u8", entry / "manifest.json"
    good, text = array.read_bytes(), manifest.read_text()
    values = json.loads(text)
    cases = [
        (good[:-1] + bytes([good[-1] ^ 1]), text, "sha256"),
        (good[:-1], text, "bytes long"),
        (good + b"x", text, "bytes long"),
    ]
    for change, match in [
        ({"counts": [3, 3]}, "manifest of .* is damaged"),
        ({"counts": [3, 1, 1]}, "manifest of .* is damaged"),
        ({"counts": [3.0, 1, 2]}, "manifest of .* is damaged"),
        ({"shape": [6, 8, 8]}, "manifest of .* is damaged"),
        ({"shape": [6, 8, 8, 1]}, "bytes long"),
        ({"shape": [6, 2**39, 2**39, 2**39]}, "bytes long"),
        ({"names": ["a", "a", "b"]}, "all of them different"),
        ({"names": ["a", 3, "b"]}, "manifest of .* is damaged"),
        ({"format": 3}, "manifest of .* is damaged"),
        ({"fingerprint": "0" * 64}, "was prepared from another source: remove the folder"),
        ({"sha256": "0" * 64}, "sha256"),
    ]:
        changed = values | change
        assert "damaged" in match or prepared._check(changed) != values["check"]
        cases.append((good, json.dumps(changed | {"check": prepared._check(changed)}), match))
    cases.append((good, text.replace("wren", "wran"), "manifest of .* is damaged"))
    cases += [(good, bad, "manifest of .* is damaged") for bad in ("", "[]", "{}", "null", "[" * 100_000, '{"format": 1}')]
    for data, bad, match in cases:
        array.write_bytes(data)
        manifest.write_text(bad)
        with pytest.raises(InputError, match=match):
            prepare_images(source, cache, 8)
    array.write_bytes(good)
    manifest.write_text(text)
    assert prepare_images(source, cache, 8).counts == (3, 1, 2)
    manifest.unlink()
    with pytest.raises(InputError, match="holds no prepared images"):
        prepare_images(source, cache, 8)


def test_links_in_the_cache_are_not_followed(source, tmp_path):
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    prepare_images(source, cache, 8)
    (entry,) = cache.iterdir()
    entry.rename(elsewhere)
    entry.symlink_to(elsewhere)
    with pytest.raises(InputError, match="holds no prepared images"):
        prepare_images(source, cache, 8)
    entry.unlink()
    entry.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no prepared images"):
        prepare_images(source, cache, 8)
    assert not (tmp_path / "nowhere").exists()


def test_no_room_and_no_folder(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written to .*: choose another folder"):
        prepare_images(source, tmp_path / "file", 8)
    for wrong in (None, 3, "a\0b"):
        with pytest.raises(InputError, match="takes the path of a folder"):
            prepare_images(wrong, tmp_path / "cache", 8)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"has no room for 0.0 GiB: choose another folder for the cache"):
        prepare_images(source, tmp_path / "cache", 8)
    assert list((tmp_path / "cache").iterdir()) == []
