"""Disjoint training and test data: what the test data share with the training data is left out."""

from typing import TypeVar

from adaptax.errors import InputError
from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.classes import ImageClasses

Data = TypeVar("Data", Characters, ImageClasses)


def held_out(test: Data, train: Data) -> tuple[Data, tuple[str, ...]]:
    """Leave out of the test data every alphabet (of `Characters`) or class (of `ImageClasses`) that the training data have.

    Arguments:
        test: the data for evaluation.
        train: the data for training; alphabets and classes are compared by name.

    Returns: the test data that are left, and the sorted names of the alphabets or classes that were left out.

    Errors: `InputError` if every alphabet or class of `test` occurs in `train`, or if the two are of different kinds.

    Example:
        >>> import numpy as np
        >>> from adaptax.tasks import Characters, held_out
        >>> image = np.zeros((1, 20, 28, 28), np.uint8)
        >>> train = Characters(image, ("Greek/character01",))
        >>> test = Characters(np.concatenate([image, image]), ("Greek/character02", "Tagalog/character01"))
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
    common = tuple(sorted(set(here) & set(there)))
    if len(common) == len(here):
        message = f"Every {kind} of the test data ({', '.join(common[:20])}) also occurs in the training data"
        raise InputError(f"{message}: give test data with at least one other {kind}.")
    if isinstance(test, Characters):
        return test.without_alphabets(common), common
    return test.take([name for name in here if name not in set(common)]), common
