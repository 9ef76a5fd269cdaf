"""The ingredients of all bounds: the constants of a family of tasks, and the expansion of an inner path."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError


@dataclass(frozen=True)
class Constants:
    r"""The constants of the theorems' assumptions: suprema over all parameters w (units in brackets).

    Arguments:
        L: Lipschitz constant of the gradients $\nabla l_i$, support and target losses alike [loss / w²], positive.
        rho: Lipschitz constant of the Hessians [loss / w³].
        sigma: $\sup_w(E_i\|\nabla l_i - \nabla l\|^2)^{1/2}$; finite-sum: of the target losses [loss / w].
        sigma_g: $\sup_w(E\|\nabla l_i(w;\tau) - \nabla l_i(w)\|^2)^{1/2}$, one sample, all coordinates [loss / w]; it is used
            in the resampling case alone.
        sigma_H: $\sup_{w,\|u\|=1}(E\|(\nabla^2 l_i(w;\tau) - \nabla^2 l_i(w))u\|^2)^{1/2}$ [loss / w²]; it is
            used in the resampling case alone.
        b: $\sup_w(E_i\|\nabla l_{S_i} - \nabla l_{T_i}\|^2)^{1/2}$ [loss / w]; it is used in the finite-sum case alone.
        gap: $\Delta = \mathcal L(w_0) - \inf\mathcal L$ [loss] (default None: not known; the convergence theorems need it).

    Constants measured along a run (`ax.measure.constants`) are lower estimates of these.

    Errors: `InputError` for a number that is negative or not finite, and for L = 0.

    Example:
        >>> from adaptax import theory
        >>> theory.Constants(L=2.0, rho=1.0, sigma=0.5, gap=3.0).b
        0.0

    Source: docs/theory.md, section 0; cf. Ji, Yang, Liang (2022), assumptions 1 to 6.
    """

    L: float
    rho: float
    sigma: float
    sigma_g: float = 0.0
    sigma_H: float = 0.0
    b: float = 0.0
    gap: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "L", check_real("Constants", "L", self.L, above=0))
        for name in ("rho", "sigma", "sigma_g", "sigma_H", "b", "gap"):
            if (value := getattr(self, name)) is not None or name != "gap":
                object.__setattr__(self, name, check_real("Constants", name, value, least=0))


def excess(rate: Any, steps: int) -> Any:
    r"""$(1 + x)^n - 1$ for $x \ge 0$ without cancellation, for numbers and arrays, traced ones too.

    It is computed by repeated squaring: with $e_n = (1+x)^n - 1$, $e_{m+n} = e_m + e_n + e_m e_n$ is a sum of positive terms.

    Arguments:
        rate: x.
        steps: n, a whole number of at least 0.

    Example:
        >>> excess(1e-18, 3) / 1e-18, excess(1.0, 10)
        (3.0, 1023.0)
    """
    total, power = 0 * rate, rate
    while steps:
        if steps & 1:
            total = total + power + total * power
        power, steps = power * (2 + power), steps >> 1
    return total


@dataclass(frozen=True)
class Expansion:
    r"""How far an inner path of N steps can expand: $r = 1+\alpha L$, $p = r^N$, $q = r^{2N}$ (pure numbers).

    $\alpha$ and L may be arrays, traced ones too; arrays are not checked.

    Arguments:
        alpha: inner step size $\alpha$ [w² / loss].
        L: Lipschitz constant of the gradients.
        steps: N, at least 0.

    Errors: `InputError` if N is not a whole number of at least 0, or $\alpha$ or L is not positive and finite.

    Example:
        >>> from adaptax import theory
        >>> path = theory.Expansion(alpha=0.5, L=1.0, steps=2)
        >>> path.p, path.q
        (2.25, 5.0625)

    Source: docs/theory.md, sections 0 and 4.
    """

    alpha: Any
    L: Any
    steps: int

    def __post_init__(self):
        object.__setattr__(self, "steps", check_whole("Expansion", "steps", self.steps, least=0))
        for name in ("alpha", "L"):
            if isinstance(value := getattr(self, name), Real):
                check_real("Expansion", name, value, above=0)

    @property
    def r(self) -> Any:
        """1 + alpha L: how far one step can expand."""
        return 1 + self.alpha * self.L

    @property
    def p_excess(self) -> Any:
        """p - 1, without cancellation."""
        return excess(self.alpha * self.L, self.steps)

    @property
    def q_excess(self) -> Any:
        """q - 1, without cancellation."""
        return excess(self.alpha * self.L, 2 * self.steps)

    @property
    def p(self) -> Any:
        """(1 + alpha L)^N: how far the path can expand."""
        return 1 + self.p_excess

    @property
    def q(self) -> Any:
        """(1 + alpha L)^(2N): how far the path and the reverse recursion together can expand."""
        return 1 + self.q_excess

    @property
    def before(self) -> Any:
        """(1 + alpha L)^(N - 1); 1 for N = 0, where it is multiplied by zero."""
        return 1 + excess(self.alpha * self.L, max(self.steps - 1, 0))

    @property
    def margin(self) -> Any:
        """2 - q, which the theorems need to be positive."""
        return 1 - self.q_excess

    def contracted(self) -> "Expansion":
        """This expansion if q < 2, else `InputError` that says how small alpha must be."""
        if self.margin <= 0:
            least = largest_alpha(self.L, self.steps)
            raise InputError(
                f"q = (1 + alpha L)^(2N) is {self.q:.4g}, and the theorem needs q < 2: lower alpha from {self.alpha:.4g} "
                f"to below {least:.4g} (or gamma to at most {math.log(2) / 2:.4f})."
            )
        return self


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


def largest_alpha(L: float, steps: int) -> float:
    r"""$(2^{1/(2N)} - 1)/L$: q < 2 if and only if $\alpha$ is smaller; infinite for N = 0.

    Arguments:
        L: Lipschitz constant of the gradients.
        steps: N.

    Example:
        >>> from adaptax import theory
        >>> round(theory.largest_alpha(1.0, steps=1), 6)
        0.414214

    Source: docs/theory.md, section 5.
    """
    return math.inf if steps == 0 else math.expm1(math.log(2) / (2 * steps)) / L


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
