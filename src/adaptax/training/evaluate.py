"""Evaluation on held-out tasks: every metric after every number of inner steps, with intervals."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax import _devices as dev
from adaptax import _processes as processes
from adaptax._batching import check_batch, check_in_flight, map_tasks
from adaptax._checks import check_whole
from adaptax._drawn_once import traced
from adaptax._finite import Lost, tell
from adaptax._intake import as_batch
from adaptax._keys import any_key, draw_task, first, numbered, own_key
from adaptax._problem_checks import check_problem
from adaptax.errors import InputError, NotFiniteWarning, forget_failures, raise_failure
from adaptax.inner import Inner
from adaptax.inner_path import TaskPath
from adaptax.problem import AbstractProblem, Samples, check_is_problem
from adaptax.sequential import check_length, on_one_device
from adaptax.stepsize.measurement import resolve_on_numbered

_NORMAL_95 = 1.959963984540054


class _Curve(NamedTuple):
    steps: np.ndarray
    mean: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]


class Curve(_Curve):
    """Held-out performance against the number of inner steps; it unpacks into `steps, mean, low, high`.

    Arguments:
        steps: the numbers of steps, in increasing order.
        mean: by metric ("loss" is the target loss), the mean over tasks after each number of steps.
        low, high: by metric, the 95 % interval of the mean over tasks (normal approximation).
        not_finite: how many tasks have a loss or metric that is not finite after each number of steps; the means there are
            not finite either, since no task is left out.
    """

    not_finite: np.ndarray

    def __new__(cls, steps, mean, low, high, not_finite=None):
        self = super().__new__(cls, steps, mean, low, high)
        self.not_finite = np.zeros(len(steps), int) if not_finite is None else not_finite
        return self


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
    parameter_shards: int = 1,
) -> Curve:
    r"""Adapt to held-out tasks and judge on their target sets after each number of steps.

    Arguments:
        problem: the problem; its `sample_task` gives the held-out tasks.
        params: parameters w, or `ax.Meta`.
        inner: the inner loop (`state.inner` after training). A rule that is not resolved is estimated once, on the
            first of these tasks; a resolved step size stays as it is beyond N steps, and the last of per-step ones is
            repeated.
        steps: numbers of inner steps (default 0..20).
        tasks: how many tasks (default 1,000), or a batch of tasks, which may be a list.
        seed: decides the tasks.
        samples: sample sizes of a resampling problem; target samples are drawn anew at each w_j.
        in_flight: how many tasks each device holds in memory at a time (default: by what one task holds). Tasks are drawn
            group by group, so that the memory does not grow with their number.
        devices: the devices to spread the tasks over (default: all of all processes, which must then all call this with the
            same arguments). With devices of this process alone it evaluates by itself.
        parameter_shards: how many devices hold one copy of the parameters together, as for `ax.train` (default 1).

    Returns: `Curve(steps, mean, low, high)`, with the number of tasks that were not finite in `not_finite`. If there are any, a
    `NotFiniteWarning` says which was the first, by index and key, and where it was not.

    Errors: `InputError` for no steps, negative ones, fewer than 2 tasks, or tasks that do not fit the loss; `HostFailure`
    when an environment on the host failed; `ProcessLost` when another process is gone.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> sample = lambda key: ax.Task(*[jax.random.normal(key, (3,))] * 2)
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), sample)
        >>> curve = ax.evaluate(problem, jnp.zeros(3), ax.Inner(1, 0.5), steps=[0, 1, 2], tasks=100)
        >>> bool(jnp.allclose(curve.mean["loss"][1:], curve.mean["loss"][:-1] / 4))
        True

    Source: docs/theory.md, section 1.
    """
    curve, why = judge(problem, params, inner, steps, tasks, seed, samples, in_flight, devices, parameter_shards)
    if curve.not_finite.any():
        warnings.warn(why(), NotFiniteWarning, stacklevel=2)
    return curve


def judge(
    problem: Any, params: PyTree, inner: Any, steps: Any, tasks: Any, seed: Any, samples: Samples, in_flight: Any,
    devices: Any, shards: Any,
) -> tuple[Curve, Callable[[], str]]:  # fmt: skip
    """What `evaluate` returns, and a function that says why tasks were not finite, if some were not."""
    check_is_problem(problem)
    if not isinstance(inner, Inner):
        raise InputError(f"inner must be ax.Inner(steps, stepsize), such as state.inner, not {type(inner).__name__}.")
    wanted = np.unique(np.asarray(list(steps) if isinstance(steps, Iterable) else steps))
    if not isinstance(steps, Iterable) or wanted.size == 0 or wanted.dtype.kind not in "iu" or wanted[0] < 0:
        raise InputError("steps= must be whole numbers of inner steps of at least 0, such as range(0, 21).")
    number = isinstance(tasks, int | np.integer)
    batch = None if number else dev.beside(as_batch(tasks), params)
    count = tasks if number else check_batch(batch, None, problem)
    count, seed = check_whole("", "tasks", count, 2), check_whole("", "seed", seed, 0)
    in_flight, shards = check_in_flight(in_flight), check_whole("", "parameter_shards", shards)
    mesh = None if on_one_device(problem, devices, shards) else dev.mesh_of(devices, count, alone=True, shards=shards)
    if dev.spans(mesh):
        sums = {"params": processes.checksum((params, inner)), "tasks": processes.checksum((batch, problem))}
        processes.check_same({**sums, "steps": wanted.tolist(), "number of tasks": count, "seed": seed})
    forget_failures()
    params, inner = dev.place(dev.own(mesh), (params, inner))
    rule, key = inner.stepsize, jax.random.key(seed)
    inner = resolve_on_numbered(inner, problem, params, batch, key, count, samples)
    inner = processes.as_first(inner) if dev.spans(mesh) else inner
    problem, batch, key = dev.replicate(mesh, (problem, batch, key))
    params, inner = dev.place(mesh, (params, inner))
    with processes.watching(), dev.without_host(mesh):
        values = _evaluate(problem, params, inner, batch, key, count, tuple(int(n) for n in wanted), samples, in_flight, mesh)
        table = {name: np.asarray(value, np.float64) for name, value in jax.device_get(values).items()}
    (processes.raise_failure if dev.spans(mesh) else raise_failure)()
    bad = ~np.all([np.isfinite(value.reshape(count, len(wanted), -1)).all(axis=-1) for value in table.values()], axis=0)
    given = problem, params, inner, batch, key, samples
    with np.errstate(invalid="ignore"):
        mean = {name: value.mean(axis=0) for name, value in table.items()}
        half = {name: _NORMAL_95 * value.std(axis=0, ddof=1) / np.sqrt(count) for name, value in table.items()}
        low, high = ({n: mean[n] + sign * half[n] for n in mean} for sign in (-1, 1))
    return Curve(wanted, mean, low, high, bad.sum(axis=0)), lambda: _why(bad, wanted, *dev.collect(mesh, (given, rule)))


def _why(bad: np.ndarray, wanted: np.ndarray, given: tuple, rule: Any) -> str:
    """How many tasks were not finite, and why the first was not after the smallest number of steps where one was not."""
    problem, params, inner, batch, key, samples = given
    column = int(np.argmax(bad.any(axis=0)))
    n, lost = int(wanted[column]), Lost.of(bad[:, column])
    text = tell(lost, problem, inner, params, samples, key, batch=batch, steps=n, draws=(n,), rule=rule)
    return f"After {n} inner steps {text}"


@eqx.filter_jit
def _evaluate(problem, params, inner, batch, key, count, steps, samples, in_flight, mesh):
    size = dev.share(mesh, count)
    indices = jnp.minimum(jnp.arange(size * dev.rows(mesh)), count - 1)
    keys = numbered(key, indices)
    given = None if batch is None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], batch)

    def task_of(given, key):
        return draw_task(problem, key) if given is None else given

    one_task = eqx.filter_eval_shape(task_of, None if given is None else first(given), any_key())
    initial = inner.initial(params)
    query = check_problem(problem, initial, one_task, samples, target=True)
    if problem.metrics is not None and not getattr(problem.metrics, "by_step", False):
        state = problem.initial_state(initial)
        given_state = () if state is None else (state,)
        traced(problem.metrics, initial, *given_state, query, said="metrics", remedy="compute them from the batch alone")

    def local(shared, split):
        problem, params, inner = shared

        def one(inputs):
            given, key = inputs
            # The task is drawn here, inside its group, so that no more tasks are held than are in flight.
            task = draw_task(problem, key) if given is None else given
            path = TaskPath(problem, inner, params, task, own_key(key), samples, steps=steps[-1])
            check_length(problem, getattr(task, "support", None), steps[-1] + path.judged_on_path)
            return _scores(path, steps)

        return (), map_tasks(one, split, in_flight)

    scores = dev.spread(mesh, local, (problem, params, inner), (given, keys))[1]
    return jax.tree.map(lambda leaf: leaf[:count], dev.everywhere(mesh, scores))


def _scores(path: TaskPath, steps: tuple[int, ...]) -> dict[str, Array]:
    """All metrics of one task after each number of steps."""
    stacked, one = path.rates.stacked(max(steps[-1], 1)), path.stepper()

    def descend(j, carry):
        return one(carry, {"j": j, "rate": None if stacked is None else jax.tree.map(lambda leaf: leaf[j], stacked)})[0]

    def visit(carry, n):
        inside, taken = carry
        inside = jax.lax.fori_loop(taken, n, descend, inside)
        batch = path.judged_batch(inside.w, n, n)
        return (inside, n), path.problem.scores(path.params(inside.w), batch, n, inside.state)

    return jax.lax.scan(visit, (path.start, jnp.array(0)), jnp.array(steps))[1]
