"""Step-size rules measured: the curvature along inner paths, and the step size that a rule makes of it."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._batching import check_batch, map_tasks
from adaptax._checks import is_traced
from adaptax._devices import beside
from adaptax._finite import cause
from adaptax._intake import as_batch
from adaptax._keys import RULE, check_key, draw_tasks, first, fold, numbered, own_key, require_keys
from adaptax._parameters import split
from adaptax._problem_checks import check_problem
from adaptax.errors import NotFiniteWarning
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.learned import Meta
from adaptax.stepsize.rules import AbstractRule, Estimate, NoCurvature
from adaptax.stepsize.walk import along_path, sum_of, turning_curvature

# Products spent at w_0 when nothing is known yet, and always for the smallest eigenvalue: it lies close to many others, so
# that from the direction of other tasks three products found 9 of 58, in a sinusoid network with a largest one of 1,500.
_COLD_START = 12


def first_estimate(adapting: PyTree) -> Estimate:
    """The estimate before any measurement, for parameters that adapt: curvature 0 and a fixed pseudo-random direction."""
    return Estimate(jnp.zeros(()), _tree.normal_like(jax.random.key(0), adapting))


def refresh(
    inner: Inner, rule: AbstractRule, estimate: Estimate, problem: AbstractProblem, params: PyTree, tasks: PyTree,
    keys: Key[Array, " B"] | None, *, samples: Samples, cold: bool = False,
) -> Estimate:  # fmt: skip
    """The estimate after one more measurement on a batch of tasks."""
    return measure(inner, rule, estimate, problem, params, tasks, keys, samples=samples, cold=cold)[0]


def measure(
    inner: Inner, rule: AbstractRule, estimate: Estimate, problem: AbstractProblem, params: PyTree, tasks: PyTree,
    keys: Key[Array, " B"] | None, *, samples: Samples, cold: bool = False, turn: bool = True,
) -> tuple[Estimate, Array]:  # fmt: skip
    """The estimate after one more measurement on a batch of tasks, and whether no curvature was found.

    Arguments:
        inner: the inner loop; its step size is not used.
        rule: the step-size rule.
        estimate: the estimate so far.
        problem, params, tasks, keys, samples: as for `resolve`.
        cold: whether nothing is known yet, so that more products are spent at w_0.
        turn: whether `turning_curvature` takes the place of curvature where there is none (`turning_if_flat` says why not).
    """

    def path_of(task, key):
        return TaskPath(problem, inner, params, task, fold(key, RULE), samples)

    def one(inputs):
        path = path_of(*inputs)
        warmup = _COLD_START if cold or rule.two_sided else 0
        w, advance = path.split.adapting, path.advance if path.carries else None
        return along_path(path.loss, w, path.first_rest, rule, inner.steps, estimate, warmup, inner.update, advance)

    def worst(values):
        return jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf))

    found = map_tasks(one, (tasks, keys))
    ends = [x for x in (found.negative, found.curvature) if x is not None]
    at = [worst(x) for x in ends]
    values = [x[i] for x, i in zip(ends, at, strict=True)]
    # Each end's direction is that of the task where it is largest.
    chosen = [jax.tree.map(lambda leaf, i=i: leaf[i], v) for v, i in zip(found.directions, at, strict=True)]
    flat = jnp.all(jnp.stack(values) == 0)

    def turning(inputs):
        path = path_of(*inputs)
        return turning_curvature(path.loss, path.split.adapting, path.first_rest, inner.steps, inner.update)

    if turn:
        value = values[0]
        instead = jax.lax.cond(flat, lambda: jnp.max(map_tasks(turning, (tasks, keys))).astype(value.dtype), lambda: value)
        values = [jnp.where(flat, instead, x) for x in values]
    return rule.update(estimate, values[-1], sum_of(*chosen), values[0] if rule.two_sided else None), flat


def turning_if_flat(measured: Callable[[bool], tuple[Any, Any, Array]]) -> tuple[Any, Any, Array]:
    """A compiled measurement, taken again with `turn` where its last part says that no curvature was found.

    Most losses are curved, and the program that also looks for turning gradients takes a third longer to compile: it is made
    only where it is needed, or where that is not known yet.
    """
    found = measured(False)
    flat = found[2]
    return measured(True) if isinstance(flat, Tracer) or bool(flat) else found


def warn_of_no_curvature(rule: AbstractRule, flat: Array, alpha: Array, steps: int) -> None:
    """Say that a rule found no curvature, where that is known yet and steps are taken."""
    if steps and not isinstance(flat, Tracer) and bool(flat):
        warnings.warn(
            "No curvature was found along the inner paths, as for a piecewise linear loss such as the mean absolute error, so "
            f"{type(rule).__name__} takes {float(alpha):.3g}, where steps do not turn the gradient round: a number of your own "
            "for stepsize= may do better.",
            NoCurvature,
            stacklevel=3,
        )


def resolve(
    inner: Inner, problem: AbstractProblem, params: PyTree, tasks: PyTree, keys: Key[Array, " B"] | None = None, *,
    samples: Samples = Samples(),  # noqa: B008
) -> Inner:  # fmt: skip
    r"""The inner loop with its step-size rule replaced by the $\alpha$ that the rule gives on these tasks.

    An inner loop without a rule is returned unchanged, as is one whose step sizes are in `ax.Meta`.

    Arguments:
        inner: the inner loop.
        problem: the problem.
        params: parameters w.
        tasks: a batch of tasks, each leaf with a leading axis B, or a list of B tasks; all are measured.
        keys: B keys, for a resampling problem.
        samples: sample sizes of a resampling problem.

    Returns: an `Inner` whose step size is a scalar array, so that a new value does not recompile anything.

    Errors: `InputError` if keys are missing or the tasks do not fit the loss; the warning `ax.stepsize.NoCurvature` where the
    loss is piecewise linear.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 2.0 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> tasks = ax.Task(jnp.zeros((3, 2)), jnp.zeros((3, 2)))
        >>> inner = ax.stepsize.resolve(ax.Inner(5, ax.stepsize.Edge()), problem, jnp.ones(2), tasks)
        >>> round(float(inner.stepsize), 4)  # the Hessian is 4 I
        0.25

    Source: docs/theory.md, sections 5 and 8.
    """
    if not isinstance(inner.stepsize, AbstractRule) or isinstance(params, Meta):
        return inner
    require_keys(problem, keys)
    tasks = beside(as_batch(tasks), params)
    check_batch(tasks, keys)
    alpha, curvature, flat = turning_if_flat(lambda turn: _resolve(inner, problem, params, tasks, keys, samples, turn))
    resolved = inner.with_stepsize(alpha)
    warn_of_no_curvature(inner.stepsize, flat, alpha, inner.steps)
    warn_if_not_finite(inner, resolved, curvature, problem, params, tasks, keys, samples)
    return resolved


def warn_if_not_finite(
    inner: Inner, resolved: Inner, curvature: Array, problem: AbstractProblem, params: PyTree, tasks: PyTree, keys: Any,
    samples: Samples,
) -> None:  # fmt: skip
    """Warn where a rule found no curvature because nothing was finite; a traced measurement says nothing."""
    if is_traced(curvature) or curvature > 0:
        return
    task, key = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), (tasks, keys))
    found = cause(problem, resolved, params, task, key, samples, target=False, rule=inner.stepsize)
    if found.known:
        text = f"{type(inner.stepsize).__name__} found no finite curvature in these tasks, so that its step size, "
        text += f"{float(resolved.stepsize):.3g}, is not measured. In the first of them, {found}"
        warnings.warn(text, NotFiniteWarning, stacklevel=3)


@eqx.filter_jit
def _resolve(inner, problem, params, tasks, keys, samples, turn):
    inner.check_meta(params)
    check_key(first(keys))
    check_problem(problem, inner.initial(params), first(tasks), samples, target=False)
    # A step size from a rule counts as a constant: the measurement is not differentiated.
    arrays, static = eqx.partition(tasks, eqx.is_array)
    rule, problem, params, arrays = _tree.constant((inner.stepsize, problem, params, arrays))
    tasks = eqx.combine(arrays, static)
    estimate = first_estimate(split(problem, inner, params, first(tasks), samples).adapting)
    estimate, flat = measure(inner, rule, estimate, problem, params, tasks, keys, samples=samples, cold=True, turn=turn)
    return rule.first_of(estimate, inner.steps, problem.stochastic), estimate.curvature, flat


def resolve_one(
    inner: Inner, problem: AbstractProblem, params: PyTree, task: PyTree, key: Key[Array, ""] | None, samples: Samples
) -> Inner:
    """`resolve` on a single task."""
    if not isinstance(inner.stepsize, AbstractRule) or isinstance(params, Meta):
        return inner
    require_keys(problem, key)
    batch = jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, task)
    keys = None if key is None else key[None]
    alpha, _, flat = turning_if_flat(lambda turn: _resolve(inner, problem, params, batch, keys, samples, turn))
    warn_of_no_curvature(inner.stepsize, flat, alpha, inner.steps)
    return inner.with_stepsize(alpha)


def resolve_on_first(
    inner: Inner, problem: AbstractProblem, params: PyTree, tasks: PyTree, keys: Key[Array, " B"] | None, samples: Samples
) -> Inner:
    """`resolve` on the first tasks of a batch, as many as the rule asks for."""
    if not isinstance(inner.stepsize, AbstractRule) or isinstance(params, Meta):
        return inner
    few = jax.tree.map(lambda leaf: leaf[: inner.stepsize.tasks], (tasks, keys))
    return resolve(inner, problem, params, *few, samples=samples)


def resolve_on_numbered(
    inner: Inner, problem: AbstractProblem, params: PyTree, batch: PyTree, key: Key[Array, ""], count: int, samples: Samples
) -> Inner:
    """`resolve` on the first of `count` tasks: of a batch, or where it is None, of those that a key draws by their number."""
    if not isinstance(inner.stepsize, AbstractRule) or isinstance(params, Meta):
        return inner
    return resolve(inner, problem, params, *_few(problem, min(inner.stepsize.tasks, count), batch, key), samples=samples)


@eqx.filter_jit
def _few(problem, count, batch, key):
    keys = numbered(key, jnp.arange(count))
    if batch is None:
        return draw_tasks(problem, keys)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[:count], batch), jax.vmap(own_key)(keys)
