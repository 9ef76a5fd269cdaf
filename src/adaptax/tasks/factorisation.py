"""Rank-one matrix factorisation."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task


def factorisation(dim: int = 20, sigma: float = 0.1) -> FiniteSum:
    r"""Rank-one factorisation: $l_i(w) = \tfrac14\|ww^\top - yy^\top\|_F^2$, $w \in R^d$.

    Support and target are one vector each, $y$ and $y'$, independent draws from $N(0, \sigma_i^2 I)$ with
    $\sigma_i \sim U(0, \sigma)$. The loss has no global Lipschitz constant of its gradient.

    Arguments:
        dim: $d$, the length of w and y (default 20).
        sigma: $\sigma$, the largest standard deviation of a task's vectors (default 0.1).

    Returns: a `FiniteSum` problem. Parameters, `task.support` and `task.target` are arrays of shape (dim,).

    Errors: `InputError` if dim is not a positive integer, sigma not a positive number, or w has another shape than y.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from adaptax.tasks import factorisation
        >>> problem = factorisation(dim=3)
        >>> task = problem.sample_task(jax.random.key(0))
        >>> task.target.shape
        (3,)
        >>> float(problem.loss(-task.support, task.support))
        0.0
        >>> float(problem.loss(jnp.array([2.0, 0.0, 0.0]), jnp.zeros(3)))
        4.0

    Source: the matrix factorisation of Ji, Yang, Liang (2020), arXiv 2002.07836v1; docs/theory.md, section 10.
    """
    _check_dim("factorisation", dim)
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise InputError(f"factorisation(sigma={sigma!r}) must be a positive number: change sigma=.")
    return FiniteSum(rank_one_error, SampleVectors(dim, float(sigma)))


def factorisation_init(key: Key[Array, ""], dim: int = 20) -> Float[Array, " dim"]:
    r"""The initial parameters of `factorisation`: $w_0 \sim N(0, \tfrac{2}{d + 1} I)$, so that $E\|w_0\|^2 = 2d/(d+1)$.

    Arguments:
        key: a random key.
        dim: $d$ (default 20).

    Returns: an array of shape (dim,).

    Errors: `InputError` if dim is not a positive integer.

    Example:
        >>> import jax
        >>> from adaptax.tasks import factorisation_init
        >>> factorisation_init(jax.random.key(0), dim=5).shape
        (5,)

    Source: the matrix factorisation of Ji, Yang, Liang (2020), arXiv 2002.07836v1; docs/theory.md, section 10.
    """
    _check_dim("factorisation_init", dim)
    return math.sqrt(2 / (dim + 1)) * jax.random.normal(key, (dim,))


class SampleVectors(eqx.Module):
    """`sample_task` of `factorisation`."""

    dim: int = eqx.field(static=True)
    sigma: float = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Task:
        scale_key, support_key, target_key = jax.random.split(key, 3)
        scale = jax.random.uniform(scale_key, maxval=self.sigma)
        support, target = (scale * jax.random.normal(k, (self.dim,)) for k in (support_key, target_key))
        return Task(support, target)


def rank_one_error(w: Float[Array, " dim"], y: Float[Array, " dim"]) -> Float[Array, ""]:
    r"""$\tfrac14\|ww^\top - yy^\top\|_F^2$ in O(d) operations.

    With $s = w + y$ and $d = w - y$ the matrix is $\tfrac12(sd^\top + ds^\top)$, so that its squared norm is
    $\tfrac12(\|s\|^2\|d\|^2 + (s^\top d)^2)$: two squares, where
    $\|w\|^4 - 2(w^\top y)^2 + \|y\|^4$ would lose all digits near the minima $w = \pm y$.
    """
    if jnp.shape(w) != y.shape:
        raise InputError(f"The factorisation takes an array of shape {y.shape} as parameters, not {jnp.shape(w)}.")
    s, d = w + y, w - y
    return (jnp.vdot(s, s) * jnp.vdot(d, d) + jnp.vdot(s, d) ** 2) / 8


def _check_dim(function: str, dim: int) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InputError(f"{function}(dim={dim!r}) must be a whole number of at least 1: change dim=.")
