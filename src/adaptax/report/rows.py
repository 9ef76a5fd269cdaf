"""Rows of an experiment's CSV: dictionaries by column, in which a row leaves out the columns that it does not fill."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Rows = Sequence[Mapping[str, Any]]
_Row = TypeVar("_Row", bound=Mapping[str, Any])


def pick(rows: Iterable[_Row], **wanted: Any) -> list[_Row]:
    """The rows with these entries; None matches a column that the row does not fill.

    Example:
        >>> pick([{"q": 1, "v": 2.0}, {"q": 2, "v": 3.0}], q=2)
        [{'q': 2, 'v': 3.0}]
    """
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def distinct(rows: Iterable[Mapping[str, Any]], *columns: str) -> list[Any]:
    """The entries of a column, each once, in the order of the rows; tuples of entries for several columns.

    Example:
        >>> distinct([{"q": 1}, {"q": 1}, {"q": 2}], "q")
        [1, 2]
    """
    if len(columns) == 1:
        return list(dict.fromkeys(row[columns[0]] for row in rows if columns[0] in row))
    return list(dict.fromkeys(tuple(row.get(column) for column in columns) for row in rows))


def by_seed(rows: Rows, x: str, values: str = "value") -> tuple[np.ndarray, np.ndarray]:
    """A measurement that every seed repeats: the sorted entries of the column `x`, and the values, of shape (x, seeds).

    Example:
        >>> rows = [{"k": k, "seed": seed, "value": 10 * k + seed} for seed in (0, 1) for k in (2, 1)]
        >>> at, found = by_seed(rows, "k")
        >>> at.tolist(), found.tolist()
        ([1.0, 2.0], [[10.0, 11.0], [20.0, 21.0]])
    """
    at, seeds = sorted({row[x] for row in rows}), sorted({row["seed"] for row in rows})
    cell = {(row[x], row["seed"]): row[values] for row in rows}
    return np.array(at, float), np.array([[cell[place, seed] for seed in seeds] for place in at], float)
