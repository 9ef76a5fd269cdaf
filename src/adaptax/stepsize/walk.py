"""The curvature along one inner path, as a step-size rule asks for it, and a scale where a loss has none."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._lanczos import tree_ends
from adaptax._second_order import linearized_gradient
from adaptax._update import Update
from adaptax.curvature.base import LocalLoss
from adaptax.curvature.finite_difference import FiniteDifference
from adaptax.stepsize.rules import AbstractRule, Estimate

# Share of the gradient in the start: a direction kept from the last measurement may be orthogonal to the new top eigenvector.
_MIX = 0.1
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
        >>> from adaptax.stepsize.walk import power_iteration
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
    advance: Callable[[PyTree, PyTree, Array], PyTree] | None = None,
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
        warmup: products spent at w_0 before the walk, at least.
        update: how the walk moves w, given the gradient.
        advance: moves the loss's state on, if it has one; `rest` is then `Threaded` with the first.
    """
    kind = estimate.curvature.dtype

    def point(w, rest, directions, j, iterations):
        gradient, damped = curvature_at(loss, w, rest, j, rule.differences, update.proximal)
        v = sum_of(*directions)
        start = optax.tree.add(v, _tree.scale(_MIX, _unit(gradient)))
        start = _tree.select(_tree.all_finite(start), start, v)
        if rule.two_sided:
            low, high, *found = tree_ends(damped, start, iterations)
            values = high, _negative_part(low, high, w)
            # The sum of the two is where the next measurement starts.
            length = _tree.norm(sum_of(*found))
            directions = _tree.select(jnp.isfinite(length) & (length > 0), tuple(found), directions)
        else:
            value, v = power_iteration(damped, start, iterations)
            values, directions = (value, None), (v,)
        return gradient, jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.nan).astype(kind), values), directions

    def step(carry, x):
        j, moves = x
        (at, opt_state, rest), directions, largest, kept = carry
        gradient, values, directions = point(at, rest, directions, j, rule.iterations)
        largest = jax.tree.map(jnp.fmax, largest, values)
        known = jax.tree.map(lambda now, before: jnp.fmax(now, rule.kept(before)), largest, (estimate.curvature, negative))
        alpha = rule.alpha_of(Estimate(known[0], None, known[1]), steps)
        after = rest if advance is None else rest._replace(state=advance(at, rest, j))
        new = (*update(at, opt_state, gradient, w, alpha), after)
        if stay:
            new = _tree.select(moves, new, (at, opt_state, rest))
        return (new, directions, largest, _tree.select(moves, kept, directions) if stay else kept), None

    nothing = jnp.full_like(estimate.curvature, jnp.nan)
    values, negative = (nothing, None), None
    directions = (estimate.direction,)
    if rule.two_sided:
        values, negative = (nothing, nothing), jnp.zeros_like(nothing) if estimate.negative is None else estimate.negative
        directions = (_tree.scale(0.5, estimate.direction),) * 2
    stay, walk = 0, jnp.arange(max(steps, 1))
    if warmup and rule.two_sided:
        _, values, directions = point(w, rest, directions, jnp.array(0), warmup)
    elif warmup:
        # The walk stands still at first, so that one program serves the warm-up too.
        stay = -(-warmup // rule.iterations)
    numbers = jnp.concatenate([jnp.zeros(stay, walk.dtype), walk]), jnp.arange(stay + walk.size) >= stay
    kept = directions if warmup else None
    (_, last, largest, kept), _ = jax.lax.scan(step, ((w, update.init(w), rest), directions, values, kept), numbers)
    return Along(largest[0], largest[1], last if kept is None else kept)


def sum_of(*trees: PyTree) -> PyTree:
    """The sum of trees."""
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
