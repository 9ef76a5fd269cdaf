"""Whether the inner steps are stable: a callback that measures it, with a warning that names the remedy."""

import math
import warnings
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adaptax import _devices as dev
from adaptax._batching import map_tasks
from adaptax._finite import Lost, tell
from adaptax._keys import STABILITY, draw_tasks, fold, numbered
from adaptax.errors import NotFiniteWarning
from adaptax.inner_path import TaskPath
from adaptax.measure.path_curvature import Budget, measure_path
from adaptax.stepsize.auto import Auto
from adaptax.stepsize.rules import Guaranteed
from adaptax.theory.powers import power
from adaptax.training.callbacks import Callback, check_draws_tasks
from adaptax.training.step import State, Step

_TASKS = 16
# rho is not measured, and Hessians of a resampling problem are those of 20 samples.
_BUDGET = Budget(iterations=8, changes=0, draws=20, radius=None)


class StabilityWarning(UserWarning):
    """The inner step size is too large for the curvature along the inner paths."""


class Stability(NamedTuple):
    r"""Stability along the inner paths of 16 tasks apart from those of the meta-step.

    Arguments:
        q: $r^{2N}$, $r = \max(1 + \alpha\hat\mu, \alpha\hat\lambda - 1)$: how far a path and its meta-gradient can expand;
            below 1 where every step contracts.
        alpha_lambda: $\alpha\hat\lambda$ with the largest eigenvalue found; beyond 2 a step along it overshoots.
        rising: the share of tasks whose inner loss is larger after the path than before it, or not finite.
        alpha_mu: $N\alpha\hat\mu$, $-\hat\mu$ the smallest eigenvalue found: along it a path grows by up to its exponential.
            Negative where all eigenvalues found are positive.

    All but `rising` are NaN where an inner optimiser makes the steps. Where there are several step sizes A, $\alpha\hat\lambda$
    and $-\alpha\hat\mu$ stand for the extreme eigenvalues of $A^{1/2}\nabla^2lA^{1/2}$. Both are lower estimates. In runs begun
    before the two ends were told apart, the series has no `alpha_mu` up to there, and q was $(1 + \alpha\hat L)^{2N}$.
    """

    q: float
    alpha_lambda: float
    rising: float
    alpha_mu: float


class StabilityMonitor(Callback):
    """`Stability` at intervals; a `StabilityWarning` names the remedy when steps overshoot.

    Arguments:
        step: the meta-step of the run.
        every: meta-steps between measurements.
    """

    name = "stability"
    columns: ClassVar = {name: name for name in Stability._fields}

    def __init__(self, step: Step, every: int):
        super().__init__(every)
        check_draws_tasks(step.problem, "monitor_every=", "give a problem that has some")
        self.step, self.told = step, False

    def check(self, state: State) -> None:
        """Refuse a loss whose curvature cannot be measured, before the first meta-step."""
        eqx.filter_eval_shape(_measure, self.step, state, None)

    def measure(self, state: State) -> dict[str, Any]:
        found, lost = _stability(self.step, state)
        warn(self.step, int(state.step), found)
        if lost.any() and not self.told:
            self.told = True
            warnings.warn(_why(self.step, state, lost), NotFiniteWarning, stacklevel=5)
        return found._asdict()


def measure_stability(step: Step, state: State) -> Stability:
    """Measure stability at this state."""
    return _stability(step, state)[0]


def _stability(step: Step, state: State) -> tuple[Stability, np.ndarray]:
    """Stability, and for which tasks no curvature was finite."""
    # Where the parameters are cut, the compiler spreads the work over their devices itself.
    mesh = step.mesh if dev.shards(step.mesh) == 1 else None
    step, state = dev.replicate(mesh, (step, state))
    lams, mus, rising = (x[:_TASKS] for x in jax.device_get(dev.whole(mesh, _measure(step, state, mesh))))
    lost = ~np.isfinite(lams)
    lam, mu = (math.nan if np.isnan(x).all() else float(np.nanmax(x)) for x in (lams, mus))
    rising = float(np.mean(rising))
    steps = state.inner.steps
    if state.inner.optimizer is not None:
        return Stability(math.nan, math.nan, rising, math.nan), lost
    try:
        q = power(max(mu, lam - 2), 2 * steps)
    except OverflowError:
        q = math.inf
    return Stability(q, lam, rising, steps * mu), lost


def _why(step: Step, state: State, lost: np.ndarray) -> str:
    """How many of the monitor's tasks were passed over, which was the first, and why."""
    state, rule = dev.collect(step.mesh, state), step.method.inner.stepsize
    method, apart = step.method.with_inner(state.inner), fold(state.key, state.step, STABILITY)
    text = tell(Lost.of(lost), step.problem, state.inner, state.params, method.samples, apart, method=method, rule=rule)
    return f"At meta-step {int(state.step)} the stability monitor passed over tasks of its own. {text}"


def warn(step: Step, done: int, found: Stability) -> None:
    """Say in a warning what to change, if anything must be."""
    rule, guard = step.method.inner.stepsize, step.guard
    # The guard lets the largest of its tasks go beyond 2, and lowers step sizes only when it looks.
    if found.alpha_lambda > (2 if guard is None else 2 * guard.edge(step.method.inner.steps)):
        remedy = f"make it {2 / found.alpha_lambda:.2g} times as large or less, or use ax.stepsize.Edge() (--stepsize edge)"
        if hasattr(rule, "gamma"):
            own = {Auto: "growth= of Auto", Guaranteed: "gamma_plus= of Guaranteed"}.get(type(rule))
            own = own or f"gamma= of {type(rule).__name__} (edge:0.5)"
            remedy = f"lower {own}, or let it measure more often (every=)"
        elif guard is not None:
            remedy = "lower growth= of Learned"
        warnings.warn(
            f"At meta-step {done} the inner step size is {found.alpha_lambda:.3g}/lambda, and beyond 2/lambda steps overshoot "
            f"({found.rising:.0%} of the tasks end with a larger loss): {remedy}.",
            StabilityWarning,
            stacklevel=5,
        )
    elif isinstance(rule, Guaranteed) and found.q >= 2:
        warnings.warn(
            f"At meta-step {done} q = max(1 + alpha mu, alpha lambda - 1)^(2N) is {found.q:.3g} with the curvature found now, "
            "and the theorem's constants grow with it: lower gamma= of Guaranteed (at most 0.3466 for q < 2), or let it "
            "measure more often (every=).",
            StabilityWarning,
            stacklevel=5,
        )


@eqx.filter_jit
def _measure(step: Step, state: State, mesh: Any) -> tuple[Array, Array, Array]:
    """By task: the ends of the curvature along its path, and whether its loss rises."""
    apart = fold(state.key, state.step, STABILITY)
    index = jnp.minimum(jnp.arange(dev.share(mesh, _TASKS) * dev.rows(mesh)), _TASKS - 1)

    def local(shared, keys):
        problem, inner, params = shared

        def one(pair):
            task, key = pair
            path = TaskPath(problem, inner, params, task, key, step.method.samples)
            found = measure_path(path, _BUDGET, by_step_sizes=True)
            # Before and after on the same samples.
            before, after = (path.loss(w, path.rest, jnp.array(0)) for w in (path.split.adapting, found.final))
            return found.lam, found.mu, ~(after <= before)

        return (), map_tasks(one, draw_tasks(problem, keys), step.in_flight)

    return dev.spread(mesh, local, (step.problem, state.inner, state.params), numbered(apart, index))[1]
