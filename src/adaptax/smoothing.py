"""What all difference estimators share: directions, averages over them, and automatic widths."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.errors import InputError

_NUMBERS = int | float | np.generic | np.ndarray | jax.Array
_GIVEN = _NUMBERS | str | list | tuple


def average(term: Callable[[PyTree], PyTree], like: PyTree, samples: int, key: Key[Array, ""] | None) -> PyTree:
    """The mean of `term(u)` over `samples` standard normal directions like `like`, one after another."""
    if key is None:
        raise InputError("This strategy draws directions: pass a key, such as jax.random.key(0).")

    def add(total, k):
        return _tree.add(total, _tree.wide(term(_tree.normal_like(jax.random.fold_in(key, k), like)))), None

    # A sum of many terms would stand still in half precision.
    shapes = jax.eval_shape(lambda u: term(u), like)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(_tree.wide, shapes))
    total, _ = jax.lax.scan(add, zeros, jnp.arange(samples))
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), _tree.scale(1 / samples, total), shapes)


def radius(delta: Any, x: PyTree, power: float) -> Array:
    r"""`delta`, or if it is None $\epsilon^{power}$ times the root mean square of x (times 1 where x is zero).

    $\epsilon$ is the precision of the least precise leaf: what is left when rounding, which grows as 1/delta (1/delta^2
    for second differences of values), and truncation balance.
    """
    leaves = jax.tree.leaves(x)
    if delta is not None:
        return jnp.asarray(delta, jnp.promote_types(jnp.result_type(*leaves), jnp.float32))
    precision = max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    count = sum(leaf.size for leaf in leaves)
    size = jax.lax.stop_gradient(_tree.norm(x)) / max(count, 1) ** 0.5
    return precision**power * jnp.where(size > 0, size, 1)


def check_smoothing(strategy: Any) -> None:
    """Refuse numbers of samples and widths that cannot be."""
    name = type(strategy).__name__
    samples, delta = getattr(strategy, "samples", 1), strategy.delta
    if isinstance(samples, bool) or not hasattr(samples, "__index__") or samples < 1:
        raise InputError(f"{name}(samples={samples!r}) must be a whole number of at least 1.")
    # Transformations put placeholders of other types into pytrees.
    if delta is None or isinstance(delta, Tracer) or not isinstance(delta, _GIVEN):
        return
    number = isinstance(delta, _NUMBERS) and not isinstance(delta, bool) and np.ndim(delta) == 0
    value: Any = delta
    if not (number and 0 < value < float("inf")):
        raise InputError(f"{name}(delta={delta!r}) must be a positive number, or None to have it chosen.")
