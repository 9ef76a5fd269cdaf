"""First-order MAML: the Hessian left out."""

from typing import ClassVar

import optax

from adaptax._cost import Cost
from adaptax.curvature.base import AbstractCurvature


class FirstOrder(AbstractCurvature):
    r"""$\hat H v = 0$: the meta-gradient becomes $\nabla l_T(w_N)$ (FOMAML). Its error is $\|Hv\|$ in every factor.

    Learned step sizes still receive their derivative, to first order.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**4) / 12, jnp.array([1.0]))
        >>> ax.curvature.FirstOrder().product(local, jnp.array([1.0]))[1][0]
        Array([0.], dtype=float32)

    Source: Finn, Abbeel, Levine (2017), section 5.2, arXiv 1703.03400.
    """

    stochastic: ClassVar[bool] = False
    gives_gradient: ClassVar[bool] = False

    def product(self, local, v, key=None):
        return None, optax.tree.zeros_like((local.w, local.rest))

    def cost(self, gradient):
        return Cost()
