"""What is not finite in a batch of tasks, in one sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from adaptax._batching import check_batch, map_tasks
from adaptax._finite import Lost, cause
from adaptax.adaptation import adapt
from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.methods.base import AbstractMethod
from adaptax.problem import AbstractProblem, Samples, check_is_problem
from adaptax.stepsize.measurement import resolve_on_first


def diagnose(
    problem: AbstractProblem,
    params: PyTree,
    method: AbstractMethod | Inner,
    tasks: PyTree,
    keys: Key[Array, " B"] | None = None,
    *,
    samples: Samples = Samples(),  # noqa: B008
) -> str | None:
    """How many tasks of a batch are not finite, which is the first, and where: for loops of your own.

    The first place is looked for in this order: the loss at w_0, its gradient, and so on along the inner path (with the
    update of each step), the target loss at w_N, its gradient, and the Hessian-vector products back to w_0. Data and
    parameters are named where a place is not finite because they are not.

    Arguments:
        problem: the problem; `sample_task` is not used.
        params: parameters w_0, or `ax.Meta`.
        method: the method whose meta-gradients are asked for; or an inner loop, for adaptation alone.
        tasks: one pytree whose every leaf has a leading axis B.
        keys: B keys, needed where anything is drawn: the ones that `method.batch` or `ax.adapt` got.
        samples: sample sizes of a resampling problem, with an inner loop (a method has its own).

    Returns: one sentence with the index of the first such task, or None if all tasks are finite.

    Errors: `InputError` for missing keys, and for tasks that do not fit the loss.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: jnp.sum((w - c) ** 2), lambda key: None)
        >>> tasks = ax.Task(jnp.array([[1.0], [2.0], [jnp.nan]]), jnp.ones((3, 1)))
        >>> ax.diagnose(problem, jnp.zeros(1), ax.MetaGradient(ax.Inner(2, 0.1)), tasks)
        '1 of 3 tasks was not finite, task 2: the loss at w_0 is NaN, since its data hold NaN in task.support: clean them, ...'
    """
    check_is_problem(problem)
    if not isinstance(method, AbstractMethod | Inner):
        raise InputError(f"diagnose needs a method or ax.Inner(steps, stepsize) third, not {type(method).__name__}.")
    check_batch(tasks, keys)
    inner: Any = method if isinstance(method, Inner) else method.inner
    samples = samples if isinstance(method, Inner) else method.samples
    tasks = jax.tree.map(jnp.asarray, tasks)
    rule, inner = inner.stepsize, resolve_on_first(inner, problem, params, tasks, keys, samples)
    if isinstance(method, Inner):
        done = map_tasks(lambda pair: adapt(problem, params, pair[0], inner, pair[1], samples=samples), (tasks, keys))
        finite = done.info.finite
    else:
        finite = method.with_inner(inner).batch(problem, params, tasks, keys)[2].finite
    if np.all(finite):
        return None
    lost = Lost.of(~np.asarray(finite))
    task, key = jax.tree.map(lambda leaf: leaf[lost.index], (tasks, keys))
    asked: Any = {"target": False} if isinstance(method, Inner) else {"method": method.with_inner(inner)}
    return lost.sentence("", cause(problem, inner, params, task, key, samples, rule=rule, **asked))
