"""Keys: each use of a key folds in a number of its own, so that no two uses share random numbers."""

import contextlib
import warnings
import weakref
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key, PyTree

from adaptax._drawn_once import depends, traced
from adaptax._intake import as_drawn
from adaptax._tree import describe, first_line
from adaptax.errors import DrawnOnce, HostFailure, InputError
from adaptax.problem import AbstractProblem

# The uses inside one task: inner steps, Hessian factors, target batches, and so on.
STEP, CURVATURE, TARGET, DIRECTION, RULE, GRADIENT, FACTOR, LAST = range(8)
# The uses of measurements along an inner path.
POINT, START, CHANGE, DRAW, CHOOSE = range(100, 105)
# Streams of tasks apart from the meta-steps of the same seed, whose numbers are small.
RULE_TASKS, INITIAL_GRADIENTS, CONSTANTS, CERTIFICATE = (2**32 - n for n in range(1, 5))
STABILITY = CERTIFICATE
_ONE_TASK = (
    "sample_task(key) makes no use of its key, so that all tasks are the same: draw with jax.random and the key, or say that "
    "there is one task by ax.Pool([task])."
)


def fold(key: Key[Array, ""] | None, *numbers: Any) -> Any:
    """The key of one use: `key` folded with each number in turn; None stays None."""
    if key is not None:
        for number in numbers:
            key = jax.random.fold_in(key, number)
    return key


def numbered(key: Key[Array, ""], indices: Array) -> Any:
    """One key for each index."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def task_key(key: Key[Array, ""]) -> Any:
    """The key that `sample_task` gets."""
    return jax.random.fold_in(key, 0)


def own_key(key: Key[Array, ""]) -> Any:
    """The key of everything that is drawn inside the task."""
    return jax.random.fold_in(key, 1)


def draw_task(problem: AbstractProblem, key: Key[Array, ""]) -> PyTree:
    """The task that a key draws; looked at once, whether it depends on the key and on nothing else.

    Errors: `InputError` if `sample_task` fails, or for leaves that are no arrays.
    """
    sample, key = problem.sample_task, task_key(key)
    try:
        remedy = "use jax.random with the key, or pass tasks made on the host as tasks="
        program = traced(sample, any_key(), said="sample_task", remedy=remedy)[1]
        task = as_drawn(sample(key))
    except (InputError, HostFailure, DrawnOnce):
        raise
    except Exception as error:
        text = f"sample_task(key) fails ({first_line(error)})"
        raise InputError(f"{text}: make it of JAX's operations, or pass tasks made on the host as tasks=.") from error
    if program is not None and not problem.stochastic and not depends(program):
        warnings.warn(_ONE_TASK, DrawnOnce, stacklevel=2)
    return task


def draw_tasks(problem: AbstractProblem, keys: Key[Array, " B"]) -> tuple[PyTree, Any]:
    """The tasks that these keys draw, and each task's own key."""
    return jax.vmap(lambda key: draw_task(problem, key))(keys), jax.vmap(own_key)(keys)


def require_keys(problem: AbstractProblem, key: Any, stochastic: bool = False) -> None:
    """Refuse a missing key where something is drawn."""
    if key is None and (problem.stochastic or stochastic):
        what = "This problem draws fresh samples" if problem.stochastic else "This strategy draws directions"
        raise InputError(f"{what}: pass a key, such as jax.random.key(0) (one for each task of a batch).")


def check_key(key: Any) -> None:
    """Refuse anything but one key, or None."""
    if key is None:
        return
    try:
        jax.eval_shape(jax.random.fold_in, key, 0)
    except (TypeError, ValueError) as error:
        text = f"key must be one key such as jax.random.key(0), not {describe(key)}"
        raise InputError(f"{text}: a batch takes an array of them, one for each task.") from error


_shapes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def any_key() -> Any:
    """The shape and type of a key, for tracing."""
    return jax.eval_shape(lambda: jax.random.key(0))


def shape_of(task: PyTree) -> Any:
    """The structure of a task and the shapes of its leaves."""
    return jax.tree.structure(task), [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(task)]


def drawn_shape(problem: AbstractProblem) -> Any:
    """`shape_of` a task that a finite-sum problem draws; None where it draws none, and where samples are no task.

    It is found once for each function, since tracing takes as long as the meta-step of a small network.
    """
    if problem.stochastic:
        return None
    function: Any = getattr(problem, "sample_task", None)
    try:
        return _shapes[function]
    except (KeyError, TypeError):  # not met before, or cannot be remembered
        pass
    try:
        found = shape_of(eqx.filter_eval_shape(function, any_key()))
    except Exception:
        return None
    with contextlib.suppress(TypeError):
        _shapes[function] = found
    return found


def first(tasks: PyTree) -> PyTree:
    """The shapes of one task of a batch."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if eqx.is_array(leaf) else leaf, tasks)
