"""The ingredients of all bounds: the constants of a family of tasks, and the expansion of an inner path."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.theory.powers import excess, geometric, maximum, power

__all__ = ["Constants", "Expansion", "excess", "largest_alpha"]


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
        lam, mu: $-\mu I \preceq \nabla^2 l_i \preceq \lambda I$ for the losses that the inner steps descend on (finite-sum:
            the support losses) [loss / w²]. $\mu = 0$: convex; $\mu < 0$: strongly convex (default None: both L).

    Constants measured along a run (`ax.measure.constants`) are lower estimates of these.

    Errors: `InputError` for a number that is negative or not finite, for L = 0, and unless
        $-\lambda \le \mu \le L$ and $0 \le \lambda \le L$.

    Example:
        >>> from adaptax import theory
        >>> theory.Constants(L=2.0, rho=1.0, sigma=0.5, gap=3.0).b
        0.0
        >>> convex = theory.Constants(L=2.0, rho=1.0, sigma=0.5, mu=0.0)
        >>> convex.path(alpha=0.5, steps=100).q
        1.0

    Source: docs/theory.md, sections 0 and 6.1; cf. Ji, Yang, Liang (2022), assumptions 1 to 6.
    """

    L: float
    rho: float
    sigma: float
    sigma_g: float = 0.0
    sigma_H: float = 0.0
    b: float = 0.0
    gap: float | None = None
    lam: float | None = None
    mu: float | None = None

    def __post_init__(self):
        object.__setattr__(self, "L", check_real("Constants", "L", self.L, above=0))
        for name in ("rho", "sigma", "sigma_g", "sigma_H", "b", "gap"):
            if (value := getattr(self, name)) is not None or name != "gap":
                object.__setattr__(self, name, check_real("Constants", name, value, least=0))
        _check_curvature("Constants", self)

    def path(self, alpha: Any, steps: int) -> "Expansion":
        """The expansion of a path of so many steps under these L, lam and mu."""
        return Expansion(alpha, self.L, steps, self.lam, self.mu)


def _check_curvature(where: str, of: Any) -> None:
    """Check lam and mu, where they are known numbers, and make them Python floats."""
    most = float(of.L) if isinstance(of.L, Real) else math.inf
    if isinstance(of.lam, Real):
        object.__setattr__(of, "lam", check_real(where, "lam", of.lam, least=0, most=most))
    if isinstance(of.mu, Real):
        least = most if of.lam is None else float(of.lam) if isinstance(of.lam, Real) else math.inf
        object.__setattr__(of, "mu", check_real(where, "mu", of.mu, least=-least, most=most))


@dataclass(frozen=True)
class Expansion:
    r"""How far an inner path of N steps can expand: $r = \max(1+\alpha\mu, \alpha\lambda-1)$, $p = r^N$, $q = r^{2N}$.

    All are pure numbers. $r = \max\|I - \alpha H\|$ over $-\mu I \preceq H \preceq \lambda I$; without lam and mu it is
    $1+\alpha L$. $\alpha$, L, lam and mu may be arrays, traced ones too; arrays are not checked.

    Arguments:
        alpha: inner step size $\alpha$ [w² / loss].
        L: Lipschitz constant of the gradients.
        steps: N, at least 0.
        lam, mu: bounds on the curvature of the losses that the steps descend on, from above and from below; see `Constants`
            (default None: both L).

    Errors: `InputError` if N is not a whole number of at least 0, $\alpha$ or L is not positive and finite, or lam and mu are
        not as in `Constants`.

    Example:
        >>> from adaptax import theory
        >>> path = theory.Expansion(alpha=0.5, L=1.0, steps=2)
        >>> path.p, path.q
        (2.25, 5.0625)
        >>> theory.Expansion(alpha=0.5, L=1.0, steps=2, mu=-0.5).p
        0.5625

    Source: docs/theory.md, sections 0, 4 and 6.1.
    """

    alpha: Any
    L: Any
    steps: int
    lam: Any = None
    mu: Any = None

    def __post_init__(self):
        object.__setattr__(self, "steps", check_whole("Expansion", "steps", self.steps, least=0))
        for name in ("alpha", "L"):
            if isinstance(value := getattr(self, name), Real):
                check_real("Expansion", name, value, above=0)
        _check_curvature("Expansion", self)

    @property
    def growth(self) -> Any:
        """r - 1: by how much one step can expand, negative where it contracts."""
        if self.mu is None:
            return self.alpha * self.L
        return maximum(self.alpha * self.mu, self.alpha * (self.L if self.lam is None else self.lam) - 2)

    @property
    def r(self) -> Any:
        """How far one step can expand; 1 + alpha L without lam and mu."""
        return 1 + self.growth

    @property
    def p(self) -> Any:
        """r^N: how far the path can expand."""
        return power(self.growth, self.steps)

    @property
    def q(self) -> Any:
        """r^(2N): how far the path and the reverse recursion together can expand."""
        return power(self.growth, 2 * self.steps)

    @property
    def before(self) -> Any:
        """r^(N - 1); 1 for N = 0, where it is multiplied by zero."""
        return power(self.growth, max(self.steps - 1, 0))

    @property
    def path_sum(self) -> Any:
        """S_N, the sum of r^j over the steps j < N: the path is at most alpha S_N times the first gradient long."""
        return geometric(self.growth, self.steps)

    @property
    def drift(self) -> Any:
        """alpha L S_N: how much a gradient can change along the path, for a first gradient of 1; p - 1 if r = 1 + alpha L."""
        return self.alpha * self.L * self.path_sum

    @property
    def shift(self) -> Any:
        """alpha L S_2N: how far a product of 2N factors can be from the identity; q - 1 if r = 1 + alpha L."""
        return self.alpha * self.L * geometric(self.growth, 2 * self.steps)

    @property
    def margin(self) -> Any:
        """1 - alpha L S_2N, which the theorems of section 5 need to be positive; 2 - q if r = 1 + alpha L."""
        return 1 - self.shift

    def contracted(self) -> "Expansion":
        """This expansion if alpha L S_2N < 1, else `InputError` that says how small alpha must be."""
        if self.margin <= 0:
            least = largest_alpha(self.L, self.steps)
            if self.mu is None:
                raise InputError(
                    f"q = (1 + alpha L)^(2N) is {self.q:.4g}, and the theorem needs q < 2: lower alpha from {self.alpha:.4g} "
                    f"to below {least:.4g} (or gamma to at most {math.log(2) / 2:.4f})."
                )
            raise InputError(
                f"alpha L S_2N is {self.shift:.4g}, and the theorem needs it below 1: lower alpha from {self.alpha:.4g} (below "
                f"{least:.4g} it is), or use adapted_convergence, which needs no such thing."
            )
        return self


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
