"""Held-out data: test data without the alphabets or classes of the training data."""

import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import Characters, ImageClasses, held_out


def characters(*names):
    """Drawings that differ from name to name."""
    seeds = [int.from_bytes(name.encode(), "big") for name in names]
    return Characters(np.stack([np.random.default_rng(seed).integers(0, 256, (2, 6, 6), np.uint8) for seed in seeds]), names)


def classes(names):
    """One class for each letter, its one image full of the letter's code."""
    codes = np.frombuffer(names.encode(), np.uint8)[:, None, None, None]
    return ImageClasses(np.broadcast_to(codes, (len(names), 4, 4, 1)).copy(), tuple(names), (1,) * len(names))


def test_characters_are_held_out_by_alphabet():
    fresh, left_out = held_out(characters("A/9", "B/1", "C/1"), characters("A/1", "C/2", "D/1"))
    assert fresh.names == ("B/1",) and left_out == ("A", "C")
    fresh, left_out = held_out(characters("A/1"), characters("B/1"))
    assert fresh.names == ("A/1",) and left_out == ()


def test_images_are_held_out_by_class():
    test, left_out = held_out(classes("abc"), classes("bd"))
    assert test.names == ("a", "c") and left_out == ("b",)
    assert [int(test.of(name)[0, 0, 0, 0]) for name in test.names] == [ord("a"), ord("c")]


def test_refusals():
    with pytest.raises(InputError, match=r"Every alphabet of the test data \(A\) also occurs"):
        held_out(characters("A/1"), characters("A/2", "B/1"))
    with pytest.raises(InputError, match=r"Every class of the test data \(b\) also occurs"):
        held_out(classes("b"), classes("abcd"))
    with pytest.raises(InputError, match="two Characters or two ImageClasses"):
        held_out(classes("a"), characters("a"))
