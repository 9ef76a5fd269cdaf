r"""An estimate of the squared norm of a mean, with bounds, from the Gram matrix of M independent vectors alone."""

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from adaptax._checks import check_real
from adaptax.errors import InputError


class SquaredNorm(NamedTuple):
    r"""An estimate of $\|\mu\|^2$ from $g_1..g_M$ with mean $\mu$; arrays over leading axes, if there are any.

    Arguments:
        value: U, unbiased (it may be negative).
        standard_error: the square root of an estimate of Var U.
        upper: one-sided upper bound on $\|\mu\|^2$.
        low, high: two-sided interval.
        linear, degenerate: the estimates of $\mu^\top\Sigma\mu$ and $\mathrm{tr}(\Sigma^2)$ in Var U.
    """

    value: Any
    standard_error: Any
    upper: Any
    low: Any
    high: Any
    linear: Any
    degenerate: Any


def squared_norm(gram: Any, confidence: float = 0.95) -> SquaredNorm:
    r"""The unbiased estimate of $\|\mu\|^2$, its standard error, and bounds.

    $U = \frac1{M(M-1)}\sum_{m\ne n}g_m^\top g_n$ has the variance
    $V(\theta, \kappa) = \frac{4\theta\kappa}M + \frac{2\mathrm{tr}\Sigma^2}{M(M-1)}$ with $\theta = \|\mu\|^2$ and
    $\kappa = \mu^\top\Sigma\mu/\theta$. The upper bound is the smaller of two. (i) The largest $\theta$ that the test
    $\theta - U \le c\,V(\theta, \lambda_{\max})^{1/2}$ does not reject: the variance is that under $\theta$, in the worst
    direction, since where the noise hides $\mu$ its direction is not known. (ii)
    $U + c\,(\frac4M(\|\hat\Sigma^{1/2}\bar g\| + 1.6(\mathrm{tr}\Sigma^2/M)^{1/2})^2 +
    \frac{2\mathrm{tr}\Sigma^2}{M(M-1)})^{1/2}$, for a norm well above the noise, where the direction is known up to the
    error of $\bar g$. The quantile is $c = t_{M-1} + (1+\frac{20}M)\frac{\hat s^+(2z^2+1)}{6\sqrt M}$, whose second part
    corrects for the skewness s of $g_m^\top\bar g_{-m}$ (Hall, 1992); the factor is for the bias of $\hat s$.
    $\mathrm{tr}\Sigma^2$ and $\mu^\top\Sigma\mu$ are estimated without bias from the entries off the diagonal.

    The bounds are no theorem: they cover in the simulations of the library's tests, where the plain
    $U + 1.64\,\mathrm{s.e.}$ does not.

    Arguments:
        gram: $G_{mn} = g_m^\top g_n$, shape (..., M, M), M at least 8.
        confidence: between 0.5 and 1 (default 0.95).

    Errors: `InputError` for fewer than 8 vectors, or a confidence out of range.

    Example:
        >>> import numpy as np
        >>> g = np.random.default_rng(0).standard_normal((100, 5)) + 1.0
        >>> found = squared_norm(g @ g.T)  # the truth is 5
        >>> bool(found.low < 5 < found.upper < found.high)
        True

    Source: docs/theory.md, section 8; Chen, Qin (2010), Ann. Statist. 38, for $\mathrm{tr}\Sigma^2$.
    """
    gram = np.asarray(gram, float)
    count = gram.shape[-1]
    if gram.ndim < 2 or gram.shape[-2] != count or count < 8:
        raise InputError(f"A bound on the squared norm needs a Gram matrix of at least 8 vectors, not {gram.shape}: take more.")
    confidence = check_real("squared_norm", "confidence", confidence, above=0.5, below=1)
    # Scaled, so that no power over- or underflows.
    unit = np.maximum(np.trace(gram, axis1=-2, axis2=-1) / count, np.finfo(float).tiny)
    gram = gram / unit[..., None, None]
    off = gram * (1 - np.eye(count))
    rows = off.sum(-1)
    total, pairs = rows.sum(-1), count * (count - 1)
    squares = (off**2).sum((-2, -1))
    chains = (rows**2).sum(-1) - squares
    distinct = (total**2 - 2 * squares - 4 * chains) / (pairs * (count - 2) * (count - 3))
    chains = chains / (pairs * (count - 2))
    value = total / pairs
    degenerate = np.maximum(squares / pairs - 2 * chains + distinct, 0)
    linear = np.maximum(chains - distinct, 0)

    centred = gram - gram.mean(-1, keepdims=True) - gram.mean(-2, keepdims=True) + gram.mean((-2, -1), keepdims=True)
    largest = np.maximum(np.linalg.eigvalsh(centred)[..., -1], 0) / (count - 1)
    known = ((gram.mean(-1) - gram.mean((-2, -1))[..., None]) ** 2).sum(-1) / (count - 1)
    spread = (np.sqrt(known) + 1.6 * np.sqrt(degenerate / count)) ** 2
    scores = rows / (count - 1) - value[..., None]
    second = (scores**2).mean(-1)
    varied = second > np.finfo(float).eps ** 2
    skewness = np.where(varied, (scores**3).mean(-1) / np.where(varied, second, 1) ** 1.5, 0)

    def quantile(level, sign):
        z = NormalDist().inv_cdf(level)
        shift = (1 + 20 / count) * np.maximum(sign * skewness, 0) * (2 * z * z + 1) / (6 * np.sqrt(count))
        return stdtrit(count - 1, level) + shift

    rest = 2 * degenerate / pairs

    def roots(c, sign):
        half = value + 2 * c * c * largest / count
        return half + sign * np.sqrt(np.maximum(half**2 - value**2 + c * c * rest, 0))

    def upper(level):
        c = quantile(level, 1)
        return np.maximum(np.minimum(roots(c, 1), value + c * np.sqrt(4 * spread / count + rest)), 0)

    both = (1 + confidence) / 2
    low = np.maximum(roots(quantile(both, -1), -1), 0)
    # The smaller root bounds from below only where zero is rejected.
    low = np.where(value > quantile(both, -1) * np.sqrt(rest), low, 0)
    error = np.sqrt(4 * linear / count + rest)
    of_unit = [x * unit for x in (value, error, upper(confidence), low, upper(both))]
    return SquaredNorm(*of_unit, linear=linear * unit**2, degenerate=degenerate * unit**2)


def bound_from_gram(gram: Any, confidence: float = 0.95) -> Any:
    r"""The one-sided upper bound on $\|\mu\|^2$ of `squared_norm`, from a Gram matrix of shape (..., M, M).

    Example:
        >>> import numpy as np
        >>> g = np.random.default_rng(0).standard_normal((20, 5))
        >>> float(bound_from_gram(g @ g.T)) > 0
        True

    Source: docs/theory.md, section 8.
    """
    return squared_norm(gram, confidence).upper
