"""Pictures that occur more than once in what is read."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def checksum(picture: np.ndarray) -> bytes:
    """A checksum of the pixels."""
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()


def find_copies(checksums: Sequence[bytes], classes: Sequence[int], items: Sequence[str], path: str) -> list[str]:
    """A sentence on pictures that are in several classes, and one on pictures that are more than once in a class.

    Arguments:
        checksums: of each picture.
        classes: the number of each picture's class.
        items: what each picture was read from.
        path: of the source, for messages.

    Example:
        >>> from adaptax.tasks.images.io.copies import find_copies
        >>> find_copies([b"1", b"2", b"1"], [0, 0, 1], ["cat/1.png", "cat/2.png", "dog/1.png"], "pets")
        ["A picture is in several classes of 'pets', such as 'cat/1.png' and 'dog/1.png': remove the copies."]
    """
    places: dict[bytes, list[int]] = defaultdict(list)
    for i, value in enumerate(checksums):
        places[value].append(i)
    same = [found for found in places.values() if len(found) > 1]
    sentences = []
    for where, several in (("in several classes", True), ("more than once in a class", False)):
        if found := [equal for equal in same if (len({classes[i] for i in equal}) > 1) == several]:
            number = "A picture is" if len(found) == 1 else f"{len(found)} pictures are"
            pair = f"'{items[found[0][0]]}' and '{items[found[0][-1]]}'"
            sentences.append(f"{number} {where} of '{path}', such as {pair}: remove the copies.")
    return sentences
