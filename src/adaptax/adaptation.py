"""Adaptation to one task, differentiable by the reverse recursion."""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._checks import is_traced
from adaptax._devices import beside
from adaptax._finite import cause
from adaptax._intake import as_task
from adaptax._keys import check_key, require_keys
from adaptax._optimizers import check_optimizer
from adaptax._problem_checks import check_problem
from adaptax._recursion import check_store, forward, map_rest, reverse, threaded
from adaptax._update import Update
from adaptax.errors import InputError, NotFiniteWarning
from adaptax.inner import Info, Inner
from adaptax.inner_path import TaskPath, descent_of, factors_of
from adaptax.problem import AbstractProblem, Samples, check_is_problem, settled
from adaptax.stepsize.learned import Meta
from adaptax.stepsize.measurement import resolve_one
from adaptax.stepsize.rates import Rates
from adaptax.stepsize.rules import AbstractRule


class Adapted(NamedTuple):
    """Adapted parameters, the inner losses l(w_0), ..., l(w_{N-1}), `Info`, and the loss's last state (None without one)."""

    params: PyTree
    losses: Array
    info: Info
    state: PyTree = None


def adapt(
    problem: AbstractProblem,
    params: PyTree,
    task: PyTree,
    inner: Inner,
    key: Key[Array, ""] | None = None,
    *,
    samples: Samples = Samples(),  # noqa: B008
    store: str | int = "iterates",
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
        store: "iterates", "offload", "sqrt" or a number of iterates, as in `ax.MetaGradient`.

    Returns: `Adapted(params, losses, info, state)`: w_N, l(w_0), ..., l(w_{N-1}), and for a loss with a state s_N.
    `info.finite` says whether all are finite. If not, a `NotFiniteWarning` says where first, for which the call waits for its
    result; under `jax.vmap` or `jax.jit` nothing can be said at once: count `~info.finite`, and ask
    `ax.diagnose(problem, params, inner, tasks)`.

    Errors: `InputError` for missing keys, an empty support set, a loss that is not scalar or does not fit.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> ax.adapt(problem, jnp.zeros(2), ax.Task(jnp.ones(2)), ax.Inner(steps=2, stepsize=0.5)).params
        Array([0.75, 0.75], dtype=float32)

    Source: docs/theory.md, section 1.
    """
    check_is_problem(problem)
    if not isinstance(inner, Inner):
        raise InputError(f"adapt needs ax.Inner(steps, stepsize) fourth, not {type(inner).__name__}.")
    if not isinstance(samples, Samples):
        raise InputError("samples= must be ax.Samples(step, curvature, target).")
    require_keys(problem, key, inner.gradients.stochastic)
    check_store(store)
    task = beside(as_task(task), params)

    def run():
        return _adapt(problem, params, task, resolve_one(inner, problem, params, task, key, samples), key, samples, store)

    adapted = settled(problem, run)
    finite: Any = adapted.info.finite
    if not is_traced(finite) and not finite:
        rule = isinstance(inner.stepsize, AbstractRule) and not isinstance(params, Meta)
        walked = inner.with_stepsize(adapted.info.stepsize) if rule else inner
        found = cause(problem, walked, params, task, key, samples, target=False, rule=inner.stepsize)
        warnings.warn(f"The adapted task is not finite: {found}", NotFiniteWarning, stacklevel=2)
    return adapted


@eqx.filter_jit
def _adapt(problem, params, task, inner, key, samples, store):
    check_key(key)
    inner.check_meta(params)
    check_problem(problem, inner.initial(params), task, samples, target=False)
    path = TaskPath(problem, inner, params, task, key, samples, all_arrays=True)

    # All arrays that the loss uses become arguments, including those that the user's functions close over: the floating-point
    # ones are variables, and the others hold nothing that could carry a derivative.
    # A state is an argument too, with its first value among the variables.
    first = path.first_rest
    taken = path.step if path.carries else path.loss
    converted = eqx.filter_closure_convert(taken, path.split.adapting, first, jnp.zeros((), int))
    closed, others = eqx.partition(converted, _tree.is_floating)
    begun, begun_others = eqx.partition(first.state if path.carries else None, _tree.is_floating)
    rest = _Variables(path.rest, closed, begun)
    arrays, static = eqx.partition((others, begun_others, inner, key), eqx.is_array)

    def parts(arrays, proximal):
        converted, begun_others, inner, key = eqx.combine(arrays, static)

        class Carried:
            @staticmethod
            def begin(w, rest):
                return eqx.combine(rest.begun, begun_others)

            @staticmethod
            def step(w, rest, j):
                variables = rest.rest if path.carries else rest
                return eqx.combine(variables.closed, converted)(w, map_rest(lambda variables: variables.rest, rest), j)

            @staticmethod
            def advance(w, rest, j):
                return Carried.step(w, rest, j)[1]

        def step_loss(w, rest, j):
            return Carried.step(w, rest, j)[0] if path.carries else Carried.step(w, rest, j)

        update = Update(inner.optimizer, proximal)
        return step_loss, descent_of(inner, step_loss, update, key, Carried if path.carries else None)

    # Whatever the steps use is an argument: a derivative rule may not close over values of the program around it.
    @jax.custom_vjp
    def descend(w, rest, rates, proximal, arrays):
        walked = forward(parts(arrays, proximal)[1], w, rest, rates, inner.steps, store)
        return walked.final, walked.losses, walked.state

    def descend_forward(w, rest, rates, proximal, arrays):
        check_optimizer(inner.optimizer, w, inner.steps)
        walked = forward(parts(arrays, proximal)[1], w, rest, rates, inner.steps, store)
        return (walked.final, walked.losses, walked.state), (walked, rest, rates, proximal, arrays)

    def descend_reverse(residuals, cotangents):
        walked, rest, rates, proximal, arrays = residuals
        by_final, by_losses, by_state = cotangents
        loss, descent = parts(arrays, proximal)
        by_state = jax.tree.map(lambda ct, x: ct if _tree.is_floating(x) else None, by_state, walked.state)
        cotangent = (by_final, threaded(optax.tree.zeros_like(rest), by_state if path.carries else None))
        found = reverse(*factors_of(loss), descent, walked, rest, rates, cotangent, losses_cotangent=by_losses, store=store)
        return found.w, found.rest, Rates(found.rates, rates.per_step), found.proximal, None

    descend.defvjp(descend_forward, descend_reverse)
    final, losses, state = descend(path.split.adapting, rest, path.rates, inner.proximal, arrays)
    finite = _tree.all_finite((final, losses))
    return Adapted(path.params(final), losses, Info(jax.lax.stop_gradient(path.rates.mean()), losses, finite=finite), state)


class _Variables(NamedTuple):
    """What does not adapt: the path's own rest, arrays that the loss closes over, and the loss's first state."""

    rest: PyTree
    closed: PyTree
    begun: PyTree
