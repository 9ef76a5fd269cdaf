"""The power iteration of the library, and curvature along an inner path by it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax.curvature.base import Local
from adaptax.curvature.finite_difference import FiniteDifference
from adaptax.stepsize.rules import AbstractRule, Estimate
from adaptax.update import Update

# How much of the gradient is mixed into the start: a direction kept from before may be orthogonal to a new top one.
_MIX = 0.1


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
        >>> from adaptax.stepsize.estimate import power_iteration
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


def along_path(
    loss: Callable[[PyTree, PyTree, Array], Array],
    w: PyTree,
    rest: PyTree,
    rule: AbstractRule,
    steps: int,
    estimate: Estimate,
    warmup: int,
    update: Update = Update(),  # noqa: B008
) -> tuple[Array, PyTree]:
    r"""The largest $\|\nabla^2 l(w_j)\|$ found at w_0..w_{N-1} (at w_0 for N = 0) and the direction found at w_0.

    The path is walked with the rule's own step size for the largest curvature met so far, so that it stays on the
    ground that training will walk, also before any step size is known. Values that are not finite are passed over; the
    result is NaN if all are, and the direction is always finite.

    Arguments:
        loss, w, rest: as in the recursion.
        rule: turns curvature into the step size of the walk.
        steps: N.
        estimate: what is known before; its direction is where the iteration starts.
        warmup: products spent at w_0 before the walk.
        update: what the walk makes of gradients.
    """

    def point(w, v, j, iterations):
        if rule.differences:
            local = Local(lambda w, _: loss(w, rest, j), w)
            gradient = local.gradient(w)[0]
            product = lambda v: FiniteDifference().product(local, v)[1][0]  # noqa: E731
        else:
            gradient, product = jax.linearize(lambda w: jax.grad(loss)(w, rest, j), w)
        start = _tree.add(v, _tree.scale(_MIX, _unit(gradient)))
        damped = lambda v: _tree.shift(product(v), update.proximal, v) if update.proximal is not None else product(v)  # noqa: E731
        value, v = power_iteration(damped, _tree.select(_tree.all_finite(start), start, v), iterations)
        return gradient, jnp.where(jnp.isfinite(value), value, jnp.nan).astype(estimate.curvature.dtype), v

    def step(carry, j):
        (at, memory), v, largest = carry
        gradient, value, v = point(at, v, j, rule.iterations)
        largest = jnp.fmax(largest, value)
        alpha = rule.alpha(jnp.fmax(largest, rule.decay * estimate.curvature), steps)
        return (update(at, memory, gradient, w, alpha), v, largest), None

    v = estimate.direction
    value = jnp.full_like(estimate.curvature, jnp.nan)
    if warmup:
        _, value, v = point(w, v, jnp.array(0), warmup)
    (_, last, largest), _ = jax.lax.scan(step, ((w, update.init(w)), v, value), jnp.arange(max(steps, 1)))
    return largest, v if warmup else last
