r"""Step sizes kept below the edge of stability: curvature in the norm of the step sizes, along the paths that they walk.

A step $w - A\nabla l(w)$ contracts along every direction of curvature in $(0, 2)$ of $A^{1/2}\nabla^2l(w)A^{1/2}$, whose
eigenvalues are those of $A\nabla^2l(w)$ (docs/theory.md, section 5).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._batching import map_tasks
from adaptax._keys import RULE, fold
from adaptax._recursion import Point, threaded
from adaptax.curvature.exact import Exact
from adaptax.gradients.autodiff import AutoDiff
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.auto import Auto
from adaptax.stepsize.learned import Learned, LearnedRates
from adaptax.stepsize.rates import multiply
from adaptax.stepsize.rules import Estimate
from adaptax.stepsize.walk import curvature_at, power_iteration

# No step size is lowered by more than this factor at one look, also where a path is not finite.
_LEAST = 0.5


class Steepest(NamedTuple):
    r"""The point of a path where the curvature in the norm of the step sizes is largest.

    Arguments:
        curvature: $\|A_j^{1/2}\nabla^2l(w_j)A_j^{1/2}\|$ there; infinite if the path does not stay finite; 0 if its first
            gradient is not, which no step size mends.
        direction: the unit direction v of that curvature, like the adapting parameters; always finite.
        step: j.
    """

    curvature: Array
    direction: PyTree
    step: Array


def guard_of(method: Any) -> Auto | None:
    """How learned step sizes of a method are held below the edge of stability in training; None where they are not."""
    inner, rule = method.inner, method.inner.stepsize
    if isinstance(rule, Auto):
        return rule if inner.steps else None
    # An inner optimiser's steps have no such edge, and smoothed losses no curvature.
    plain = inner.steps and inner.optimizer is None and isinstance(inner.gradients, AutoDiff)
    if not (plain and isinstance(rule, Learned) and rule.growth is not None):
        return None
    # Other curvatures than the exact one serve losses that cannot be differentiated twice.
    return Auto(growth=rule.growth, differences=not isinstance(getattr(method, "curvature", None), Exact))


def steepest(path: TaskPath, rule: Auto, direction: PyTree) -> Steepest:
    """Search along a path that is walked with its own step sizes, by power iteration from the direction before.

    Arguments:
        path: the path, with the step sizes in use.
        rule: how many products are taken, and how.
        direction: the direction from which the search starts.
    """

    def point(carry, x):
        at, v, best, usable = carry
        w, rest = at.w, threaded(path.rest, at.state)
        gradient, product = curvature_at(path.loss, w, rest, x["j"], rule.differences, path.inner.update.proximal)
        rate = path.rates.tree if x["rate"] is None else x["rate"]
        root = jax.tree.map(lambda a: jnp.sqrt(jnp.abs(a)), rate)
        value, found = power_iteration(lambda v: multiply(root, product(multiply(root, v))), v, rule.iterations)
        usable &= (x["j"] > 0) | _tree.all_finite(gradient)
        good = jnp.isfinite(value) & _tree.all_finite(found)
        v = _tree.select(good, found, v)
        here = Steepest(jnp.where(good, value, jnp.inf).astype(best.curvature.dtype), v, x["j"].astype(best.step.dtype))
        best = _tree.select(here.curvature > best.curvature, here, best)
        new = path.inner.update(w, at.opt_state, gradient, path.split.adapting, rate)
        return (Point(*new, path.advance(w, rest, x["j"])), v, best, usable), None

    nothing = Steepest(jnp.zeros(()), direction, jnp.zeros((), jnp.int32))
    start = path.start, direction, nothing, jnp.array(True)
    (last, _, best, usable), _ = jax.lax.scan(point, start, path.inputs)
    value = jnp.where(_tree.all_finite(last.w), best.curvature, jnp.inf)
    return best._replace(curvature=jnp.where(usable, value, 0))


def hold(
    rule: Auto, inner: Inner, stepsize: Any, estimate: Estimate, problem: AbstractProblem, params: PyTree, tasks: PyTree,
    keys: Any, samples: Samples,
) -> tuple[Any, Estimate]:  # fmt: skip
    r"""The step sizes, lowered where the curvature in their norm is beyond the edge, and the estimate; all of them by half
    where a path is not finite.

    Since $\partial\log\lambda_A/\partial\log a_p = v_p^2$, the smallest change of the logarithms that takes the curvature
    $\lambda_A$ to the edge is, to first order, $-\log(\lambda_A/\text{edge})\,q/\|q\|^2$; q has, for each step size, the sum of
    $v_p^2$ over the parameters that share it.

    Arguments:
        rule: the rule.
        inner: the inner loop; its step size is not used.
        stepsize: the step sizes in use.
        estimate: its direction is where the search starts.
        problem, params, tasks, keys, samples: as for `ax.stepsize.resolve`.
    """

    def one(inputs):
        task, key = inputs
        path = TaskPath(problem, inner.with_stepsize(stepsize), params, task, fold(key, RULE), samples)
        return steepest(path, rule, estimate.direction)

    found = map_tasks(one, (tasks, keys))
    worst = jax.tree.map(lambda leaf: leaf[jnp.argmax(found.curvature)], found)
    value = worst.curvature.astype(estimate.curvature.dtype)
    finite, least = jnp.isfinite(value), jnp.log(_LEAST)
    edge = rule.edge(inner.steps)
    excess = jnp.where(finite, jnp.log(jnp.maximum(value, edge) / edge), 0)
    if isinstance(stepsize, LearnedRates):
        shares = _shares(stepsize, worst)
        total = sum(jnp.sum(jnp.square(share)) for share in jax.tree.leaves(shares))
        scale = excess / jnp.where(total > 0, total, 1)

        def factor(share):
            # A path that is not finite does not say which step sizes are too large.
            return jnp.where(finite, jnp.exp(jnp.maximum(-scale * share, least)), _LEAST)

        lowered = stepsize.times(jax.tree.map(factor, shares))
    else:
        lowered = stepsize * jnp.where(finite, jnp.exp(jnp.maximum(-excess, least)), _LEAST).astype(stepsize.dtype)
    return lowered, Estimate(value, worst.direction)


def _shares(stepsize: LearnedRates, at: Steepest) -> PyTree:
    """The sum of v_p^2 over the parameters that share each step size; of other steps' it is zero."""
    squares = jax.tree.map(jnp.square, at.direction)

    def over_parameters(tree):
        rate = jax.tree.map(lambda leaf: leaf[at.step], tree) if stepsize.per_step else tree
        return multiply(rate, jax.tree.map(jnp.ones_like, squares))

    return jax.vjp(over_parameters, stepsize.tree)[1](squares)[0]
