"""The constants of the theory, measured at given parameters."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from adaptax import _devices as dev
from adaptax import _processes as processes
from adaptax._batching import Traced, check_batch, check_in_flight, map_tasks
from adaptax._checks import check_real, check_whole
from adaptax._cost import Cost
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
from adaptax.measure.over_devices import measuring, mesh_for
from adaptax.measure.path_curvature import ROUNDS, Budget, check_measurable, measure_path
from adaptax.methods.metagrad import MetaGradient
from adaptax.problem import AbstractProblem, Samples, check_is_problem
from adaptax.stepsize.measurement import resolve_on_numbered


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
    devices: Sequence[Any] | None = None,
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
        in_flight: how many tasks each device holds at a time (default: by what one task holds).
        devices: the devices to spread the tasks over, as for `ax.evaluate` (default: all of all processes, which must then all
            call this with the same arguments). Parameters that are cut over devices stay where they are.

    Returns: `Measured`.

    Errors: `InputError` for numbers out of range, or tasks that do not fit the loss; `ProcessLost` when another process is
    gone.

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
    check_measurable(problem)
    batch = None if isinstance(tasks, int | np.integer) else dev.beside(as_batch(tasks), params)
    count = tasks if batch is None else check_batch(batch, None, problem)
    count, seed = check_whole("", "tasks", count, 2), check_whole("", "seed", seed, 0)
    iterations, draws = check_whole("", "iterations", iterations), check_whole("", "draws", draws, 8)
    radius = None if radius is None else check_real("", "radius", radius, above=0)
    budget = Budget(iterations, max(iterations // 4, 1), draws, radius)
    in_flight, key = check_in_flight(in_flight), jax.random.fold_in(jax.random.key(seed), CONSTANTS)
    arrays, numbers = {"inner": inner, "tasks": batch}, {"iterations": iterations, "draws": draws, "radius": radius}
    mesh = mesh_for(problem, params, devices, count, arrays, seed=seed, **numbers)
    walked = resolve_on_numbered(inner, problem, params, batch, key, count, samples)
    walked = processes.as_first(walked) if dev.spans(mesh) else walked
    given = dev.replicate(mesh, (problem, params, walked, batch, key))
    with measuring(mesh):
        found = _measure(given, count, samples, budget, in_flight, mesh)
    maxima = {name: _maximum(found[name]) for name in ("L", "lam", "mu", "rho")}
    roots = {name: _root(found[name], count) for name in ("sigma", "b")}
    noise = [max((_root(x, count) for x in found[name]), key=lambda v: v.value) for name in ("sigma_g", "sigma_H")]
    cost = _cost(problem.stochastic, inner.steps, found["dim"], budget).times(count)
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
            problem, params, walked, batch, key = dev.collect(mesh, given)
            text += f": {tell(Lost.of(bad), problem, walked, params, samples, key, batch=batch, method=MetaGradient(walked))}"
        warnings.warn(text, NotFiniteWarning, stacklevel=2)
    return measured


def _measure(given, count, samples, budget, in_flight, mesh) -> dict[str, Any]:
    """What is found, by task. What devices tell each other has programs of its own: one that waits has no other work then."""
    stochastic = given[0].stochastic
    mean = None if stochastic else _mean(_gradient_sums(given, count, samples, in_flight, mesh), count, mesh)
    found, dim = _by_task(given, mean, count, samples, budget, in_flight, mesh)
    if stochastic:
        found["squares"] = _squares(found.pop("gradients"), count, mesh)
    found = jax.device_get(dev.whole(mesh, found))
    found = jax.tree.map(lambda leaf: np.asarray(leaf[:count], np.float64), found)
    # The mean over M tasks is itself an estimate, and so is each task's gradient, from `draws` samples.
    excess = found["sigma_g"][0] / budget.draws if stochastic else 0.0
    return found | {"sigma": found.pop("squares") * count / (count - 1) - excess, "dim": int(dim)}


def _spread(mesh, function, given, count, samples, *more):
    """`function(problem, params, inner, tasks, keys, real, *more)` of each device's tasks; what fills up is not `real`."""
    problem, params, inner, batch, key = given
    index = jnp.arange(dev.share(mesh, count) * dev.rows(mesh))
    keys = numbered(key, jnp.minimum(index, count - 1))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.minimum(index, count - 1)], batch)

    def local(shared, split):
        (problem, params, inner, *more), (index, batch, keys) = shared, split
        tasks, keys = draw_tasks(problem, keys) if batch is None else (batch, jax.vmap(own_key)(keys))
        check_problem(problem, inner.initial(params), first(tasks), samples, target=True)
        return function(problem, params, inner, tasks, keys, index < count, *more)

    return dev.spread(mesh, local, (problem, params, inner, *more), (index, batch, keys))


