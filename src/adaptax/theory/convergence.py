r"""The outer step size and the two convergence theorems, with every term.

Both conclude $E\,\varphi(\|\nabla\mathcal L(w_\zeta)\|) \le R$ with $\varphi(y) = y^2/(a + cy)$ and $w_\zeta$ uniform over
$w_0..w_{K-1}$, for $w_{k+1} = w_k - \beta_k\hat g$, $\beta_k = 1/(C_\beta\hat L_k)$.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaptax._checks import check_real
from adaptax.errors import InputError
from adaptax.theory import sampling
from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.smoothness import smoothness_floor, smoothness_slope, task_noise

Sizes = Mapping[str, float]


@dataclass(frozen=True)
class Bound:
    r"""The conclusion of a convergence theorem for one run.

    Arguments:
        a, c: constants of $\varphi(y) = y^2/(a + cy)$ [loss / w²] and [1 / w].
        kappa: $\kappa$, the share of the descent that noise leaves; positive.
        start: $C_\beta\Delta/(\kappa K)$, the part of R that meta-steps remove [loss].
        noise: the part of R that larger batches remove [loss].

    Example:
        >>> from adaptax import theory
        >>> bound = theory.Bound(a=1.0, c=0.0, kappa=0.5, start=0.03, noise=0.01)
        >>> round(bound.R, 3), round(bound.gradient, 3)
        (0.04, 0.2)
    """

    a: float
    c: float
    kappa: float
    start: float
    noise: float

    @property
    def R(self) -> float:
        r"""$E\,\varphi(\|\nabla\mathcal L(w_\zeta)\|) \le R$ [loss]."""
        return self.start + self.noise

    @property
    def gradient(self) -> float:
        r"""$E\|\nabla\mathcal L(w_\zeta)\| \le \frac12(cR + \sqrt{c^2R^2 + 4aR})$ [loss / w]."""
        return gradient_from_phi(self.a, self.c, self.R)


def gradient_from_phi(a: float, c: float, R: float) -> float:
    r"""If $E\,Y^2/(a + cY) \le R$ then $EY \le \frac12(cR + \sqrt{c^2R^2 + 4aR})$, which is at most $cR + \sqrt{aR}$.

    Source: docs/theory.md, section 6.
    """
    return (c * R + math.sqrt((c * R) ** 2 + 4 * a * R)) / 2


def largest_R(a: float, c: float, epsilon: float) -> float:
    r"""$\varepsilon^2/(a + c\varepsilon)$: $EY \le \varepsilon$ as soon as R is at most this.

    Source: docs/theory.md, section 6.
    """
    return epsilon**2 / (a + c * epsilon)


def smoothness_variance(
    path: Expansion, c: Constants, smoothness_tasks: float, smoothness_samples: float = math.inf, *, gap: bool = True
) -> float:
    r"""$x = C_L^2(\sigma^2 + \sigma_g^2/D_L)/(B'G^2)$ (a pure number): the relative variance of $\hat L_k$ is at most x.

    Arguments:
        path: the expansion.
        c: the constants.
        smoothness_tasks: B'.
        smoothness_samples: $D_L$ (default infinite: the finite-sum case, whose gradients are exact).
        gap: whether G has its term in b, as it has in the finite-sum case.

    Source: docs/theory.md, section 6.
    """
    floor = smoothness_floor(path, c.rho, c.b if gap else 0.0)
    variance = c.sigma**2 + (0.0 if math.isinf(smoothness_samples) else c.sigma_g**2 / smoothness_samples)
    return smoothness_slope(path, c.rho) ** 2 * variance / (smoothness_tasks * floor**2)


def certified_gradient(path: Expansion, c: Constants, mean_norm: float, tasks: int, confidence: float = 0.95) -> float:
    r"""$\|\nabla\mathcal L\| \le (\|\bar g\| + t\sigma_b)/(1 - (q-1)t)$ with probability at least $1-\eta$.

    Here $t = 1/((2-q)\sqrt{\eta M})$. The bound holds in the finite-sum case for any distribution of tasks. It needs the true
    sigma and b; `ax.measure.stationarity` needs neither.

    Arguments:
        path: the expansion; q < 2.
        c: sigma and b.
        mean_norm: $\|\bar g\|$, the norm of the mean of M meta-gradients, of tasks that had no part in the choice of w.
        tasks: M.
        confidence: $1-\eta$ (default 0.95).

    Returns: the bound [loss / w]; infinite where M is too small for a finite one.

    Errors: `InputError` if q is not below 2, or the confidence does not lie between 0 and 1.

    Example:
        >>> from adaptax import theory
        >>> c = theory.Constants(L=1.0, rho=0.0, sigma=1.0)
        >>> round(theory.certified_gradient(theory.Expansion(0.01, 1.0, 5), c, mean_norm=0.0, tasks=2000), 3)
        0.113

    Source: docs/theory.md, section 8.
    """
    confidence = check_real("certified_gradient", "confidence", confidence, above=0, below=1)
    t = 1 / (path.contracted().margin * math.sqrt((1 - confidence) * tasks))
    left = 1 - path.shift * t
    return (mean_norm + t * task_noise(path, c)) / left if left > 0 else math.inf


def step_second_moment(x: float) -> float:
    r"""$m_2 = 1 + 3x$: $E\beta_k^2 \le m_2/(C_\beta M)^2$, while $1 \le C_\beta M\,E\beta_k \le 1 + x$; $M = E\hat L_k$.

    Source: docs/theory.md, section 6.
    """
    return 1 + 3 * x


@dataclass(frozen=True)
class Ledger:
    r"""The terms that a theorem's bound is formed of: $\kappa = $ top $-\sum$ losses, $R = ($start $+$ noise$)/\kappa$.

    Every term is a posynomial of the sizes and of $C_\beta$: a sum of products of their powers with positive factors.

    Arguments:
        top: kappa without noise.
        losses: the amounts that finite sizes take from kappa, by the name of the size (or C_beta) that lowers each.
        start, noise: the two parts of R, times kappa.
        a, c: constants of phi.
        m2: second moment of the outer step.
    """

    top: float
    losses: dict[str, float]
    start: float
    noise: float
    a: float
    c: float
    m2: float

    def bound(self, C_beta: float, sizes: Sizes, *, least_C_beta: bool = False) -> Bound:
        """The bound. If kappa is not positive, or C_beta must be at least m2 and is not: `InputError` says what to raise."""
        if least_C_beta and self.m2 > C_beta:
            raise InputError(
                f"C_beta is {C_beta:.4g}, and the theorem needs at least {self.m2:.4g}: raise C_beta or smoothness_tasks."
            )
        kappa = self.top - sum(self.losses.values())
        if kappa <= 0:
            worst = max(self.losses, key=lambda name: self.losses[name])
            raise InputError(
                f"kappa is {kappa:.4g}, and the theorem needs it positive: raise {worst} from "
                f"{C_beta if worst == 'C_beta' else sizes[worst]:.6g}, which takes most of it."
            )
        return Bound(self.a, self.c, kappa, self.start / kappa, self.noise / kappa)

    def share(self, epsilon: float) -> float:
        """The used share of the error that epsilon allows: at most 1 if and only if kappa > 0 and R is small enough."""
        return (sum(self.losses.values()) + (self.start + self.noise) / largest_R(self.a, self.c, epsilon)) / self.top


def finite_sum_ledger(
    path: Expansion, c: Constants, C_beta: float, sizes: Sizes, *, theta: float | None = None, epsilon: float | None = None
) -> Ledger:
    """The terms of `finite_sum`. If no theta is given, it is the one that makes R least, or with epsilon the share of it."""
    slope, floor = smoothness_slope(path, c.rho), smoothness_floor(path, c.rho, c.b)
    tasks, noise = sizes["tasks_per_step"], task_noise(path, c)
    a, c_phi = floor + slope * noise / path.margin, slope / path.margin
    m2 = step_second_moment(smoothness_variance(path, c, sizes["smoothness_tasks"]))
    kept = m2 / (2 * C_beta)
    expansion = kept * (path.shift / path.margin) ** 2 / tasks
    spread = kept * (noise / path.margin) ** 2 / (tasks * floor)
    start = C_beta * (c.gap or 0.0) / sizes["iterations"]
    if theta is None and epsilon is None:
        theta = _best_theta(1 - kept - expansion, expansion, start + spread, spread)
    elif theta is None:
        ratio = spread / largest_R(a, c_phi, epsilon or 0.0)
        theta = math.sqrt(ratio / expansion) if expansion > 0 else math.inf
    losses = {"C_beta": kept, "tasks_per_step": (1 + theta) * expansion if expansion > 0 else 0.0}
    return Ledger(1.0, losses, start, spread * (1 + 1 / theta) if spread > 0 else 0.0, a, c_phi, m2)


def resampling_ledger(path: Expansion, c: Constants, C_beta: float, sizes: Sizes) -> Ledger:
    """The terms of `resampling`."""
    x = smoothness_variance(path, c, sizes["smoothness_tasks"], sizes["smoothness_samples"], gap=False)
    m2, S = step_second_moment(x), sizes["step_samples"]
    slope, per_batch = smoothness_slope(path, c.rho), m2 / (C_beta * sizes["tasks_per_step"])
    growth = sampling.factor_growth(path, c, sizes["curvature_samples"]) ** path.steps
    losses = {
        "step_samples": (1 + x) * (sampling.bias_slope(path, c) / path.margin) ** 2 / S,
        "tasks_per_step": 2 * per_batch * path.q * growth / path.margin**2,
    }
    moment = moment_constant(path, c, S, sizes["curvature_samples"], sizes["target_samples"])
    noise = ((1 + x) * bias_square(path, c, S) / 2 + per_batch * moment / 2) / (path.q * c.L)
    a = path.q * c.L + slope * (c.sigma / path.margin + c.sigma_g / math.sqrt(sizes["smoothness_samples"]))
    start = C_beta * (c.gap or 0.0) / sizes["iterations"]
    return Ledger(0.5, losses, start, noise, a, slope / path.margin, m2)


def finite_sum(
    c: Constants,
    alpha: float,
    steps: int,
    *,
    iterations: float,
    tasks_per_step: float,
    smoothness_tasks: float,
    C_beta: float = 2.0,
    theta: float | None = None,
) -> Bound:
    r"""The convergence theorem of the finite-sum case (algorithm 2).

    $a = G + \frac{C_L\sigma_b}{2-q}$, $c = \frac{C_L}{2-q}$, $V = \frac{(1+1/\theta)\sigma_b^2}{(2-q)^2}$,
    $\kappa = 1 - \frac{m_2}{2C_\beta}\left(1 + \frac{(1+\theta)(q-1)^2}{(2-q)^2B}\right)$,
    $R = \frac1\kappa\left[\frac{C_\beta\Delta}K + \frac{m_2V}{2C_\beta BG}\right]$.

    Arguments:
        c: L, rho, sigma, b and gap.
        alpha, steps: inner step size and N, with $q = (1+\alpha L)^{2N} < 2$; lam and mu are not used.
        iterations: K.
        tasks_per_step: B.
        smoothness_tasks: B', the number of tasks that $\hat L_k$ is measured on, independent of those of the meta-step.
        C_beta: constant of the outer step $\beta_k = 1/(C_\beta\hat L_k)$ (default 2).
        theta: any positive number (default: the one that makes R least).

    The numbers K, B and B' are at least 1, and may be infinite.

    Returns: a `Bound`.

    Errors: `InputError` where the theorem does not apply: q is at least 2, $\kappa$ is not positive (the message says what to
        raise), or gap is not known.

    Example:
        >>> from adaptax import theory
        >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, b=0.1, gap=1.0)
        >>> bound = theory.finite_sum(c, alpha=0.025, steps=5, iterations=1e4, tasks_per_step=50, smoothness_tasks=10)
        >>> round(bound.gradient, 3)
        0.032

    Source: docs/theory.md, section 6; cf. Ji, Yang, Liang (2022), JMLR 23.
    """
    path = Expansion(alpha, c.L, steps).contracted()
    sizes = {"iterations": iterations, "tasks_per_step": tasks_per_step, "smoothness_tasks": smoothness_tasks}
    check_sizes(c, C_beta, sizes)
    if theta is not None:
        theta = check_real("finite_sum", "theta", theta, above=0)
    return finite_sum_ledger(path, c, C_beta, sizes, theta=theta).bound(C_beta, sizes)


def resampling(
    c: Constants,
    alpha: float,
    steps: int,
    *,
    iterations: float,
    tasks_per_step: float,
    step_samples: float,
    curvature_samples: float,
    target_samples: float,
    smoothness_tasks: float,
    smoothness_samples: float,
    C_beta: float = 2.0,
) -> Bound:
    r"""The convergence theorem of the resampling case (algorithm 1, with independent samples for steps, curvature and target).

    $a = qL + \frac{C_L\sigma}{2-q} + \frac{C_L\sigma_g}{\sqrt{D_L}}$, $c = \frac{C_L}{2-q}$,
    $\kappa = \frac12 - \frac{(1+x)c_2^2}{S(2-q)^2} - \frac{2m_2qh^N}{C_\beta B(2-q)^2}$,
    $R = \frac1\kappa\left[\frac{C_\beta\Delta}K + \frac1{qL}\left(\frac{(1+x)E_0}2 + \frac{m_2M_0}{2C_\beta B}\right)\right]$,
    with $E_0$ and $M_0$ of `bias_square` and `moment_constant`.

    Arguments:
        c: L, rho, sigma, sigma_g, sigma_H and gap.
        alpha, steps: inner step size and N, with $q = (1+\alpha L)^{2N} < 2$; lam and mu are not used.
        iterations: K.
        tasks_per_step: B.
        step_samples, curvature_samples, target_samples: S, D, T.
        smoothness_tasks, smoothness_samples: B' and $D_L$, the numbers of tasks and of samples that $\hat L_k$ is measured on.
        C_beta: constant of the outer step $\beta_k = 1/(C_\beta\hat L_k)$, at least $m_2 = 1 + 3x$ (default 2).

    All numbers of tasks, samples and iterations are at least 1, and may be infinite.

    Returns: a `Bound`.

    Errors: `InputError` where the theorem does not apply: q is at least 2, $\kappa$ is not positive or $C_\beta < m_2$ (the
        message says what to raise), or gap is not known.

    Example:
        >>> from adaptax import theory
        >>> c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, sigma_g=0.5, sigma_H=0.5, gap=1.0)
        >>> bound = theory.resampling(
        ...     c, alpha=0.025, steps=5, iterations=1e4, tasks_per_step=50, step_samples=100, curvature_samples=10,
        ...     target_samples=10, smoothness_tasks=10, smoothness_samples=10,
        ... )
        >>> round(bound.gradient, 3)
        0.055

    Source: docs/theory.md, section 6; cf. Ji, Yang, Liang (2022), JMLR 23.
    """
    path = Expansion(alpha, c.L, steps).contracted()
    sizes = {
        "iterations": iterations, "tasks_per_step": tasks_per_step, "step_samples": step_samples,
        "curvature_samples": curvature_samples, "target_samples": target_samples, "smoothness_tasks": smoothness_tasks,
        "smoothness_samples": smoothness_samples,
    }  # fmt: skip
    check_sizes(c, C_beta, sizes)
    return resampling_ledger(path, c, C_beta, sizes).bound(C_beta, sizes, least_C_beta=True)


def bias_square(path: Expansion, c: Constants, step_samples: float) -> float:
    r"""$E_0 = \frac2S\left(\frac{c_3}{\sqrt S} + \frac{c_2\sigma}{2-q}\right)^2$ [loss² / w²].

    Source: docs/theory.md, section 6.
    """
    slope, constant = sampling.bias_slope(path, c), sampling.bias_constant(path, c)
    return 2 / step_samples * (constant / math.sqrt(step_samples) + slope * c.sigma / path.margin) ** 2


def moment_constant(
    path: Expansion, c: Constants, step_samples: float, curvature_samples: float, target_samples: float
) -> float:
    r"""$M_0 = h^N\{\sigma_g^2/T + 2L^2m_N^2\sigma_g^2/S + 2q\sigma^2[2(q-1)^2/(2-q)^2 + 1]\}$ [loss² / w²].

    Source: docs/theory.md, section 6.
    """
    drift = 2 * (path.L * sampling.path_error(path, c, path.steps, step_samples)) ** 2
    tasks = 2 * path.q * c.sigma**2 * (2 * (path.shift / path.margin) ** 2 + 1)
    growth = sampling.factor_growth(path, c, curvature_samples) ** path.steps
    return growth * (c.sigma_g**2 / target_samples + drift + tasks)


def _best_theta(room: float, expansion: float, total: float, spread: float) -> float:
    """The theta that makes (total + spread / theta) / (room - expansion theta) least."""
    if spread == 0:
        return 0.0
    if room <= 0:
        # No theta makes kappa positive, so every one leads to the same refusal.
        return 1.0
    if expansion == 0:
        return math.inf
    ratio = spread / total
    return -ratio + math.sqrt(ratio**2 + ratio * room / expansion)


def check_sizes(c: Constants, C_beta: float, sizes: Sizes) -> None:
    """`InputError` if the gap is not known, C_beta is not positive, or a size is below 1."""
    if c.gap is None:
        raise InputError("The gap between the first and the least meta-loss is not known: give Constants(gap=...).")
    check_real("", "C_beta", C_beta, above=0)
    for name, value in sizes.items():
        if value != math.inf:
            check_real("", name, value, least=1)
