"""The constants of the theory, measured at given parameters."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from adaptax.batching import check_batch, check_in_flight, in_flight_for, map_tasks
from adaptax.cost import Cost
from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.measure.noise import at_point, loss_of_sample
from adaptax.measure.points import ROUNDS, Effort, ravel, unraveller, walk
from adaptax.objective import check_problem, first, fold
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.rules import AbstractRule

# Of the tasks measured on; meta-steps fold small numbers into a seed's key.
TASKS = 2**32 - 3


class Value(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Measured:
    r"""Measured constants: all are LOWER estimates of suprema over w, up to sampling errors.

    L, lambda_max and rho are maxima over everything visited, and their standard error is that of the mean over tasks of
    each task's maximum: it says how much tasks differ, not how far the supremum is. The others are root mean squares,
    with standard errors by the delta method.

    Arguments:
        L: the largest $|\text{eigenvalue}|$ of Hessians.
        lambda_max: the largest eigenvalue of the inner loss's Hessians.
        rho: the largest $\|(H(w+tu) - H(w))v\|/t$.
        sigma: $(E_i\|\nabla l_i - \nabla l\|^2)^{1/2}$.
        b: $(E_i\|\nabla l_{S_i} - \nabla l_{T_i}\|^2)^{1/2}$, 0 in the resampling case.
        sigma_g, sigma_H: noise of one sample's gradient and Hessian, 0 in the finite-sum case.
        cost: oracle calls spent.
        points_skipped: Hessians that were passed over because they were not finite.
    """

    L: Value
    lambda_max: Value
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
    r"""Measure $L, \rho, \sigma, b, \sigma_g, \sigma_H$ at parameters w and along inner paths.

    - *L*: at $w_0..w_N$ of each task's inner path, of the inner loss and in the finite-sum case also of the target loss,
      by `iterations` steps of Lanczos. A proximal strength is added to the inner loss's Hessian.
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
        tasks: how many tasks, at least 2 (default 64), or a batch of tasks.
        samples: sample sizes of a resampling problem's inner steps.
        seed: of the tasks and all random numbers (default 0).
        iterations: Hessian-vector products at each point (default 20).
        draws: single samples of a resampling problem, at least 8 (default 64).
        radius: t (default $\epsilon^{1/3}\max(1, \|w\|)$ with the rounding unit $\epsilon$).
        in_flight: how many tasks are held at a time (default: decided from the shapes).

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
    if not isinstance(problem, AbstractProblem):
        raise InputError(f"The problem must be ax.FiniteSum or ax.Resampling, not {type(problem).__name__}.")
    if not isinstance(inner, Inner):
        raise InputError(f"inner must be ax.Inner(steps, stepsize), such as state.inner, not {type(inner).__name__}.")
    batch, count = (None, int(tasks)) if isinstance(tasks, int | np.integer) else (tasks, check_batch(tasks, None))
    for name, value, least in (("tasks", count, 2), ("iterations", iterations, 1), ("draws", draws, 8), ("seed", seed, 0)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
            raise InputError(f"{name}={value!r} must be a whole number of at least {least}.")
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(f"radius={radius!r} must be positive and finite, or None.")
    effort = Effort(int(iterations), max(int(iterations) // 4, 1), int(draws), radius)
    key = jax.random.fold_in(jax.random.key(seed), TASKS)
    found = jax.device_get(_measure(problem, params, inner, batch, key, count, samples, effort, check_in_flight(in_flight)))
    found, dim = jax.tree.map(lambda x: np.asarray(x, np.float64), found), int(found["dim"])
    maxima = {name: _maximum(found[name]) for name in ("L", "lambda_max", "rho")}
    roots = {name: _root(found[name], count) for name in ("sigma", "b")}
    noise = [max((_root(x, count) for x in found[name]), key=lambda v: v.value) for name in ("sigma_g", "sigma_H")]
    cost = _cost(problem.stochastic, inner.steps, dim, effort).times(count)
    return Measured(
        **maxima, **roots, sigma_g=noise[0], sigma_H=noise[1], cost=cost, points_skipped=int(found["skipped"].sum())
    )


@eqx.filter_jit
def _measure(problem, params, inner, batch, key, count, samples, effort, in_flight) -> dict[str, Any]:
    keys = jax.vmap(lambda i: fold(key, i))(jnp.arange(count))
    tasks = jax.vmap(lambda k: problem.sample_task(fold(k, 0)))(keys) if batch is None else jax.tree.map(jnp.asarray, batch)
    keys = jax.vmap(lambda k: fold(k, 1))(keys)
    check_problem(problem, inner.initial(params), first(tasks), samples, target=True)
    if isinstance(inner.stepsize, AbstractRule):
        few = jax.tree.map(lambda leaf: leaf[: inner.stepsize.tasks], (tasks, keys))
        inner = inner.resolve(problem, params, *few, samples=samples)
    start = inner.initial(params)
    size = in_flight_for(problem, start, tasks, keys, samples, in_flight)
    each = lambda one: map_tasks(lambda pair: one(*pair), (tasks, keys), size)  # noqa: E731
    split = inner.split(start)
    w, unravel = ravel(split.adapting), unraveller(split.adapting)

    walked = each(lambda task, key: walk(problem, params, inner, task, key, effort, samples))
    out = {"L": walked.L, "lambda_max": walked.lambda_max, "rho": walked.rho, "skipped": walked.skipped, "dim": w.size}
    zeros = jnp.zeros(count)
    if problem.stochastic:

        def noise(final, task, key):
            loss = loss_of_sample(problem, start, inner, task)
            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), split.adapting, final)
            at = lambda point: at_point(loss, point, key, effort.draws, effort.changes, size)  # noqa: E731
            return jax.lax.map(at, both)

        gradients, of_gradients, of_hessians = map_tasks(lambda x: noise(*x), (walked.final, tasks, keys), size)
        out |= {"sigma_g": list(of_gradients.T), "sigma_H": list(of_hessians.T), "b": zeros}
        # The mean over M tasks has been estimated, and each task's gradient from `draws` samples.
        excess = of_gradients[:, 0] / effort.draws
        squares = jnp.sum((gradients[:, 0] - jnp.mean(gradients[:, 0], axis=0)) ** 2, axis=1)
    else:

        def both(task):
            at = lambda loss, part: jax.grad(lambda w: loss(eqx.combine(unravel(w), split.frozen, split.static), part))(w)  # noqa: E731
            return at(problem.loss, task.support), at(problem.target_loss, task.target)

        # Two passes, so that no more gradients are held than tasks are in flight.
        mean = _mean(lambda pair: both(pair[0])[1], (tasks, keys), size)
        squares = each(lambda task, key: jnp.sum((both(task)[1] - mean) ** 2))
        out["b"] = each(lambda task, key: jnp.sum(jnp.subtract(*both(task)) ** 2))
        out |= {"sigma_g": [zeros], "sigma_H": [zeros]}
        excess = zeros
    out["sigma"] = squares * count / (count - 1) - excess
    return out


def _mean(one, inputs, size: int):
    """The mean of vectors over tasks, summed group by group."""
    count = jax.tree.leaves(inputs)[0].shape[0]
    groups = -(-count // size)
    index = jnp.arange(groups * size).reshape(groups, size)

    def add(total, index):
        vectors = jax.vmap(one)(jax.tree.map(lambda leaf: leaf[jnp.minimum(index, count - 1)], inputs))
        return total + jnp.sum(jnp.where((index < count)[:, None], vectors, 0), axis=0), None

    shape = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], inputs))
    return jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), index)[0] / count


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


def _cost(stochastic: bool, steps: int, dim: int, effort: Effort) -> Cost:
    """Oracle calls for each task."""
    losses, points = (1 if stochastic else 2), steps + 1
    products = losses * min(effort.iterations, dim) + 2 * ROUNDS * 2 * min(effort.changes, dim)
    batch = effort.draws if stochastic else 1
    # Hessians of a batch count once: a batch is one call of an oracle.
    path = Cost(gradients=steps + points * losses, hessian_vector_products=points * products)
    if not stochastic:
        return path.plus(Cost(gradients=4))
    half = batch // 2
    return path.plus(Cost(gradients=4 * batch, hessian_vector_products=2 * half * (2 * min(effort.changes, dim) + 1)))
