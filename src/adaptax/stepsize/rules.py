"""Step sizes from measured curvature: Edge and Guaranteed."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax._checks import check_real, check_true_or_false, check_whole
from adaptax._tree import select


class NoCurvature(UserWarning):
    """A step-size rule found no curvature: the loss is linear along the inner paths, or piecewise linear."""


class Estimate(eqx.Module):
    """A running estimate of the curvature along inner paths, part of the training state.

    Arguments:
        curvature: the estimate of the largest |eigenvalue| of the Hessian (0 before the first measurement).
        direction: a unit direction like the adapting parameters, from which the next measurement starts.
    """

    curvature: Array
    direction: PyTree


class AbstractRule(eqx.Module):
    r"""A rule that turns a curvature estimate $\hat\lambda$ into a step size.

    $\hat\lambda$ is the largest spectral norm of the Hessian that a power iteration finds along the inner paths of a few
    tasks; it is at least the largest eigenvalue found. In training it is refreshed every `every` meta-steps, rises at
    once and falls by at most the factor `decay` a refresh. Where there is none, as for a mean absolute error, $1/\hat\lambda$
    is the largest step size, by halving, at which no step turns the gradient by more than its own length and the path is no
    longer than $\|w_0\|$ (1 at zero). A convex loss does not rise then, and the warning `NoCurvature` says so.
    """

    gamma: eqx.AbstractVar[float]
    tasks: eqx.AbstractVar[int]
    every: eqx.AbstractVar[int]
    iterations: eqx.AbstractVar[int]
    decay: eqx.AbstractVar[float]
    differences: eqx.AbstractVar[bool]

    def __post_init__(self):
        where = type(self).__name__
        check_real(where, "gamma", self.gamma, above=0)
        self.tasks, self.every, self.iterations = (
            check_whole(where, name, getattr(self, name)) for name in ("tasks", "every", "iterations")
        )
        self.decay = check_real(where, "decay", self.decay, least=0, most=1)
        self.differences = check_true_or_false(where, "differences", self.differences)

    def alpha(self, curvature: Array, steps: int) -> Array:
        """The step size for this curvature and N = `steps`."""
        raise NotImplementedError("abstract")

    def update(self, estimate: Estimate, measured: Array, direction: PyTree) -> Estimate:
        """Rise at once, fall slowly; a measurement that is not finite changes nothing."""
        good = jnp.isfinite(measured)
        curvature = jnp.maximum(jnp.where(good, measured, 0), self.decay * estimate.curvature)
        return select(good, Estimate(curvature, direction), estimate)


def _inverse(curvature: Array) -> Array:
    return 1 / jnp.where(curvature > 0, curvature, 1)


class Edge(AbstractRule):
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


class Guaranteed(AbstractRule):
    r"""The rule of the convergence theorem, $\alpha = \gamma/(N\hat L)$, with $\gamma \le \tfrac12\ln 2 \approx 0.34657$.

    Then $(1+\alpha L)^{2N} < 2$ at every N, constants stay bounded and the total cost grows linearly in N. The total
    adaptation $\alpha N = \gamma/L$ is fixed, and small: a larger N refines the same gradient flow. N is the number of
    steps trained with; a resolved step size stays as it is when more steps are taken. The $\hat L$ measured is a lower
    estimate of the theorem's L, which is a supremum.

    Arguments:
        gamma: the theorem's constant (default 1/8, which gives $(1+\alpha L)^{2N} \le e^{1/4}$).
        tasks, every, iterations, decay, differences: as in `Edge`.

    Errors: `InputError` for values out of range.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> float(ax.stepsize.Guaranteed(gamma=1 / 8).alpha(jnp.array(4.0), steps=2))
        0.015625

    Source: docs/theory.md, sections 5 and 6; cf. Ji, Yang, Liang (2022).
    """

    gamma: float = 1 / 8
    tasks: int = eqx.field(static=True, default=4, kw_only=True)
    every: int = eqx.field(static=True, default=10, kw_only=True)
    iterations: int = eqx.field(static=True, default=3, kw_only=True)
    decay: float = eqx.field(static=True, default=0.8, kw_only=True)
    differences: bool = eqx.field(static=True, default=False, kw_only=True)

    def alpha(self, curvature, steps):
        return self.gamma * _inverse(curvature) / max(steps, 1)
