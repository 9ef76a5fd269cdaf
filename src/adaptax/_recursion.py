r"""The forward pass along the inner path, and the one reverse recursion over it.

Forward: $w_{j+1} = U(w_j, s_j, \nabla l(w_j))$, for gradient descent $w_j - A_j\nabla l(w_j)$; $s_j$ is the inner optimiser's
state. Backward, for j = N-1 ... 0: pull v back through U, which gives the derivative $\bar g$ by the gradient ($-A_j v$), and
add $H_j\bar g$. The variables that do not adapt (frozen parameters and, for `ax.adapt`, the task's own arrays) are the rest r:
its rows of the Hessian give its derivative, $\bar r \leftarrow \bar r + \partial_r\nabla l(w_j)\,\bar g$, by the same product.

A loss with a state moves it on, $z_{j+1} = Z(w_j, z_j)$, and is a function of $z_j$ too. Its derivative $\bar z$ is carried
backward with v: $\bar z_j = \partial_z\nabla l\,\bar g + (\partial_z Z)^\top\bar z_{j+1}$, and v and $\bar r$ gain
$(\partial_w Z)^\top\bar z_{j+1}$ and $(\partial_r Z)^\top\bar z_{j+1}$.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._schedule import is_number_of_places, places_for, schedule
from adaptax._update import Update
from adaptax.errors import InputError
from adaptax.stepsize.rates import Rates

# The ways to keep every iterate.
_EVERY = ("iterates", "offload")
# loss(w, rest, j): the loss of step j, or of the Hessian factor j, on that step's samples.
StepLoss = Callable[[PyTree, PyTree, Array], Array]
# gradient(w, rest, j): the gradient at factor j by (w, rest).
Gradient = Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
# product(w, rest, u, j): the gradient (or None) and the Hessian-vector product of factor j, each by (w, rest).
Product = Callable[[PyTree, PyTree, PyTree, Array], tuple[tuple[PyTree, PyTree] | None, tuple[PyTree, PyTree]]]


class Threaded(NamedTuple):
    """In the place of the rest, for a loss with a state: the variables that do not adapt, and the state."""

    rest: PyTree
    state: PyTree


class Point(NamedTuple):
    """A point of the path: the iterate, the inner optimiser's state, and the loss's state (None where it has none)."""

    w: PyTree
    opt_state: PyTree
    state: PyTree = None


class Descent(NamedTuple):
    """One inner step.

    Arguments:
        value_and_gradient: the loss, with its next state (None where it has none), and its gradient by w alone.
        update: the update made of the gradient.
        begin: `begin(w_0, rest)`, the loss's first state, or None where it has none.
        advance: `advance(w, rest, j)`, the loss's next state.
    """

    value_and_gradient: Callable[[PyTree, PyTree, Array], tuple[tuple[Array, PyTree], PyTree]]
    update: Update
    begin: Callable[[PyTree, PyTree], PyTree] | None = None
    advance: Callable[[PyTree, PyTree, Array], PyTree] = lambda w, rest, j: None

    def start(self, w: PyTree, rest: PyTree) -> Point:
        """The first point of the path."""
        return Point(w, self.update.init(w), None if self.begin is None else self.begin(w, rest))


class ForwardPass(NamedTuple):
    """The results of the forward pass that the reverse one needs.

    Arguments:
        anchor: w_0.
        final: w_N.
        state: the loss's state at w_N (None where it has none).
        losses: l(w_0), ..., l(w_{N-1}).
        iterates: points: those of all steps that are differentiated, or those that are kept (see `_schedule`).
    """

    anchor: PyTree
    final: PyTree
    state: PyTree
    losses: Array
    iterates: PyTree


class PathCotangents(NamedTuple):
    """Derivatives by w_0, by the rest, by the step sizes, and by the proximal strength (None where there is none)."""

    w: PyTree
    rest: PyTree
    rates: PyTree
    proximal: Array | None


def threaded(rest: PyTree, state: PyTree) -> PyTree:
    """The loss's second argument: the rest, with the loss's state if it has one."""
    return rest if state is None else Threaded(rest, state)


def map_rest(function: Callable[[PyTree], PyTree], rest: PyTree) -> PyTree:
    """The same function of the variables that do not adapt, beside the loss's state if there is one."""
    return Threaded(function(rest.rest), rest.state) if isinstance(rest, Threaded) else function(rest)


