"""Disjoint training and test data: what the test data share with the training data is left out."""

import warnings
from typing import TypeVar

from adaptax.errors import InputError
from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.io.class_names import DataWarning, class_key
from adaptax.tasks.images.io.copies import checksum

Data = TypeVar("Data", Characters, ImageClasses)


def held_out(test: Data, train: Data) -> tuple[Data, tuple[str, ...]]:
    """Leave out of the test data every alphabet (of `Characters`) or class (of `ImageClasses`) that the training data have.

    Arguments:
        test: the data for evaluation.
        train: the data for training; alphabets and classes are compared by name, whatever the split that is a part of it
            (`train/cat` and `test/cat`), the capital letters and the form of Unicode.

    Returns: the test data that are left, and the sorted names of the alphabets or classes that were left out.

    Errors: `InputError` if every alphabet or class of `test` occurs in `train`, or if the two are of different kinds.

    Warns: `DataWarning` if a picture of the test data that are left is also in the training data.

    Example:
        >>> import numpy as np
        >>> from adaptax.tasks import Characters, held_out
        >>> images = np.random.default_rng(0).integers(0, 256, (3, 20, 28, 28), np.uint8)
        >>> train = Characters(images[:1], ("Greek/character01",))
        >>> test = Characters(images[1:], ("Greek/character02", "Tagalog/character01"))
        >>> fresh, left_out = held_out(test, train)
        >>> fresh.names, left_out
        (('Tagalog/character01',), ('Greek',))

    Source: alphabets as the unit of held-out data; Lake, Salakhutdinov, Tenenbaum (2015), Science 350.
    """
    if isinstance(test, Characters) and isinstance(train, Characters):
        kind, here, there = "alphabet", test.alphabets, train.alphabets
    elif isinstance(test, ImageClasses) and isinstance(train, ImageClasses):
        kind, here, there = "class", test.names, train.names
    else:
        raise InputError("held_out takes two Characters or two ImageClasses: read both by the same function.")
    known = set(map(class_key, there))
    common = tuple(sorted(name for name in here if class_key(name) in known))
    if len(common) == len(here):
        message = f"Every {kind} of the test data ({', '.join(common[:20])}) also occurs in the training data"
        raise InputError(f"{message}: give test data with at least one other {kind}.")
    if isinstance(test, Characters):
        left = test.without_alphabets(common)
    else:
        left = test.take([name for name in here if name not in set(common)])
    if both := len(_pictures(left) & _pictures(train)):
        message = f"{both} of the pictures to judge by {'is' if both == 1 else 'are'} also among those to train on"
        warnings.warn(f"{message}, in classes of other names: remove the copies.", DataWarning, stacklevel=2)
    return left, common


def _pictures(data: Characters | ImageClasses) -> set[bytes]:
    """A checksum of each picture."""
    blocks = data.images if isinstance(data, Characters) else map(data.of, data.names)
    return {checksum(picture) for block in blocks for picture in block}
