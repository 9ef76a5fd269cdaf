"""Memory of meta-gradients: with it, stochastic meta-training converges at a constant task batch and step size."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from adaptax import _devices as dev
from adaptax._checks import check_real
from adaptax.errors import InputError
from adaptax.problem import AbstractProblem, Pool


class Memory(eqx.Module):
    r"""An option of `ax.train` and `ax.make_step`: the outer optimiser follows remembered meta-gradients.

    Where tasks are drawn from an `ax.Pool` of n, one is remembered for each task. Every task i that a meta-step draws gets

    $$m_i \leftarrow m_i + b\,(\hat G_i - m_i)$$

    (its first draw: $m_i = \hat G_i$; a task drawn twice counts once, with the mean), and the optimiser gets the mean of
    $m_i$ over the tasks drawn so far. With b = 1 the noise of sampling tasks vanishes as w settles, at any batch size: a
    finite-sum problem converges with a constant outer step size, proved up to about $B/(3n\Lambda)$ ($\Lambda$ the
    smoothness of $\mathcal L_i$). The table takes n times the memory of the parameters (in at least single precision), is
    held and read once a meta-step on every device, and part of each checkpoint; the step's B meta-gradients are held too.

    Elsewhere (any other `sample_task`, or tasks from the host) there is one row, $d \leftarrow d + b\,(\hat g - d)$, of
    the batch's mean $\hat g$. It smooths the direction as momentum does; alone it does not remove the error that a
    constant outer step size leaves, and neither does b < 1 that of samples drawn inside tasks.

    A meta-step that is skipped changes no memory. With memory, an optimiser's `value` and `value_fn` remain those of the
    step's batch: line searches do not fit it.

    Arguments:
        rate: b, above 0 and at most 1.

    Errors: `InputError` for a rate outside (0, 1]. `ax.train` and steps refuse a state that was begun without memory, with
    memory of another pool, or with per-task memory where tasks come from the host.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp, optax
        >>> centres = jnp.arange(8.0)[:, None]
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), ax.Pool(ax.Task(centres, centres)))
        >>> options = {"optimizer": optax.sgd(0.1), "steps": 500, "tasks_per_step": 1}
        >>> state, _ = ax.train(problem, jnp.zeros(1), ax.MetaGradient(ax.Inner(2, 0.1)), memory=ax.Memory(1), **options)
        >>> [round(float(w), 3) for w in state.params]  # the best w is the centres' mean
        [3.5]

    Source: docs/theory.md, section 3.1; after Wang, Yuan, Ying, Yang (2023), JMLR 24(145), arXiv 2106.04911, which
    remembers adapted parameters in place of meta-gradients; b = 1 is the stochastic average gradient of Schmidt, Le Roux,
    Bach (2017).
    """

    rate: Array

    def __init__(self, rate: Any):
        self.rate = jnp.asarray(check_real("Memory", "rate", rate, above=0, most=1), jnp.result_type(float))


class Table(eqx.Module):
    """Remembered meta-gradients, one a row.

    Arguments:
        rows: the parameters' floating-point leaves with a leading axis n, in at least single precision.
        visited: which rows hold a gradient; the others are zero.
    """

    rows: PyTree
    visited: Bool[Array, " n"]

    @classmethod
    def empty(cls, floating: PyTree, count: int) -> "Table":
        """A table of `count` rows that holds nothing yet."""

        def zeros(leaf):
            return jnp.zeros((count, *leaf.shape), jnp.promote_types(leaf.dtype, jnp.float32))

        return cls(jax.tree.map(zeros, floating), jnp.zeros(count, bool))

    def preview(self, rate: Array, indices: Int[Array, " B"], grads: PyTree) -> tuple[PyTree, PyTree]:
        """The mean of the rows once these gradients have been noted, and the increments that note them.

        Indices of n and more note nothing, whatever their gradients are. The table is only read here; `add` updates it in
        place once the meta-step is known to count.
        """
        count = len(self.visited)
        times = jnp.zeros(count).at[indices].add(1, mode="drop")
        visited = self.visited.at[indices].set(True, mode="drop")
        weights = (jnp.where(self.visited, rate, 1) / jnp.maximum(times, 1))[indices]

        def increment(row, grad):
            def along(x):
                return x.reshape((-1,) + (1,) * (row.ndim - 1))

            change = along(weights).astype(row.dtype) * (grad.astype(row.dtype) - row[indices])
            return jnp.where(along(indices < count), change, 0)

        increments = jax.tree.map(increment, self.rows, grads)

        def mean(row, more):
            return (jnp.sum(row, 0) + jnp.sum(more, 0)) / jnp.sum(visited).astype(row.dtype)

        return jax.tree.map(mean, self.rows, increments), increments

    def add(self, indices: Int[Array, " B"], increments: PyTree) -> "Table":
        """The table with these increments of its rows."""
        rows = jax.tree.map(lambda row, more: row.at[indices].add(more, mode="drop"), self.rows, increments)
        return Table(rows, self.visited.at[indices].set(True, mode="drop"))


def recall(
    memory: Memory | None, table: Table | None, mesh: Mesh | None, grad: PyTree, drawn: Any, weights: Array, grads: PyTree
) -> tuple[PyTree, Callable[[Array], Table | None]]:
    """The direction for the optimiser, and `note(good) -> table`, which leaves the table as it is where not `good`.

    Arguments:
        grad: the mean meta-gradient of the batch, which is noted where there is a single row.
        drawn, weights, grads: else the indices, weights and meta-gradients of this device's tasks; all devices note all.
    """
    if memory is None or table is None:
        return grad, lambda good: None
    count = len(table.visited)
    if drawn is None:
        indices, grads = jnp.zeros(1, jnp.int32), jax.tree.map(lambda g: g[None], grad)
    else:
        indices, grads = dev.gather(mesh, (jnp.where(weights > 0, drawn, count), grads))
    direction, increments = table.preview(memory.rate, indices, grads)
    direction = jax.tree.map(lambda d, g: d.astype(g.dtype), direction, grad)
    return direction, lambda good: table.add(jnp.where(good, indices, count), increments)


def rows_of(problem: AbstractProblem, tasks: PyTree) -> int:
    """How many meta-gradients are remembered: one for each task of a pool, a single one elsewhere."""
    return len(problem.sample_task) if isinstance(problem.sample_task, Pool) and tasks is None else 1


def source(memory: Memory | None, table: Table | None, problem: AbstractProblem, tasks: PyTree) -> Pool | None:
    """The pool whose tasks have a row each, None where there is no more than one row; misfits are refused."""
    if (memory is None) != (table is None):
        there, here = ("without", "has one") if table is None else ("with", "has none")
        raise InputError(f"The state was begun {there} a memory and this step {here}: give both the same memory=.")
    if table is None or len(table.visited) == 1:
        return None
    pool, count = problem.sample_task, len(table.visited)
    if tasks is not None:
        raise InputError(
            f"The state remembers {count} tasks of a pool: leave tasks= out, or begin with init(params, seed, tasks)."
        )
    if not isinstance(pool, Pool) or len(pool) != count:
        raise InputError(f"The state remembers {count} tasks of a pool: let sample_task be that ax.Pool, or begin anew.")
    return pool
