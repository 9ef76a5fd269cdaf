"""One meta-step: sample tasks, form the meta-gradient, move the parameters; or a compiled run of many."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from adaptax import _devices as dev
from adaptax import _tree
from adaptax._batching import check_batch, check_in_flight
from adaptax._checks import check_whole, is_traced
from adaptax._devices import beside
from adaptax._intake import as_batch
from adaptax._keys import any_key, draw_tasks, first, numbered, own_key, task_key
from adaptax._parameters import split, trained
from adaptax._tree import Mask
from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.methods.base import AbstractMethod, mean_like, weighted_sum
from adaptax.outer.adapted_path import AdaptedPath
from adaptax.outer.initial_gradients import InitialGradients
from adaptax.problem import AbstractProblem
from adaptax.stepsize.auto import Auto
from adaptax.stepsize.guard import guard_of, hold
from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.measurement import (
    first_estimate,
    measure,
    refresh,
    turning_if_flat,
    warn_if_not_finite,
    warn_of_no_curvature,
)
from adaptax.stepsize.rules import AbstractRule, Estimate
from adaptax.training.memory import Memory, Table, recall, rows_of, source

RECORDED = ("loss", "grad_norm", "stepsize", "skipped", "not_finite")
# What a compiled run tells of each meta-step, beyond that, to the host loop.
NOTED = (*RECORDED, "first_not_finite")


class State(eqx.Module):
    """The state of a meta-training run; saved and restored as a whole.

    Arguments:
        step: how many meta-steps have been taken.
        params: the parameters (`ax.Meta` with `ax.stepsize.Learned`).
        opt_state: the outer optimiser's state.
        inner: the inner loop with the step size in use: rules are resolved (to `ax.stepsize.LearnedRates` where
            `ax.stepsize.Auto` learns).
        estimate: a rule's curvature estimate, else None.
        key: made from the seed; never changes.
        skipped: how many meta-steps in a row had a gradient that was not finite.
        memory: the meta-gradients that `ax.Memory` remembers, else None.
        trained: which leaves of the parameters the outer optimiser moves.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    inner: Inner
    estimate: Estimate | None
    key: Key[Array, ""]
    skipped: Array
    memory: Table | None = None
    trained: Any = eqx.field(static=True, default=None)


