"""What one task looks like to the recursion: its losses on its samples, and what is refused beforehand."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax._tree import describe, first_line
from adaptax.curvature.base import AbstractCurvature, Local
from adaptax.errors import InputError
from adaptax.gradients import AbstractGradient
from adaptax.problem import AbstractProblem, Samples, check_not_empty, check_scalar
from adaptax.recursion import Gradient, Product, StepLoss

# What a task's key is folded with, so that every use has samples of its own.
STEP, CURVATURE, TARGET, DIRECTION, RULE, GRADIENT, FACTOR, LAST = range(8)

# rebuild(w, rest) -> (problem, task, params)
Rebuild = Callable[[PyTree, PyTree], tuple[AbstractProblem, PyTree, PyTree]]


def plain(problem: AbstractProblem, task: PyTree, static: PyTree) -> Rebuild:
    """Only the parameters are variables: the rest of them is the frozen part."""
    return lambda w, frozen: (problem, task, eqx.combine(w, frozen, static))


def fold(key: Key[Array, ""] | None, *numbers: Any) -> Key[Array, ""] | None:
    """The key of one use: `key` folded with each number in turn."""
    if key is None:
        return None
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def step_loss(rebuild: Rebuild, key: Key[Array, ""] | None, purpose: int, size: int) -> StepLoss:
    """The loss of step j on the samples of that purpose and step."""

    def loss(w, rest, j):
        problem, task, params = rebuild(w, rest)
        return problem.loss(params, problem.step_batch(task, params, fold(key, purpose, j), size))

    return loss


def first(tasks: PyTree) -> PyTree:
    """The shapes of one task of a batch."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype), tasks)


def require_keys(problem: AbstractProblem, key: Any, stochastic: bool = False) -> None:
    if key is None and (problem.stochastic or stochastic):
        what = "This problem draws fresh samples" if problem.stochastic else "This strategy draws directions"
        raise InputError(f"{what}: pass a key, such as jax.random.key(0) (one for each task of a batch).")


def check_key(key: Any) -> None:
    """Refuse what is not one key."""
    if key is None:
        return
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError) as error:
        text = f"key must be one key such as jax.random.key(0), not {describe(key)}"
        raise InputError(f"{text}: a batch takes an array of them, one for each task.") from error


def check_problem(problem: AbstractProblem, params: PyTree, task: PyTree, samples: Samples, *, target: bool) -> None:
    """Refuse tasks and losses that cannot be trained on, before anything is computed."""
    key = jax.eval_shape(lambda: jax.random.key(0))

    def batch(draw, size):
        try:
            return eqx.filter_eval_shape(draw, task, params, key, size)
        except InputError:
            raise
        except Exception as error:
            text = f"draw(task, params, key, size={size}) fails ({first_line(error)}) on a task of {describe(task)}"
            raise InputError(f"{text}: make draw, the task and the parameters fit each other.") from error

    if problem.stochastic:
        support = batch(problem.step_batch, samples.step)
        query = batch(problem.target_batch, samples.target) if target else None
    else:
        if not hasattr(task, "support"):
            raise InputError(f"A finite-sum problem needs ax.Task(support, target), not {describe(task)}.")
        support, query = task.support, task.target
        if target and query is None:
            raise InputError("This task has no target set to judge by: make it ax.Task(support, target).")
    check_not_empty(support, "support set", "give every task at least one example to adapt on")
    check_scalar(problem.loss, params, support, "loss", "support set")
    if target:
        check_not_empty(query, "target set", "give every task at least one example to judge by")
        check_scalar(problem.target_loss, params, query, "target_loss", "target set")


def factors(
    curvature: AbstractCurvature, gradients: AbstractGradient, loss: StepLoss, key: Key[Array, ""] | None
) -> tuple[Product, Gradient]:
    """What the reverse recursion asks of a curvature strategy: products, and gradients at the same points."""

    def local(w, rest, j):
        return Local(lambda w, rest: loss(w, rest, j), w, rest, gradients, fold(key, FACTOR, j))

    def product(w, rest, u, j):
        return curvature.product(local(w, rest, j), u, fold(key, DIRECTION, j))

    return product, lambda w, rest, j: local(w, rest, j).gradient(w)
