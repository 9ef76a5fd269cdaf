"""Extreme eigenvalues of a symmetric map known by its products."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree

# A vector is rounding, and ends the iteration, if it is no longer than so many roundings of the product it is a part of.
_BREAKDOWN = 30


class Ends(NamedTuple):
    """The smallest and the largest Ritz value, and their unit vectors."""

    low: Array
    high: Array
    bottom: Any
    top: Any


def _eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of a small symmetric matrix."""
    if jax.default_backend() != "cpu":
        return tuple(jnp.linalg.eigh(matrix))
    # JAX's kernel for several matrices waits for the threads of the CPU, and where each of these is inside such a kernel, for
    # another device, it waits for ever.
    return jax.custom_batching.sequential_vmap(lambda x: tuple(jnp.linalg.eigh(x)))(matrix)


def both_ends(product: Callable[[Array], Array], start: Array, iterations: int) -> Ends:
    r"""The smallest and the largest Ritz value of a symmetric map H on vectors, with their unit vectors.

    The method is Lanczos with full reorthogonalisation. Ritz values are Rayleigh quotients $v^\top Hv$, so they lie between
    the extreme eigenvalues, up to rounding, and are equal to them after as many products as the Krylov space has dimensions.
    Vectors after a breakdown (an invariant subspace, or a product that is not finite) are left out.

    Compared with `adaptax.stepsize.walk.power_iteration` from the same starts (a random direction and the gradient), as
    shares of the norm after 40 products: on conv4 with 1,909 parameters 0.93, 0.998 and 1.000 after 3, 5 and 10 products
    (power iteration: 0.90, 0.96 and 0.99); on a relu network with 1,761 parameters 1.000 after 3 (power iteration: 0.96, and
    0.999 after 10). On the same network with tanh both have 1.000 after 3. Lanczos holds as many vectors as it takes products,
    so it does not pay there.

    Arguments:
        product: $v \mapsto Hv$ on vectors of shape (d,).
        start: a vector of shape (d,), not orthogonal to the eigenvectors wanted.
        iterations: how many products; at most d are taken.

    Returns: `Ends`; NaN if the first product is not finite, or the start is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> ends = both_ends(lambda v: jnp.array([1.0, -3.0, 2.0]) * v, jnp.ones(3), 20)
        >>> round(float(ends.low), 4), round(float(ends.high), 4), jnp.abs(ends.top).argmax().item()
        (-3.0, 2.0, 2)

    Source: Golub, Van Loan, Matrix Computations, chapter 10.
    """
    count, eps = min(iterations, start.shape[0]), jnp.finfo(start.dtype).eps
    dot = partial(jnp.matmul, precision="highest")

    def step(carry, k):
        basis, v = carry
        basis = basis.at[k].set(v)
        hv = product(v)
        row = dot(basis, hv)
        rest = hv - dot(row, basis)
        # Once more, since the first pass leaves an error that grows as the rest shrinks.
        rest = rest - dot(dot(basis, rest), basis)
        return (basis, _unit(rest, _BREAKDOWN * eps * jnp.linalg.norm(hv))), row

    empty = jnp.zeros((count, *start.shape), start.dtype), _unit(start, 0)
    (basis, _), rows = jax.lax.scan(step, empty, jnp.arange(count))
    # After a breakdown all vectors are zero.
    kept = jnp.cumprod(jnp.isfinite(rows).all(axis=1) & (basis != 0).any(axis=1)).astype(bool)
    rows = jnp.where(kept[:, None], rows, 0)
    small = jnp.tril(rows) + jnp.tril(rows, -1).T
    # Entries left out become eigenvalues beyond all others, which come last.
    beyond = 2 * jnp.max(jnp.sum(jnp.abs(small), axis=1))
    values, vectors = _eigh(small + jnp.diag(jnp.where(kept, 0, jnp.where(beyond > 0, beyond, 1))))
    last = jnp.maximum(jnp.sum(kept) - 1, 0)
    ends = values[0], values[last], dot(vectors[:, 0], basis), dot(vectors[:, last], basis)
    return Ends(*(jnp.where(kept[0], x, jnp.nan) for x in ends))


def _unit(v: Array, least: Any) -> Array:
    """v at length one, or zero if it is not longer than `least` (or not finite)."""
    length = jnp.linalg.norm(v)
    usable = jnp.isfinite(length) & (length > least)
    return jnp.where(usable, v, 0) / jnp.where(usable, length, 1)


def extremes(product: Callable[[Array], Array], start: Array, iterations: int) -> tuple[Array, Array, Array]:
    """Both ends by `both_ends`, and the unit vector of the larger in absolute value."""
    low, high, bottom, top = both_ends(product, start, iterations)
    return low, high, jnp.where(high >= -low, top, bottom)


def tree_ends(product: Callable[[PyTree], PyTree], start: PyTree, iterations: int) -> Ends:
    """`both_ends` of a map on trees like `start`; the Lanczos vectors are held in at least single precision."""
    unravel = _tree.unraveller(start)
    low, high, *vectors = both_ends(lambda v: _tree.ravel(product(unravel(v))), _tree.ravel(start), iterations)
    return Ends(low, high, *map(unravel, vectors))