class Step(eqx.Module):
    """A pure meta-step, made by `make_step`: `state = step.init(params, seed)`, `state, info = step(state)`."""

    problem: AbstractProblem
    method: AbstractMethod
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    tasks_per_step: int = eqx.field(static=True)
    in_flight: int | None = eqx.field(static=True, default=None)
    mesh: Mesh | None = eqx.field(static=True, default=None)
    memory: Memory | None = None

    def init(self, params: PyTree, seed: int = 0, tasks: PyTree = None) -> State:
        """The state before the first meta-step.

        Arguments:
            params: parameters w_0; with learned step sizes they are wrapped into `ax.Meta` unless they are already.
            seed: decides all sampling of the run.
            tasks: a batch to measure a step-size rule's first estimate on (default: the first tasks of the run).
                With it, `ax.Memory` remembers a single gradient, the only way where tasks come from the host.
        """
        inner, rule = self.method.inner, self.method.inner.stepsize
        # Large arrays are made where they are kept: in parts, if the parameters are cut.
        made = functools.partial(dev.made, dev.own(self.mesh))
        params = dev.place(dev.own(self.mesh), params)
        tasks = None if tasks is None else beside(as_batch(tasks), params)
        if isinstance(rule, Learned):
            own = isinstance(params, Meta)
            rates = rule.coordinates(params.stepsize) if own else made(rule.start, inner.initial(params), inner.steps)
            params = Meta(params.params if own else params, rates)
        params = _tree.as_parameters(params)
        key = jax.random.key(seed)
        estimate = None
        if isinstance(rule, Learned) and self.guard is not None:
            estimate = made(first_estimate, self._adapting(params.params, tasks))
        elif isinstance(rule, AbstractRule):
            estimate, inner, flat = turning_if_flat(lambda turn: _first_estimate(self, params, key, tasks, turn))
            if not is_traced(estimate.curvature):
                few, keys = self.rule_tasks(key, jnp.zeros((), jnp.int32), tasks)
                given = self.problem, params, few, keys, self.method.samples
                warn_if_not_finite(self.method.inner, inner, estimate.curvature, *given)
            warn_of_no_curvature(rule, flat, inner.stepsize, inner.steps)
            if isinstance(rule, Auto):
                # From here on, the curvature in the norm of the step sizes.
                estimate = eqx.tree_at(lambda known: known.curvature, estimate, estimate.curvature * inner.stepsize)
                if self.learns:
                    adapting, stochastic = self._adapting(params, tasks), self.problem.stochastic
                    inner = inner.with_stepsize(made(rule.start, inner.stepsize, adapting, inner.steps, stochastic))
        outer = self._outer(params, inner)
        moved = trained(self.problem, self.method.inner, outer, self.shapes(tasks), self.method.samples)
        floating = eqx.filter(outer, moved)
        zero = jnp.zeros((), jnp.int32)
        memory = None if self.memory is None else made(Table.empty, floating, rows_of(self.problem, tasks))
        return State(zero, params, made(self.optimizer.init, floating), inner, estimate, key, zero, memory, Mask(moved))

    def __call__(self, state: State, tasks: PyTree = None) -> tuple[State, dict[str, Array]]:
        """One meta-step.

        Arguments:
            state: from `init` or from the step before.
            tasks: a batch of tasks to use instead of sampling, or a list of them.

        Returns: the new state and a dict of scalars: loss (mean target loss at w_N), grad_norm (of the batch's
        meta-gradient), stepsize, skipped, not_finite (how many tasks were not), first_not_finite (the first one's index; B if
        there is none), and curvature where a step-size rule measures it.
        """
        return _one_step(self, state, None if tasks is None else self.given(tasks, state.params))

    def given(self, tasks: PyTree, params: PyTree, wanted: int | None = None) -> PyTree:
        """A batch of tasks from the host, as many as wanted (default: as a meta-step takes)."""
        tasks = beside(as_batch(tasks), params)
        if (count := check_batch(tasks, None, self.problem)) != (wanted or self.tasks_per_step):
            text = f"tasks= gave a batch of {count} tasks: make it"
            if wanted is None:
                raise InputError(f"{text} tasks_per_step={self.tasks_per_step} tasks.")
            raise InputError(f"{text} {wanted}, the share of this process of tasks_per_step={self.tasks_per_step}.")
        return tasks

    @property
    def learns(self) -> bool:
        """Whether the step sizes of `ax.stepsize.Auto` are learned."""
        rule = self.method.inner.stepsize
        return isinstance(rule, Auto) and self.method.learns and rule.learns(self.method.inner.steps, self.problem.stochastic)

    @property
    def guard(self) -> Auto | None:
        """How learned step sizes are held below the edge of stability; None where they are not."""
        return guard_of(self.method)

    def _adapting(self, params: PyTree, tasks: PyTree) -> PyTree:
        return split(self.problem, self.method.inner, params, self.shapes(tasks), self.method.samples).adapting

    def _outer(self, params: PyTree, inner: Inner) -> PyTree:
        """What the outer optimiser moves: the parameters, and the step sizes where they are learned."""
        return Meta(params, inner.stepsize) if self.learns else params

    # The methods below run inside the compiled program, on each device's share of the tasks.

    def keys(self, key: Key[Array, ""], step: Array, indices: Array) -> Key[Array, " B"]:
        """The tasks' keys: they depend on the seed, the meta-step and the task's index alone."""
        return numbered(jax.random.fold_in(key, step), indices)

    def sample(self, keys: Key[Array, " B"]) -> PyTree:
        """The tasks that these keys draw."""
        return draw_tasks(self.problem, keys)[0]

    def rule_tasks(self, key: Key[Array, ""], step: Array, tasks: PyTree) -> tuple[PyTree, Key[Array, " B"]]:
        """The tasks that the curvature is measured on: the first of the step's batch."""
        rule = self.guard or self.method.inner.stepsize
        if tasks is not None:
            tasks = jax.tree.map(lambda leaf: leaf[: rule.tasks], tasks)
        count = rule.tasks if tasks is None else jax.tree.leaves(tasks)[0].shape[0]
        keys = self.keys(key, step, jnp.arange(count))
        return (self.sample(keys) if tasks is None else tasks), jax.vmap(own_key)(keys)

    def shapes(self, tasks: PyTree) -> PyTree:
        """One task's shapes, or None where `sample_task` gives none."""
        if tasks is not None:
            return first(tasks)
        try:
            return eqx.filter_eval_shape(self.problem.sample_task, any_key())
        except Exception:  # refused with a sentence when the first tasks are drawn
            return None

    def advance(self, state: State, local: PyTree, few: PyTree) -> tuple[State, dict[str, Array]]:
        """One meta-step on this device's tasks (`local`; None: sample them), with `few` for a step-size rule."""
        method, problem, rule = self.method, self.problem, self.method.inner.stepsize
        inner, estimate, moved = state.inner, state.estimate, state.trained.tree()
        guard, current = self.guard, state.params
        measuring: Any = guard or rule
        due = jnp.array(False) if estimate is None else (state.step % measuring.every == 0) & (state.step > 0)
        if guard is not None:

            def look(stepsize, estimate):
                tasks, keys = self.rule_tasks(state.key, state.step, few)
                params = current.params if isinstance(rule, Learned) else current
                return hold(guard, method.inner, stepsize, estimate, problem, params, tasks, keys, method.samples)

            stepsize = current.stepsize if isinstance(rule, Learned) else inner.stepsize
            stepsize, estimate = jax.lax.cond(due | (state.skipped > 0), look, lambda *known: known, stepsize, estimate)
            if isinstance(rule, Learned):
                current = Meta(current.params, stepsize)
            else:
                inner = inner.with_stepsize(stepsize)
        elif isinstance(rule, AbstractRule) and not isinstance(rule, Auto):

            def remeasure(estimate):
                tasks, keys = self.rule_tasks(state.key, state.step, few)
                return refresh(method.inner, rule, estimate, problem, current, tasks, keys, samples=method.samples)

            # The first estimate was made by init.
            estimate = jax.lax.cond(due, remeasure, lambda known: known, estimate)
            inner = inner.with_stepsize(rule.alpha_of(estimate, inner.steps).astype(inner.stepsize.dtype))
        outer = self._outer(current, inner)
        method = (method if self.learns else method.with_inner(inner)).at(state.step)

        size = dev.share(self.mesh, self.tasks_per_step)
        indices = dev.device_index(self.mesh) * size + jnp.arange(size)
        keys = self.keys(state.key, state.step, indices)
        tasks = self.sample(keys) if local is None else local
        pool = source(self.memory, state.memory, problem, local)
        drawn = None if pool is None else jax.vmap(lambda key: pool.index(task_key(key)))(keys)
        keys = jax.vmap(own_key)(keys)
        weights = jnp.where(indices < self.tasks_per_step, 1.0, 0.0)

        def value_and_gradient(params, tasks=tasks):
            each = drawn is not None
            value, grad, infos = weighted_sum(method, problem, params, tasks, keys, weights, self.in_flight, each)
            infos, grads = infos if each else (infos, None)
            grad, grads = eqx.filter(grad, moved), None if grads is None else eqx.filter(grads, moved)
            rate = jnp.sum(jnp.where(weights > 0, infos.stepsize, 0))
            bad = (weights > 0) & ~infos.finite
            value, grad, rate, number = dev.total(self.mesh, (value, grad, rate, jnp.sum(bad)))
            count = self.tasks_per_step
            lost = {"not_finite": number, "first_not_finite": dev.least(self.mesh, jnp.min(jnp.where(bad, indices, count)))}
            return value / count, dev.held(self.mesh, mean_like(grad, params, count)), rate / count, grads, lost

        adapted_path = AdaptedPath(problem, outer, moved, method, tasks, keys, weights, self.tasks_per_step, self.mesh)
        if problem.stochastic and method.keeps_draws and getattr(self.optimizer, "on_adapted_path", False):
            # The method and the optimiser share the batches, which may be dear to draw.
            adapted_path = adapted_path.draw()
        value, grad, rate, grads, lost = value_and_gradient(outer, adapted_path.tasks)
        info = {"loss": value, "grad_norm": _tree.norm(grad), "stepsize": rate, **lost}
        if estimate is not None:
            info["curvature"] = estimate.curvature
        floating = eqx.filter(outer, moved)

        # Line searches pass on the extra arguments that they do not use. The derivative is the meta-gradient, equal on all
        # devices.
        def value_fn(floats, info=None, initial_gradients=None, adapted_path=None):
            @jax.custom_jvp
            def objective(floats):
                return value_and_gradient(eqx.combine(floats, outer))[0]

            @objective.defjvp
            def _derivative(primals, tangents):
                value, grad = value_and_gradient(eqx.combine(*primals, outer))[:2]
                pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(tangents[0]), strict=True)
                return value, sum((jnp.sum(g * t) for g, t in pairs), start=jnp.zeros(())).astype(value.dtype)

            return objective(floats)

        at_step = jax.random.fold_in(state.key, state.step)
        initial_gradients = InitialGradients(problem, current, method, at_step, local is not None)
        direction, note = recall(self.memory, state.memory, self.mesh, grad, drawn, weights, grads)
        updates, opt_state = optax.with_extra_args_support(self.optimizer).update(
            direction, state.opt_state, floating, value=value, grad=direction, value_fn=value_fn, info=info,
            initial_gradients=initial_gradients, adapted_path=adapted_path,
        )  # fmt: skip
        # Some optimisers compute in a wider type than that of the parameters; the state keeps the types it began with.
        updates, opt_state = jax.tree.map(_as_type, (updates, opt_state), (floating, state.opt_state))
        good = _tree.all_finite((grad, direction, updates))
        new = eqx.apply_updates(outer, updates), opt_state
        if isinstance(outer, Meta):
            new = Meta(new[0].params, new[0].stepsize.within()), opt_state
        params, opt_state = _tree.select(good, new, (outer, state.opt_state))
        if self.learns:
            params, inner = params.params, inner.with_stepsize(params.stepsize)
        skipped = jnp.where(good, 0, state.skipped + 1).astype(jnp.int32)
        info["skipped"] = ~good
        new = (state.step + 1, params, opt_state, inner, estimate, state.key, skipped, note(good), state.trained)
        return dev.held(self.mesh, State(*new)), info

    def split(self, tasks: PyTree) -> PyTree:
        """Host tasks made ready to be cut over the devices: filled up with copies of the first, of weight zero."""
        size = dev.share(self.mesh, self.tasks_per_step)
        missing = size * dev.rows(self.mesh) - self.tasks_per_step

        def fill(leaf):
            return jnp.concatenate([leaf, jnp.broadcast_to(leaf[:1], (missing, *leaf.shape[1:]))])

        return jax.tree.map(fill, tasks) if missing else tasks


