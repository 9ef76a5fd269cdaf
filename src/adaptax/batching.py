"""How many tasks at a time: vmap within a group of tasks, one group after another."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import PyTree

from adaptax.errors import InputError
from adaptax.problem import AbstractProblem, Samples

# Bytes of intermediate values that may be in flight: about a core's private cache on a CPU, a small share of the
# memory of an accelerator, which needs large batches to be busy.
_BUDGET = {"cpu": 4 << 20}
_BUDGET_ACCELERATOR = 2 << 30


def in_flight_for(
    problem: AbstractProblem, params: PyTree, tasks: PyTree, keys: Any, samples: Samples, in_flight: int | None
) -> int:
    """The number of tasks to hold at a time: as asked, or from the size of what one loss leaves behind."""
    count = jnp.shape(jax.tree.leaves((tasks, keys))[0])[0]
    if in_flight is not None:
        return min(check_in_flight(in_flight) or count, count)
    if getattr(getattr(problem, "draw", None), "host", False):
        return count
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype), tasks)

    def loss(params, task, key):
        return problem.loss(params, problem.step_batch(task, params, key, samples.step))

    key = jax.eval_shape(lambda: jax.random.key(0))
    size = _intermediate_bytes(eqx.filter_make_jaxpr(loss)(params, one, key)[0].jaxpr)
    budget = _BUDGET.get(jax.default_backend(), _BUDGET_ACCELERATOR)
    return int(np.clip(budget // max(size, 1), 1, count))


def check_in_flight(in_flight: Any) -> int | None:
    """`in_flight` as a Python integer or None, or a refusal."""
    if in_flight is None:
        return None
    if isinstance(in_flight, bool) or not hasattr(in_flight, "__index__") or in_flight < 1:
        raise InputError(f"in_flight={in_flight!r} must be a whole number of at least 1, or None to let it be chosen.")
    return int(in_flight)


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


def map_tasks(function: Callable[[Any], Any], inputs: PyTree, in_flight: int) -> Any:
    """`function` over the leading axis, `in_flight` at a time."""
    count = jnp.shape(jax.tree.leaves(inputs)[0])[0]
    if in_flight >= count:
        return jax.vmap(function)(inputs)
    if in_flight == 1:
        return jax.lax.map(function, inputs)
    out = jax.lax.map(jax.vmap(function), grouped(inputs, in_flight))
    return jax.tree.map(lambda leaf: leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]))[:count], out)
