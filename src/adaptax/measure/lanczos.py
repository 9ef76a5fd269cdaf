"""Extreme eigenvalues of a symmetric map known by its products."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array
from matfree.decomp import tridiag_sym

# Lanczos vectors count as orthonormal up to this error; after a breakdown they are not.
_ORTHONORMAL = 1e-3


def extremes(product: Callable[[Array], Array], start: Array, iterations: int) -> tuple[Array, Array, Array]:
    r"""The smallest and the largest Ritz value of a symmetric map H, and the unit vector of the larger in absolute value.

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

    Returns: two numbers and a vector of shape (d,); NaN if the first product is not finite, or the start is zero.

    Example:
        >>> import jax.numpy as jnp
        >>> low, high, vector = extremes(lambda v: jnp.array([1.0, -3.0, 2.0]) * v, jnp.ones(3), 20)
        >>> round(float(low), 4), round(float(high), 4), jnp.abs(vector).argmax().item()
        (-3.0, 2.0, 1)

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
    low, high = values[0], values[-1]
    chosen = jnp.where(kept, jnp.where(high >= -low, vectors[:, -1], vectors[:, 0]), 0)
    vector = chosen @ jnp.where(kept[:, None], basis, 0)
    low, high, vector = (jnp.where(kept[0], x, jnp.nan) for x in (low, high, vector))
    return low, high, vector
