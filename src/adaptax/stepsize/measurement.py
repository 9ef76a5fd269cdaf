"""Step-size rules measured: the curvature along inner paths, and the step size that a rule makes of it."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._batching import check_batch, map_tasks
from adaptax._checks import is_traced
from adaptax._devices import beside
from adaptax._finite import cause
from adaptax._intake import as_batch
from adaptax._keys import RULE, check_key, first, fold, require_keys
from adaptax._lanczos import tree_ends
from adaptax._parameters import split
from adaptax._second_order import linearized_gradient
from adaptax._update import Update
from adaptax.curvature.base import LocalLoss
from adaptax.curvature.finite_difference import FiniteDifference
from adaptax.errors import NotFiniteWarning
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath, check_problem
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.learned import Meta
from adaptax.stepsize.rules import AbstractRule, Estimate, NoCurvature

# Share of the gradient in the start: a direction kept from the last measurement may be orthogonal to the new top eigenvector.
_MIX = 0.1
# Products spent at w_0 when nothing is known yet, and always for the smallest eigenvalue: it lies close to many others, so
# that from the direction of other tasks three products found 9 of 58, in a sinusoid network with a largest one of 1,500.
_COLD_START = 12
# How often the step size is halved at most where there is no curvature.
_HALVINGS = 40


def _unit(v: PyTree) -> PyTree:
    length = _tree.norm(v)
    return _tree.scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), v)


def power_iteration(product: Callable[[PyTree], PyTree], start: PyTree, iterations: int) -> tuple[Array, PyTree]:
    r"""The spectral norm of a symmetric linear map from below: $\|Hv\|$ for the unit v after `iterations` products.

    Arguments:
        product: $v \mapsto Hv$.
        start: a direction, not orthogonal to the top eigenvector.
        iterations: how many products.

    Returns: the estimate, at most $\|H\|_2$ and never decreasing in `iterations`, and the unit direction reached.

    Example:
        >>> import jax.numpy as jnp
        >>> from adaptax.stepsize.measurement import power_iteration
        >>> value, _ = power_iteration(lambda v: jnp.array([1.0, -3.0]) * v, jnp.ones(2), 20)
        >>> round(float(value), 4)
        3.0

    Source: Golub, Van Loan, Matrix Computations, section 7.3; docs/theory.md, section 8.
    """

    def iterate(_, carry):
        v, _ = carry
        hv = product(v)
        value = _tree.norm(hv)
        ok = jnp.isfinite(value) & (value > 0)
        return _tree.select(ok, _unit(hv), v), value

    first = _unit(start)
    v, value = jax.lax.fori_loop(0, iterations, iterate, (first, jnp.zeros_like(_tree.norm(first))))
    return value, v


def curvature_at(
    loss: Callable[[PyTree, PyTree, Array], Array], w: PyTree, rest: PyTree, j: Array, differences: bool, proximal: Array | None
) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The gradient of step j's loss at w, and its Hessian-vector products there, with those of a proximal term."""
    if differences:
        local = LocalLoss(lambda w, _: loss(w, rest, j), w)
        gradient = local.gradient(w)[0]

        def product(v: PyTree, /) -> PyTree:
            return FiniteDifference().product(local, v)[1][0]
    else:
        gradient, product = linearized_gradient(lambda w: loss(w, rest, j), w)
    return gradient, lambda v: product(v) if proximal is None else _tree.shift(product(v), proximal, v)


class Along(NamedTuple):
    """The largest values along one task's path: the curvature, minus the smallest eigenvalue or None, and directions."""

    curvature: Array
    negative: Array | None
    directions: tuple[PyTree, ...]


def _negative_part(low: Array, high: Array, w: PyTree) -> Array:
    """Minus the smallest eigenvalue, 0 if it is none or no larger than rounding: a convex loss has none."""
    precision = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(w))
    rounding = precision**0.5 * jnp.maximum(high, -low)
    return jnp.where(-low > rounding, -low, jnp.where(jnp.isfinite(low), 0, low))


def along_path(
    loss: Callable[[PyTree, PyTree, Array], Array],
    w: PyTree,
    rest: PyTree,
    rule: AbstractRule,
    steps: int,
    estimate: Estimate,
    warmup: int,
    update: Update = Update(),  # noqa: B008
) -> Along:
    r"""The curvature that the rule asks for at w_0..w_{N-1} (at w_0 for N = 0), the largest of all, and the directions found.

    The curvature is $\|\nabla^2 l(w_j)\|$ by power iteration, or for a two-sided rule both ends by Lanczos, each from the
    direction before. The path is walked with the rule's own step size for the largest curvature met so far, so that it stays
    on the ground that training will walk, also before any step size is known. Values that are not finite are passed over; the
    result is NaN if all are, and the directions are always finite.

    Arguments:
        loss, w, rest: as in the recursion.
        rule: turns curvature into the step size of the walk.
        steps: N.
        estimate: what is known before; its direction is where the iteration starts.
        warmup: products spent at w_0 before the walk.
        update: how the walk moves w, given the gradient.
    """
    kind = estimate.curvature.dtype

    def point(w, directions, j, iterations):
        gradient, damped = curvature_at(loss, w, rest, j, rule.differences, update.proximal)
        v = _sum(*directions)
        start = optax.tree.add(v, _tree.scale(_MIX, _unit(gradient)))
        start = _tree.select(_tree.all_finite(start), start, v)
        if rule.two_sided:
            low, high, *found = tree_ends(damped, start, iterations)
            values = high, _negative_part(low, high, w)
            # The sum of the two is where the next measurement starts.
            length = _tree.norm(_sum(*found))
            directions = _tree.select(jnp.isfinite(length) & (length > 0), tuple(found), directions)
        else:
            value, v = power_iteration(damped, start, iterations)
            values, directions = (value, None), (v,)
        return gradient, jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.nan).astype(kind), values), directions

    def step(carry, j):
        (at, opt_state), directions, largest = carry
        gradient, values, directions = point(at, directions, j, rule.iterations)
        largest = jax.tree.map(jnp.fmax, largest, values)
        known = jax.tree.map(lambda now, before: jnp.fmax(now, rule.kept(before)), largest, (estimate.curvature, negative))
        alpha = rule.alpha_of(Estimate(known[0], None, known[1]), steps)
        return (update(at, opt_state, gradient, w, alpha), directions, largest), None

    nothing = jnp.full_like(estimate.curvature, jnp.nan)
    values, negative = (nothing, None), None
    directions = (estimate.direction,)
    if rule.two_sided:
        values, negative = (nothing, nothing), jnp.zeros_like(nothing) if estimate.negative is None else estimate.negative
        directions = (_tree.scale(0.5, estimate.direction),) * 2
    if warmup:
        _, values, directions = point(w, directions, jnp.array(0), warmup)
    start = (w, update.init(w)), directions, values
    (_, last, largest), _ = jax.lax.scan(step, start, jnp.arange(max(steps, 1)))
    return Along(largest[0], largest[1], directions if warmup else last)


