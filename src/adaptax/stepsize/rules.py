"""Step sizes from measured curvature: Edge and Guaranteed."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax._checks import check_real, check_true_or_false, check_whole
from adaptax._tree import select
from adaptax.theory.rules import two_sided_alpha


class NoCurvature(UserWarning):
    """A step-size rule found no curvature: the loss is linear along the inner paths, or piecewise linear."""


class Estimate(eqx.Module):
    """A running estimate of the curvature along inner paths, part of the training state.

    Arguments:
        curvature: the estimate of the largest |eigenvalue| of the Hessian, or, by a rule that measures both ends, of the
            largest eigenvalue (0 before the first measurement).
        direction: a unit direction like the adapting parameters, from which the next measurement starts.
        negative: by a rule that measures both ends, the estimate of minus the smallest eigenvalue, 0 where none is
            negative; else None.
    """

    curvature: Array
    direction: PyTree
    negative: Array | None = None


class AbstractRule(eqx.Module):
    r"""A rule that turns a curvature estimate $\hat\lambda$ into a step size.

    $\hat\lambda$ is the largest spectral norm of the Hessian that a power iteration finds along the inner paths of a few
    tasks; it is at least the largest eigenvalue found. In training it is refreshed every `every` meta-steps; by `Edge` and
    `Guaranteed` it rises at once and falls by at most the factor `decay` a refresh. Where there is none, as for a mean
    absolute error, $1/\hat\lambda$ is the largest step size, by halving, at which no step turns the gradient by more than its
    own length and the path is no longer than $\|w_0\|$ (1 at zero). A convex loss does not rise then, and the warning
    `NoCurvature` says so.

    A rule with `two_sided` gets both ends of the spectrum: the largest eigenvalue $\hat\lambda$ and minus the smallest,
    $\hat\mu$, by Lanczos. Each of them rises at once and falls slowly.
    """

    two_sided: ClassVar[bool] = False

    gamma: eqx.AbstractVar[float]
    tasks: eqx.AbstractVar[int]
    every: eqx.AbstractVar[int]
    iterations: eqx.AbstractVar[int]
    differences: eqx.AbstractVar[bool]

    def __post_init__(self):
        where = type(self).__name__
        check_real(where, "gamma", self.gamma, above=0)
        self.tasks, self.every, self.iterations = (
            check_whole(where, name, getattr(self, name)) for name in ("tasks", "every", "iterations")
        )
        self.differences = check_true_or_false(where, "differences", self.differences)

    def alpha(self, curvature: Array, steps: int) -> Array:
        """The step size for this curvature and N = `steps`."""
        raise NotImplementedError("abstract")

    def alpha_of(self, estimate: Estimate, steps: int) -> Array:
        """The step size for this estimate and N = `steps`."""
        return self.alpha(estimate.curvature, steps)

    def first_of(self, estimate: Estimate, steps: int, stochastic: bool) -> Array:
        """The step size to begin with; `stochastic` in the resampling case."""
        return self.alpha_of(estimate, steps)

    def kept(self, old: Array) -> Array:
        """The least value that an estimate may fall to."""
        return jnp.zeros_like(old)

    def update(self, estimate: Estimate, measured: Array, direction: PyTree, negative: Array | None = None) -> Estimate:
        """Rise at once, fall slowly; a measurement that is not finite changes nothing."""
        good = jnp.isfinite(measured)

        def follow(new, old):
            return jnp.maximum(jnp.where(good, new, 0), self.kept(old))

        if negative is None:
            return select(good, Estimate(follow(measured, estimate.curvature), direction), estimate)
        known = jnp.zeros_like(negative) if estimate.negative is None else estimate.negative
        before = Estimate(estimate.curvature, estimate.direction, known)
        return select(good, Estimate(follow(measured, before.curvature), direction, follow(negative, known)), before)


def _inverse(curvature: Array) -> Array:
    return 1 / jnp.where(curvature > 0, curvature, 1)


class AbstractFollowingRule(AbstractRule):
    """A rule whose step size follows the curvature through training: its estimate rises at once and falls slowly."""

    decay: eqx.AbstractVar[float]

    def __post_init__(self):
        super().__post_init__()
        self.decay = check_real(type(self).__name__, "decay", self.decay, least=0, most=1)

    def kept(self, old):
        return self.decay * old


class Edge(AbstractFollowingRule):
    r"""The practical rule $\alpha = \gamma/\hat\lambda$: where the Hessian's eigenvalues lie in $[0, \lambda]$,
    $I - \alpha H$ does not expand for $\alpha \le 2/\lambda$, whatever N.

    Outside the convergence theorem (see `Guaranteed`), it is the rule to train with: each step moves as far as the
    measured curvature allows, so that N steps adapt about N times as far as one.

    Arguments:
        gamma: the safety factor, about 1; below 2 (default 1.0).
        tasks: how many tasks the curvature is measured on (default 4).
        every: meta-steps between measurements in training (default 10).
        iterations: Hessian-vector products at each point of a path (default 3).
        decay: the most that the estimate may fall at one measurement (default 0.8).
        differences: form products from differences of gradients, for losses that cannot be differentiated twice.

    Errors: `InputError` for values out of range.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> float(ax.stepsize.Edge(gamma=1.0).alpha(jnp.array(4.0), steps=10))
        0.25

    Source: docs/theory.md, section 5.
    """

    gamma: float = 1.0
    tasks: int = eqx.field(static=True, default=4, kw_only=True)
    every: int = eqx.field(static=True, default=10, kw_only=True)
    iterations: int = eqx.field(static=True, default=3, kw_only=True)
    decay: float = eqx.field(static=True, default=0.8, kw_only=True)
    differences: bool = eqx.field(static=True, default=False, kw_only=True)

    def alpha(self, curvature, steps):
        return self.gamma * _inverse(curvature)


class Guaranteed(AbstractFollowingRule):
    r"""The rule of the convergence theorem: $\alpha = \min(\gamma_+/\hat\lambda,\ \gamma/(N\hat\mu))$.

    $\hat\lambda$ is the largest eigenvalue of the Hessians met along the inner paths and $-\hat\mu$ the smallest. Steps
    contract along positive curvature up to $2/\lambda$, so that only negative curvature can expand a path:
    $q = \max(1 + \alpha\mu, \alpha\lambda - 1)^{2N} \le e^{2\gamma}$ at every N, and constants stay bounded. A convex inner
    loss, such as that of a head under squared error or cross entropy, has no condition of order 1/N at all. N is the number
    of steps trained with; a resolved step size stays as it is when more steps are taken.

    Both ends are measured by Lanczos, since it approaches both at once; the power iteration of `Edge` finds the larger in
    absolute value, and a second one, shifted by $\hat\lambda$, hardly moves where $\mu \ll \lambda$. Lanczos starts from the
    sum of the two directions found last, so that few products a point are enough to follow them, after 12 more at w_0, where
    the directions of other tasks are left behind.

    Both numbers are **lower** estimates, each the largest of a few tasks, their paths and few products. The bound holds for
    Hessians whose eigenvalues do lie in $[-\hat\mu, \hat\lambda]$, and is no guarantee for tasks that were not measured;
    `ax.train(monitor_every=...)` says what other tasks have. A negative eigenvalue counts as rounding if it is smaller than
    $\sqrt\epsilon$ times the largest, with $\epsilon$ the precision of the parameters (3.5e-4 in single precision): what is so
    passed over adds at most $2N\gamma_+\sqrt\epsilon$ to $\ln q$, 0.07 at N = 100.

    Arguments:
        gamma: the bound on $\alpha N\hat\mu$; at most $\tfrac12\ln2 \approx 0.3466$ for q < 2 (default 1/8, so that
            $q \le e^{1/4}$).
        gamma_plus: the bound on $\alpha\hat\lambda$, at most 2 (default 1.0).
        tasks, every, iterations, decay, differences: as in `Edge`.

    Errors: `InputError` for values out of range.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> rule = ax.stepsize.Guaranteed(gamma=1 / 8)
        >>> float(rule.alpha(jnp.array(4.0), steps=2, negative=jnp.array(0.5)))
        0.125
        >>> float(rule.alpha(jnp.array(4.0), steps=2, negative=jnp.array(0.0)))
        0.25

    Source: docs/theory.md, sections 5 and 6.1; cf. Ji, Yang, Liang (2022), whose rule is $\gamma/(NL)$.
    """

    two_sided: ClassVar[bool] = True

    gamma: float = 1 / 8
    gamma_plus: float = eqx.field(default=1.0, kw_only=True)
    tasks: int = eqx.field(static=True, default=4, kw_only=True)
    every: int = eqx.field(static=True, default=10, kw_only=True)
    iterations: int = eqx.field(static=True, default=3, kw_only=True)
    decay: float = eqx.field(static=True, default=0.8, kw_only=True)
    differences: bool = eqx.field(static=True, default=False, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_real("Guaranteed", "gamma_plus", self.gamma_plus, above=0, most=2)

    def alpha(self, curvature, steps, negative=None):
        """The step size for the largest eigenvalue, N = `steps` and minus the smallest (None: it may be as large)."""
        negative = curvature if negative is None else negative
        # 1 where nothing is curved.
        known = jnp.where(jnp.maximum(curvature, negative) > 0, curvature, self.gamma_plus)
        return two_sided_alpha(known, negative, max(steps, 1), gamma_plus=self.gamma_plus, gamma=self.gamma)

    def alpha_of(self, estimate, steps):
        return self.alpha(estimate.curvature, steps, estimate.negative)