def stepper(descent: Descent, anchor: PyTree, rest: PyTree, rates: Rates) -> Callable[[Point, dict], tuple[Point, Array]]:
    """One step: `(point, {"j", "rate"}) -> (next point, loss before)`."""

    def step(at, x):
        (value, state), gradient = descent.value_and_gradient(at.w, threaded(rest, at.state), x["j"])
        rate = rates.tree if x["rate"] is None else x["rate"]
        return Point(*descent.update(at.w, at.opt_state, gradient, anchor, rate), state), value

    return step


def forward(
    descent: Descent, w: PyTree, rest: PyTree, rates: Rates, steps: int, store: str | int, truncate: int | None = None
) -> ForwardPass:
    """Take `steps` inner steps, keeping every iterate, or with a number for `store` as many as that.

    With `truncate`, only iterates of so many last steps are kept. The point where these begin counts as w_0 for derivatives.
    """
    one = stepper(descent, w, rest, rates)
    xs, start, before, skipped = _inputs(rates, steps), descent.start(w, rest), None, _skipped(steps, truncate)
    if skipped:
        early, xs = (jax.tree.map(lambda x, part=part: x[part], xs) for part in (slice(skipped), slice(skipped, None)))
        (moved, *others), before = jax.lax.stop_gradient(jax.lax.scan(one, start, early))
        start, steps = Point(jax.tree.map(lambda x, w: x + (w - jax.lax.stop_gradient(w)), moved, w), *others), steps - skipped
    places = kept_places(steps, store)
    if places is None:

        def keep_all(at, x):
            new, loss = one(at, x)
            return new, (_move(at, "Host") if store == "offload" else at, loss)

        last, (iterates, losses) = _loop(keep_all, start, xs)
    else:

        def step(carry, x):
            (at, kept), (x, place) = carry, x
            new, loss = one(at, x)
            return (new, _put(kept, place, at)), loss

        plan = schedule(steps, places)
        kept = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (places + 1, *leaf.shape)), start)
        (last, iterates), losses = jax.lax.scan(step, (start, kept), (xs, jnp.asarray(plan.keep)))
    losses = losses if before is None else jnp.concatenate([before, losses])
    return ForwardPass(w, last.w, last.state, losses, iterates)


def _loop(step: Callable, carry: PyTree, xs: PyTree, reverse: bool = False) -> tuple[PyTree, PyTree]:
    """`lax.scan`, or the step itself where it is one: the compiler then forms once what both ways have in common."""
    if jax.tree.leaves(xs)[0].shape[0] != 1:
        return jax.lax.scan(step, carry, xs, reverse=reverse)
    carry, made = step(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda x: jnp.asarray(x)[None], made)


def _move(point: PyTree, memory: str) -> PyTree:
    """A point in the memory of the host, or in that of the device; programs for CPUs leave it where it is."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, getattr(jax.memory.Space, memory)), point)


def _put(kept: PyTree, place: Array, point: PyTree) -> PyTree:
    """Points with another one at a place."""
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, place, 0), kept, point)


def _get(kept: PyTree, place: Array) -> PyTree:
    """The point at a place."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, 0, keepdims=False), kept)


def kept_places(steps: int, store: str | int) -> int | None:
    """The places for iterates; None where each has one."""
    places = steps if store in _EVERY else places_for(steps) if isinstance(store, str) else store
    return places if places < steps - 1 else None


def _skipped(steps: int, truncate: int | None) -> int:
    """The steps before those that are differentiated."""
    return 0 if truncate is None else max(steps - truncate, 0)


def recomputed_steps(steps: int, store: str | int) -> int:
    """How many inner steps the reverse recursion takes once more."""
    places = kept_places(steps, store)
    return 0 if places is None else schedule(steps, places).again


