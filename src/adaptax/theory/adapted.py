r"""Bounds by the adapted gradient, which need no step size of order 1/N where losses are convex."""

import math
from dataclasses import dataclass
from typing import Any

from adaptax._checks import check_real
from adaptax.errors import InputError
from adaptax.theory import sampling
from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.convergence import Bound, Ledger, Sizes, check_sizes, step_second_moment
from adaptax.theory.powers import geometric, power
from adaptax.theory.smoothness import jacobian_lipschitz


def adapted_smoothness(path: Expansion, rho: Any, L_T: Any, adapted_gradient: Any, *, mixed: Any = None) -> Any:
    r"""$r^{2N}L_T + \alpha\rho r^{N-1}S_N\|\nabla l_T(\tilde w_N(u))\|$ [loss / w²], $S_N = \sum_{j<N}r^j$.

    It bounds $\|\nabla\mathcal L_i(w) - \nabla\mathcal L_i(u)\|/\|w - u\|$ for every w, and with the mean over tasks of the
    norms that of $\nabla\mathcal L$. The adapted gradient is what the reverse recursion starts from, so that every
    meta-gradient has computed it. (Resampling: it is at most $p\|\nabla l_i(u)\|$.)

    With outer parameters $\theta$ that do not adapt (ANIL: the body under an adapting head), give `mixed`. With $\zeta_j$ the
    spectral norm of $\begin{pmatrix}r^j & \alpha\eta S_j\\0 & 1\end{pmatrix}$ the bound, in $(w, \theta)$ together, is
    $\zeta_N^2L_T + \alpha\rho\sum_{j<N}r^{N-1-j}\zeta_j^2\,\|\nabla_w l_T(\tilde w_N)\|$.

    Arguments:
        path: the expansion, with `lam` and `mu` of the losses that the steps descend on. All numbers may be arrays, traced too.
        rho: Lipschitz constant of their Hessians [loss / w³]; with `mixed`, of all second derivatives of which one is by w.
        L_T: Lipschitz constant of the target gradient (resampling: L) [loss / w²]; with `mixed`, of that by $(w, \theta)$.
        adapted_gradient: $\|\nabla l_T(\tilde w_N(u))\|$ of one task, or the mean of these norms over tasks [loss / w].
        mixed: $\eta \ge \|\partial_\theta\nabla_w l\|$ (default None: all parameters adapt).

    Returns: the bound, without a condition on $\alpha$ and N.

    Example:
        >>> from adaptax import theory
        >>> convex = theory.Expansion(alpha=0.5, L=1.0, steps=100, mu=0.0)
        >>> theory.adapted_smoothness(convex, rho=0.1, L_T=1.0, adapted_gradient=2.0)
        11.0

    Source: docs/theory.md, section 6.1.
    """
    if mixed is None:
        return path.q * L_T + jacobian_lipschitz(path, rho) * adapted_gradient
    squares = [_frozen_square(path, mixed, j) for j in range(path.steps + 1)]
    later = [power(path.growth, path.steps - 1 - j) for j in range(path.steps)]
    changed = sum(factor * square for factor, square in zip(later, squares, strict=False))
    return squares[-1] * L_T + path.alpha * rho * changed * adapted_gradient


def _frozen_square(path: Expansion, mixed: Any, j: int) -> Any:
    r"""$\zeta_j^2$: the largest squared singular value of $(a, b; 0, 1)$, $a = r^j$, $b = \alpha\eta S_j$."""
    a, b = power(path.growth, j), path.alpha * mixed * geometric(path.growth, j)
    apart = (1 - a) ** 2 + b**2
    # The trace of the Gram matrix is apart + 2 a, and its determinant a².
    return (apart + 2 * a + (apart * (apart + 4 * a)) ** 0.5) / 2


