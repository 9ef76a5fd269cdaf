r"""The smoothness of the meta-objective, and bounds on the gradients before adaptation by the meta-gradient.

All bounds hold for every w; b = 0 in the resampling case. Functions of `path` alone return pure numbers.
"""

import math
from typing import Any

from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.powers import power


def iterate_distance(path: Expansion, j: int) -> Any:
    r"""$\|\tilde w_j(w) - \tilde w_j(u)\| \le r^j\|w - u\|$: returns $r^j$.

    The same number bounds $\|\nabla l_i(\tilde w_j)\|/\|\nabla l_i(w)\|$.

    Example:
        >>> from adaptax import theory
        >>> theory.iterate_distance(theory.Expansion(1.0, 1.0, steps=5), j=3)
        8.0

    Source: docs/theory.md, section 4 (1, 2).
    """
    return power(path.growth, j)


def jacobian_norm(path: Expansion) -> Any:
    r"""$\|P_i(w)\| \le p$, with $P_i = \prod_j(I - \alpha\nabla^2 l_i(\tilde w_j))$. Source: docs/theory.md, section 4 (3)."""
    return path.p


def jacobian_lipschitz(path: Expansion, rho: Any) -> Any:
    r"""$\|P_i(w) - P_i(u)\| \le \alpha\rho r^{N-1}S_N\|w - u\|$, $S_N = \sum_{j<N}r^j$: the factor [1 / w].

    Source: docs/theory.md, section 4 (4).
    """
    return path.alpha * rho * path.before * path.path_sum


def target_gradient(path: Expansion, gradient: float, b_i: float) -> float:
    r"""$\|\nabla l_{T_i}(\tilde w_N)\| \le (1+d)\|\nabla l_{T_i}(w)\| + d\,b_i$, $d = \alpha LS_N$ [loss / w].

    Without lam and mu, $d = p - 1$. (Resampling: $\|\nabla l_i(\tilde w_N)\| \le p\|\nabla l_i(w)\|$, see `iterate_distance`.)

    Arguments:
        path: the expansion.
        gradient: $\|\nabla l_{T_i}(w)\|$.
        b_i: $\|\nabla l_{S_i}(w) - \nabla l_{T_i}(w)\|$ of this task, 0 in the resampling case.

    Source: docs/theory.md, section 4 (5).
    """
    return (1 + path.drift) * gradient + path.drift * b_i


def smoothness_slope(path: Expansion, rho: Any) -> Any:
    r"""$C_L = \alpha\rho r^{N-1}S_N(1+d)$ [1 / w]: how fast the smoothness of $\mathcal L$ grows with the mean gradient norm.

    Without lam and mu it is $\frac\rho L r^{2N-1}(p-1)$, the $C_L$ of Ji, Yang, Liang (2022).

    Source: docs/theory.md, section 4.
    """
    return jacobian_lipschitz(path, rho) * (1 + path.drift)


def smoothness_floor(path: Expansion, rho: Any, b: Any = 0.0) -> Any:
    r"""$G = qL + C_b b$, $C_b = \alpha\rho r^{N-1}S_Nd$ [loss / w²]: the smoothness where gradients vanish.

    Arguments:
        path: the expansion.
        rho: Lipschitz constant of the Hessians.
        b: the support-target gap, 0 in the resampling case.

    Source: docs/theory.md, section 4.
    """
    return path.q * path.L + jacobian_lipschitz(path, rho) * path.drift * b