def reverse(
    product: Product,
    gradient: Gradient,
    descent: Descent,
    path: ForwardPass,
    rest: PyTree,
    rates: Rates,
    cotangent: tuple[PyTree, PyTree],
    *,
    by_rates: bool = True,
    losses_cotangent: Array | None = None,
    targets: tuple[Array, Gradient] | None = None,
    store: str | int = "iterates",
    truncate: int | None = None,
) -> PathCotangents:
    r"""Carry the derivative at w_N back to w_0.

    Arguments:
        product: `product(w, rest, u, j)` gives $(\nabla l, \hat H_j u)$, each by (w, rest); the gradient may be None.
        gradient: `gradient(w, rest, j)`, asked where `product` gives none and something needs it.
        descent: the same as in the forward pass.
        path: the result of the forward pass.
        rest: the variables that do not adapt.
        rates: the same as in the forward pass.
        cotangent: the derivatives by w_N and by the rest (`Threaded`, with that by the last state, for a loss with a state).
        by_rates: whether derivatives by the step sizes are wanted (else they are zero).
        losses_cotangent: derivatives by the losses along the path, if anything depends on them.
        targets: weights c_0..c_{N-1} and the gradient of an outer loss whose values at w_j the objective adds, so weighted.
        store, truncate: the same as in the forward pass.
    """
    steps, update = path.losses.shape[0], descent.update
    skipped = _skipped(steps, truncate)
    anchor = path.anchor if update.proximal is not None else None
    asked = (by_rates and update.linear) or losses_cotangent is not None

    def back(carry, inputs):
        (v, by_opt_state, v_rest, by_anchor, by_shared, by_strength), (at, x) = carry, inputs
        w, here = at.w, threaded(rest, at.state)
        rate, j = rates.tree if x["rate"] is None else x["rate"], x["j"]

        def pull(g):
            return update.pull(w, at.opt_state, g, anchor, rate, (v, by_opt_state))

        # The update is differentiated at the gradient that the step took; a compiler finds it again in an exact product.
        taken = optax.tree.zeros_like(w) if update.linear else descent.value_and_gradient(w, here, j)[1]
        both, (h, h_rest) = product(w, here, pull(taken).gradient, j)
        both = gradient(w, here, j) if both is None and asked else both
        g, g_rest = (optax.tree.zeros_like(w), None) if both is None else both
        pulled = pull(g if update.linear else taken)
        if at.state is not None:
            by_w, v_rest = _pull_state(descent, w, here, j, v_rest)
            h = optax.tree.add(h, by_w)
        v, v_rest = optax.tree.add(pulled.w, h), optax.tree.add(v_rest, h_rest)
        if losses_cotangent is not None:
            v, v_rest = (optax.tree.add(a, _tree.scale(x["loss"], b)) for a, b in ((v, g), (v_rest, g_rest)))
        if targets is not None:
            v, v_rest = _add_target(targets[1], x["weight"], w, here, j, v, v_rest)
        by_rate = pulled.rate if by_rates else None
        by_shared = None if rates.per_step or not by_rates else optax.tree.add(by_shared, by_rate)
        if anchor is not None:
            by_anchor = optax.tree.add(by_anchor, pulled.anchor)
            change = _tree.dot(pulled.gradient, optax.tree.sub(w, anchor))
            by_strength = by_strength + change.astype(by_strength.dtype)
        return (v, pulled.opt_state, v_rest, by_anchor, by_shared, by_strength), by_rate if rates.per_step else None

    xs = _inputs(rates, steps) | {"loss": losses_cotangent, "weight": None if targets is None else targets[0]}
    xs, steps = jax.tree.map(lambda x: x[skipped:], xs), steps - skipped
    state_like = eqx.filter(jax.eval_shape(update.init, path.final), _tree.is_floating)
    by_shared = optax.tree.zeros_like(rates.tree) if by_rates and not rates.per_step else None
    carry: Any = (
        cotangent[0], optax.tree.zeros_like(state_like), cotangent[1], optax.tree.zeros_like(anchor), by_shared,
        optax.tree.zeros_like(update.proximal),
    )  # fmt: skip
    places = kept_places(steps, store)
    if places is None:

        def back_from(carry, inputs):
            at, x = inputs
            return back(carry, (_move(at, "Device") if store == "offload" else at, x))

        carry, stacked = _loop(back_from, carry, (path.iterates, xs), reverse=True)
    else:
        one, plan = stepper(descent, path.anchor, rest, rates), schedule(steps, places)
        advances = [jnp.asarray(part) for part in (plan.source, plan.target, plan.start, plan.count)]

        def advance(carry):
            made, kept = carry
            source, target, first, count = (part[made] for part in advances)
            point = jax.lax.fori_loop(first, first + count, lambda j, at: one(at, _get(xs, j))[0], _get(kept, source))
            return made + 1, _put(kept, target, point)

        def back_again(carry, inputs):
            (made, kept, carry), (end, place, x) = carry, inputs
            made, kept = jax.lax.while_loop(lambda state: state[0] < end, advance, (made, kept))
            carry, by_rate = back(carry, (_get(kept, place), x))
            return (made, kept, carry), by_rate

        inputs = jnp.asarray(plan.ends), jnp.asarray(plan.place), xs
        first = jnp.zeros((), jnp.int32), path.iterates, carry
        (_, _, carry), stacked = jax.lax.scan(back_again, first, inputs, reverse=True)
    v, by_opt_state, v_rest, by_anchor, by_shared, by_strength = carry
    if rates.per_step and skipped:
        stacked = jax.tree.map(lambda x: jnp.concatenate([jnp.zeros((skipped, *x.shape[1:]), x.dtype), x]), stacked)
    if not skipped:
        v = optax.tree.add(v, update.pull_init(path.anchor, by_opt_state))
    if descent.begin is not None and skipped:
        v_rest = v_rest.rest
    elif descent.begin is not None:
        begin, (v_rest, by_state) = descent.begin, v_rest
        pulled = jax.vjp(lambda w, rest: eqx.filter(begin(w, rest), _tree.is_floating), path.anchor, rest)[1](by_state)
        v, v_rest = optax.tree.add(v, pulled[0]), optax.tree.add(v_rest, pulled[1])
    if anchor is not None:
        v = optax.tree.add(v, by_anchor)
    if not by_rates:
        return PathCotangents(v, v_rest, optax.tree.zeros_like(rates.tree), by_strength)
    return PathCotangents(v, v_rest, _unstack(rates, stacked) if rates.per_step else by_shared, by_strength)


