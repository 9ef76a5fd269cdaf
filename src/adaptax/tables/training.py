"""Training of one model of a table on some groups, judged on others; the best state on those is kept."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax.tables.ways import Way, errors
from adaptax.tasks.table import SampleRows, round_up
from adaptax.training.outer_defaults import default_optimizer
from adaptax.training.step import State, Step, make_step

# Meta-steps between two looks at the groups held out, and looks without a better one before training ends.
_EVERY, _PATIENCE = 50, 5
# Tasks that a state is judged on, at least; more where there are more groups, of which no more than these are judged.
_TASKS, _JUDGED = 64, 400
# Tasks that are judged at the same time.
_AT_ONCE = 64


class Settings(NamedTuple):
    """What all trainings of one table share; `support` is the range of the numbers of support rows to judge by."""

    outputs: int
    max_steps: int
    tasks_per_step: int
    support: tuple[int, int]


class Trained(NamedTuple):
    """A trained model, and the mean error of rows of the groups held out, after and before adaptation.

    Arguments:
        params, rates: the best state's parameters and step sizes.
        held: the groups held out that were judged.
        error: of each of them, after adaptation, shape (groups,).
        spread: the standard error of `error` over the tasks of each group, NaN for a single task.
        before: before adaptation.
        step: when the best state was.
    """

    params: PyTree
    rates: PyTree
    held: np.ndarray
    error: np.ndarray
    spread: np.ndarray
    before: np.ndarray
    step: int


def train(way: Way, rows: SampleRows, groups: np.ndarray, held: np.ndarray, settings: Settings, seed: int) -> Trained:
    """Train on the groups, and keep the state that does best on those held out.

    Arguments:
        way: how the model adapts.
        rows: all rows.
        groups, held: the groups to train on, and those to judge on (empty: the last state is kept).
        settings: shared ones.
        seed: decides the training.
    """
    step = make_step(
        way.problem(choose(rows, groups), settings.outputs), way.method(), default_optimizer(settings.max_steps),
        settings.tasks_per_step,
    )  # fmt: skip
    params = way.start(rows.x.shape[1], settings.outputs, jax.random.fold_in(jax.random.key(seed), 2**31))
    state, held = step.init(params, seed), held[:_JUDGED]
    tasks = draws(held, seed, settings.support) if len(held) else None
    best, since, done = None, 0, 0
    while done < settings.max_steps and since < _PATIENCE:
        count = min(_EVERY, settings.max_steps - done)
        state = _advance(step, state, count)
        done += count
        if tasks is None:
            continue
        rates = way.rates(state.inner)
        error, spread, before = mean_errors(way, state.params, rates, rows, tasks, settings.outputs)
        since += 1
        if best is None or error.mean() < best.error.mean() or not np.isfinite(best.error.mean()):
            best, since = Trained(state.params, rates, held, error, spread, before, done), 0
    nothing = np.zeros(0)
    return best or Trained(state.params, way.rates(state.inner), held, nothing, nothing, nothing, done)


class Draws(NamedTuple):
    """Tasks to judge on: each a group (by its place among `held` too), a number of support rows, and a key."""

    held: np.ndarray
    place: np.ndarray
    group: Array
    shots: Array
    keys: Array


def draws(held: np.ndarray, seed: int, support: tuple[int, int], least: int = _TASKS) -> Draws:
    """As many tasks of each of these groups, with numbers of support rows in this range."""
    count = round_up(max(least, len(held)))
    place = np.arange(count) % len(held)
    number = jnp.asarray(np.random.default_rng(seed).integers(support[0], support[1] + 1, count), jnp.int32)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31 + 1), count)
    return Draws(held, place, jnp.asarray(held[place], jnp.int32), number, keys)


def mean_errors(
    way: Way, params: PyTree, rates: PyTree, rows: SampleRows, tasks: Draws, outputs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean error of rows of each group after adaptation, its standard error over tasks, and the error before adaptation."""
    found = _judge(way, params, rates, rows, tasks.group, tasks.shots, tasks.keys, outputs)
    count = np.bincount(tasks.place, minlength=len(tasks.held))
    after, first = (np.asarray(part, float) for part in found[:2])
    mean, before, square = (np.bincount(tasks.place, part, len(tasks.held)) / count for part in (after, first, after**2))
    variance = np.maximum(square - mean**2, 0) / np.where(count > 1, count - 1, np.nan)
    return mean, np.sqrt(variance), before


def residuals(
    way: Way, params: PyTree, rates: PyTree, rows: SampleRows, tasks: Draws, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """The absolute errors of target rows in units of their scales, shape (tasks, queries), and which rows there are."""
    found = _judge(way, params, rates, rows, tasks.group, tasks.shots, tasks.keys, outputs)
    return np.asarray(found[2]), np.asarray(found[3])


def choose(rows: SampleRows, groups: np.ndarray) -> SampleRows:
    """The same rows, of which these groups are drawn; shapes stay, so that programs are shared."""
    chosen = jnp.zeros(len(rows.counts), jnp.int32).at[: len(groups)].set(jnp.asarray(groups, jnp.int32))
    number = jnp.asarray(len(groups), jnp.int32)
    return eqx.tree_at(lambda rows: (rows.chosen, rows.number), rows, (chosen, number))


@eqx.filter_jit
def _advance(step: Step, state: State, count: int) -> State:
    return jax.lax.scan(lambda state, _: (step(state)[0], None), state, length=count)[0]


@eqx.filter_jit
def _judge(way: Way, params: PyTree, rates: PyTree, rows: SampleRows, group: Array, shots: Array, keys: Array, outputs: int):
    def one(group, shots, key):
        task = rows.of_group(group, shots, key)
        x, y, mask = task.support
        inputs, targets, there = task.target

        def judged(mask):
            adapted = way.adapt(params, rates, (jnp.where(mask[:, None] > 0, x, 0), y, mask), outputs)
            mean, scale = way.predict(params, adapted, inputs)
            return errors(mean, targets), jnp.abs(mean[:, 0] - targets) / scale

        (after, scaled), (before, _) = judged(mask), judged(jnp.zeros_like(mask))
        count = jnp.maximum(jnp.sum(there), 1)
        return jnp.sum(after * there) / count, jnp.sum(before * there) / count, scaled, there > 0

    return jax.lax.map(lambda task: one(*task), (group, shots, keys), batch_size=_AT_ONCE)
