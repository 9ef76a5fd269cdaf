"""First-order MAML: the Hessian left out."""

from typing import ClassVar

from adaptax._tree import zeros_like
from adaptax.curvature.base import AbstractCurvature


class FirstOrder(AbstractCurvature):
    r"""$\hat H v = 0$: the meta-gradient becomes $\nabla l_T(w_N)$ (FOMAML). Its error is $\|Hv\|$ in every factor.

    Learned step sizes still receive their derivative, to first order.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> gradient = jax.grad(lambda w: jnp.sum(w**4) / 12)
        >>> ax.curvature.FirstOrder().product(gradient, jnp.array([1.0]), jnp.array([1.0]), None)[1]
        Array([0.], dtype=float32)

    Source: Finn, Abbeel, Levine (2017), section 5.2, arXiv 1703.03400.
    """

    stochastic: ClassVar[bool] = False

    def product(self, gradient, w, v, key):
        g = gradient(w)
        return g, zeros_like(g)
