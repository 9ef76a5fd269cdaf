"""The parts that all difference estimators share: random directions, averages over them, and automatic widths."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError


def average(term: Callable[[PyTree], PyTree], like: PyTree, samples: int, key: Key[Array, ""] | None) -> PyTree:
    """The mean of `term(u)` over `samples` standard normal directions like `like`, one after another."""
    if key is None:
        raise InputError("This strategy draws directions: pass a key, such as jax.random.key(0).")

    def add(total, k):
        return optax.tree.add(total, _tree.wide(term(_tree.normal_like(jax.random.fold_in(key, k), like)))), None

    # A sum of many terms would stand still in half precision.
    shapes = jax.eval_shape(lambda u: term(u), like)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(_tree.wide, shapes))
    total, _ = jax.lax.scan(add, zeros, jnp.arange(samples))
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), _tree.scale(1 / samples, total), shapes)


def radius(delta: Any, x: PyTree, power: float) -> Array:
    r"""`delta`, or if it is None $\epsilon^{power}$ times the root mean square of x (times 1 where x is zero).

    $\epsilon$ is the precision of the least precise leaf. At this width the error of rounding, which grows as 1/delta
    (1/delta^2 for second differences of values), is about as large as the error of truncation.
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
    check_whole(name, "samples", getattr(strategy, "samples", 1))
    # Transformations put placeholders that are no numbers at all into pytrees.
    if hasattr(strategy.delta, "__float__") or isinstance(strategy.delta, str | list | tuple):
        check_real(name, "delta", strategy.delta, above=0)
