"""What is measured at the points of one task's inner path: the sizes of Hessians, and of their changes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.inner import Inner
from adaptax.measure.lanczos import extremes
from adaptax.objective import STEP, fold, plain, step_loss
from adaptax.problem import AbstractProblem, Samples
from adaptax.recursion import forward

# How many times the direction of a change follows the eigenvector found along it.
ROUNDS = 2
# What a task's key is folded with here; the uses of the recursion are smaller numbers.
POINT, START, CHANGE, DRAW, CHOOSE = range(100, 105)


class Effort(NamedTuple):
    """How much is spent at each point.

    Arguments:
        iterations: Hessian-vector products for L and lambda_max.
        changes: products with a difference of two Hessians, for each direction and round; 0 for no rho.
        draws: single samples, of a resampling problem.
        radius: t of the difference; None for the default.
    """

    iterations: int
    changes: int
    draws: int
    radius: float | None


class Walked(NamedTuple):
    """What one task yields; numbers are NaN where nothing was finite."""

    L: Array
    lambda_max: Array
    rho: Array
    skipped: Array
    final: PyTree


def ravel(tree: PyTree) -> Array:
    """A tree as one vector, in at least single precision."""
    return ravel_pytree(_tree.wide(tree))[0]


def unraveller(tree: PyTree) -> Callable[[Array], PyTree]:
    """From such a vector to a tree like this one, in its own types."""
    back = ravel_pytree(_tree.wide(tree))[1]
    return lambda vector: _tree.like(back(vector), tree)


def default_radius(w: Array) -> Array:
    r"""$t = \epsilon^{1/3}\max(1, \|w\|)$, where rounding is still small in $H(w+tu) - H(w)$."""
    return jnp.finfo(w.dtype).eps ** (1 / 3) * jnp.maximum(1, jnp.linalg.norm(w))


def walk(
    problem: AbstractProblem, params: PyTree, inner: Inner, task: PyTree, key: Key[Array, ""], effort: Effort, samples: Samples
) -> Walked:
    """Walk the inner path of one task and measure at w_0..w_N; the inner loop is resolved."""
    params, rates = inner.unpack(params)
    split = inner.split(params)
    rebuild = plain(problem, task, split.static)
    descent = inner.descent(step_loss(rebuild, key, STEP, samples.step), key)
    path = forward(descent, split.adapting, split.frozen, rates, inner.steps, "iterates")
    points = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), path.iterates[0], path.final)
    after = jnp.minimum(jnp.arange(inner.steps + 1) + 1, inner.steps)
    moves = jax.tree.map(lambda a: a[after] - a[jnp.maximum(after - 1, 0)], points)
    unravel = unraveller(split.adapting)
    strength = inner.update.proximal

    def products(j):
        """w, v -> Hv of the inner loss at point j, and in the finite-sum case of the target loss."""

        def support(w):
            _, task, params = rebuild(unravel(w), split.frozen)
            return problem.loss(params, problem.step_batch(task, params, fold(key, POINT, j), effort.draws))

        def target(w):
            _, task, params = rebuild(unravel(w), split.frozen)
            return problem.target_loss(params, problem.target_batch(task, params, None, effort.draws))

        damping = 0.0 if strength is None else strength
        yield support, lambda w, v: _product(support, w, v) + damping * v
        if not problem.stochastic:
            yield target, lambda w, v: _product(target, w, v)

    def point(x):
        j, w, move = x[0], ravel(x[1]), ravel(x[2])
        found = []
        for k, (loss, product) in enumerate(products(j)):
            start = _start(jax.grad(loss)(w), fold(key, START, j, k))
            found.append(extremes(lambda v, product=product: product(w, v), start, effort.iterations)[:2])
        low, high = (jnp.stack(ends) for ends in zip(*found, strict=True))
        _, support = next(products(j))
        rho = _change(support, w, move, fold(key, CHANGE, j), effort) if effort.changes else jnp.nan * high[0]
        return jnp.maximum(-low, high), high[0], rho

    sizes, highest, rho = jax.lax.map(point, (jnp.arange(inner.steps + 1), points, moves))
    return Walked(_largest(sizes), _largest(highest), _largest(rho), jnp.sum(~jnp.isfinite(sizes)), path.final)


def _product(loss: Callable[[Array], Array], w: Array, v: Array) -> Array:
    return jax.jvp(jax.grad(loss), (w,), (v,))[1]


def _unit(v: Array) -> Array:
    length = _tree.norm(v)
    return v * jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)


def _start(gradient: Array, key: Any) -> Array:
    """A random direction with the gradient's mixed in, which leans towards large curvature."""
    random = _unit(jax.random.normal(key, gradient.shape, gradient.dtype))
    return random + jnp.where(jnp.isfinite(gradient).all(), _unit(gradient), 0)


def _change(product: Callable[[Array, Array], Array], w: Array, move: Array, key: Any, effort: Effort) -> Array:
    r"""The largest $\|(H(w+tu) - H(w))v\|/t$ found, from a random u and from the path's own direction."""
    width = default_radius(w) if effort.radius is None else jnp.asarray(effort.radius, w.dtype)

    def random(*numbers):
        own: Any = fold(key, *numbers)
        return jax.random.normal(own, w.shape, w.dtype)

    def follow(u, number):
        difference = lambda v: product(w + width * _unit(u), v) - product(w, v)  # noqa: E731
        low, high, v = extremes(difference, random(1, number), effort.changes)
        return v, jnp.maximum(-low, high) / width

    # One after another, so that the products are compiled once.
    directions, numbers = jnp.stack([random(0), move]), jnp.arange(2 * ROUNDS).reshape(2, ROUNDS)
    return _largest(jax.lax.map(lambda x: jax.lax.scan(follow, x[0], x[1])[1], (directions, numbers)))


def _largest(values: Array) -> Array:
    """The largest finite value; NaN if there is none."""
    finite = jnp.isfinite(values)
    return jnp.where(finite.any(), jnp.max(jnp.where(finite, values, -jnp.inf)), jnp.nan)
