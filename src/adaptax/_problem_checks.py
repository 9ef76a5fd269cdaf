"""Whether a task and a loss fit each other, before anything is computed."""

from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from adaptax._drawn_once import traced
from adaptax._keys import any_key, drawn_shape, shape_of
from adaptax._tree import describe, first_line
from adaptax.errors import DrawnOnce, InputError
from adaptax.inner_path import Drawn
from adaptax.problem import AbstractProblem, Samples, check_not_empty, check_scalar
from adaptax.sequential import Sequential, check_length


def check_problem(problem: AbstractProblem, params: PyTree, task: PyTree, samples: Samples, *, target: bool) -> PyTree:
    """Refuse tasks and losses that cannot be trained on, before anything is computed. Returns the shapes of a target batch."""

    task = task.task if isinstance(task, Drawn) else task

    def batch(draw, size):
        try:
            user: Any = getattr(problem, "draw", None)
            return traced(user, task, params, any_key(), size, said="draw", remedy="use jax.random with its key", call=draw)[0]
        except (InputError, DrawnOnce):
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
        structure, shapes = shape_of(task)
        if (drawn := drawn_shape(problem)) is not None and drawn[0] == structure and shapes != drawn[1]:
            count = shapes[0][:1]
            if [(*count, *shape) for shape in drawn[1]] == shapes:
                text = f"task is a batch of {count[0]} tasks as this problem draws them"
                raise InputError(f"{text}: give one of them, or use a function of batches such as MetaGradient(...).batch.")
        support, query = task.support, task.target
        if target and query is None and getattr(problem, "outer", "last") == "last":
            raise InputError("This task has no target set to judge by: make it ax.Task(support, target).")
    check_not_empty(support, "support set", "give every task at least one example to adapt on")
    if isinstance(problem, Sequential):
        return _check_sequence(problem, params, task, target)
    check_scalar(problem.loss, params, support, "loss", "support set")
    if target:
        check_not_empty(query, "target set", "give every task at least one example to judge by")
        check_scalar(problem.target_loss, params, query, "target_loss", "target set")
    return query


def _check_sequence(problem: Sequential, params: PyTree, task: PyTree, target: bool) -> PyTree:
    """The same for a sequence of batches. Returns the shapes of the batch that scores are of."""
    check_length(problem, task.support, 1)
    batch = eqx.filter_eval_shape(problem.step_batch, task, params, None, 0)
    state = problem.initial_state(params)

    # The state is an argument, since a shape that a function closes over is no array.
    def step(pair, x):
        return problem.step_loss(pair[0], x, pair[1])[0]

    def outer(pair, x):
        return problem.outer_loss(pair[0], x, pair[1])

    check_scalar(problem.loss, (params, state), batch, "loss", "first batch of the support set", step, state)
    if problem.carries:
        problem.check_state(params, batch)
    if not target or problem.outer == "path":
        return batch
    check_not_empty(task.target, "target set", "give every task at least one example to judge by")
    check_scalar(problem.target_loss, (params, state), task.target, "target_loss", "target set", outer, state)
    return task.target
