"""The constants of the theory, measured at given parameters."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from adaptax._batching import Traced, check_batch, check_in_flight, map_tasks
from adaptax._checks import check_real, check_whole
from adaptax._cost import Cost
from adaptax._devices import beside
from adaptax._finite import Lost, tell
from adaptax._intake import as_batch
from adaptax._keys import CONSTANTS, draw_tasks, first, numbered, own_key
from adaptax._parameters import split
from adaptax._problem_checks import check_problem
from adaptax._tree import ravel, unraveller
from adaptax.errors import InputError, NotFiniteWarning
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath
from adaptax.measure.noise import at_point, loss_of_sample
from adaptax.measure.path_curvature import ROUNDS, Budget, measure_path
from adaptax.methods.metagrad import MetaGradient
from adaptax.problem import AbstractProblem, Samples, check_is_problem
from adaptax.stepsize.measurement import resolve_on_first
from adaptax.stepsize.rules import AbstractRule


class Value(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Measured:
    r"""Measured constants: all are LOWER estimates of suprema over w, up to sampling errors.

    L, lam, mu and rho are maxima over everything visited, and their standard error is that of the mean over tasks of
    each task's maximum: it says how much tasks differ, not how far the supremum is. The others are root mean squares,
    with standard errors by the delta method.

    Arguments:
        L: the largest $|\text{eigenvalue}|$ of Hessians.
        lam: $\lambda$, the largest eigenvalue of the inner loss's Hessians.
        mu: $\mu$, minus their smallest eigenvalue; negative where all that were met are strongly convex.
        rho: the largest $\|(H(w+tu) - H(w))v\|/t$.
        sigma: $(E_i\|\nabla l_i - \nabla l\|^2)^{1/2}$.
        b: $(E_i\|\nabla l_{S_i} - \nabla l_{T_i}\|^2)^{1/2}$, 0 in the resampling case.
        sigma_g, sigma_H: noise of one sample's gradient and Hessian, 0 in the finite-sum case.
        cost: oracle calls spent.
        points_skipped: Hessians that were passed over because they were not finite.
    """

    L: Value
    lam: Value
    mu: Value
    rho: Value
    sigma: Value
    b: Value
    sigma_g: Value
    sigma_H: Value
    cost: Cost
    points_skipped: int


def constants(
    problem: AbstractProblem,
    params: PyTree,
    inner: Inner,
    *,
    tasks: int | PyTree = 64,
    samples: Samples = Samples(),  # noqa: B008
    seed: int = 0,
    iterations: int = 20,
    draws: int = 64,
    radius: float | None = None,
    in_flight: int | None = None,
) -> Measured:
    r"""Measure $L, \lambda, \mu, \rho, \sigma, b, \sigma_g, \sigma_H$ at parameters w and along inner paths.

    - *L*: at $w_0..w_N$ of each task's inner path, of the inner loss and in the finite-sum case also of the target loss,
      by `iterations` steps of Lanczos. A proximal strength is added to the inner loss's Hessian.
    - *lam*, *mu*, of the inner loss alone: both ends of the same Lanczos runs.
    - *rho*, of the inner loss: at the same points, u a random direction and the path's own; each is followed by the
      eigenvector found along it, since the supremum of the symmetric third derivative is attained at u = v. v by Lanczos,
      a quarter of `iterations`. A relu network has no finite rho: there the value is of order 1/t, t = `radius`.
    - *sigma*, *b* at w, over tasks, of target losses in the finite-sum case; the noise of samples is subtracted.
    - *sigma_g*, *sigma_H* at w and at $w_N$, whichever is larger, means over tasks. The direction u of sigma_H comes from one
      half of the samples and is judged on the other, so that it does not exceed the supremum in expectation.

    Only leaves that adapt count. In the resampling case Hessians are those of `draws` samples, whose noise adds about
    sigma_H / sqrt(draws) to L.

    Arguments:
        problem: the problem.
        params: parameters w, or `ax.Meta`.
        inner: the inner loop; a rule is resolved on the first tasks.
        tasks: how many tasks, at least 2 (default 64), or a batch of tasks, which may be a list.
        samples: sample sizes of a resampling problem's inner steps.
        seed: of the tasks and all random numbers (default 0).
        iterations: Hessian-vector products at each point (default 20).
        draws: single samples of a resampling problem, at least 8 (default 64).
        radius: t (default $\epsilon^{1/3}\max(1, \|w\|)$ with the rounding unit $\epsilon$).
        in_flight: how many tasks are held at a time (default: by what one task holds).

    Returns: `Measured`.

    Errors: `InputError` for numbers out of range, or tasks that do not fit the loss.

    Example:
        >>> import jax.numpy as jnp
        >>> from adaptax import Inner, measure
        >>> from adaptax.tasks import cosine
        >>> pool = cosine(dim=3, tasks=8)
        >>> found = measure.constants(pool.finite_sum, jnp.zeros(3), Inner(2, 0.1), tasks=4, iterations=3)
        >>> found.L.value <= pool.constants.L, found.rho.value <= pool.constants.rho
        (True, True)

    Source: docs/theory.md, sections 0 and 8.
    """
    check_is_problem(problem)
    if not isinstance(inner, Inner):
        raise InputError(f"inner must be ax.Inner(steps, stepsize), such as state.inner, not {type(inner).__name__}.")
    batch = None if isinstance(tasks, int | np.integer) else beside(as_batch(tasks), params)
    count = tasks if batch is None else check_batch(batch, None, problem)
    count, seed = check_whole("", "tasks", count, 2), check_whole("", "seed", seed, 0)
    iterations, draws = check_whole("", "iterations", iterations), check_whole("", "draws", draws, 8)
    radius = None if radius is None else check_real("", "radius", radius, above=0)
    budget = Budget(iterations, max(iterations // 4, 1), draws, radius)
    key = jax.random.fold_in(jax.random.key(seed), CONSTANTS)
    found = jax.device_get(_measure(problem, params, inner, batch, key, count, samples, budget, check_in_flight(in_flight)))
    stepsize = found.pop("stepsize")
    found, dim = jax.tree.map(lambda x: np.asarray(x, np.float64), found), int(found["dim"])
    maxima = {name: _maximum(found[name]) for name in ("L", "lam", "mu", "rho")}
    roots = {name: _root(found[name], count) for name in ("sigma", "b")}
    noise = [max((_root(x, count) for x in found[name]), key=lambda v: v.value) for name in ("sigma_g", "sigma_H")]
    cost = _cost(problem.stochastic, inner.steps, dim, budget).times(count)
    measured = Measured(
        **maxima, **roots, sigma_g=noise[0], sigma_H=noise[1], cost=cost, points_skipped=int(found["skipped"].sum())
    )
    lost = [n for n in ("L", "lam", "mu", "rho", "sigma", "b", "sigma_g", "sigma_H") if math.isnan(getattr(measured, n).value)]
    if lost:
        bad = found["skipped"] > 0
        for squares in (found["b"], *found["sigma_g"], *found["sigma_H"]):
            bad |= ~np.isfinite(squares)
        text = f"{', '.join(lost)} cannot be measured ({'are' if len(lost) > 1 else 'is'} NaN)"
        if bad.any():
            walked = inner if stepsize is None else inner.with_stepsize(stepsize)
            text += f": {tell(Lost.of(bad), problem, walked, params, samples, key, batch=batch, method=MetaGradient(walked))}"
        warnings.warn(text, NotFiniteWarning, stacklevel=2)
    return measured


@eqx.filter_jit
def _measure(problem, params, inner, batch, key, count, samples, budget, in_flight) -> dict[str, Any]:
    keys = numbered(key, jnp.arange(count))
    if batch is None:
        tasks, keys = draw_tasks(problem, keys)
    else:
        tasks, keys = jax.tree.map(jnp.asarray, batch), jax.vmap(own_key)(keys)
    start = inner.initial(params)
    check_problem(problem, start, first(tasks), samples, target=True)
    measured = isinstance(inner.stepsize, AbstractRule)
    inner = resolve_on_first(inner, problem, params, tasks, keys, samples)
    parts = split(problem, inner, params, first(tasks), samples)
    w, unravel = ravel(parts.adapting), unraveller(parts.adapting)

    def each(one):
        return map_tasks(lambda pair: one(*pair), (tasks, keys), in_flight)

    def path(task, key):
        return TaskPath(problem, inner, params, task, key, samples)

    walked = each(lambda task, key: measure_path(path(task, key), budget))
    out = {name: getattr(walked, name) for name in ("L", "lam", "mu", "rho", "skipped")} | {"dim": w.size}
    out["stepsize"] = inner.stepsize if measured else None
    zeros = jnp.zeros(count)
    if problem.stochastic:

        def noise(final, task, key):
            loss = loss_of_sample(path(task, key))
            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), parts.adapting, final)
            return jax.lax.map(lambda point: at_point(loss, point, key, budget.draws, budget.changes), both)

        gradients, of_gradients, of_hessians = map_tasks(lambda x: noise(*x), (walked.final, tasks, keys), in_flight)
        out |= {"sigma_g": list(of_gradients.T), "sigma_H": list(of_hessians.T), "b": zeros}
        # The mean over M tasks is itself an estimate, and so is each task's gradient, from `draws` samples.
        excess = of_gradients[:, 0] / budget.draws
        squares = jnp.sum((gradients[:, 0] - jnp.mean(gradients[:, 0], axis=0)) ** 2, axis=1)
    else:

        def both(task):
            def gradient(loss, part):
                return jax.grad(lambda w: loss(eqx.combine(unravel(w), parts.frozen, parts.static), part))(w)

            return gradient(problem.loss, task.support), gradient(problem.target_loss, task.target)

        # Two passes, so that no more gradients are held than tasks are in flight.
        mean = _mean(lambda pair: both(pair[0])[1], (tasks, keys), in_flight)
        squares = each(lambda task, key: jnp.sum((both(task)[1] - mean) ** 2))
        out["b"] = each(lambda task, key: jnp.sum(jnp.subtract(*both(task)) ** 2))
        out |= {"sigma_g": [zeros], "sigma_H": [zeros]}
        excess = zeros
    out["sigma"] = squares * count / (count - 1) - excess
    return out


def _mean(one, inputs, in_flight: int | None):
    """The mean of vectors over tasks, summed group by group."""
    count, traced = jax.tree.leaves(inputs)[0].shape[0], Traced(one, inputs)
    size = traced.at_a_time(count, in_flight)
    groups = -(-count // size)
    index = jnp.arange(groups * size).reshape(groups, size)

    def add(total, index):
        vectors = jax.vmap(traced)(jax.tree.map(lambda leaf: leaf[jnp.minimum(index, count - 1)], inputs))
        return total + jnp.sum(jnp.where((index < count)[:, None], vectors, 0), axis=0), None

    return jax.lax.scan(add, optax.tree.zeros_like(traced.outputs), index)[0] / count


def _maximum(values: np.ndarray) -> Value:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Value(math.nan, math.nan)
    return Value(float(finite.max()), float(finite.std(ddof=1) / np.sqrt(finite.size)) if finite.size > 1 else math.nan)


def _root(squares: np.ndarray, count: int) -> Value:
    """The root of a mean of squares over tasks, and its standard error."""
    value = math.sqrt(max(float(squares.mean()), 0.0)) if np.isfinite(squares).all() else math.nan
    error = float(squares.std(ddof=1)) / math.sqrt(count)
    # At zero the derivative of the root is infinite; there the root of the error is of the right size.
    return Value(value, error / (2 * value) if value > 0 else math.sqrt(error))


def _cost(stochastic: bool, steps: int, dim: int, budget: Budget) -> Cost:
    """Oracle calls for each task."""
    losses, points = (1 if stochastic else 2), steps + 1
    products = losses * min(budget.iterations, dim) + 2 * ROUNDS * 2 * min(budget.changes, dim)
    batch = budget.draws if stochastic else 1
    # Hessians of a batch count once: a batch is one call of an oracle.
    path = Cost(gradients=steps + points * losses, hessian_vector_products=points * products)
    if not stochastic:
        return path.plus(Cost(gradients=4))
    half = batch // 2
    return path.plus(Cost(gradients=4 * batch, hessian_vector_products=2 * half * (2 * min(budget.changes, dim) + 1)))
