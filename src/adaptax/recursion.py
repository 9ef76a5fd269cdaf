r"""The inner path and the one reverse recursion over it.

Forward: $w_{j+1} = w_j - A_j \nabla l(w_j)$. Backward, for j = N-1 ... 0: $v \leftarrow v - H_j (A_j v)$. What does not
adapt (frozen parameters and, for `ax.adapt`, the task's own arrays) is the rest r of the variables: its rows of the
Hessian give its share, $\bar r \leftarrow \bar r - \partial_r\nabla l(w_j)\,(A_j v)$, by the same product.
"""

from collections.abc import Callable
from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax.errors import InputError
from adaptax.stepsize.rates import Rates, multiply

# loss(w, rest, j): the loss of step j, or of the Hessian factor j, on that step's samples.
StepLoss = Callable[[PyTree, PyTree, Array], Array]
# product(w, rest, u, j): the gradient and the Hessian-vector product of factor j, each by (w, rest).
Product = Callable[[PyTree, PyTree, PyTree, Array], tuple[tuple[PyTree, PyTree], tuple[PyTree, PyTree]]]


class Path(NamedTuple):
    """What the forward pass leaves: w_N, the losses l(w_0..w_{N-1}), and iterates (all, or those that start a segment)."""

    final: PyTree
    losses: Array
    starts: PyTree | None
    iterates: PyTree


def forward(loss: StepLoss, w: PyTree, rest: PyTree, rates: Rates, steps: int, store: str) -> Path:
    """Take `steps` inner steps, keeping every iterate, or with store="sqrt" about 2 sqrt(N) of them."""

    def step(w, x):
        value, gradient = jax.value_and_grad(loss)(w, rest, x["j"])
        rate = rates.tree if x["rate"] is None else x["rate"]
        return _tree.subtract(w, multiply(rate, gradient)), (w, value)

    xs = _inputs(rates, steps)
    if store == "iterates":
        final, (iterates, losses) = jax.lax.scan(step, w, xs)
        return Path(final, losses, None, iterates)

    def segment(w, xs):
        final, (_, losses) = jax.lax.scan(step, w, xs)
        return final, (w, losses)

    head, tail = _segments(xs, steps)
    middle, (starts, head_losses) = jax.lax.scan(segment, w, head)
    final, (iterates, tail_losses) = jax.lax.scan(step, middle, tail)
    return Path(final, jnp.concatenate([head_losses.reshape(-1), tail_losses]), starts, iterates)


def reverse(
    product: Product,
    path: Path,
    rest: PyTree,
    rates: Rates,
    cotangent: tuple[PyTree, PyTree],
    *,
    loss: StepLoss,
    losses_bar: Array | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    r"""Carry the derivative at w_N back to w_0.

    Arguments:
        product: `product(w, rest, u, j)` gives $(\nabla l, \hat H_j u)$, each for (w, rest).
        path: of the forward pass.
        rest: what does not adapt.
        rates: as in the forward pass.
        cotangent: the derivatives by w_N and by the rest.
        loss: the step loss, to recompute iterates that were not stored.
        losses_bar: derivatives by the losses along the path, if anything depends on them.

    Returns: derivatives by w_0, by the rest, and by the rates' tree.
    """
    steps = path.losses.shape[0]

    def back(carry, inputs):
        (v, v_rest, rates_bar), (w, x) = carry, inputs
        rate = rates.tree if x["rate"] is None else x["rate"]
        (g, g_rest), (h, h_rest) = product(w, rest, multiply(rate, v), x["j"])
        # The step w - A g is linear in A, so this is -g * v summed over the entries that share a rate.
        _, pull = jax.vjp(lambda r: _tree.scale(-1, multiply(r, g)), rate)
        (rate_bar,) = pull(v)
        v, v_rest = _tree.subtract(v, h), _tree.subtract(v_rest, h_rest)
        if losses_bar is not None:
            v, v_rest = (_tree.add(a, _tree.scale(x["bar"], b)) for a, b in ((v, g), (v_rest, g_rest)))
        if rates.per_step:
            return (v, v_rest, rates_bar), rate_bar
        return (v, v_rest, _tree.add(rates_bar, rate_bar)), None

    xs = _inputs(rates, steps)
    xs["bar"] = losses_bar
    carry: Any = (*cotangent, None if rates.per_step else _tree.zeros_like(rates.tree))
    if path.starts is None:
        carry, stacked = jax.lax.scan(back, carry, (path.iterates, xs), reverse=True)
    else:

        def back_segment(carry, inputs):
            start, xs = inputs
            recomputed = _again(loss, start, rest, rates, xs)
            return jax.lax.scan(back, carry, (recomputed, xs), reverse=True)

        head, tail = _segments(xs, steps)
        carry, tail_stacked = jax.lax.scan(back, carry, (path.iterates, tail), reverse=True)
        carry, head_stacked = jax.lax.scan(back_segment, carry, (path.starts, head), reverse=True)
        join = lambda a, b: jnp.concatenate([a.reshape((-1, *b.shape[1:])), b])  # noqa: E731
        stacked = jax.tree.map(join, head_stacked, tail_stacked)
    v, v_rest, shared = carry
    return v, v_rest, _unstack(rates, stacked) if rates.per_step else shared


def _again(loss, start, rest, rates, xs):
    def step(w, x):
        rate = rates.tree if x["rate"] is None else x["rate"]
        return _tree.subtract(w, multiply(rate, jax.grad(loss)(w, rest, x["j"]))), w

    return jax.lax.scan(step, start, xs)[1]


def _inputs(rates: Rates, steps: int) -> dict[str, Any]:
    return {"j": jnp.arange(steps), "rate": rates.stacked(steps)}


def _segments(xs: PyTree, steps: int) -> tuple[PyTree, PyTree]:
    """Cut the steps into about sqrt(N) segments of equal length and a shorter tail."""
    length = max(isqrt(steps), 1)
    count = max(steps // length - 1, 0)
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
