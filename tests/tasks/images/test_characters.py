"""Sets of characters: choosing alphabets, and what is refused."""

import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import Characters


def make(*names):
    """One class for each name, its images full of its index."""
    shades = np.arange(len(names), dtype=np.uint8)
    return Characters(np.tile(shades[:, None, None, None], (1, 4, 6, 6)), names)


def test_without_alphabets_keeps_images_and_names_together():
    characters = make("B/1", "A/1", "B/2", "C/1", "A/2")
    left = characters.without_alphabets(["B", "C"])
    assert left.names == ("A/1", "A/2") and left.alphabets == ("A",)
    assert left.images[:, 0, 0, 0].tolist() == [1, 4]
    assert characters.without_alphabets([]).names == characters.names
    assert characters.without_alphabets("B").names == ("A/1", "C/1", "A/2")


def test_refusals():
    with pytest.raises(InputError, match="no alphabet 'Z': choose from A, B"):
        make("A/1", "B/1").without_alphabets(["Z"])
    with pytest.raises(InputError, match="No character is left"):
        make("A/1", "B/1").without_alphabets(["A", "B"])
    for images in (np.zeros((1, 2, 6, 6)), np.zeros((2, 6, 6), np.uint8), np.zeros((1, 0, 6, 6), np.uint8), [[0]]):
        with pytest.raises(InputError, match=r"uint8 array of shape \(classes, drawings, size, size\)"):
            Characters(images, ("A/1",))
    for names in (("A/1",), ("A/1", "A/1")):
        with pytest.raises(InputError, match="need 2 names"):
            Characters(np.zeros((2, 1, 6, 6), np.uint8), names)
