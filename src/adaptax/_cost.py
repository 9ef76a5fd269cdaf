"""Oracle accounting: how many losses, gradients and Hessian-vector products a computation takes."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Numbers of oracle calls, as the theory counts them.

    A gradient comes with the value of its loss, and a Hessian-vector product with its gradient, for one call each.

    Arguments:
        losses: values of a loss alone.
        gradients: gradients of a loss.
        hessian_vector_products: exact ones; approximate ones are counted as the gradients or losses they are made of.

    Example:
        >>> import adaptax as ax
        >>> ax.MetaGradient(ax.Inner(steps=5)).cost()
        Cost(losses=0, gradients=6, hessian_vector_products=5)

    Source: docs/theory.md, sections 6 and 7.
    """

    losses: int = 0
    gradients: int = 0
    hessian_vector_products: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """The sum of two costs."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Cost":
        """The cost of `count` repetitions."""
        return Cost(*(count * entry for entry in self))
