"""Gradients by differentiation."""

from typing import ClassVar

import jax

from adaptax._cost import Cost
from adaptax.errors import InputError
from adaptax.gradients.base import AbstractGradient


class AutoDiff(AbstractGradient):
    r"""$\nabla l$ by reverse-mode differentiation.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> value, gradient = ax.gradients.AutoDiff().value_and_gradient(lambda x: x**2, jnp.array(3.0), None)
        >>> float(value), float(gradient)
        (9.0, 6.0)

    Errors: `InputError` for a loss with a `jax.lax.while_loop`.

    Source: docs/theory.md, section 1.
    """

    stochastic: ClassVar[bool] = False

    def value_and_gradient(self, loss, x, key, has_aux=False):
        try:
            return jax.value_and_grad(loss, has_aux=has_aux)(x)
        except ValueError as error:
            if "Reverse-mode differentiation does not work" not in str(error):
                raise
            text = "The loss has a loop without a fixed number of rounds (jax.lax.while_loop), which has no gradient"
            raise InputError(f"{text}: use jax.lax.scan, or ax.Inner(..., gradients=ax.gradients.Smoothed()).") from error

    def cost(self):
        return Cost(gradients=1)
