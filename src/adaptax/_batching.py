"""How many tasks at a time: vmap within a group of tasks, one group after another."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import PyTree

from adaptax._checks import check_whole
from adaptax._keys import any_key
from adaptax.errors import InputError
from adaptax.problem import AbstractProblem, Samples

# Bytes of intermediate values that may be in flight: about a core's private cache on a CPU, a small share of the
# memory of an accelerator, which needs large batches to be busy.
_BUDGET = {"cpu": 4 << 20}
_BUDGET_ACCELERATOR = 2 << 30


def in_flight_for(
    problem: AbstractProblem, params: PyTree, task: PyTree, count: int, samples: Samples, in_flight: int | None = None
) -> int:
    """The number of tasks to hold at a time: as asked, or by the bytes of intermediate values of one loss.

    Arguments:
        problem, samples: the problem, and its sample sizes.
        params: the parameters w_0.
        task: one task, or its shapes.
        count: how many tasks there are.
        in_flight: the number that the user asked for, if any.
    """
    if in_flight is not None:
        return min(in_flight, count)
    if getattr(getattr(problem, "draw", None), "host", False):
        return count

    def loss(params, task, key):
        return problem.loss(params, problem.step_batch(task, params, key, samples.step))

    size = _intermediate_bytes(eqx.filter_make_jaxpr(loss)(params, task, any_key())[0].jaxpr)
    budget = _BUDGET.get(jax.default_backend(), _BUDGET_ACCELERATOR)
    return int(np.clip(budget // max(size, 1), 1, count))


def check_in_flight(in_flight: Any) -> int | None:
    """`in_flight` as a Python integer or None."""
    return None if in_flight is None else check_whole("", "in_flight", in_flight)


def check_batch(tasks: PyTree, keys: Any) -> int:
    """The number of tasks of a batch, or a refusal."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((tasks, keys))}
    if len(lengths) != 1 or lengths == {()} or lengths == {(0,)}:
        found = ", ".join(sorted(str(n[0]) if n else "none" for n in lengths)) or "none"
        raise InputError(f"Every leaf of tasks (and keys) needs one leading axis over the same tasks, but found {found}.")
    return lengths.pop()[0]


def _intermediate_bytes(jaxpr: Jaxpr) -> int:
    """Bytes of all values that a program computes, its inner programs' included."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [p for value in equation.params.values() for p in (value if isinstance(value, tuple | list) else [value])]
        inner = [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in inner if isinstance(p, ClosedJaxpr | Jaxpr)]
        if inner:
            total += sum(_intermediate_bytes(p) for p in inner)
        else:
            avals: list[Any] = [v.aval for v in equation.outvars]
            total += sum(int(np.prod(a.shape)) * getattr(a.dtype, "itemsize", 4) for a in avals if hasattr(a, "shape"))
    return total


def grouped(tree: PyTree, size: int) -> PyTree:
    """Reshape a leading axis of B into (ceil(B / size), size), the last group filled up with copies of the first entry."""

    def reshape(leaf):
        missing = -leaf.shape[0] % size
        if missing:
            leaf = jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (missing, *leaf.shape[1:]))])
        return leaf.reshape((leaf.shape[0] // size, size, *leaf.shape[1:]))

    return jax.tree.map(reshape, tree)


def ungrouped(tree: PyTree) -> PyTree:
    """The two leading axes that `grouped` made, as one again."""
    return jax.tree.map(lambda leaf: leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])), tree)


def map_tasks(function: Callable[[Any], Any], inputs: PyTree, in_flight: int) -> Any:
    """`function` over the leading axis, `in_flight` at a time."""
    count = jnp.shape(jax.tree.leaves(inputs)[0])[0]
    if in_flight >= count:
        return jax.vmap(function)(inputs)
    if in_flight == 1:
        return jax.lax.map(function, inputs)
    out = jax.lax.map(jax.vmap(function), grouped(inputs, in_flight))
    return jax.tree.map(lambda leaf: leaf[:count], ungrouped(out))
