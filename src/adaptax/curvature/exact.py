"""Exact Hessian-vector products."""

from typing import ClassVar

import jax

from adaptax.curvature.base import AbstractCurvature


class Exact(AbstractCurvature):
    r"""$\hat H v = \nabla^2 l(w)\,v$, forward over reverse: the derivative of the gradient along v.

    One product costs about two gradients and holds the graph of one step only.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> gradient = jax.grad(lambda w: jnp.sum(w**4) / 12)
        >>> ax.curvature.Exact().product(gradient, jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]), None)[1]
        Array([1., 4.], dtype=float32)

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian; docs/theory.md, section 1.
    """

    stochastic: ClassVar[bool] = False

    def product(self, gradient, w, v, key):
        return jax.jvp(gradient, (w,), (v,))
