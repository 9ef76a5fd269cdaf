"""Evaluation on held-out tasks: every metric after every number of inner steps, with intervals."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from adaptax.batching import check_batch, in_flight_for, map_tasks
from adaptax.errors import InputError, forget_failures, raise_failure
from adaptax.inner import Inner
from adaptax.objective import STEP, TARGET, check_problem, first, fold, plain, step_loss
from adaptax.problem import AbstractProblem, Samples
from adaptax.recursion import stepper
from adaptax.stepsize.rules import AbstractRule
from adaptax.training import devices as dev
from adaptax.training.step import check_count

_NORMAL_95 = 1.959963984540054


class Curve(NamedTuple):
    """Held-out performance against the number of inner steps.

    Arguments:
        steps: the numbers of steps, in increasing order.
        mean: by metric ("loss" is the target loss), the mean over tasks after each number of steps.
        low, high: by metric, the 95 % interval of the mean over tasks (normal approximation).
    """

    steps: np.ndarray
    mean: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]


def evaluate(
    problem: AbstractProblem,
    params: PyTree,
    inner: Inner,
    steps: Iterable[int] = range(0, 21),
    tasks: int | PyTree = 1000,
    seed: int = 1,
    *,
    samples: Samples = Samples(),  # noqa: B008
    in_flight: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Curve:
    r"""Adapt to held-out tasks and judge on their target sets after each number of steps.

    Arguments:
        problem: the problem; its `sample_task` gives the held-out tasks.
        params: parameters w, or `ax.Meta`.
        inner: the inner loop (`state.inner` after training). A rule that is not resolved is estimated once, on the
            first of these tasks; a resolved step size stays as it is beyond N steps, and the last of per-step ones is
            repeated.
        steps: numbers of inner steps (default 0..20).
        tasks: how many tasks (default 1,000), or a batch of tasks.
        seed: of the tasks.
        samples: sample sizes of a resampling problem; target samples are drawn anew at each w_j.
        in_flight: how many tasks are held at a time (default: decided from the shapes).
        devices: to spread the tasks over (default: all local devices).

    Returns: `Curve(steps, mean, low, high)`.

    Errors: `InputError` for no steps, negative ones, fewer than 2 tasks, or tasks that do not fit the loss; `HostFailure`
    when an environment on the host failed.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> sample = lambda key: ax.Task(*[jax.random.normal(key, (3,))] * 2)
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), sample)
        >>> curve = ax.evaluate(problem, jnp.zeros(3), ax.Inner(1, 0.5), steps=[0, 1, 2], tasks=100)
        >>> bool(jnp.allclose(curve.mean["loss"][1:], curve.mean["loss"][:-1] / 4))
        True

    Source: docs/theory.md, section 1.
    """
    if not isinstance(problem, AbstractProblem):
        raise InputError(f"The problem must be ax.FiniteSum or ax.Resampling, not {type(problem).__name__}.")
    if not isinstance(inner, Inner):
        raise InputError(f"inner must be ax.Inner(steps, stepsize), such as state.inner, not {type(inner).__name__}.")
    wanted = np.unique(np.asarray(list(steps) if isinstance(steps, Iterable) else steps))
    if not isinstance(steps, Iterable) or wanted.size == 0 or wanted.dtype.kind not in "iu" or wanted[0] < 0:
        raise InputError("steps= must be whole numbers of inner steps of at least 0, such as range(0, 21).")
    batch = None
    if isinstance(tasks, int | np.integer):
        check_count(tasks, "tasks", 2)
        count = int(tasks)
    else:
        batch, count = tasks, check_batch(tasks, None)
        check_count(count, "The number of tasks, tasks", 2)
    check_count(seed, "seed", 0)
    mesh = dev.mesh_of(devices, count)
    problem, params, inner, batch, key = dev.replicate(mesh, (problem, params, inner, batch, jax.random.key(seed)))
    forget_failures()
    values = _evaluate(problem, params, inner, batch, key, count, tuple(int(n) for n in wanted), samples, in_flight, mesh)
    table = {name: np.asarray(value, np.float64) for name, value in jax.device_get(values).items()}
    raise_failure()
    mean = {name: value.mean(axis=0) for name, value in table.items()}
    half = {name: _NORMAL_95 * value.std(axis=0, ddof=1) / np.sqrt(count) for name, value in table.items()}
    return Curve(wanted, mean, {n: mean[n] - half[n] for n in mean}, {n: mean[n] + half[n] for n in mean})


@eqx.filter_jit
def _evaluate(problem, params, inner, batch, key, count, steps, samples, in_flight, mesh):
    size = dev.share(mesh, count)
    indices = jnp.arange(size * (1 if mesh is None else mesh.size))
    keys = jax.vmap(lambda index: jax.random.fold_in(key, jnp.minimum(index, count - 1)))(indices)
    if batch is None:
        tasks = jax.vmap(lambda k: problem.sample_task(jax.random.fold_in(k, 0)))(keys)
    else:
        tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.minimum(indices, count - 1)], batch)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    check_problem(problem, inner.initial(params), first(tasks), samples, target=True)
    if isinstance(inner.stepsize, AbstractRule):
        few = jax.tree.map(lambda leaf: leaf[: min(inner.stepsize.tasks, count)], (tasks, keys))
        inner = inner.resolve(problem, params, *few, samples=samples)

    def local(shared, split):
        problem, params, inner = shared
        one = lambda pair: _scores(problem, params, inner, pair[0], pair[1], steps, samples)  # noqa: E731
        return (), map_tasks(one, split, in_flight_for(problem, inner.initial(params), split[0], split[1], samples, in_flight))

    scores = dev.spread(mesh, local, (problem, params, inner), (tasks, keys))[1]
    return jax.tree.map(lambda leaf: leaf[:count], scores)


def _scores(
    problem: AbstractProblem, params: PyTree, inner: Inner, task: PyTree, key: Key[Array, ""], steps: tuple[int, ...],
    samples: Samples,
) -> dict[str, Array]:  # fmt: skip
    """All metrics of one task after each number of steps."""
    params, rates = inner.unpack(params, steps=steps[-1])
    split = inner.split(params)
    rebuild = plain(problem, task, split.static)
    loss = step_loss(rebuild, key, STEP, samples.step)
    stacked = rates.stacked(max(steps[-1], 1))

    descent = inner.descent(loss, key)
    one = stepper(descent, split.adapting, split.frozen, rates)

    def descend(j, carry):
        return one(carry, {"j": j, "rate": None if stacked is None else jax.tree.map(lambda leaf: leaf[j], stacked)})[0]

    def visit(carry, n):
        inside, taken = carry
        inside = jax.lax.fori_loop(taken, n, descend, inside)
        _, _, adapted = rebuild(inside[0], split.frozen)
        fresh = fold(key, TARGET, n)
        return (inside, n), problem.scores(adapted, problem.target_batch(task, adapted, fresh, samples.target), n)

    start = (split.adapting, descent.update.init(split.adapting))
    return jax.lax.scan(visit, (start, jnp.array(0)), jnp.array(steps))[1]
