"""Words that the pages of the experiments share."""

from collections.abc import Iterable, Sequence


def capital(text: str) -> str:
    """The text with a capital letter at its beginning; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def listed(parts: Iterable[str]) -> str:
    """A list in words.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def network(sizes: Sequence[int]) -> str:
    """The widths of a network's layers.

    Example:
        >>> network((1, 40, 40, 1))
        '1-40-40-1'
    """
    return "-".join(map(str, sizes))
