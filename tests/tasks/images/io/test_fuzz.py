"""Hundreds of damaged sources and caches: one sentence or sound data, nothing else, and no file anywhere."""

import json
import random

import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import ImageClasses, prepare_images, read_images


def damage(raw, dice, names):
    """The bytes after a truncation, a few changed bytes or bits, a swapped name, or a repeated or lost stretch."""
    raw, kind = bytearray(raw), dice.randrange(6)
    at = dice.randrange(len(raw))
    if kind == 0:
        return bytes(raw[:at])
    if kind == 1:
        for _ in range(dice.randint(1, 4)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
    elif kind == 2:
        raw[at] ^= 1 << dice.randrange(8)
    elif kind == 3:
        old, new = (name.encode() for name in dice.sample(names, 2))
        return bytes(raw).replace(old, new.ljust(len(old))[: len(old)], dice.randint(1, 2))
    elif kind == 4:
        raw[at:at] = raw[at : at + dice.randrange(600)]
    else:
        del raw[at : at + dice.randrange(600)]
    return bytes(raw)


def sound(data):
    """Whether what was read is what it says it is."""
    assert isinstance(data, ImageClasses) and data.images.shape == (sum(data.counts), 8, 8, 3)
    assert all("/.." not in f"/{name}" and name.isprintable() for name in data.names)


def everything(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def outcome(read):
    """The message of a refusal, or None."""
    try:
        sound(read())
    except InputError as error:
        return str(error)
    return None


def attack(read, path, raw, names, rounds, seed=0, strict=None):
    """Read many damaged copies of a file; the number that was refused, all those of another `strict(bytes)` if given."""
    dice, refusals, before = random.Random(seed), 0, everything(path.parent)
    for i in range(rounds):
        path.write_bytes(damage(raw, dice, names))
        message = outcome(lambda: read(path))
        refusals += message is not None
        assert message is None or ("\n" not in message and message.endswith(".")), (i, message)
        assert not strict or (message is None) == (strict(path.read_bytes()) == strict(raw)), i
        assert everything(path.parent) == before, i
    return refusals


NAMES = ["wren/b.png", "crow/1.png", "owl/1.jpeg", "../../x.png", "/tmp/x.png", "crow/a.txt", "a/\0/b.png", "images.npy"]


def check(kind, birds, write, folder, rounds):
    path = write(folder / kind, birds)
    assert attack(lambda p: read_images(p, 8), path, path.read_bytes(), NAMES, rounds) > rounds / 4


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2"])
def test_archives(kind, birds, write, tmp_path):
    check(kind, birds, write, tmp_path, 300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2"])
def test_archives_at_length(kind, birds, write, tmp_path):
    check(kind, birds, write, tmp_path, 3000)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("rounds", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_npz(save, rounds, tmp_path):
    path = tmp_path / "a.npz"
    save(path, images=np.arange(6 * 81, dtype=np.uint8).reshape(6, 9, 9), labels=[0, 1, 2] * 2)
    names = ["images", "labels", "descr", "shape", "'|u1'", "'<i8'", "'|O'", "False", "True", "(6, 9, 9)", "(6,)"]
    assert attack(lambda p: read_images(p, 8), path, path.read_bytes(), names, rounds) > rounds / 4


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "webp", "ppm"])
@pytest.mark.parametrize("rounds", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_pictures(kind, rounds, birds, picture, write, tmp_path):
    root = write(tmp_path / "root", birds | {f"owl/2.{kind}": picture(7, (40, 40), kind=kind)})
    path = root / "owl" / f"2.{kind}"
    attack(lambda _: read_images(root, 8), path, path.read_bytes(), ["IHDR", "IDAT", "PLTE", "tEXt", "VP8 ", "\n255\n"], rounds)


@pytest.mark.parametrize("rounds", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["manifest.json", "images.u8"])
def test_caches(name, rounds, birds, write, tmp_path):
    root, cache = write(tmp_path / "root", birds), tmp_path / "cache"
    sound(prepare_images(root, cache, 8))
    path = next(cache.glob(f"*/{name}"))
    names = ["wren", "crow", "owl", "shape", "counts", "null", "1", "-2", "6", "1e9", "sha256", "[]", "{}"]
    strict = parsed if name == "manifest.json" else bytes
    assert attack(lambda _: prepare_images(root, cache, 8), path, path.read_bytes(), names, rounds, strict=strict) > rounds / 2


def parsed(data):
    """The contents of a manifest, or its bytes if it is not JSON."""
    try:
        return json.loads(data.decode())
    except ValueError:
        return data
