"""States as they were saved before: when every floating-point leaf counted as a parameter, Python numbers and arrays that no
derivative reaches, and when rules measured only the largest |eigenvalue|."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax import _tree
from adaptax._parameters import split
from adaptax.stepsize.rules import Estimate
from adaptax.training.memory import Table
from adaptax.training.step import State, Step


def older(step: Step, state: State) -> State:
    """The same state as it was made then; a run begun so goes on so, with Python numbers as trained arrays."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float) if isinstance(leaf, float) else leaf, state.params)
    mask = jax.tree.map(_tree.is_floating, params)
    floating = eqx.filter(params, mask)
    estimate, memory = state.estimate, state.memory
    if estimate is not None:
        w = _tree.as_parameters(step.method.inner.initial(params))
        direction = eqx.filter(w, _tree.mask_tree(step.method.inner.adapt, w))
        estimate = dataclasses.replace(estimate, direction=direction)
    if memory is not None:
        memory = Table.empty(floating, len(memory.visited))
    opt_state, trained = step.optimizer.init(floating), _tree.Mask(mask)
    return State(state.step, params, opt_state, state.inner, estimate, state.key, state.skipped, memory, trained)


def one_sided(state: State) -> State:
    """The same state with an estimate of the largest |eigenvalue| alone."""
    if state.estimate is None:
        return state
    return dataclasses.replace(state, estimate=Estimate(state.estimate.curvature, state.estimate.direction))


def with_direction(step: Step, state: State, tasks: PyTree = None) -> State:
    """A state that was read, with a curvature estimate as the rule has it now: a direction with the leaves that adapt, and for
    a two-sided rule a bound on negative curvature, which is the largest |eigenvalue| where nothing else was saved.

    Arguments:
        step, state: the meta-step, and the state.
        tasks: a batch of tasks, where they come from the host.
    """
    if state.estimate is None:
        return state
    task = step.shapes(tasks)
    adapting = split(step.problem, step.method.inner, state.params, task, step.method.samples).adapting
    mask = jax.tree.map(eqx.is_array, adapting, is_leaf=lambda leaf: leaf is None)
    direction = jax.tree.map(
        lambda kept, leaf: leaf if kept else None, mask, state.estimate.direction, is_leaf=lambda leaf: leaf is None
    )
    curvature, negative = state.estimate.curvature, state.estimate.negative
    if negative is None and getattr(step.method.inner.stepsize, "two_sided", False):
        negative = curvature
    return dataclasses.replace(state, estimate=Estimate(curvature, direction, negative))
