"""Whether two names mean the same class: one class in several splits, or in several spellings of the same text."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable

from adaptax.errors import InputError

Say = Callable[[str], None]
_AROUND = r"(meta|images?|imgs?|pictures|photos|data|dataset|set|split|[\W_\d])*"
_SPLIT = re.compile(rf"{_AROUND}(train|training|trn|val|valid|validation|dev|test|testing|eval|evaluation|base|novel){_AROUND}")


class DataWarning(UserWarning):
    """Images were read, and something about them may make the classes or the accuracies other than they seem."""


def is_split(name: str) -> bool:
    """Whether a folder or list of this name is a split, such as `train`, `Validation` or `test2017`.

    Example:
        >>> from adaptax.tasks.images.io.class_names import is_split
        >>> [name for name in ("train", "meta-test", "valid_images", "trainer", "cat") if is_split(name)]
        ['train', 'meta-test', 'valid_images']
    """
    return _SPLIT.fullmatch(name.casefold()) is not None


def class_key(name: str, last: bool = False) -> tuple[str, ...]:
    """What all names of a class have in common: splits, capital letters and forms of Unicode make no other class.

    A single character stands for itself, since `A` and `a` may be two classes of letters.

    Arguments:
        name: of the class, with slashes.
        last: whether the last part is the split, as in `cat/train`; otherwise it is the first part that may be one.

    Example:
        >>> from adaptax.tasks.images.io.class_names import class_key
        >>> class_key("train/Caf\u00e9") == class_key("val/cafe\u0301") == class_key("CAF\u00c9")
        True
        >>> class_key("letters/A") == class_key("letters/a")
        False
    """
    parts = name.split("/")
    places = [i for i, part in enumerate(parts) if is_split(part)]
    split = places[-last] if places else None
    if split is not None and len(parts) > 1:
        del parts[split]
    return tuple(map(folded, parts))


def folded(text: str) -> str:
    """A text without differences of capital letters, spaces and forms of Unicode, save of a single character."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    return text if len(text) == 1 else unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def check_told_apart(names: Collection[str], path: str, say: Say | None) -> None:
    """Raise `InputError` if two names mean one class; say it if two folders of other names hold classes of one name.

    Arguments:
        names: the names of the classes, with slashes.
        path: of the data, for messages.
        say: what warns, or None.
    """
    by_key: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_leaf: dict[str, dict[tuple[str, ...], str]] = defaultdict(dict)
    last = all(is_split(name.split("/")[-1]) for name in names)
    # `character01` and `character02`, or `A` and `B`, of two alphabets are no names of their own.
    series = Counter(_series(name) for name in names)
    for name in sorted(names):
        key = class_key(name, last)
        by_key[key].append(name)
        by_leaf[key[-1] if last else folded(name.split("/")[-1])].setdefault(key, name)
    for same in by_key.values():
        if len(same) == 1:
            continue
        splits = sorted({part for name in same for part in name.split("/") if is_split(part)})
        if len({tuple(map(folded, name.split("/"))) for name in same}) == 1:
            message = f"The classes {listed(same)} in '{path}' differ only in capital letters, spaces or the form of Unicode"
            raise InputError(f"{message}: join or rename them.")
        message = f"'{path}' holds the same class in several splits, as {listed(same)}"
        raise InputError(f"{message}: give {' or '.join(f'split={split!r}' for split in splits[:4])}, or join their pictures.")
    for found in by_leaf.values():
        kinds = set(map(_series, found.values()))
        if say and len(found) > 1 and (None in kinds or min(series[kind] for kind in kinds) == 1):
            message = f"The folders {listed(found.values())} in '{path}' are read as {len(found)} classes"
            say(f"{message}: if they are one class, join them.")


def _series(name: str) -> str | None:
    """What numbered classes of one folder, or classes of one character, have in common; None for other names."""
    above, _, leaf = name.rpartition("/")
    return f"{above}/" if len(leaf) == 1 else re.sub(r"\d+$", "", name) if leaf[-1].isdecimal() else None


def check_not_nested(folders: Collection[tuple[str, ...]], path: str) -> None:
    """Raise `InputError` if a folder that holds pictures lies in another one that does."""
    known = set(folders)
    for folder in sorted(known):
        for depth in range(1, len(folder)):
            if folder[:depth] in known:
                outer, inner = "/".join(folder[:depth]), "/".join(folder)
                message = f"The class folder '{outer}' in '{path}' holds pictures, and so does '{inner}' in it"
                raise InputError(f"{message}: move one of them elsewhere, since each class is one folder.")


def listed(names: Iterable[str]) -> str:
    """The first four names and how many more there are, for messages."""
    names = [f"'{name}'" for name in names]
    names[4:] = [f"{len(names) - 4} more"] if len(names) > 4 else []
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
