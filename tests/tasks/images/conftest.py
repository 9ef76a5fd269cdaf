"""Small sources of images: the same pictures as a folder, a zip and a tar."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed=0, side=(20, 16), mode="RGB", kind="png"):
    """The bytes of a random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def write(path, entries):
    """A folder, a zip or a tar by the suffix of the path, with these bytes by name."""
    path = Path(path)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
    elif ".tar" in path.name or path.suffix == ".tgz":
        kind = {".tar": "w", ".bz2": "w:bz2"}.get(path.suffix, "w:gz")
        with tarfile.open(path, kind) as archive:
            for name, data in entries.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in entries.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.fixture(name="picture")
def _picture():
    return picture


@pytest.fixture(name="write")
def _write():
    return write


@pytest.fixture
def birds():
    """Three classes with 2, 3 and 1 pictures, as PNG and JPEG of several modes."""
    return {
        "wren/b.png": picture(1),
        "wren/a.JPG": picture(2, kind="jpeg"),
        "crow/1.png": picture(3, mode="L"),
        "crow/2.png": picture(4, mode="P"),
        "crow/3.png": picture(5, mode="RGBA"),
        "owl/1.jpeg": picture(6, kind="jpeg"),
    }
