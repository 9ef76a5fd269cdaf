"""Images by class from folders, zips and tars: layouts, pixels, order, splits, and every refusal."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from adaptax.errors import InputError
from adaptax.tasks import DataWarning, read_images
from adaptax.tasks.images.io import decoding, reading, sources

KINDS = ["folder", "a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2"]


def refused(path, match, **options):
    with pytest.raises(InputError, match=match) as caught:
        read_images(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_from_every_kind_of_source(kind, birds, write, tmp_path):
    names = list(reversed(birds)) if kind == "a.tar" else list(birds)
    seen = []
    data = read_images(
        write(tmp_path / kind, {f"data/{n}": birds[n] for n in names}), size=12, progress=lambda *n: seen.append(n)
    )
    assert data.names == ("crow", "owl", "wren") and data.counts == (3, 1, 2)
    assert seen == [(i, 6) for i in range(1, 7)]
    expected = Image.open(io.BytesIO(birds["wren/a.JPG"])).resize((12, 12), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(data.of("wren")[0], np.asarray(expected))
    grey = read_images(tmp_path / kind, size=12, channels=1)
    assert grey.images.shape == (6, 12, 12, 1)
    expected = Image.open(io.BytesIO(birds["crow/1.png"])).resize((12, 12), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(grey.of("crow")[0, ..., 0], np.asarray(expected))


def test_crop_takes_the_middle_and_alpha_lies_on_white(write, tmp_path):
    pixels = np.zeros((8, 24, 4), np.uint8)
    pixels[:, 8:16] = (200, 100, 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    root = write(tmp_path / "r", {"a/1.png": file.getvalue()})
    assert np.all(read_images(root, size=8, crop=True).images == (200, 100, 0))
    assert np.all(read_images(root, size=24).images[0, :, 0] == 255)


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar.gz"])
def test_splits_are_folders(kind, picture, write, tmp_path):
    names = ["set/train/cat/1.png", "set/train/dog/1.png", "set/test/emu/1.png", "set/test/emu/2.png", "set/readme.txt"]
    path = write(tmp_path / kind, {name: picture(i, side=(4, 4)) for i, name in enumerate(names)})
    assert read_images(path, 4, split="train").names == ("cat", "dog")
    assert read_images(path, 4, split="test").counts == (2,)
    assert read_images(path, 4).names == ("test/emu", "train/cat", "train/dog")
    refused(path, "has no folder 'val' with class folders in it: choose from set, test, train", split="val")


def test_lists_of_mini_imagenet(picture, write, tmp_path):
    files = {f"images/n{i}.jpg": picture(i, (4, 4), kind="jpeg") for i in range(5)}
    lists = {"train.csv": "filename,label\nn0.jpg,dog\nn3.jpg,dog\nn1.jpg,cat\n", "val.csv": "filename,label\r\nn4.jpg,emu\r\n"}
    for kind in ("folder", "a.zip"):
        path = write(tmp_path / kind, files | {f"split/{n}" if kind == "a.zip" else n: t.encode() for n, t in lists.items()})
        train = read_images(path, 4, split="train")
        assert train.names == ("cat", "dog") and train.counts == (1, 2)
        expected = np.asarray(Image.open(io.BytesIO(files["images/n3.jpg"])))
        np.testing.assert_array_equal(train.of("dog")[1], expected)
        with pytest.warns(DataWarning, match="The lists in .* leave out 'images/n2.jpg': list or remove"):
            assert read_images(path, 4).names == ("cat", "dog", "emu")
        refused(path, r"no list 'test.csv': choose a split from train, val", split="test")
    for text, match in [("n9.jpg,dog", "lists 'n9.jpg', which is not there"), ("n0.jpg", "a line without a file and a label")]:
        path = write(tmp_path / "bad.zip", files | {"train.csv": f"filename,label\n{text}\n".encode()})
        refused(path, match)
    path = write(tmp_path / "twice.zip", files | {"a.csv": b"filename,label\nn0.jpg,a\nn0.jpg,b\n"})
    refused(path, "lists .images/n0.jpg. twice")


def test_the_layout_of_cub(picture, write, tmp_path):
    names = ["CUB_200_2011/images/001.Albatross/A_1.jpg", "CUB_200_2011/images/002.Auk/B_1.jpg"]
    text = ["CUB_200_2011/images.txt", "CUB_200_2011/README", "CUB_200_2011/parts/parts.txt", "attributes.txt", "._x/y/1.jpg"]
    path = write(tmp_path / "CUB.tgz", {n: picture(i, kind="jpeg") for i, n in enumerate(names)} | dict.fromkeys(text, b"text"))
    assert read_images(path, 8).names == ("001.Albatross", "002.Auk")


@pytest.mark.parametrize("kind", ["folder", "a.zip", "a.tar"])
def test_what_is_in_the_way_is_named(kind, birds, write, tmp_path):
    for extra, match in [
        ({"crow/notes.txt": b"x"}, "'crow/notes.txt' in .* lies among the images but is not a PNG"),
        ({"loose.png": birds["wren/b.png"]}, "'loose.png' in .* is in no class folder"),
        ({"crow/4.png": b"text"}, r"'crow/4.png' cannot be read \(it is not a picture\): replace it"),
        ({"crow/4.png": birds["wren/b.png"][:-200]}, "'crow/4.png' cannot be read"),
        ({"crow/4.png": b""}, "'crow/4.png' cannot be read"),
    ]:
        refused(
            write(tmp_path / str(len(list(tmp_path.iterdir()))) / kind, birds | extra)
            if kind == "folder"
            else write(tmp_path / f"{len(list(tmp_path.iterdir()))}{kind}", birds | extra),
            match,
        )
    refused(write(tmp_path / f"e{kind}", {"readme": b"x"}), "holds no images in class folders: give class/image.png")


def test_links_out_of_a_folder(birds, write, tmp_path):
    root, secret = write(tmp_path / "root", birds), tmp_path / "secret.png"
    secret.write_bytes(birds["wren/b.png"])
    (root / "owl" / "link.png").symlink_to(root / "wren" / "b.png")
    with pytest.warns(DataWarning, match="A picture is in several classes"):
        assert read_images(root, 8).counts == (3, 2, 2)
    for target, name, match in [
        (secret, "owl/out.png", "'owl/out.png' in .* is a link that leads out of the folder: replace it"),
        (tmp_path, "out", "'out' in .* is a link that leads out"),
        (root, "loop", "'loop' in .* is a link (to a folder|that leads out)"),
        (root / "crow", "also", "'also' in .* is a link to a folder"),
        (tmp_path / "nowhere", "owl/dead.png", "'owl/dead.png' in .* is a link that leads out"),
        (root / "nowhere", "owl/dead.png", "'owl/dead.png' in .* is not a regular file"),
    ]:
        (root / name).symlink_to(target)
        refused(root, match)
        (root / name).unlink()
    os.mkfifo(root / "owl" / "pipe.png")
    refused(root, "'owl/pipe.png' in .* is not a regular file")


@pytest.mark.parametrize(
    "name", ["../crow/1.png", "/crow/1.png", "a/../../1.png", r"..\crow\1.png", "C:/crow/1.png", "a/\x1b[2J.png"]
)
def test_unsafe_names_in_archives(name, birds, write, tmp_path):
    for kind in ("a.zip", "a.tar"):
        refused(write(tmp_path / kind, birds | {name: b"x"}), "leads out of its folder or cannot be printed")


def test_links_and_repeats_in_archives(birds, write, tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        path = write(tmp_path / "a.tar", birds)
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo("crow/link.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        refused(path, "'crow/link.png' in .* is a link or not a regular file")
    path = write(tmp_path / "a.zip", birds)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("crow/link.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    refused(path, "'crow/link.png' in .* is a link: pack the files themselves")
    path = write(tmp_path / "b.tar", birds)
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("crow/1.png"))
    refused(path, "holds 'crow/1.png' twice")


def test_bombs(birds, picture, write, tmp_path, monkeypatch):
    wide = io.BytesIO()
    Image.new("1", (20_001, 1)).save(wide, "png")
    refused(write(tmp_path / "r1", birds | {"owl/2.png": wide.getvalue()}), "'owl/2.png' cannot be read .*20001 x 1 pixels")
    for kind in ("a.zip", "a.tar.gz"):
        path = write(tmp_path / kind, birds | {"notes.txt": bytes(3 << 20)})
        with monkeypatch.context() as patch:
            patch.setattr(sources, "SLACK", 1 << 10)
            patch.setattr(sources, "MAX_RATIO", 50)
            refused(path, "unpacks to more than .* MiB, as a decompression bomb does")
        for module, limit, value, match in [
            (sources, "MAX_FILES", 5, "more than 5 files"),
            (sources, "MAX_MEMBER", 1 << 20, "'notes.txt' in .* is larger than 1 MiB"),
            (reading, "MAX_BYTES", 10, "'.*' in .* is larger than 0 MiB"),
            (decoding, "MAX_BYTES", 10, "cannot be read"),
            (reading, "MAX_MEMORY", 100, "use prepare_images"),
        ]:
            with monkeypatch.context() as patch:
                patch.setattr(module, limit, value)
                refused(path, match)
    # A header of a tar that says it is followed by a name of a gigabyte.
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    (tmp_path / "b.tar").write_bytes(member.tobuf() + bytes(4096))
    refused(tmp_path / "b.tar", "b.tar' (is damaged|cannot be read)")


def test_pickles_are_never_read(write, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name in ("mini-imagenet-cache-train.pkl", "FC100_train.pickle", "data.zip", "data.npz", "data"):
        for protocol in (2, 4, 5):
            (tmp_path / name).write_bytes(pickle.dumps({"image_data": Evil()}, protocol))
            refused(tmp_path / name, r"is a pickle, which may run any code .* np.savez\(file, images=")
    assert not (tmp_path / "ran").exists()
    root = write(tmp_path / "root", {"mini-imagenet-cache-train.pkl": b"", "mini-imagenet-cache-val.pkl": b""})
    refused(root, "root/mini-imagenet-cache-train.pkl' is a pickle", split="train")


def test_paths_and_options(birds, write, tmp_path):
    root = write(tmp_path / "root", birds)
    refused(tmp_path / "absent.zip", "There is no '.*absent.zip': give the path")
    refused(None, "are read from the path")
    refused(b"x", "are read from the path")
    refused("a\0b", "are read from the path")
    (tmp_path / "text.zip").write_text("text")
    refused(tmp_path / "text.zip", "cannot be read .*: give a folder, zip, tar or npz")
    (tmp_path / "text.tar").write_text("text")
    refused(tmp_path / "text.tar", "text.tar' .*: ")
    for options, match in [
        ({"size": 0}, "size=0 must be a whole number from 1 to 1024"),
        ({"size": 2000}, "must be a whole number from 1 to 1024"),
        ({"size": 8.0}, "must be a whole number from 1 to 1024"),
        ({"channels": 2}, "channels=2 must be 1 .grey. or 3"),
        ({"channels": True}, "channels=True must be a whole number"),
        ({"split": 3}, "split=3 must be the name"),
        ({"crop": 1}, "crop=1 must be True or False"),
    ]:
        refused(root, match, **options)


@pytest.mark.parametrize("number", [np.int64, np.uint16, np.array])
def test_numpys_numbers_are_numbers(number, birds, write, tmp_path):
    root = write(tmp_path / "root", birds)
    data = read_images(root, number(8), number(1), crop=np.True_)
    np.testing.assert_array_equal(data.images, read_images(root, 8, 1, crop=True).images)


def test_what_goes_wrong_in_the_callback_is_not_the_data(birds, write, tmp_path):
    def stop(done, total):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        read_images(write(tmp_path / "a.zip", birds), 8, progress=stop)


def test_nothing_is_written(birds, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [write(tmp_path / kind, birds) for kind in KINDS]
    before = sorted(tmp_path.rglob("*"))
    for path in paths:
        read_images(path, 8)
    assert sorted(tmp_path.rglob("*")) == before