def adapted_convergence(
    c: Constants,
    alpha: float,
    steps: int,
    *,
    adapted_gradient: float,
    iterations: float,
    tasks_per_step: float,
    smoothness_tasks: float,
    spread: float | None = None,
    norm_spread: float | None = None,
    floor: float | None = None,
    C_beta: float = 2.0,
    case: str = "finite-sum",
    step_samples: float = math.inf,
    curvature_samples: float = math.inf,
    target_samples: float = math.inf,
    smoothness_samples: float = math.inf,
) -> Bound:
    r"""The convergence theorem with the smoothness by adapted gradients, at any $\alpha$ and N.

    The outer step is $\beta_k = 1/(C_\beta\hat L_k)$, $\hat L_k = G + \frac\Lambda{B'}\sum_i\|\nabla l_T(\tilde w_N^i)\|$, with
    $G \ge r^{2N}L$, $\Lambda = \alpha\rho r^{N-1}S_N$, on B' tasks independent of those of the meta-step. Then
    $\frac1K\sum_kE\|\nabla\mathcal L(w_k)\|^2 \le R$.

    Finite-sum: $\bar M = G + \Lambda A$, $x = \Lambda^2s^2/(B'G^2)$, $m_2 = 1+3x$, $\kappa = 1 - \frac{m_2}{2C_\beta}$,
    $R = \frac1\kappa\left[\frac{C_\beta\bar M\Delta}K + \frac{m_2V\bar M}{2C_\beta BG}\right]$.

    Resampling: with $\delta = m_N\sigma_g/\sqrt S$, $\hat L_k$ has $\Lambda L\delta$ more, for the error of its own paths. Then
    $\bar M = G + \Lambda(A + 2L\delta + \sigma_g/\sqrt{D_L})$, x has $s + L\delta + \sigma_g/\sqrt{D_L}$, $\kappa = \frac12$,
    $R = \frac1\kappa\left[\frac{C_\beta\bar M\Delta}K
    + \frac{\bar M}G\left(\frac{(1+x)E^2}2 + \frac{m_2W}{2C_\beta B}\right)\right]$,
    $E = \frac{c_3}S + \frac{c_2A}{p\sqrt S}$, $W = h^N(\sigma_g^2/T + (A + L\delta)^2)$.

    Arguments:
        c: L (of the target gradients), lam and mu (of the losses that the steps descend on), rho, gap; resampling: sigma_g and
            sigma_H. sigma and b are not used.
        alpha, steps: inner step size and N.
        adapted_gradient: $A \ge (E_i\|\nabla l_T(\tilde w_N^i(w_k))\|^2)^{1/2}$ at all $w_k$ of the run [loss / w].
        iterations, tasks_per_step, smoothness_tasks: K, B, B', at least 1, and may be infinite.
        spread: $\sqrt V \ge (E_i\|\nabla\mathcal L_i - \nabla\mathcal L\|^2)^{1/2}$ at all $w_k$; finite-sum (default: $r^NA$).
        norm_spread: s, at least the standard deviation over tasks of the norms that A is of (default: A).
        floor: G, at least $r^{2N}L$, which is the default [loss / w²]. Where steps contract much, $r^{2N}$ is tiny and x grows
            as $r^{-2N}$; $G = \max(r^{2N}L, \Lambda A)$ gives $x \le 1/B'$ and at most doubles $\bar M$.
        C_beta: $C_\beta$ (default 2); resampling: at least $m_2$.
        case: "finite-sum" (default) or "resampling".
        step_samples, curvature_samples, target_samples, smoothness_samples: S, D, T, $D_L$ of the resampling case, at least 1
            (default infinite: no noise).

    Returns: a `Bound` with a = 1 and c = 0, so that `R` is the bound on the mean square [loss² / w²], and `gradient` its root.
        Where A and V are known beforehand, it is a guarantee. Where they are measured along a run it is one for those runs that
        stay within them, in the sense of docs/theory.md, section 6.1.

    Errors: `InputError` for numbers out of range, an unknown gap, or where $\kappa$ is not positive or $C_\beta < m_2$ in the
        resampling case (the message says what to raise).

    Example:
        >>> from adaptax import theory
        >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.0, gap=1.0, mu=0.0)
        >>> sizes = dict(iterations=1e4, tasks_per_step=50, smoothness_tasks=50)
        >>> bounds = [theory.adapted_convergence(c, 1 / n, n, adapted_gradient=0.3, **sizes) for n in (1, 10, 1000)]
        >>> [round(bound.gradient, 4) for bound in bounds]
        [0.0316, 0.0316, 0.0316]

    Source: docs/theory.md, section 6.1.
    """
    path = c.path(alpha, steps)
    sizes = {"iterations": iterations, "tasks_per_step": tasks_per_step, "smoothness_tasks": smoothness_tasks}
    sampled = {"step_samples": step_samples, "curvature_samples": curvature_samples, "target_samples": target_samples,
               "smoothness_samples": smoothness_samples}  # fmt: skip
    check_sizes(c, C_beta, sizes | sampled)
    known = Adapted.checked("adapted_convergence", path, c, adapted_gradient, spread, norm_spread, floor)
    if case not in ("finite-sum", "resampling"):
        raise InputError(f'adapted_convergence(case={case!r}) must be "finite-sum" or "resampling".')
    ledger = adapted_ledger(path, c, C_beta, sizes | sampled, known, case)
    return ledger.bound(C_beta, sizes | sampled, least_C_beta=case == "resampling")


