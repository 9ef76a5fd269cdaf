"""Keys: each use of a key folds in a number of its own, so that no two uses share random numbers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax._tree import describe
from adaptax.errors import InputError
from adaptax.problem import AbstractProblem

# The uses inside one task: inner steps, Hessian factors, target batches, and so on.
STEP, CURVATURE, TARGET, DIRECTION, RULE, GRADIENT, FACTOR, LAST = range(8)
# The uses of measurements along an inner path.
POINT, START, CHANGE, DRAW, CHOOSE = range(100, 105)
# Streams of tasks apart from the meta-steps of the same seed, whose numbers are small.
RULE_TASKS, INITIAL_GRADIENTS, CONSTANTS, CERTIFICATE = (2**32 - n for n in range(1, 5))
STABILITY = CERTIFICATE


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


def draw_tasks(problem: AbstractProblem, keys: Key[Array, " B"]) -> tuple[PyTree, Any]:
    """The tasks that these keys draw, and each task's own key."""
    return jax.vmap(lambda key: problem.sample_task(task_key(key)))(keys), jax.vmap(own_key)(keys)


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


def any_key() -> Any:
    """The shape and type of a key, for tracing."""
    return jax.eval_shape(lambda: jax.random.key(0))


def first(tasks: PyTree) -> PyTree:
    """The shapes of one task of a batch."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype), tasks)
