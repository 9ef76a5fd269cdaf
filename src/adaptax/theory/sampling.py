r"""Errors that sampling makes in an inner path and in its meta-gradient, in the resampling case.

The sample sizes are S for each step, D for each Hessian factor and T for the last gradient.
"""

import math
from typing import Any

import numpy as np

from adaptax.theory.constants import Constants, Expansion


def path_deviation(path: Expansion, j: Any) -> Any:
    r"""$m_j = \alpha\left(\sum_{i<j}r^{2i}\right)^{1/2}$ [w² / loss]: the error of $w_j$ for unit noise.

    j may be an array of whole numbers. Without lam and mu, $m_j^2 = \alpha(r^{2j} - 1)/(L(2 + \alpha L))$.

    Source: docs/theory.md, sections 6 and 6.1.
    """
    # r² - 1; where r = 0 the sum is 1 to rounding with this rate too, and the logarithm finite.
    rate = max(path.growth * (2 + path.growth), 2**-53 - 1)
    j = np.asarray(j)
    return path.alpha * np.sqrt(j if rate == 0 else np.expm1(j * math.log1p(rate)) / rate)


def path_error(path: Expansion, c: Constants, j: int, step_samples: float) -> float:
    r"""$(E\|w_j - \tilde w_j\|^2)^{1/2} \le m_j\sigma_g/\sqrt S$ [w].

    Arguments:
        path: the expansion.
        c: sigma_g.
        j: the iterate, 0..N.
        step_samples: S.

    Source: docs/theory.md, section 6 (1).
    """
    return float(path_deviation(path, j)) * c.sigma_g / math.sqrt(step_samples)


def bias_slope(path: Expansion, c: Constants) -> float:
    r"""$c_2 = \alpha\rho r^{2N-1}\sigma_g\sum_{j<N}m_j$ (a pure number). Source: docs/theory.md, section 6 (2)."""
    return adapted_bias_slope(path, c) * path.p


def adapted_bias_slope(path: Expansion, c: Constants) -> float:
    r"""$c_2/p$, the factor of $\|\nabla l_i(\tilde w_N)\|/\sqrt S$ in the bias. Source: docs/theory.md, section 6.1."""
    total = path_deviation(path, np.arange(path.steps)).sum()
    return float(path.alpha * c.rho * path.before * c.sigma_g * total)


def bias_constant(path: Expansion, c: Constants) -> float:
    r"""$c_3 = \sigma_g^2\{p[\frac12\alpha\rho L\sum_{j<N}r^{N-1-j}m_j^2 + \frac12\rho m_N^2]$
    $+ \alpha\rho Lr^{N-1}m_N\sum_{j<N}m_j\}$ [loss / w].

    Source: docs/theory.md, section 6 (2).
    """
    m = path_deviation(path, np.arange(path.steps + 1))
    early = np.sum(path.r ** np.arange(path.steps - 1, -1, -1.0) * m[:-1] ** 2)
    first = path.p * (path.alpha * path.L * early + m[-1] ** 2) / 2
    return float(c.sigma_g**2 * c.rho * (first + path.alpha * path.L * path.before * m[-1] * m[:-1].sum()))


def bias(path: Expansion, c: Constants, gradient: float, step_samples: float) -> float:
    r"""$\|E\hat G_i - \nabla\mathcal L_i\| \le c_3/S + c_2\|\nabla l_i(w)\|/\sqrt S$ [loss / w]; zero for quadratics.

    Arguments:
        path: the expansion.
        c: rho and sigma_g.
        gradient: $\|\nabla l_i(w)\|$.
        step_samples: S.

    Example:
        >>> from adaptax import theory
        >>> quadratic = theory.Constants(L=1.0, rho=0.0, sigma=1.0, sigma_g=1.0)
        >>> theory.bias(theory.Expansion(0.1, 1.0, steps=3), quadratic, gradient=1.0, step_samples=1)
        0.0

    Source: docs/theory.md, section 6 (2); cf. Ji, Yang, Liang (2022).
    """
    return bias_constant(path, c) / step_samples + bias_slope(path, c) * gradient / math.sqrt(step_samples)


def mean_bias(path: Expansion, c: Constants, meta_gradient: float, step_samples: float) -> float:
    r"""$\|E\hat g - \nabla\mathcal L\| \le \frac{c_3}S + \frac{c_2(\|\nabla\mathcal L\| + \sigma)}{\sqrt S(2-q)}$ [loss / w].

    Arguments:
        path: the expansion; q < 2.
        c: rho, sigma and sigma_g.
        meta_gradient: $\|\nabla\mathcal L(w)\|$.
        step_samples: S.

    Errors: `InputError` if q is not below 2.

    Source: docs/theory.md, sections 6 and 8.
    """
    return bias(path, c, (meta_gradient + c.sigma) / path.contracted().margin, step_samples)


def factor_growth(path: Expansion, c: Constants, curvature_samples: float) -> float:
    r"""$h = r^2 + \alpha^2\sigma_H^2/D$ (a pure number): how much one sampled factor can grow $E\|v\|^2$.

    Source: docs/theory.md, section 6 (3).
    """
    return path.r**2 + (path.alpha * c.sigma_H) ** 2 / curvature_samples


def second_moment(
    path: Expansion, c: Constants, gradient: float, step_samples: float, curvature_samples: float, target_samples: float
) -> float:
    r"""$E\|\hat G_i\|^2 \le h^N(\sigma_g^2/T + (p\|\nabla l_i(w)\| + Lm_N\sigma_g/\sqrt S)^2)$ [loss² / w²].

    Arguments:
        path: the expansion.
        c: sigma_g and sigma_H.
        gradient: $\|\nabla l_i(w)\|$.
        step_samples, curvature_samples, target_samples: S, D, T.

    Source: docs/theory.md, section 6 (3).
    """
    last = path.p * gradient + path.L * path_error(path, c, path.steps, step_samples)
    return factor_growth(path, c, curvature_samples) ** path.steps * (c.sigma_g**2 / target_samples + last**2)
