r"""The inner path and the one reverse recursion over it.

Forward: $w_{j+1} = U(w_j, s_j, \nabla l(w_j))$, for gradient descent $w_j - A_j\nabla l(w_j)$. Backward, for j = N-1 ... 0:
pull v back through U, which gives the derivative $\bar g$ by the gradient ($-A_j v$), and add $H_j\bar g$. What does not
adapt (frozen parameters and, for `ax.adapt`, the task's own arrays) is the rest r of the variables: its rows of the
Hessian give its share, $\bar r \leftarrow \bar r + \partial_r\nabla l(w_j)\,\bar g$, by the same product.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax.errors import InputError
from adaptax.stepsize.rates import Rates
from adaptax.update import Update

# loss(w, rest, j): the loss of step j, or of the Hessian factor j, on that step's samples.
StepLoss = Callable[[PyTree, PyTree, Array], Array]
# gradient(w, rest, j): the gradient at factor j by (w, rest).
Gradient = Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
# product(w, rest, u, j): the gradient (or None) and the Hessian-vector product of factor j, each by (w, rest).
Product = Callable[[PyTree, PyTree, PyTree, Array], tuple[tuple[PyTree, PyTree] | None, tuple[PyTree, PyTree]]]


class Descent(NamedTuple):
    """One inner step: the loss and its gradient by w alone, and what is made of it."""

    value_and_gradient: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]]
    update: Update


class Path(NamedTuple):
    """What the forward pass leaves.

    Arguments:
        anchor: w_0.
        final: w_N.
        losses: l(w_0), ..., l(w_{N-1}).
        starts: pairs (iterate, memory) that start a segment, or None.
        iterates: pairs (iterate, memory), all or those of the tail.
    """

    anchor: PyTree
    final: PyTree
    losses: Array
    starts: PyTree | None
    iterates: PyTree


class Reversed(NamedTuple):
    """Derivatives by w_0, by the rest, by the rates' tree, and by the proximal strength (None where there is none)."""

    w: PyTree
    rest: PyTree
    rates: PyTree
    proximal: Array | None


def stepper(descent: Descent, anchor: PyTree, rest: PyTree, rates: Rates) -> Callable[[Any, dict], tuple[Any, Array]]:
    """One step: `((w, memory), {"j", "rate"}) -> ((w, memory), loss before)`."""

    def step(carry, x):
        w, memory = carry
        value, gradient = descent.value_and_gradient(w, rest, x["j"])
        rate = rates.tree if x["rate"] is None else x["rate"]
        return descent.update(w, memory, gradient, anchor, rate), value

    return step


def forward(descent: Descent, w: PyTree, rest: PyTree, rates: Rates, steps: int, store: str) -> Path:
    """Take `steps` inner steps, keeping every iterate, or with store="sqrt" about 2 sqrt(N) of them."""
    one = stepper(descent, w, rest, rates)

    def step(carry, x):
        new, value = one(carry, x)
        return new, (carry, value)

    xs, start = _inputs(rates, steps), (w, descent.update.init(w))
    if store == "iterates":
        (final, _), (iterates, losses) = jax.lax.scan(step, start, xs)
        return Path(w, final, losses, None, iterates)

    def segment(carry, xs):
        new, losses = jax.lax.scan(one, carry, xs)
        return new, (carry, losses)

    head, tail = _segments(xs, steps)
    middle, (starts, head_losses) = jax.lax.scan(segment, start, head)
    (final, _), (iterates, tail_losses) = jax.lax.scan(step, middle, tail)
    return Path(w, final, jnp.concatenate([head_losses.reshape(-1), tail_losses]), starts, iterates)


