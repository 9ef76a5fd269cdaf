"""Adaptation to one task, differentiable by the reverse recursion."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.curvature.exact import Exact
from adaptax.errors import InputError
from adaptax.gradients import AutoDiff
from adaptax.inner import Info, Inner
from adaptax.objective import STEP, check_key, check_problem, factors, require_keys, step_loss
from adaptax.problem import AbstractProblem, Samples
from adaptax.recursion import check_store, forward, reverse
from adaptax.stepsize.rates import Rates
from adaptax.stepsize.rules import AbstractRule
from adaptax.update import Update


class Adapted(NamedTuple):
    """Adapted parameters, the inner losses l(w_0), ..., l(w_{N-1}), and `Info`."""

    params: PyTree
    losses: Array
    info: Info


def adapt(
    problem: AbstractProblem,
    params: PyTree,
    task: PyTree,
    inner: Inner,
    key: Key[Array, ""] | None = None,
    *,
    samples: Samples = Samples(),  # noqa: B008
    store: str = "iterates",
) -> Adapted:
    r"""Adapt to one task by N gradient steps; differentiable, with the reverse recursion as its derivative rule.

    Reverse-mode derivatives by the parameters, by learned step sizes, by the proximal strength, and by the floating-point
    arrays of the task and the problem are exact, also through an inner optimiser, and their memory does not grow with the
    graphs of N steps. (With `ax.gradients.Smoothed` the rule is the recursion with exact Hessian-vector products.) Forward
    mode, such as `jax.jvp` of a program that calls `adapt`, is refused by JAX. A step size from a rule counts as a
    constant.

    Arguments:
        problem: the problem; `sample_task` is not used.
        params: parameters w_0, or `ax.Meta` for learned step sizes.
        task: one task (a `Task` with a support set for `FiniteSum`).
        inner: the inner loop; a rule that is not resolved is estimated on this task.
        key: for a resampling problem, and for gradients that draw directions.
        samples: sample sizes of a resampling problem; only `step` is used.
        store: "iterates" or "sqrt", as in `ax.MetaGradient`.

    Returns: `Adapted(params, losses, info)`: w_N, and l(w_0), ..., l(w_{N-1}).

    Errors: `InputError` for missing keys, an empty support set, a loss that is not scalar or does not fit.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> ax.adapt(problem, jnp.zeros(2), ax.Task(jnp.ones(2)), ax.Inner(steps=2, stepsize=0.5)).params
        Array([0.75, 0.75], dtype=float32)

    Source: docs/theory.md, section 1.
    """
    if not isinstance(problem, AbstractProblem):
        raise InputError(f"The problem must be ax.FiniteSum or ax.Resampling, not {type(problem).__name__}.")
    if not isinstance(inner, Inner):
        raise InputError(f"adapt needs ax.Inner(steps, stepsize) fourth, not {type(inner).__name__}.")
    if not isinstance(samples, Samples):
        raise InputError("samples= must be ax.Samples(step, curvature, target).")
    require_keys(problem, key, inner.gradients.stochastic)
    check_store(store)
    return _adapt(problem, params, task, inner, key, samples, store)


def _is_variable(leaf):
    return eqx.is_array(leaf) and _tree.is_floating(leaf)


@eqx.filter_jit
def _adapt(problem, params, task, inner, key, samples, store):
    check_key(key)
    inner.check_meta(params)
    check_problem(problem, inner.initial(params), task, samples, target=False)
    if isinstance(inner.stepsize, AbstractRule):
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], task)
        inner = inner.resolve(problem, params, batch, None if key is None else key[None], samples=samples)
    params, rates = inner.unpack(params)
    split = inner.split(params)
    rebuild = lambda w, given: (given[1], given[2], eqx.combine(w, given[0], split.static))  # noqa: E731
    given, fixed = eqx.partition((split.frozen, problem, task), _is_variable)

    def loss_of(w, given, j):
        return step_loss(rebuild, key, STEP, samples.step)(w, eqx.combine(given, fixed), j)

    # All arrays that the loss uses become arguments, those that the user's functions close over too: the floating-point
    # ones are variables, and what is left holds nothing that could carry a derivative.
    converted = eqx.filter_closure_convert(loss_of, split.adapting, given, jnp.zeros((), int))
    closed, others = eqx.partition(converted, _is_variable)
    rest = (given, closed)
    arrays, static = eqx.partition((others, inner, key), eqx.is_array)

    def parts(arrays, proximal):
        loss, inner, key = eqx.combine(arrays, static)
        step = lambda w, rest, j: eqx.combine(rest[1], loss)(w, rest[0], j)  # noqa: E731
        return step, inner.descent(step, key)._replace(update=Update(inner.optimizer, proximal))

    # Whatever the steps use is an argument: a derivative rule may not close over values of the program around it.
    @jax.custom_vjp
    def descend(w, rest, rates, proximal, arrays):
        path = forward(parts(arrays, proximal)[1], w, rest, rates, inner.steps, store)
        return path.final, path.losses

    def descend_forward(w, rest, rates, proximal, arrays):
        path = forward(parts(arrays, proximal)[1], w, rest, rates, inner.steps, store)
        return (path.final, path.losses), (path, rest, rates, proximal, arrays)

    def descend_reverse(residuals, bars):
        path, rest, rates, proximal, arrays = residuals
        loss, descent = parts(arrays, proximal)
        cotangent = (bars[0], _tree.zeros_like(rest))
        exact = factors(Exact(), AutoDiff(), loss, None)
        found = reverse(*exact, descent, path, rest, rates, cotangent, losses_bar=bars[1])
        return found.w, found.rest, Rates(found.rates, rates.per_step), found.proximal, None

    descend.defvjp(descend_forward, descend_reverse)
    final, losses = descend(split.adapting, rest, rates, inner.proximal, arrays)
    adapted = eqx.combine(final, split.frozen, split.static)
    return Adapted(adapted, losses, Info(jax.lax.stop_gradient(rates.mean()), losses))
