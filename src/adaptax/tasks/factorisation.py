"""Rank-one matrix factorisation."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task


def factorisation(dim: int = 20, sigma: float = 0.1) -> FiniteSum:
    r"""Rank-one factorisation: $l_i(w) = \tfrac14\|ww^\top - yy^\top\|_F^2$, $w \in R^d$.

    Support and target are one vector each, $y$ and $y'$, which are independent draws from $N(0, \sigma_i^2 I)$ with
    $\sigma_i \sim U(0, \sigma)$. The loss's gradient is not globally Lipschitz continuous.

    Arguments:
        dim: $d$, the length of w and y (default 20).
        sigma: $\sigma$, the largest standard deviation of a task's vectors (default 0.1).

    Returns: a `FiniteSum` problem. Parameters, `task.support` and `task.target` are arrays of shape (dim,).

    Errors: `InputError` if dim is not a whole number of at least 1, sigma is not positive and finite, or w has another shape
        than y.

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
    dim = check_whole("factorisation", "dim", dim)
    sigma = check_real("factorisation", "sigma", sigma, above=0)
    return FiniteSum(rank_one_error, SampleVectors(dim, sigma))


def factorisation_init(key: Key[Array, ""], dim: int = 20) -> Float[Array, " dim"]:
    r"""The initial parameters of `factorisation`: $w_0 \sim N(0, \tfrac{2}{d + 1} I)$, so that $E\|w_0\|^2 = 2d/(d+1)$.

    Arguments:
        key: a random key.
        dim: $d$ (default 20).

    Returns: an array of shape (dim,).

    Errors: `InputError` if dim is not a whole number of at least 1.

    Example:
        >>> import jax
        >>> from adaptax.tasks import factorisation_init
        >>> factorisation_init(jax.random.key(0), dim=5).shape
        (5,)

    Source: the matrix factorisation of Ji, Yang, Liang (2020), arXiv 2002.07836v1; docs/theory.md, section 10.
    """
    dim = check_whole("factorisation_init", "dim", dim)
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

    With $s = w + y$ and $d = w - y$ the matrix is $\tfrac12(sd^\top + ds^\top)$, and its squared norm is
    $\tfrac12(\|s\|^2\|d\|^2 + (s^\top d)^2)$. This is a sum of two squares; the expanded form
    $\|w\|^4 - 2(w^\top y)^2 + \|y\|^4$ would lose all digits near the minima $w = \pm y$.
    """
    if jnp.shape(w) != y.shape:
        raise InputError(f"The factorisation takes an array of shape {y.shape} as parameters, not {jnp.shape(w)}: reshape it.")
    s, d = w + y, w - y
    return (jnp.vdot(s, s) * jnp.vdot(d, d) + jnp.vdot(s, d) ** 2) / 8