def _sum(*trees: PyTree) -> PyTree:
    return trees[0] if len(trees) == 1 else optax.tree.add(*trees)


def turning_curvature(
    loss: Callable[[PyTree, PyTree, Array], Array], w: PyTree, rest: PyTree, steps: int, update: Update
) -> Array:
    r"""One over the largest step size, by halving, at which each step has $\|\nabla l(w_{j+1}) - \nabla l(w_j)\| \le
    \|\nabla l(w_j)\|$, from one whose first step is of length $\|w\|/N$ (1/N at zero).

    For a quadratic loss the quotient of the two norms is at most $\alpha\lambda$. No such step raises a convex loss.

    Arguments:
        loss, w, rest, steps, update: as in `along_path`; the loss is that on the samples of the first step.
    """
    size = _tree.norm(w)

    def gradient(at):
        return jax.grad(loss)(at, rest, jnp.array(0))

    def walk(alpha):
        def step(carry, j):
            at, opt_state, before, good, length = carry
            g = gradient(at)
            good &= (j == 0) | (_tree.norm(optax.tree.sub(g, before)) <= _tree.norm(before))
            new, opt_state = update(at, opt_state, g, w, jnp.ones(()))
            move = optax.tree.sub(new, at)
            length = jnp.where(j == 0, _tree.norm(move), length)
            return (_tree.shift(at, alpha, move), opt_state, g, good, length), None

        start = (w, update.init(w), optax.tree.zeros_like(w), jnp.array(True), jnp.zeros_like(size))
        return jax.lax.scan(step, start, jnp.arange(max(steps, 1) + 1))[0][3:]

    def halve(carry):
        k, alpha, _ = carry
        good, length = walk(alpha)
        first = jnp.where(size > 0, size, 1) / max(steps, 1) / jnp.where(length > 0, length, 1)
        # The walk at step size 0 finds the length of a step alone.
        good = good & (k > 0)
        return k + 1, jnp.where(k == 0, first, jnp.where(good, alpha, alpha / 2)), good

    start = (jnp.array(0), jnp.zeros_like(size), jnp.array(False))
    return 1 / jax.lax.while_loop(lambda carry: (carry[0] < _HALVINGS) & ~carry[2], halve, start)[1]


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
        return along_path(path.loss, path.split.adapting, path.rest, rule, inner.steps, estimate, warmup, inner.update)

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
        return turning_curvature(path.loss, path.split.adapting, path.rest, inner.steps, inner.update)

    if turn:
        value = values[0]
        instead = jax.lax.cond(flat, lambda: jnp.max(map_tasks(turning, (tasks, keys))).astype(value.dtype), lambda: value)
        values = [jnp.where(flat, instead, x) for x in values]
    return rule.update(estimate, values[-1], _sum(*chosen), values[0] if rule.two_sided else None), flat


def turning_if_flat(measured: Callable[[bool], tuple[Any, Any, Array]]) -> tuple[Any, Any, Array]:
    """A compiled measurement, taken again with `turn` where its last part says that no curvature was found.

    Most losses are curved, and the program that also looks for turning gradients takes a third longer to compile: it is made
    only where it is needed, or where that is not known yet.
    """
    found = measured(False)
    flat = found[2]
    return measured(True) if isinstance(flat, Tracer) or bool(flat) else found


def warn_of_no_curvature(rule: AbstractRule, flat: Array, alpha: Array) -> None:
    """Say that a rule found no curvature, where that is known yet."""
    if not isinstance(flat, Tracer) and bool(flat):
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
    warn_of_no_curvature(inner.stepsize, flat, alpha)
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
    return rule.alpha_of(estimate, inner.steps), estimate.curvature, flat


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
    warn_of_no_curvature(inner.stepsize, flat, alpha)
    return inner.with_stepsize(alpha)


def resolve_on_first(
    inner: Inner, problem: AbstractProblem, params: PyTree, tasks: PyTree, keys: Key[Array, " B"] | None, samples: Samples
) -> Inner:
    """`resolve` on the first tasks of a batch, as many as the rule asks for."""
    if not isinstance(inner.stepsize, AbstractRule) or isinstance(params, Meta):
        return inner
    few = jax.tree.map(lambda leaf: leaf[: inner.stepsize.tasks], (tasks, keys))
    return resolve(inner, problem, params, *few, samples=samples)
