"""Extreme eigenvalues of a symmetric map known by its products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, PyTree
from matfree.decomp import tridiag_sym

from adaptax import _tree

# Lanczos vectors count as orthonormal up to this error; after a breakdown they are not.
_ORTHONORMAL = 1e-3


class Ends(NamedTuple):
    """The smallest and the largest Ritz value, and their unit vectors."""

    low: Array
    high: Array
    bottom: Any
    top: Any


def both_ends(product: Callable[[Array], Array], start: Array, iterations: int) -> Ends:
    r"""The smallest and the largest Ritz value of a symmetric map H on vectors, with their unit vectors.

    The method is Lanczos with full reorthogonalisation. Ritz values are Rayleigh quotients $v^\top Hv$, so they lie between
    the extreme eigenvalues, and are equal to them after as many products as the Krylov space has dimensions. Vectors after a
    breakdown (an invariant subspace, or a product that is not finite) are left out.

    Compared with `adaptax.stepsize.measurement.power_iteration` from the same starts (a random direction and the gradient), as
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

    Source: Golub, Van Loan, Matrix Computations, chapter 10; `matfree.decomp.tridiag_sym`.
    """
    count = min(iterations, start.shape[0])
    done = tridiag_sym(count, materialize=True, reortho="full", custom_vjp=False)(product, start)
    basis, small = jnp.asarray(done.Q_tall), jnp.asarray(done.J_small)
    error = jnp.abs(jnp.tril(basis @ basis.T - jnp.eye(count, dtype=basis.dtype))).max(axis=1)
    finite = jnp.isfinite(jnp.diagonal(small)) & jnp.isfinite(basis).all(axis=1)
    kept = jnp.cumprod((error < _ORTHONORMAL) & finite).astype(bool)
    # Entries left out become copies of the first Rayleigh quotient, which move no extreme value.
    small = jnp.where(kept[:, None] & kept[None, :], small, jnp.where(jnp.eye(count, dtype=bool), small[0, 0], 0))
    values, vectors = jnp.linalg.eigh(jnp.where(kept[0], small, 0))
    basis = jnp.where(kept[:, None], basis, 0)
    bottom, top = (jnp.where(kept, vectors[:, k], 0) @ basis for k in (0, -1))
    return Ends(*(jnp.where(kept[0], x, jnp.nan) for x in (values[0], values[-1], bottom, top)))


def extremes(product: Callable[[Array], Array], start: Array, iterations: int) -> tuple[Array, Array, Array]:
    """Both ends by `both_ends`, and the unit vector of the larger in absolute value."""
    low, high, bottom, top = both_ends(product, start, iterations)
    return low, high, jnp.where(high >= -low, top, bottom)


def tree_ends(product: Callable[[PyTree], PyTree], start: PyTree, iterations: int) -> Ends:
    """`both_ends` of a map on trees like `start`; the Lanczos vectors are held in at least single precision."""
    unravel = _tree.unraveller(start)
    low, high, *vectors = both_ends(lambda v: _tree.ravel(product(unravel(v))), _tree.ravel(start), iterations)
    return Ends(low, high, *map(unravel, vectors))
