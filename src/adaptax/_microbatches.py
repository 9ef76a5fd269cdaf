"""A loss by parts of its batch: the mean of the parts' losses, with one part in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax.errors import InputError


def by_parts(function: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree, parts: int) -> Array:
    """The mean of `function(params, part)` over equal parts along the leading axis of the batch.

    Each part is computed again where a derivative needs it, so that derivatives of any order hold the graph of one part.

    Errors: `InputError` if the leaves have not all one leading axis, or its length is no multiple of `parts`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from adaptax._microbatches import by_parts
        >>> mean = lambda w, x: jnp.mean((x - w) ** 2)
        >>> round(float(by_parts(mean, 1.0, jnp.arange(6.0), 3)), 3), round(float(mean(1.0, jnp.arange(6.0))), 3)
        (5.167, 5.167)
    """
    lengths: set[Any] = {(*jnp.shape(leaf), None)[0] for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or None in lengths:
        text = f"microbatches={parts} cuts the leading axis of every leaf of a batch, and this one is {_tree.describe(batch)}"
        raise InputError(f"{text}: give all leaves one leading axis over the examples.")
    if (length := lengths.pop()) % parts:
        text = f"A batch of {length} examples cannot be cut into microbatches={parts} equal parts"
        raise InputError(f"{text}: take a divisor of {length}.")
    cut = jax.tree.map(lambda leaf: jnp.reshape(leaf, (parts, length // parts, *jnp.shape(leaf)[1:])), batch)

    @jax.checkpoint
    def add(total, part):
        return total + function(params, part), None

    value = jax.eval_shape(function, params, jax.tree.map(lambda leaf: leaf[0], cut))
    return jax.lax.scan(add, jnp.zeros(value.shape, value.dtype), cut)[0] / parts
