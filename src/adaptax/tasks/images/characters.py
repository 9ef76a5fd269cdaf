"""Characters: images by class and drawing, with the names of the classes."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Key

from adaptax.errors import InputError
from adaptax.tasks.images.classes import partition


@dataclass(frozen=True, eq=False)
class Characters:
    """Drawings of characters, kept in the host's memory. `few_shot` makes tasks of them.

    Arguments:
        images: uint8 array of shape (classes, drawings, size, size); ink is 255 and the background 0.
        names: one name for each class, such as `'Alphabet/character01'`, all different.

    Errors: `InputError` if the array or the names do not have this form.

    Example:
        >>> import numpy as np
        >>> from adaptax.tasks import Characters
        >>> names = ("Greek/character01", "Greek/character02", "Latin/character01")
        >>> characters = Characters(np.zeros((3, 20, 28, 28), np.uint8), names)
        >>> characters.alphabets
        ('Greek', 'Latin')
        >>> characters.without_alphabets(["Greek"]).images.shape
        (1, 20, 28, 28)

    Source: the layout of Omniglot; Lake, Salakhutdinov, Tenenbaum (2015), Science 350.
    """

    images: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self):
        shape, dtype = getattr(self.images, "shape", ()), getattr(self.images, "dtype", None)
        if dtype != np.uint8 or len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
            message = "Characters take images as a uint8 array of shape (classes, drawings, size, size)"
            raise InputError(f"{message}, not {dtype or type(self.images).__name__}{list(shape)}: convert them.")
        if len(self.names) != shape[0] or len(set(self.names)) != shape[0]:
            raise InputError(f"Characters need {shape[0]} names, one for each class, all different: change names=.")

    @property
    def alphabets(self) -> tuple[str, ...]:
        """The names of the alphabets, sorted."""
        return tuple(sorted({_alphabet(name) for name in self.names}))

    def without_alphabets(self, names: Iterable[str]) -> "Characters":
        """The characters of all alphabets but these; an `InputError` if a name is unknown or no character is left."""
        out = {names} if isinstance(names, str) else set(names)
        if unknown := sorted(out - set(self.alphabets)):
            raise InputError(f"There is no alphabet '{unknown[0]}': choose from {', '.join(self.alphabets)}.")
        keep = [i for i, name in enumerate(self.names) if _alphabet(name) not in out]
        if not keep:
            raise InputError("No character is left when all alphabets are left out: leave out fewer.")
        return Characters(self.images[keep], tuple(self.names[i] for i in keep))

    def join(self, other: "Characters") -> "Characters":
        """The characters of both sets; an `InputError` if they share a class, or differ in drawings or size."""
        if common := sorted(set(self.names) & set(other.names)):
            raise InputError(f"The class '{common[0]}' is in both: leave it out of one.")
        if self.images.shape[1:] != other.images.shape[1:]:
            message = "Characters with different numbers of drawings or sizes cannot be joined"
            raise InputError(f"{message}: read both with the same size, and take as many drawings of each.")
        return Characters(np.concatenate([self.images, other.images]), self.names + other.names)

    def split(self, *parts: int | Iterable[str], key: Key[Array, ""] | None = None) -> "tuple[Characters, ...]":
        """Split the classes into disjoint parts.

        The usual split of Omniglot is `read_characters(a).join(read_characters(b)).split(1200, 423, key=key)`.

        Arguments:
            parts: each part is a list of names of classes, or a number of classes to draw from those not named.
            key: draws the classes; only needed for parts that are numbers.

        Errors: `InputError` if a name is unknown or in two parts, or if there are too few classes.
        """
        rows = partition(self.names, parts, key)
        return tuple(Characters(self.images[row], tuple(self.names[i] for i in row)) for row in rows)


def _alphabet(name: str) -> str:
    return name.split("/")[0]
