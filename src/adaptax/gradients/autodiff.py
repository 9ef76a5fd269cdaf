"""Gradients by differentiation."""

from typing import ClassVar

import jax

from adaptax._cost import Cost
from adaptax.gradients.base import AbstractGradient


class AutoDiff(AbstractGradient):
    r"""$\nabla l$ by reverse-mode differentiation.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> value, gradient = ax.gradients.AutoDiff().value_and_gradient(lambda x: x**2, jnp.array(3.0), None)
        >>> float(value), float(gradient)
        (9.0, 6.0)

    Source: docs/theory.md, section 1.
    """

    stochastic: ClassVar[bool] = False

    def value_and_gradient(self, loss, x, key):
        return jax.value_and_grad(loss)(x)

    def cost(self):
        return Cost(gradients=1)
