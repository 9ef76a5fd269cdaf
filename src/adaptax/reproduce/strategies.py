"""The curvature strategies that the experiments compare, by name, and what their oracle calls cost."""

import adaptax as ax

EXACT, FIRST_ORDER, FINITE_DIFFERENCE = "exact", "first order (FOMAML)", "finite difference"
GGS, UNCORRECTED, STEIN = "GGS", "zeroth order, uncorrected", "zeroth order, Stein"
ANTITHETIC = "GGS, antithetic"
NAMES = (EXACT, FIRST_ORDER, FINITE_DIFFERENCE, GGS, UNCORRECTED, STEIN)

CALLS = ax.Cost(1, 1, 1)
"""The prices in oracle calls, as the theory counts: a loss, a gradient and a Hessian-vector product are one call each."""
IN_LOSSES = ax.Cost(1, 3, 6)
"""The prices in evaluations of the loss: by reverse differentiation a gradient takes 3, and a Hessian-vector product 6."""


def strategies(samples: int, delta: float) -> dict[str, ax.curvature.AbstractCurvature]:
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


def priced(cost: ax.Cost, prices: ax.Cost) -> int:
    """The price of oracle calls in one unit.

    Example:
        >>> import adaptax as ax
        >>> priced(ax.Cost(losses=2, gradients=1), IN_LOSSES)
        5
    """
    return sum(a * b for a, b in zip(cost, prices, strict=True))


def calls_in_words(cost: ax.Cost) -> str:
    """Oracle calls in words; "none" where nothing is called.

    Example:
        >>> import adaptax as ax
        >>> calls_in_words(ax.Cost(losses=2, gradients=1))
        '2 losses and 1 gradient'
    """
    names = ("loss", "gradient", "Hessian-vector product")
    plural = {"loss": "losses"}
    parts = [f"{n} {name if n == 1 else plural.get(name, name + 's')}" for n, name in zip(cost, names, strict=True) if n]
    return " and ".join(parts) or "none"
