"""The limits of the theorems' constants as the number of inner steps grows."""

import math
from dataclasses import dataclass

from adaptax._checks import check_real
from adaptax.theory.constants import Constants


@dataclass(frozen=True)
class Limits:
    r"""Limits under $\alpha = \gamma/(NL)$; made by `limits`.

    Arguments:
        p, q, C_L, G: limits of these constants.
        m_N, c_2: limits of $\sqrt N m_N$ and $\sqrt N c_2$.
        c_3: limit of $N c_3$.
        moment: limit of $h^N$, for every D.
    """

    p: float
    q: float
    C_L: float
    G: float
    m_N: float
    c_2: float
    c_3: float
    moment: float


def limits(c: Constants, gamma: float = 1 / 8) -> Limits:
    r"""The limits of the theorems' constants as $N \to \infty$ under $\alpha = \gamma/(NL)$: all finite.

    The numbers of meta-steps, tasks and samples that suffice for an accuracy therefore do not grow with N (the samples of an
    inner step fall as 1/N), and the cost grows at most linearly in N. With $\alpha$ fixed, $q = (1+\alpha L)^{2N}$ grows
    exponentially, and beyond `largest_steps(alpha, L)` no bound holds.

    Arguments:
        c: the constants.
        gamma: $\gamma$ (default 1/8).

    Errors: `InputError` if gamma is not positive and finite.

    Example:
        >>> from adaptax import theory
        >>> round(theory.limits(theory.Constants(L=1.0, rho=1.0, sigma=1.0), gamma=1 / 8).q, 3)
        1.284

    Source: docs/theory.md, section 5.
    """
    gamma = check_real("limits", "gamma", gamma, above=0)
    p, q = math.exp(gamma), math.exp(2 * gamma)
    root = math.sqrt(math.expm1(2 * gamma))
    deviation = math.sqrt(gamma / 2) * root / c.L
    # Means over t in [0, 1] of sqrt(N) m_{tN}, and of e^(gamma (1 - t)) N m_{tN}^2.
    mean = (root - math.atan(root)) / (c.L * math.sqrt(2 * gamma))
    weighted = p * (p + 1 / p - 2) / (2 * c.L**2)
    c_3 = c.sigma_g**2 * c.rho * (p * (gamma * weighted + deviation**2) / 2 + gamma * p * deviation * mean)
    slope = c.rho / c.L * q * (p - 1)
    floor = q * c.L + c.rho / c.L * p * (p - 1) ** 2 * c.b
    return Limits(p, q, slope, floor, deviation, gamma * c.rho / c.L * q * c.sigma_g * mean, c_3, q)


@dataclass(frozen=True)
class AdaptedLimits:
    r"""Limits at a fixed total adaptation $T = \alpha N$; made by `adapted_limits`.

    Arguments:
        q: limit of $r^{2N}$.
        slope: limit of $\alpha\rho r^{N-1}S_N$ [1 / w].
    """

    q: float
    slope: float


def adapted_limits(c: Constants, time: float) -> AdaptedLimits:
    r"""The limits of the constants of `adapted_smoothness` as $N \to \infty$ with $T = \alpha N$ fixed: all finite.

    $r^{2N} \to e^{2\mu T}$ and $\alpha\rho r^{N-1}S_N \to \rho e^{\mu T}(e^{\mu T}-1)/\mu$, which for convex losses
    ($\mu = 0$) are 1 and $\rho T$, and for strongly convex ones ($\mu < 0$) stay bounded as T grows. Hence meta-steps and batch
    sizes that suffice for an accuracy do not grow with N at fixed T, and the cost grows linearly.

    Arguments:
        c: rho, and mu (None: L).
        time: $T = \alpha N$, the total adaptation [w² / loss], positive.

    Errors: `InputError` if time is not positive and finite.

    Example:
        >>> from adaptax import theory
        >>> theory.adapted_limits(theory.Constants(L=1.0, rho=0.5, sigma=0.0, mu=0.0), time=4.0)
        AdaptedLimits(q=1.0, slope=2.0)

    Source: docs/theory.md, section 6.1.
    """
    time = check_real("adapted_limits", "time", time, above=0)
    mu = c.L if c.mu is None else c.mu
    grown = math.expm1(mu * time) / mu if mu else time
    return AdaptedLimits(math.exp(2 * mu * time), c.rho * math.exp(mu * time) * grown)
