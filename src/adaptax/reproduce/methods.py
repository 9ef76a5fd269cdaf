"""The methods that the experiments compare, and what an oracle call is taken to cost."""

from types import MappingProxyType
from typing import NamedTuple

import adaptax as ax
from adaptax.cost import Cost
from adaptax.curvature.base import AbstractCurvature

EXACT, FIRST_ORDER, FINITE_DIFFERENCE = "exact", "first order (FOMAML)", "finite difference"
GGS, UNCORRECTED, STEIN = "GGS", "zeroth order, uncorrected", "zeroth order, Stein"
NAMES = (EXACT, FIRST_ORDER, FINITE_DIFFERENCE, GGS, UNCORRECTED, STEIN)

CALLS = Cost(1, 1, 1)
"""As the theory counts: a loss, a gradient and a Hessian-vector product are one call each."""
IN_LOSSES = Cost(1, 3, 6)
"""In evaluations of the loss: reverse differentiation makes a gradient of three, a Hessian-vector product of two gradients."""


class Needs(NamedTuple):
    """What a method asks of a loss, and when to take it."""

    oracle: str
    when: str


NEEDS = MappingProxyType({
    EXACT: Needs("second derivatives", "the default, wherever the loss can be differentiated twice"),
    FIRST_ORDER: Needs("gradients", "when the curvature terms are small (α times the largest curvature times N well below 1)"),
    FINITE_DIFFERENCE: Needs("gradients", "when only gradients can be had: two of them a product, and no noise"),
    GGS: Needs("gradients", "when only gradients can be had and a product of the smoothed loss is wanted; it pays for noise"),
    UNCORRECTED: Needs("values", "never: its error stays, however many directions are drawn"),
    STEIN: Needs("values", "when only values can be had, with Q many times the number of parameters"),
})  # fmt: skip


def strategies(samples: int, delta: float) -> dict[str, AbstractCurvature]:
    r"""The strategies by name, with Q directions and the radius $\delta$."""
    c = ax.curvature
    return {
        EXACT: c.Exact(),
        FIRST_ORDER: c.FirstOrder(),
        FINITE_DIFFERENCE: c.FiniteDifference(delta=delta),
        GGS: c.GaussianSmoothing(samples=samples, delta=delta),  # type: ignore[call-arg]
        UNCORRECTED: c.ZerothOrder(samples=samples, delta=delta, stein=False),
        STEIN: c.ZerothOrder(samples=samples, delta=delta),
    }


def priced(cost: Cost, weights: Cost) -> int:
    """Oracle calls in one unit.

    Example:
        >>> from adaptax.cost import Cost
        >>> priced(Cost(losses=2, gradients=1), IN_LOSSES)
        5
    """
    return sum(a * b for a, b in zip(cost, weights, strict=True))


def calls_in_words(cost: Cost) -> str:
    """For instance "11 gradients"; "none" where nothing is called."""
    names = ("loss", "gradient", "Hessian-vector product")
    plural = {"loss": "losses"}
    parts = [f"{n} {name if n == 1 else plural.get(name, name + 's')}" for n, name in zip(cost, names, strict=True) if n]
    return " and ".join(parts) or "none"
