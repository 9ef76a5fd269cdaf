"""Curvature along one task's inner path: how large the Hessians are, and how fast they change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._keys import CHANGE, POINT, START, fold
from adaptax._lanczos import extremes
from adaptax._second_order import hessian_product
from adaptax._tree import ravel, unraveller
from adaptax.inner_path import TaskPath
from adaptax.problem import AbstractProblem
from adaptax.sequential import refuse_sequence
from adaptax.stepsize.rates import multiply

# How many times the direction of a change follows the eigenvector found along it.
ROUNDS = 2


class Budget(NamedTuple):
    """How many oracle calls are spent at each point of a path.

    Arguments:
        iterations: Hessian-vector products for L, lam and mu.
        changes: products with a difference of two Hessians, for each direction and round; 0 for no rho.
        draws: single samples of a resampling problem.
        radius: t in the difference H(w+tu) - H(w); None for the default.
    """

    iterations: int
    changes: int
    draws: int
    radius: float | None


class PathCurvature(NamedTuple):
    """The largest values along one task's path (NaN where nothing was finite), the points skipped, and w_N.

    lam is the largest eigenvalue of the inner loss's Hessians, and mu minus the smallest, negative where all are positive; in
    the norm of the step sizes they are those of A^(1/2) H A^(1/2).
    """

    L: Array
    lam: Array
    mu: Array
    rho: Array
    skipped: Array
    final: PyTree


def default_radius(w: Array) -> Array:
    r"""$t = \epsilon^{1/3}\max(1, \|w\|)$, where rounding is still small in $H(w+tu) - H(w)$."""
    return jnp.finfo(w.dtype).eps ** (1 / 3) * jnp.maximum(1, jnp.linalg.norm(w))


def check_measurable(problem: AbstractProblem) -> None:
    """Refuse a problem whose inner loss changes from step to step."""
    refuse_sequence(problem, "Measuring the theory's constants", "watch info.losses and ax.evaluate")


def measure_path(path: TaskPath, budget: Budget, *, by_step_sizes: bool = False) -> PathCurvature:
    """Measure at w_0..w_N of one task's inner path.

    With `by_step_sizes` lam and mu are those in the norm of the step sizes: for one step size, alpha times the others.
    """
    problem, inner, key = path.problem, path.inner, path.key
    check_measurable(problem)
    walked = path.forward()
    points = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), walked.iterates.w, walked.final)
    after = jnp.minimum(jnp.arange(inner.steps + 1) + 1, inner.steps)
    moves = jax.tree.map(lambda a: a[after] - a[jnp.maximum(after - 1, 0)], points)
    unravel = unraveller(path.split.adapting)
    damping = 0.0 if inner.proximal is None else inner.proximal

    def support(j):
        """The inner loss at point j as a function of the vector w, and its Hessian-vector product."""

        def loss(w):
            params = path.params(unravel(w))
            return problem.loss(params, problem.step_batch(path.task, params, fold(key, POINT, j), budget.draws))

        return loss, lambda w, v: _product(loss, w, v) + damping * v

    def target():
        """The same of the target loss."""

        def loss(w):
            params = path.params(unravel(w))
            return problem.target_loss(params, problem.target_batch(path.task, params, None, budget.draws))

        return loss, lambda w, v: _product(loss, w, v)

    def roots(j):
        """The square roots of all step sizes at step j, as a vector; the last step's at w_N."""
        rates = path.rates.tree
        if path.rates.per_step:
            rates = jax.tree.map(lambda leaf: leaf[jnp.minimum(j, leaf.shape[0] - 1)], rates)
        ones = jax.tree.map(jnp.ones_like, path.split.adapting)
        return ravel(multiply(jax.tree.map(lambda a: jnp.sqrt(jnp.abs(a)), rates), ones))

    def point(x):
        j, w, move = x[0], ravel(x[1]), ravel(x[2])
        found = []
        kinds = [support(j)] if problem.stochastic else [support(j), target()]
        if by_step_sizes:
            (loss, plain), root = kinds[0], roots(j)
            kinds[0] = loss, lambda w, v: root * plain(w, root * v)
        for k, (loss, product) in enumerate(kinds):
            start = _start(jax.grad(loss)(w), fold(key, START, j, k))
            found.append(extremes(lambda v, product=product: product(w, v), start, budget.iterations)[:2])
        low, high = (jnp.stack(ends) for ends in zip(*found, strict=True))
        measured = budget.changes > 0
        rho = _change(support(j)[1], w, move, fold(key, CHANGE, j), budget) if measured else jnp.nan * high[0]
        return jnp.maximum(-low, high), high[0], -low[0], rho

    sizes, highest, lowest, rho = jax.lax.map(point, (jnp.arange(inner.steps + 1), points, moves))
    skipped = jnp.sum(~jnp.isfinite(sizes))
    return PathCurvature(_largest(sizes), _largest(highest), _largest(lowest), _largest(rho), skipped, walked.final)


def _product(loss: Callable[[Array], Array], w: Array, v: Array) -> Array:
    return hessian_product(lambda w, _: loss(w), w, None, v)[1][0]


def _unit(v: Array) -> Array:
    length = _tree.norm(v)
    return v * jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)


def _start(gradient: Array, key: Any) -> Array:
    """A random direction plus the gradient's, which leans towards large curvature."""
    random = _unit(jax.random.normal(key, gradient.shape, gradient.dtype))
    return random + jnp.where(jnp.isfinite(gradient).all(), _unit(gradient), 0)


def _change(product: Callable[[Array, Array], Array], w: Array, move: Array, key: Any, budget: Budget) -> Array:
    r"""The largest $\|(H(w+tu) - H(w))v\|/t$ found, from a random u and from the path's own direction."""
    width = default_radius(w) if budget.radius is None else jnp.asarray(budget.radius, w.dtype)

    def random(*numbers):
        own: Any = fold(key, *numbers)
        return jax.random.normal(own, w.shape, w.dtype)

    def follow(u, number):
        def difference(v):
            return product(w + width * _unit(u), v) - product(w, v)

        low, high, v = extremes(difference, random(1, number), budget.changes)
        return v, jnp.maximum(-low, high) / width

    # One after another, so that the products are compiled once.
    directions, numbers = jnp.stack([random(0), move]), jnp.arange(2 * ROUNDS).reshape(2, ROUNDS)
    return _largest(jax.lax.map(lambda x: jax.lax.scan(follow, x[0], x[1])[1], (directions, numbers)))


def _largest(values: Array) -> Array:
    """The largest finite value; NaN if there is none."""
    finite = jnp.isfinite(values)
    return jnp.where(finite.any(), jnp.max(jnp.where(finite, values, -jnp.inf)), jnp.nan)