def recomputed_steps(steps: int, store: str) -> int:
    """How many inner steps the reverse recursion takes once more."""
    if store == "iterates":
        return 0
    length = max(isqrt(steps), 1)
    return max(steps // length - 1, 0) * length


def reverse(
    product: Product,
    gradient: Gradient,
    descent: Descent,
    path: Path,
    rest: PyTree,
    rates: Rates,
    cotangent: tuple[PyTree, PyTree],
    *,
    by_rates: bool = True,
    losses_bar: Array | None = None,
    targets: tuple[Array, Gradient] | None = None,
) -> Reversed:
    r"""Carry the derivative at w_N back to w_0.

    Arguments:
        product: `product(w, rest, u, j)` gives $(\nabla l, \hat H_j u)$, each by (w, rest); the gradient may be None.
        gradient: `gradient(w, rest, j)`, asked where `product` gives none and something needs it.
        descent: as in the forward pass.
        path: of the forward pass.
        rest: what does not adapt.
        rates: as in the forward pass.
        cotangent: the derivatives by w_N and by the rest.
        by_rates: whether derivatives by the rates are wanted (else they are zero).
        losses_bar: derivatives by the losses along the path, if anything depends on them.
        targets: weights c_0..c_{N-1} and the gradient of an outer loss whose values at w_j the objective adds, so weighted.
    """
    steps, update = path.losses.shape[0], descent.update
    anchor = path.anchor if update.proximal is not None else None
    asked = (by_rates and update.linear) or losses_bar is not None

    def back(carry, inputs):
        (v, memory_bar, v_rest, anchor_bar, rates_bar, strength), ((w, memory), x) = carry, inputs
        rate, j = rates.tree if x["rate"] is None else x["rate"], x["j"]
        pull = lambda g: update.pull(w, memory, g, anchor, rate, (v, memory_bar))  # noqa: E731
        # The update is differentiated at the gradient that the step took; a compiler finds it again in an exact product.
        taken = _tree.zeros_like(w) if update.linear else descent.value_and_gradient(w, rest, j)[1]
        both, (h, h_rest) = product(w, rest, pull(taken).gradient, j)
        both = gradient(w, rest, j) if both is None and asked else both
        g, g_rest = (_tree.zeros_like(w), None) if both is None else both
        bars = pull(g if update.linear else taken)
        v, v_rest = _tree.add(bars.w, h), _tree.add(v_rest, h_rest)
        if losses_bar is not None:
            v, v_rest = (_tree.add(a, _tree.scale(x["bar"], b)) for a, b in ((v, g), (v_rest, g_rest)))
        if targets is not None:
            v, v_rest = _add_target(targets[1], x["weight"], w, rest, j, v, v_rest)
        rate_bar = bars.rate if by_rates else None
        shared = None if rates.per_step or not by_rates else _tree.add(rates_bar, rate_bar)
        if anchor is not None:
            anchor_bar = _tree.add(anchor_bar, bars.anchor)
            strength = strength + _tree.dot(bars.gradient, _tree.subtract(w, anchor)).astype(strength.dtype)
        return (v, bars.memory, v_rest, anchor_bar, shared, strength), rate_bar if rates.per_step else None

    xs = _inputs(rates, steps) | {"bar": losses_bar, "weight": None if targets is None else targets[0]}
    floats = lambda memory: eqx.filter(memory, _tree.is_floating)  # noqa: E731
    blank = _tree.zeros_like(floats(jax.eval_shape(update.init, path.final)))
    shared = _tree.zeros_like(rates.tree) if by_rates and not rates.per_step else None
    strength = _tree.zeros_like(update.proximal)
    carry: Any = (cotangent[0], blank, cotangent[1], _tree.zeros_like(anchor), shared, strength)
    if path.starts is None:
        carry, stacked = jax.lax.scan(back, carry, (path.iterates, xs), reverse=True)
    else:
        one = stepper(descent, path.anchor, rest, rates)

        def back_segment(carry, inputs):
            start, xs = inputs
            recomputed = jax.lax.scan(lambda c, x: (one(c, x)[0], c), start, xs)[1]
            return jax.lax.scan(back, carry, (recomputed, xs), reverse=True)

        head, tail = _segments(xs, steps)
        carry, tail_stacked = jax.lax.scan(back, carry, (path.iterates, tail), reverse=True)
        carry, head_stacked = jax.lax.scan(back_segment, carry, (path.starts, head), reverse=True)
        join = lambda a, b: jnp.concatenate([a.reshape((-1, *b.shape[1:])), b])  # noqa: E731
        stacked = jax.tree.map(join, head_stacked, tail_stacked)
    v, memory_bar, v_rest, anchor_bar, shared, proximal_bar = carry
    v = _tree.add(v, update.pull_init(path.anchor, memory_bar))
    if anchor is not None:
        v = _tree.add(v, anchor_bar)
    if not by_rates:
        return Reversed(v, v_rest, _tree.zeros_like(rates.tree), proximal_bar)
    return Reversed(v, v_rest, _unstack(rates, stacked) if rates.per_step else shared, proximal_bar)


def _add_target(gradient, weight, w, rest, j, v, v_rest):
    """Add the weighted gradient of the outer loss at w_j; where the weight is zero nothing is computed."""

    def add(pair):
        return tuple(_tree.add(a, _tree.scale(weight, b)) for a, b in zip(pair, gradient(w, rest, j), strict=True))

    return jax.lax.cond(weight != 0, add, lambda pair: pair, (v, v_rest))


def _inputs(rates: Rates, steps: int) -> dict[str, Any]:
    return {"j": jnp.arange(steps), "rate": rates.stacked(steps)}


def _segments(xs: PyTree, steps: int) -> tuple[PyTree, PyTree]:
    """Cut the steps into about sqrt(N) segments of equal length and a shorter tail."""
    length = max(isqrt(steps), 1)
    count = recomputed_steps(steps, "sqrt") // length
    head = jax.tree.map(lambda x: x[: count * length].reshape((count, length, *x.shape[1:])), xs)
    return head, jax.tree.map(lambda x: x[count * length :], xs)


def _unstack(rates: Rates, stacked: PyTree) -> PyTree:
    """Derivatives by the stored entries of per-step rates, from those by each step's (the last one is repeated)."""

    def fold(leaf, bar):
        held = jnp.minimum(jnp.arange(bar.shape[0]), leaf.shape[0] - 1)
        return jnp.zeros_like(leaf).at[held].add(bar)

    return jax.tree.map(fold, rates.tree, stacked)


def check_store(store: str) -> None:
    if store not in ("iterates", "sqrt"):
        raise InputError(f'store={store!r} must be "iterates" (fastest) or "sqrt" (least memory).')