def _pull_state(descent: Descent, w: PyTree, here: Threaded, j: Array, cotangent: Threaded) -> tuple[PyTree, Threaded]:
    """The derivatives by w, and by the rest and the state before step j, from those by the rest and the state after it."""
    floats, others = eqx.partition(here.state, _tree.is_floating)

    def advance(w, rest, floats):
        return eqx.filter(descent.advance(w, Threaded(rest, eqx.combine(floats, others)), j), _tree.is_floating)

    by_w, by_rest, by_state = jax.vjp(advance, w, here.rest, floats)[1](cotangent.state)
    return by_w, Threaded(optax.tree.add(cotangent.rest, by_rest), by_state)


def _add_target(gradient, weight, w, rest, j, v, v_rest):
    """Add the weighted gradient of the outer loss at w_j; where the weight is zero nothing is computed."""

    def add(pair):
        return tuple(optax.tree.add(a, _tree.scale(weight, b)) for a, b in zip(pair, gradient(w, rest, j), strict=True))

    return jax.lax.cond(weight != 0, add, lambda pair: pair, (v, v_rest))


def _inputs(rates: Rates, steps: int) -> dict[str, Any]:
    return {"j": jnp.arange(steps), "rate": rates.stacked(steps)}


def _unstack(rates: Rates, stacked: PyTree) -> PyTree:
    """Derivatives by the stored entries of per-step rates, from those by each step's (the last one is repeated)."""

    def fold(leaf, each):
        entry = jnp.minimum(jnp.arange(each.shape[0]), leaf.shape[0] - 1)
        return jnp.zeros_like(leaf).at[entry].add(each)

    return jax.tree.map(fold, rates.tree, stacked)


def check_store(store: str | int) -> None:
    """Refuse anything but the ways to keep iterates."""
    if store not in (*_EVERY, "sqrt") and not is_number_of_places(store):
        text = f'store={store!r} must be "iterates" (fastest), "offload" (in the memory of the host), "sqrt"'
        raise InputError(f"{text}, or the number of iterates to keep (least memory), at least 1.")
