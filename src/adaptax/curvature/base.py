"""The interface that all curvature strategies implement."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Key, PyTree

from adaptax._cost import Cost
from adaptax.gradients import AbstractGradient, AutoDiff


class LocalLoss(eqx.Module):
    r"""The loss at one inner step, on that step's fixed samples.

    Arguments:
        loss: `loss(w, rest) -> scalar`.
        w: the adapting parameters.
        rest: the variables that do not adapt; their rows of the Hessian are formed along with those of w.
        gradients: how gradients are formed (default: by differentiation).
        key: for gradient strategies that draw directions; all gradients at this step use the same ones.
    """

    loss: Callable[[PyTree, PyTree], Array]
    w: PyTree
    rest: PyTree = None
    gradients: AbstractGradient = AutoDiff()
    key: Any = None

    def gradient(self, w: PyTree) -> tuple[PyTree, PyTree]:
        """The gradient by (w, rest) at another w, by the gradient strategy."""
        return self.gradients.value_and_gradient(lambda x: self.loss(*x), (w, self.rest), self.key)[1]


class AbstractCurvature(eqx.Module):
    r"""A way to form $\hat H_j v$ in $v \leftarrow v - \hat H_j (A_j v)$.

    `gives_gradient` says whether `product` returns the gradient at w too, at no further cost.

    Source: docs/theory.md, sections 1 and 7.
    """

    stochastic: eqx.AbstractVar[bool]
    gives_gradient: eqx.AbstractVar[bool]

    def product(
        self, local: LocalLoss, v: PyTree, key: Key[Array, ""] | None = None
    ) -> tuple[tuple[PyTree, PyTree] | None, tuple[PyTree, PyTree]]:
        r"""The gradient at w (or None) and $\hat H v$, each by (w, rest).

        Arguments:
            local: the loss and the point.
            v: a direction, like w.
            key: for strategies that draw directions; None for the others.
        """
        raise NotImplementedError("abstract")

    def cost(self, gradient: Cost) -> Cost:
        """The oracle calls of one product, if one gradient takes `gradient`."""
        raise NotImplementedError("abstract")

    def at(self, step: Any) -> "AbstractCurvature":
        """The strategy at a meta-step; the same one unless it changes in training."""
        return self
