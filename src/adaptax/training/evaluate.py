"""Evaluation on held-out tasks: every metric after every number of inner steps, with intervals."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax import _devices as dev
from adaptax._batching import check_batch, check_in_flight, map_tasks
from adaptax._checks import check_whole
from adaptax._keys import any_key, draw_tasks, first, numbered, own_key, task_key
from adaptax.errors import InputError, forget_failures, raise_failure
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath, check_problem
from adaptax.problem import AbstractProblem, Samples, check_is_problem
from adaptax.stepsize.measurement import resolve
from adaptax.stepsize.rules import AbstractRule

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
        seed: decides the tasks.
        samples: sample sizes of a resampling problem; target samples are drawn anew at each w_j.
        in_flight: how many tasks each device holds in memory at a time (default: by what one task holds). Tasks are drawn
            group by group, so that the memory does not grow with their number.
        devices: the devices to spread the tasks over (default: all local devices).

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
    check_is_problem(problem)
    if not isinstance(inner, Inner):
        raise InputError(f"inner must be ax.Inner(steps, stepsize), such as state.inner, not {type(inner).__name__}.")
    wanted = np.unique(np.asarray(list(steps) if isinstance(steps, Iterable) else steps))
    if not isinstance(steps, Iterable) or wanted.size == 0 or wanted.dtype.kind not in "iu" or wanted[0] < 0:
        raise InputError("steps= must be whole numbers of inner steps of at least 0, such as range(0, 21).")
    number = isinstance(tasks, int | np.integer)
    batch, count = (None, tasks) if number else (tasks, check_batch(tasks, None))
    count, seed = check_whole("", "tasks", count, 2), check_whole("", "seed", seed, 0)
    in_flight = check_in_flight(in_flight)
    mesh = dev.mesh_of(devices, count)
    problem, params, inner, batch, key = dev.replicate(mesh, (problem, params, inner, batch, jax.random.key(seed)))
    forget_failures()
    if isinstance(inner.stepsize, AbstractRule):
        few = _few(problem, inner.stepsize.tasks, batch, key, count)
        inner = resolve(inner, problem, params, *few, samples=samples)
    values = _evaluate(problem, params, inner, batch, key, count, tuple(int(n) for n in wanted), samples, in_flight, mesh)
    table = {name: np.asarray(value, np.float64) for name, value in jax.device_get(values).items()}
    raise_failure()
    mean = {name: value.mean(axis=0) for name, value in table.items()}
    half = {name: _NORMAL_95 * value.std(axis=0, ddof=1) / np.sqrt(count) for name, value in table.items()}
    return Curve(wanted, mean, {n: mean[n] - half[n] for n in mean}, {n: mean[n] + half[n] for n in mean})


@eqx.filter_jit
def _few(problem, most, batch, key, count):
    """The first tasks and their keys, for a step-size rule."""
    keys = numbered(key, jnp.arange(min(most, count)))
    if batch is None:
        return draw_tasks(problem, keys)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[: len(keys)], batch), jax.vmap(own_key)(keys)


@eqx.filter_jit
def _evaluate(problem, params, inner, batch, key, count, steps, samples, in_flight, mesh):
    size = dev.share(mesh, count)
    indices = jnp.minimum(jnp.arange(size * (1 if mesh is None else mesh.size)), count - 1)
    keys = numbered(key, indices)
    given = None if batch is None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], batch)

    def task_of(given, key):
        return problem.sample_task(task_key(key)) if given is None else given

    one_task = eqx.filter_eval_shape(task_of, None if given is None else first(given), any_key())
    initial = inner.initial(params)
    check_problem(problem, initial, one_task, samples, target=True)

    def local(shared, split):
        problem, params, inner = shared

        def one(inputs):
            given, key = inputs
            # The task is drawn here, inside its group, so that no more tasks are held than are in flight.
            task = problem.sample_task(task_key(key)) if given is None else given
            return _scores(TaskPath(problem, inner, params, task, own_key(key), samples, steps=steps[-1]), steps)

        return (), map_tasks(one, split, in_flight)

    scores = dev.spread(mesh, local, (problem, params, inner), (given, keys))[1]
    return jax.tree.map(lambda leaf: leaf[:count], scores)


def _scores(path: TaskPath, steps: tuple[int, ...]) -> dict[str, Array]:
    """All metrics of one task after each number of steps."""
    stacked, one = path.rates.stacked(max(steps[-1], 1)), path.stepper()

    def descend(j, carry):
        return one(carry, {"j": j, "rate": None if stacked is None else jax.tree.map(lambda leaf: leaf[j], stacked)})[0]

    def visit(carry, n):
        inside, taken = carry
        inside = jax.lax.fori_loop(taken, n, descend, inside)
        w = inside[0]
        return (inside, n), path.problem.scores(path.params(w), path.target_batch(w, n), n)

    return jax.lax.scan(visit, (path.start, jnp.array(0)), jnp.array(steps))[1]
