"""The interface that all gradient strategies implement."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Key, PyTree

from adaptax._cost import Cost


class AbstractGradient(eqx.Module):
    """A way to form the gradient of a loss.

    Source: docs/theory.md, section 7.
    """

    stochastic: eqx.AbstractClassVar[bool]

    def value_and_gradient(
        self, loss: Callable[[PyTree], Array], x: PyTree, key: Key[Array, ""] | None
    ) -> tuple[Array, PyTree]:
        """The loss and its gradient at x.

        Arguments:
            loss: a function of x on fixed samples.
            x: a pytree of floating-point arrays.
            key: for strategies that draw directions; None for the others.
        """
        raise NotImplementedError("abstract")

    def cost(self) -> Cost:
        """The oracle calls of one value and gradient."""
        raise NotImplementedError("abstract")