@dataclass(frozen=True)
class Adapted:
    """What is known of the adapted gradients: A, the root of V, and s; and G. See `adapted_convergence`."""

    gradient: float
    spread: float
    norm_spread: float
    floor: float

    @staticmethod
    def checked(
        where: str, path: Expansion, c: Constants, gradient: float | None, spread: float | None = None,
        norm_spread: float | None = None, floor: float | None = None,
    ) -> "Adapted":  # fmt: skip
        """The numbers, with their defaults."""
        size: float = check_real(where, "adapted_gradient", gradient, least=0)
        root = path.p * size if spread is None else check_real(where, "spread", spread, least=0)
        of_norms = size if norm_spread is None else check_real(where, "norm_spread", norm_spread, least=0)
        least = path.q * c.L
        if floor is None and least == 0:
            raise InputError(f"r^(2N) with r = {path.r:.4g} is 0 in floating-point numbers: give floor=, or take fewer steps.")
        return Adapted(
            size, root, of_norms, least if floor is None else check_real(where, "floor", floor, least=least, above=0)
        )


def adapted_ledger(path: Expansion, c: Constants, C_beta: float, sizes: Sizes, known: Adapted, case: str) -> Ledger:
    """The terms of `adapted_convergence`."""
    floor, slope, B_L = known.floor, jacobian_lipschitz(path, c.rho), sizes["smoothness_tasks"]

    def variance(of_norms: float) -> float:
        relative = slope * of_norms / floor
        return relative * relative / B_L

    if case == "finite-sum":
        M, x = floor + slope * known.gradient, variance(known.norm_spread)
        m2 = step_second_moment(x)
        noise = m2 / (2 * C_beta) * known.spread**2 * M / (sizes["tasks_per_step"] * floor)
        top, losses = 1.0, {"C_beta": 1 / (2 * C_beta), "smoothness_tasks": 3 * x / (2 * C_beta)}
    else:
        S = sizes["step_samples"]
        strayed = c.L * sampling.path_error(path, c, path.steps, S)
        drawn = strayed + c.sigma_g / math.sqrt(sizes["smoothness_samples"])
        M, x = floor + slope * (known.gradient + strayed + drawn), variance(known.norm_spread + drawn)
        m2 = step_second_moment(x)
        off = sampling.bias_constant(path, c) / S + sampling.adapted_bias_slope(path, c) * known.gradient / math.sqrt(S)
        growth = sampling.factor_growth(path, c, sizes["curvature_samples"]) ** path.steps
        moment = growth * (c.sigma_g**2 / sizes["target_samples"] + (known.gradient + strayed) ** 2)
        noise = M / floor * ((1 + x) * off**2 / 2 + m2 * moment / (2 * C_beta * sizes["tasks_per_step"]))
        top, losses = 0.5, {}
    return Ledger(top, losses, C_beta * M * (c.gap or 0.0) / sizes["iterations"], noise, 1.0, 0.0, m2)