def make_step(
    problem: AbstractProblem,
    method: AbstractMethod,
    optimizer: optax.GradientTransformation,
    tasks_per_step: int,
    *,
    in_flight: int | None = None,
    memory: Memory | None = None,
) -> Step:
    r"""A meta-step $w \leftarrow w - \beta\,\frac1B\sum_i \hat G_i$ for loops of your own, on the default device.

    Arguments:
        problem: the problem; tasks are drawn by its `sample_task`.
        method: the meta-gradient.
        optimizer: any optax transformation; one that takes extra arguments gets `value`, `grad` (the direction to follow),
            `value_fn` (the mean target loss of this step's tasks, after adaptation, at other parameters), `info`,
            `initial_gradients` (see `ax.outer.AdaptiveOuter`) and `adapted_path` (see `ax.outer.TrustRegion`).
        tasks_per_step: B, at least 1.
        in_flight: how many tasks are held at a time (default: by what one task holds).
        memory: `ax.Memory(rate)`: the optimiser follows remembered meta-gradients (default None: the batch's mean).

    Returns: an object with `init(params, seed) -> state`; calling it gives `(state, info)`. It is compiled once and may
    be used inside your own `jax.jit` or `jax.lax.scan`.

    Errors: `InputError` for a batch size below 1, and for an optimiser or a memory of the wrong type.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp, optax
        >>> sample = lambda key: ax.Task(*jax.random.normal(key, (2, 3)))
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), sample)
        >>> step = ax.make_step(problem, ax.MetaGradient(ax.Inner(2, 0.1)), optax.sgd(0.1), tasks_per_step=4)
        >>> state, info = step(step.init(jnp.zeros(3), seed=0))
        >>> int(state.step), bool(info["skipped"])
        (1, False)

    Source: docs/theory.md, sections 2 and 3.
    """
    tasks_per_step, in_flight = check_whole("", "tasks_per_step", tasks_per_step), check_in_flight(in_flight)
    if not isinstance(method, AbstractMethod):
        raise InputError(f"method must be a meta-gradient such as ax.MetaGradient(inner), not {type(method).__name__}.")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(f"optimizer must be an optax transformation such as optax.adam(1e-3), not {type(optimizer).__name__}.")
    if memory is not None and not isinstance(memory, Memory):
        raise InputError(f"memory must be ax.Memory(rate) or None, not {type(memory).__name__}.")
    method.check(problem, "keys are always made")
    return Step(problem, method, optimizer, tasks_per_step, in_flight, memory=memory)


def _as_type(new: Any, old: Any) -> Any:
    return new.astype(old.dtype) if eqx.is_array(new) and eqx.is_array(old) and new.dtype != old.dtype else new


@eqx.filter_jit
def _first_estimate(step, params, key, tasks, turn):
    rule, inner = step.method.inner.stepsize, step.method.inner
    few, keys = step.rule_tasks(key, jnp.zeros((), jnp.int32), tasks)
    samples = step.method.samples
    estimate = first_estimate(split(step.problem, inner, params, first(few), samples).adapting)
    estimate, flat = measure(inner, rule, estimate, step.problem, params, few, keys, samples=samples, cold=True, turn=turn)
    estimate = dev.held(dev.own(step.mesh), estimate)
    return estimate, inner.with_stepsize(rule.first_of(estimate, inner.steps, step.problem.stochastic)), flat


@eqx.filter_jit
def _one_step(step, state, tasks):
    few = tasks
    tasks = None if tasks is None else step.split(tasks)
    return dev.spread(step.mesh, lambda shared, local: (step.advance(shared[0], local, shared[1]), ()), (state, few), tasks)[0]
