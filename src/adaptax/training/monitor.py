"""Whether the inner steps are stable: measured now and then during training, with a warning that names the remedy."""

import math
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from adaptax.batching import in_flight_for, map_tasks
from adaptax.measure.points import Effort, walk
from adaptax.objective import STEP, fold, plain, step_loss
from adaptax.stepsize.rates import Rates
from adaptax.stepsize.rules import Guaranteed
from adaptax.theory.constants import excess
from adaptax.training.step import State, Step

NAMES = ("q", "alpha_lambda", "rising")
# Of the tasks that stability is measured on; indices of a meta-step's own tasks are smaller.
_APART = 2**32 - 4
_TASKS = 16
# Products at each point; rho is not measured, and Hessians of a resampling problem are those of 20 samples.
_EFFORT = Effort(iterations=8, changes=0, draws=20, radius=None)


class StabilityWarning(UserWarning):
    """The inner step size is too large for the curvature along the inner paths."""


class Stability(NamedTuple):
    r"""What was found along the inner paths of 16 tasks apart from those of the meta-step.

    Arguments:
        q: $(1 + \alpha\hat L)^{2N}$ with the largest $|\text{eigenvalue}|$ found; the theorem needs q < 2.
        alpha_lambda: $\alpha\hat\lambda$ with the largest eigenvalue found; beyond 2 a step along it overshoots.
        rising: the share of tasks whose inner loss is larger after the path than before it, or not finite.

    The first two are NaN where an inner optimiser makes the steps; of several rates $\alpha$ is the largest.
    """

    q: float
    alpha_lambda: float
    rising: float


def monitor(step: Step, state: State) -> Stability:
    """Measure stability at this state."""
    alpha, highest, size, rising = (float(x) for x in jax.device_get(_monitor(step, state)))
    if state.inner.optimizer is not None:
        return Stability(math.nan, math.nan, rising)
    try:
        q = 1 + excess(alpha * size, 2 * state.inner.steps)
    except OverflowError:
        q = math.inf
    return Stability(q, alpha * highest, rising)


def warn(step: Step, done: int, found: Stability) -> None:
    """Say in a warning what to change, if anything must be."""
    rule = step.method.inner.stepsize
    if found.alpha_lambda > 2:
        remedy = f"make it {2 / found.alpha_lambda:.2g} times as large or less, or use ax.stepsize.Edge() (--stepsize edge)"
        if hasattr(rule, "gamma"):
            remedy = f"lower gamma= of {type(rule).__name__} (edge:0.5), or let it measure more often (every=)"
        warnings.warn(
            f"At meta-step {done} the inner step size is {found.alpha_lambda:.3g}/lambda, and beyond 2/lambda steps overshoot "
            f"({found.rising:.0%} of the tasks end with a larger loss): {remedy}.",
            StabilityWarning,
            stacklevel=4,
        )
    elif isinstance(rule, Guaranteed) and found.q >= 2:
        warnings.warn(
            f"At meta-step {done} q = (1 + alpha L)^(2N) is {found.q:.3g} with the curvature found now, and the theorem needs "
            "q < 2: lower gamma= of Guaranteed (at most 0.3466), or let it measure more often (every=).",
            StabilityWarning,
            stacklevel=4,
        )


@eqx.filter_jit
def _monitor(step: Step, state: State) -> tuple[Array, Array, Array, Array]:
    problem, inner, samples = step.problem, state.inner, step.method.samples
    apart: Any = fold(state.key, state.step, _APART)
    keys = jax.vmap(lambda i: jax.random.fold_in(apart, i))(jnp.arange(_TASKS))
    tasks = jax.vmap(lambda key: problem.sample_task(jax.random.fold_in(key, 0)))(keys)
    start, rates = inner.unpack(state.params)
    split = inner.split(start)

    def one(pair):
        task, key = pair
        own = jax.random.fold_in(key, 1)
        found = walk(problem, state.params, inner, task, own, _EFFORT, samples)
        loss = step_loss(plain(problem, task, split.static), own, STEP, samples.step)
        # Before and after on the same samples.
        first, last = (loss(w, split.frozen, jnp.array(0)) for w in (split.adapting, found.final))
        return found.lambda_max, found.L, ~(last <= first)

    size = in_flight_for(problem, start, tasks, keys, samples, step.in_flight)
    highs, sizes, rising = map_tasks(one, (tasks, keys), size)
    return _largest(rates), jnp.nanmax(highs), jnp.nanmax(sizes), jnp.mean(rising)


def _largest(rates: Rates) -> Array:
    return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(rates.tree)]))