def smoothness(path: Expansion, rho: Any, mean_gradient: Any, b: Any = 0.0) -> Any:
    r"""$L_w = G + C_L\,E_i\|\nabla l_i(w)\|$: $\|\nabla\mathcal L(w) - \nabla\mathcal L(u)\| \le L_w\|w - u\|$ [loss / w²].

    Arguments:
        path: the expansion.
        rho: Lipschitz constant of the Hessians.
        mean_gradient: $E_i\|\nabla l_i(w)\|$ at unadapted parameters; finite-sum: of the target losses.
        b: the support-target gap, 0 in the resampling case.

    Returns: $L_w$. It is not bounded over w, which is why the outer step must adapt.

    Example:
        >>> from adaptax import theory
        >>> theory.smoothness(theory.Expansion(0.1, 1.0, steps=0), rho=1.0, mean_gradient=5.0)
        1.0

    Source: docs/theory.md, section 4; cf. Ji, Yang, Liang (2022).
    """
    return smoothness_floor(path, rho, b) + smoothness_slope(path, rho) * mean_gradient


def adaptation_shift(path: Expansion, gradient: float, b_i: float = 0.0) -> float:
    r"""$\|\nabla\mathcal L_i(w) - \nabla l_i(w)\| \le s\|\nabla l_i(w)\| + pd\,b_i$ [loss / w].

    $s = \alpha LS_{2N}$ and $d = \alpha LS_N$; without lam and mu they are $q-1$ and $p-1$.

    Arguments:
        path: the expansion.
        gradient: $\|\nabla l_i(w)\|$; finite-sum: of the target loss.
        b_i: the task's support-target gap.

    Source: docs/theory.md, section 5.
    """
    return path.shift * gradient + path.p * path.drift * b_i


def task_noise(path: Expansion, c: Constants) -> float:
    r"""$\sigma_b = \sigma + p(p-1)b$ [loss / w], the noise of sampling tasks. Source: docs/theory.md, section 5."""
    return c.sigma + path.p * path.drift * c.b


def mean_gradient(path: Expansion, c: Constants, meta_gradient: float) -> float:
    r"""$\|E_i\nabla l_i(w)\| \le (\|\nabla\mathcal L(w)\| + s)/(2-q)$, $s = (q-1)\sigma + p(p-1)b$ [loss / w].

    Arguments:
        path: the expansion; q < 2.
        c: sigma and b.
        meta_gradient: $\|\nabla\mathcal L(w)\|$.

    Errors: `InputError` if q is not below 2.

    Source: docs/theory.md, section 5.
    """
    path = path.contracted()
    return (meta_gradient + path.shift * c.sigma + path.p * path.drift * c.b) / path.margin


def gradient_norm(path: Expansion, c: Constants, meta_gradient: float) -> float:
    r"""$E_i\|\nabla l_i(w)\| \le (\|\nabla\mathcal L(w)\| + \sigma_b)/(2-q)$ [loss / w].

    Arguments and errors: as for `mean_gradient`.

    Source: docs/theory.md, section 5.
    """
    path = path.contracted()
    return (meta_gradient + task_noise(path, c)) / path.margin


def task_spread(path: Expansion, c: Constants, meta_gradient: float) -> float:
    r"""$(E_i\|\nabla\mathcal L_i - \nabla\mathcal L\|^2)^{1/2} \le ((q-1)\|\nabla\mathcal L\| + \sigma_b)/(2-q)$ [loss / w].

    Arguments and errors: as for `mean_gradient`.

    Source: docs/theory.md, section 5.
    """
    path = path.contracted()
    return (path.shift * meta_gradient + task_noise(path, c)) / path.margin


def flow_distance(path: Expansion, gradient: float) -> float:
    r"""$\|\tilde w_N - \mathrm{flow}_{\alpha N}(w)\| \le \frac{\gamma^2e^\gamma}{2NL}\|\nabla l_i(w)\|$ [w].

    Arguments:
        path: the expansion; $\gamma = \alpha NL$.
        gradient: $\|\nabla l_i(w)\|$.

    Returns: a bound on the distance between N steps and gradient flow over the same time, which is O(1/N) under
        $\alpha = \gamma/(NL)$.

    Source: docs/theory.md, section 5.
    """
    gamma = path.alpha * path.steps * path.L
    return path.alpha * gamma * math.exp(gamma) / 2 * gradient
