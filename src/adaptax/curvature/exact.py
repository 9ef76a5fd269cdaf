"""Exact Hessian-vector products."""

from typing import ClassVar

from adaptax._cost import Cost
from adaptax._second_order import hessian_product
from adaptax.curvature.base import AbstractCurvature


class Exact(AbstractCurvature):
    r"""$\hat H v = \nabla^2 l(w)\,v$, forward over reverse: the derivative of the gradient along v.

    One product costs about two gradients and holds the graph of one step only. The loss is differentiated, also where
    the inner steps use another gradient strategy. A function with a `jax.custom_vjp`, which forward mode cannot enter, is
    differentiated in reverse twice.

    Errors: `InputError` where the loss has no second derivative, such as a `jax.custom_vjp` around calls of the host.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**4) / 12, jnp.array([1.0, 2.0]))
        >>> gradient, (product, _) = ax.curvature.Exact().product(local, jnp.array([1.0, 1.0]))
        >>> product
        Array([1., 4.], dtype=float32)

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian; docs/theory.md, section 1.
    """

    stochastic: ClassVar[bool] = False
    gives_gradient: ClassVar[bool] = True

    def product(self, local, v, key=None):
        return hessian_product(local.loss, local.w, local.rest, v)

    def cost(self, gradient):
        return Cost(hessian_vector_products=1)
