"""Tasks from a table whose rows belong to groups: adapt on some rows of a group, predict others."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.distinct import distinct

Batch = tuple[Float[Array, "n F"], Array, Float[Array, " n"]]


def table(
    frame: Any, *, group: str, target: str, support: int | tuple[int, int] = 10, queries: int = 32, order: str | None = None,
    features: list[str] | None = None, loss: Callable | None = None,
) -> FiniteSum:  # fmt: skip
    r"""Few-shot tasks from a table: a task is a group, some of whose rows are the support set and others the target set.

    Each task draws a group, all with the same probability, and disjoint random sets of its rows. With `order` the support set
    is the group's first rows in that order, and the target set is drawn from the later ones. A group with fewer rows than asked
    for leaves one for the target set at least. A batch is (x, y, mask): the mask is 1 for a row, and 0 for padding, so that all
    tasks have one shape.

    Arguments:
        frame: a DataFrame of pandas or polars, a mapping from names to columns, a dataset of Hugging Face, or a random-access
            source of rows (`len(source)`, `source[i]`), each a mapping from names to values.
        group: the column that says which rows belong together, of any type.
        target: the column to predict: numbers, or whole numbers 0, 1, ... with a loss for classes.
        support: how many rows to adapt on, or the smallest and the largest number, between which each task draws (default 10).
        queries: at most so many rows of the target set (default 32).
        order: a column of numbers, such as a time (default None: rows have no order). It is a feature too, unless `features`
            leaves it out.
        features: the columns of x (default: all but group and target), which must be numbers without gaps.
        loss: `loss(params, batch)` for a batch (x, y, mask) (default: the mean squared error of `params(x)` over the rows).

    Returns: a `FiniteSum` problem. `task.support` is (x, y, mask) of shapes (S, F), (S,), (S,), and `task.target` one of
        `queries` rows.

    Memory: the columns as float32, once, on the device: 800 MB for 10 million rows of 20 columns.

    Errors: `InputError` for a column that is missing, no number or not finite, for numbers of rows below 1, and if every group
        has a single row.

    Example:
        >>> import adaptax as ax, jax, numpy as np
        >>> day = np.tile(np.arange(20.0), 3)
        >>> frame = {"patient": np.repeat(["a", "b", "c"], 20), "day": day, "score": np.sin(day)}
        >>> problem = ax.tasks.table(frame, group="patient", target="score", support=5, order="day", queries=8)
        >>> task = problem.sample_task(jax.random.key(0))
        >>> task.support[0].shape, task.support[0][:, 0].tolist(), task.target[1].shape
        ((5, 1), [0.0, 1.0, 2.0, 3.0, 4.0], (8,))

    Source: the finite-sum case of Ji, Yang, Liang (2022), on groups of rows.
    """
    frame = by_column(frame)
    names = columns(frame)
    chosen = [name for name in names if name not in (group, target)] if features is None else list(features)
    for name in (group, target, *([] if order is None else [order]), *chosen):
        if name not in names:
            raise InputError(f"The table has no column {name!r}: it has {', '.join(map(repr, names))}.")
    if not chosen:
        raise InputError("The table has no column of features: give it one beside the group and the target.")
    x = np.stack([numbers(frame, name) for name in chosen], axis=1)
    by = None if order is None else numbers(frame, order)
    _, which, counts = np.unique(np.asarray(frame[group]), return_inverse=True, return_counts=True)
    if counts.max(initial=0) < 2:
        raise InputError(f"Every group has a single row, so that none is left to predict: is {group!r} the right column?")
    y = numbers(frame, target)
    whole = loss is not None and np.issubdtype(np.asarray(frame[target]).dtype, np.integer)
    y, queries = y.astype(np.int32 if whole else np.float32), check_whole("table", "queries", queries)
    rows = sampler(x, y, which, by, _range(support), queries)
    return FiniteSum(mean_squared_error if loss is None else loss, rows)


def by_column(frame: Any) -> Any:
    """A table with columns: a source of rows is read, row by row.

    Errors: `InputError` if the rows have not all the same names.
    """
    if isinstance(frame, Mapping) or hasattr(frame, "columns"):
        return frame
    if names := getattr(frame, "column_names", None):
        return {name: np.asarray(list(frame[name])) for name in names}
    if isinstance(frame, str | bytes) or not (hasattr(frame, "__len__") and hasattr(frame, "__getitem__")) or not len(frame):
        return frame
    rows = [frame[i] for i in range(len(frame))]
    if not all(isinstance(row, Mapping) for row in rows):
        return frame
    for i, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise InputError(
                f"Row {i} has the names {', '.join(map(repr, row))}, and row 0 others: give all rows the same ones."
            )
    return {name: np.asarray([row[name] for row in rows]) for name in rows[0]}


def columns(frame: Any) -> list[str]:
    """The names of a table's columns.

    Errors: `InputError` if it is no table.
    """
    if isinstance(frame, Mapping):
        return list(frame)
    if hasattr(frame, "columns") and hasattr(frame, "__getitem__"):
        return list(frame.columns)
    kinds = "a DataFrame of pandas or polars, a mapping of columns, or a source of rows that are mappings"
    raise InputError(f"A table is {kinds}, not {type(frame).__name__}: make one.")


def numbers(frame: Any, name: str) -> np.ndarray:
    """A column as float64.

    Errors: `InputError` if it has other than finite numbers.
    """
    try:
        column = np.asarray(frame[name]).astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"Column {name!r} is not of numbers: encode it as numbers, or leave it out of features=.") from None
    if bad := int(np.count_nonzero(~np.isfinite(column))):
        raise InputError(f"Column {name!r} has {bad:,} missing or infinite values: fill them in, or leave their rows out.")
    return column


def sampler(
    x: np.ndarray, y: np.ndarray, which: np.ndarray, order: np.ndarray | None, support: tuple[int, int], queries: int,
    pad: bool = False,
) -> "SampleRows":  # fmt: skip
    """The sampler of tasks from rows in any order.

    Arguments:
        x, y: the rows.
        which: the group of each row, numbers from 0.
        order: what orders the rows of a group, None: nothing.
        support, queries: as for `table`.
        pad: whether rows and groups are filled up to a rounder number, so that tables of like size share programs.
    """
    counts = np.bincount(which)
    # Rows of a group stand together, in its order.
    by = np.lexsort((which,) if order is None else (order, which))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    chosen = np.flatnonzero(counts > 1) if counts.max() > 1 else np.arange(len(counts))
    rows, groups = (round_up(len(x)), round_up(len(counts))) if pad else (len(x), len(counts))
    x, y = _filled(x[by].astype(np.float32), rows), _filled(y[by], rows)
    starts, counts = _filled(starts, groups), _filled(counts, groups)
    chosen, number = _filled(chosen, groups if pad else len(chosen)), len(chosen)
    index = {"starts": starts, "counts": counts, "chosen": chosen, "number": number, "fewest": support[0]}
    index = {name: jnp.asarray(part, jnp.int32) for name, part in index.items()}
    return SampleRows(
        x=jnp.asarray(x), y=jnp.asarray(y), most=support[1], queries=queries, ordered=order is not None, **index
    )  # fmt: skip


def _range(support: int | tuple[int, int]) -> tuple[int, int]:
    fewest, most = support if isinstance(support, tuple | list) and len(support) == 2 else (support, support)
    fewest, most = check_whole("table", "support", fewest, 0), check_whole("table", "support", most)
    if fewest > most:
        raise InputError(f"table(support={support}) must be the smallest number of rows, then the largest.")
    return fewest, most


def _filled(array: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])


def round_up(count: int) -> int:
    """The next number of the form k * 2^j with k below 8, so that few programs are compiled."""
    unit = 1 << max(count.bit_length() - 3, 0)
    return -(-count // unit) * unit


class SampleRows(eqx.Module):
    """`sample_task` of `table`.

    Arguments:
        x, y: the rows, those of a group together, in its order.
        starts, counts: where each group begins, and how many rows it has.
        chosen, number: the groups to draw from, of which the first `number` count.
        fewest: the smallest number of support rows.
        most: the largest (static).
        queries: target rows at most (static).
        ordered: whether support rows are the first ones (static).
    """

    x: Float[Array, "R F"]
    y: Array
    starts: Int[Array, " G"]
    counts: Int[Array, " G"]
    chosen: Int[Array, " C"]
    number: Int[Array, ""]
    fewest: Int[Array, ""]
    most: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    ordered: bool = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Task:
        which, how_many, rows = jax.random.split(key, 3)
        group = self.chosen[jax.random.randint(which, (), 0, self.number)]
        return self.of_group(group, jax.random.randint(how_many, (), self.fewest, self.most + 1), rows)

    def of_group(self, group: Int[Array, ""], shots: Int[Array, ""], key: Key[Array, ""]) -> Task:
        """A task of this group with so many support rows, if it has one more than that."""
        count, start = self.counts[group], self.starts[group]
        shots = jnp.minimum(jnp.minimum(shots, self.most), count - 1)
        if self.ordered:
            support = jnp.arange(self.most)
            target = shots + distinct(key, count - shots, self.queries)
        else:
            drawn = distinct(key, count, self.most + self.queries)
            support, target = drawn[: self.most], jax.lax.dynamic_slice_in_dim(drawn, shots, self.queries)
        missing = jnp.arange(self.queries) < count - shots
        return Task(self._batch(start, support, jnp.arange(self.most) < shots), self._batch(start, target, missing))

    def _batch(self, start, positions, there) -> Batch:
        rows = start + jnp.where(there, positions, 0)
        y = self.y[rows]
        return jnp.where(there[:, None], self.x[rows], 0), jnp.where(there, y, jnp.zeros_like(y)), there.astype(self.x.dtype)


def mean_squared_error(params: Callable, batch: Batch) -> Float[Array, ""]:
    """The mean squared error of `params(x)` over the rows that the mask keeps."""
    x, y, mask = batch
    if not callable(params):
        raise InputError("A table takes a model as parameters, which is called as params(x): use adaptax.models.mlp.")
    prediction = params(x)
    if prediction.shape == (*y.shape, 1):
        prediction = prediction[:, 0]
    if prediction.shape != y.shape:
        raise InputError(f"The model returns shape {prediction.shape} where y has {y.shape}: give it one output.")
    return jnp.sum(mask * (prediction - y) ** 2) / jnp.maximum(jnp.sum(mask), 1)
