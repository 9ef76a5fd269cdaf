"""Support rows of groups, by the names of the groups."""

from typing import NamedTuple

import numpy as np

from adaptax.tasks.table import SampleRows


class Supports(NamedTuple):
    """The support rows of some groups; the last one has none.

    Arguments:
        names: the names of the groups in order; None: there is one group, that of rows without a name.
        rows: their support rows (x, y), and an empty pair at the end.
    """

    names: np.ndarray | None
    rows: list[tuple[np.ndarray, np.ndarray]]

    @property
    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """The support of a group that has none."""
        return self.rows[-1]

    @classmethod
    def of_training(cls, rows: SampleRows, most: int, names: np.ndarray, seed: int) -> "Supports":
        """Of each group of the training table so many rows at most: the first ones, or random ones."""
        x, y = np.asarray(rows.x), np.asarray(rows.y)
        starts, counts = np.asarray(rows.starts), np.asarray(rows.counts)
        random, found = np.random.default_rng(seed), []
        if counts.max() > 1:
            for start, count in zip(starts[: len(names)], counts[: len(names)], strict=True):
                few = min(most, count)
                at = start + (np.arange(few) if rows.ordered else np.sort(random.permutation(count)[:few]))
                found.append((x[at], y[at]))
        else:
            names = names[:0]
        return cls(names, [*found, (x[:0], y[:0])])

    @classmethod
    def given(cls, x: np.ndarray, y: np.ndarray, names: np.ndarray | None, empty: tuple) -> "Supports":
        """Rows as a user gives them."""
        if names is None:
            return cls(None, [(x, y), empty])
        known, which = np.unique(names, return_inverse=True)
        order = np.argsort(which, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(which))[:-1])
        return cls(known, [*((x[part], y[part]) for part in parts), empty])

    def places(self, names: np.ndarray | None, rows: int) -> tuple[np.ndarray, int]:
        """Which of `rows` belongs to each row, and how many named groups have none."""
        last = len(self.rows) - 1
        if names is None:
            return np.full(rows, 0 if self.names is None else last), 0
        if self.names is None:
            return np.full(rows, last), len(np.unique(names))
        asked, which = np.unique(names, return_inverse=True)
        # Names of another kind than those known are known to nobody.
        comparable = asked.dtype.kind in "OUS" or self.names.dtype.kind not in "OUS"
        place = {name: i for i, name in enumerate(self.names.tolist())} if comparable else {}
        at = np.array([place.get(name, last) for name in asked.tolist()], int)
        return at[which], int(np.count_nonzero(at == last))


def few_shot_split(names: np.ndarray, order: np.ndarray | None, most: int, seed: int) -> np.ndarray:
    """Which rows are support rows: of each group `most`, but not all of them; the first in the order, or random ones."""
    by = np.random.default_rng(seed).random(len(names)) if order is None else order
    support = np.zeros(len(names), bool)
    _, which = np.unique(names, return_inverse=True)
    rows = np.lexsort((by, which))
    for part in np.split(rows, np.cumsum(np.bincount(which))[:-1]):
        support[part[: min(most, len(part) - 1)]] = True
    return support
