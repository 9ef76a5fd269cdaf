r"""Inner step sizes under which the constants of the theorems stay bounded, however many steps there are."""

import math
from numbers import Real
from typing import Any

from adaptax._checks import check_real, check_whole
from adaptax.theory.powers import maximum, where


def guaranteed_alpha(L: float, steps: int, gamma: float = 1 / 8) -> float:
    r"""$\alpha = \gamma/(NL)$, under which q, and with it every constant, is bounded in N.

    Arguments:
        L: Lipschitz constant of the gradients.
        steps: N, at least 1.
        gamma: $\gamma$, at most $\frac12\ln2 \approx 0.34657$ for q < 2 at every N (default 1/8: $q \le e^{1/4}$).

    Errors: `InputError` if N is not a whole number of at least 1, or L or gamma is not positive and finite.

    Example:
        >>> from adaptax import theory
        >>> theory.guaranteed_alpha(2.0, steps=5, gamma=0.1)
        0.01

    Source: docs/theory.md, section 5; cf. Ji, Yang, Liang (2022).
    """
    steps = check_whole("guaranteed_alpha", "steps", steps)
    L = check_real("guaranteed_alpha", "L", L, above=0)
    gamma = check_real("guaranteed_alpha", "gamma", gamma, above=0)
    return gamma / (steps * L)


def largest_steps(alpha: float, L: float) -> int:
    r"""The largest N with $q = (1+\alpha L)^{2N} < 2$ at a fixed $\alpha$: beyond it no bound holds.

    Arguments:
        alpha: inner step size.
        L: Lipschitz constant of the gradients.

    Example:
        >>> from adaptax import theory
        >>> theory.largest_steps(alpha=0.1, L=1.0)
        3

    Source: docs/theory.md, section 5.
    """
    ratio = math.log(2) / (2 * math.log1p(alpha * L))
    return math.ceil(ratio) - 1


def two_sided_alpha(lam: Any, mu: Any, steps: int, *, gamma_plus: float = 1.0, gamma: float = 1 / 8) -> Any:
    r"""$\alpha = \min(\gamma_+/\lambda,\ \gamma/(N\mu))$: the condition in 1/N is for negative curvature alone.

    Then $q = r^{2N} \le e^{2\gamma}$ at every N. For convex losses ($\mu \le 0$) the second term falls away, and $q \le 1$;
    with strong convexity, $\mu = -m < 0$, $\alpha$ is also at most $2/(\lambda+m)$, from where on steps contract less.

    Arguments:
        lam: $\lambda$, largest curvature of the losses that the steps descend on [loss / w²], positive.
        mu: $\mu$, minus their smallest curvature, at least $-\lambda$.
        steps: N, at least 1.
        gamma_plus: $\gamma_+$, at most 2 (default 1: the step at which no direction of curvature in $[0, \lambda]$ turns back).
        gamma: $\gamma$ (default 1/8: $q \le e^{1/4}$).

    lam and mu may be arrays, traced ones too; arrays are not checked.

    Returns: $\alpha$ [w² / loss].

    Errors: `InputError` for numbers out of range.

    Example:
        >>> from adaptax import theory
        >>> theory.two_sided_alpha(10.0, 0.5, steps=5), theory.two_sided_alpha(10.0, 0.0, steps=1000)
        (0.05, 0.1)

    Source: docs/theory.md, section 6.1.
    """
    steps = check_whole("two_sided_alpha", "steps", steps)
    gamma_plus = check_real("two_sided_alpha", "gamma_plus", gamma_plus, above=0, most=2)
    gamma = check_real("two_sided_alpha", "gamma", gamma, above=0)
    if isinstance(lam, Real):
        lam = check_real("two_sided_alpha", "lam", lam, above=0)
        if isinstance(mu, Real):
            mu = check_real("two_sided_alpha", "mu", mu, least=-lam)
    # The largest of the reciprocals, none of which divides by zero.
    negative = where(mu > 0, steps * mu / gamma, 0 * mu)
    strong = where(mu < 0, (lam - mu) / 2, 0 * mu)
    return 1 / maximum(maximum(lam / gamma_plus, negative), strong)