def _gradients_of(problem, inner, params, tasks, samples):
    """The gradients of one task's loss and target loss at w."""
    parts = split(problem, inner, params, first(tasks), samples)
    w, unravel = ravel(parts.adapting), unraveller(parts.adapting)

    def both(task):
        def gradient(loss, part):
            return jax.grad(lambda w: loss(eqx.combine(unravel(w), parts.frozen, parts.static), part))(w)

        return gradient(problem.loss, task.support), gradient(problem.target_loss, task.target)

    return both


@eqx.filter_jit
def _gradient_sums(given, count, samples, in_flight, mesh) -> Array:
    """The sum of target gradients over each device's tasks, one a row."""

    def of_share(problem, params, inner, tasks, keys, real):
        both = _gradients_of(problem, inner, params, tasks, samples)
        return (), _sum(lambda task: both(task)[1], tasks, real, in_flight)[None]

    return _spread(mesh, of_share, given, count, samples)[1]


@eqx.filter_jit
def _mean(sums, count, mesh) -> Array:
    return dev.on_all(mesh, jnp.sum(sums, axis=0) / count)


@eqx.filter_jit
def _squares(gradients, count, mesh) -> Array:
    """Squared distances from the mean of the first `count`."""
    real = (jnp.arange(gradients.shape[0]) < count)[:, None]
    mean = dev.on_all(mesh, jnp.sum(jnp.where(real, gradients, 0), axis=0) / count)
    return jnp.sum((gradients - mean) ** 2, axis=1)


@eqx.filter_jit
def _by_task(given, mean, count, samples, budget, in_flight, mesh) -> tuple[dict[str, Any], Any]:
    """What one task tells, and the dimension. Two passes for gradients, so that no more are held than tasks are in flight."""

    def of_share(problem, params, inner, tasks, keys, real, mean):
        def each(one):
            return map_tasks(lambda pair: one(*pair), (tasks, keys), in_flight)

        def path(task, key):
            return TaskPath(problem, inner, params, task, key, samples)

        adapting = split(problem, inner, params, first(tasks), samples).adapting
        walked = each(lambda task, key: measure_path(path(task, key), budget))
        out: dict[str, Any] = {name: getattr(walked, name) for name in ("L", "lam", "mu", "rho", "skipped")}
        zeros = jnp.zeros(real.size)
        if problem.stochastic:

            def noise(final, task, key):
                loss = loss_of_sample(path(task, key))
                both = jax.tree.map(lambda a, b: jnp.stack([a, b]), adapting, final)
                return jax.lax.map(lambda point: at_point(loss, point, key, budget.draws, budget.changes), both)

            gradients, of_gradients, of_hessians = map_tasks(lambda x: noise(*x), (walked.final, tasks, keys), in_flight)
            out |= {"sigma_g": list(of_gradients.T), "sigma_H": list(of_hessians.T), "b": zeros}
            out["gradients"] = gradients[:, 0]
        else:
            both = _gradients_of(problem, inner, params, tasks, samples)
            out["squares"] = each(lambda task, key: jnp.sum((both(task)[1] - mean) ** 2))
            out["b"] = each(lambda task, key: jnp.sum(jnp.subtract(*both(task)) ** 2))
            out |= {"sigma_g": [zeros], "sigma_H": [zeros]}
        return sum(leaf.size for leaf in jax.tree.leaves(adapting)), out

    dim, found = _spread(mesh, of_share, given, count, samples, mean)
    return found, dim


def _sum(one, tasks, real, in_flight: int | None):
    """The sum of vectors over the tasks that are real, group by group."""
    count, traced = real.size, Traced(one, tasks)
    size = traced.at_a_time(count, in_flight)
    groups = -(-count // size)
    index = jnp.arange(groups * size).reshape(groups, size)

    def add(total, index):
        at = jnp.minimum(index, count - 1)
        vectors = jax.vmap(traced)(jax.tree.map(lambda leaf: leaf[at], tasks))
        return total + jnp.sum(jnp.where(((index < count) & real[at])[:, None], vectors, 0), axis=0), None

    return jax.lax.scan(add, optax.tree.zeros_like(traced.outputs), index)[0]


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
