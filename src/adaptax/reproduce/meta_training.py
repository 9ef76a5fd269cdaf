"""Meta-training with every curvature strategy from the same initial parameters on the same tasks, all seeds in one program."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

import adaptax as ax
from adaptax._checks import check_whole
from adaptax.reproduce.csv_rows import Row, Say
from adaptax.reproduce.strategies import CALLS, IN_LOSSES, priced, strategies

COLUMNS = ("part", "alpha", "outer_stepsize", "method", "seed", "meta_step", "calls", "in_losses", "value", "predicted")
# A run folds the numbers of its meta-steps into the seed's key; the initial parameters take a number that no run reaches.
_INITIAL = 2**32 - 1
# The seed of the held-out tasks.
_HELD_OUT = 2**31
# All seeds are trained side by side, and each takes memory.
_MOST_SEEDS = 1000


class StepSizes(NamedTuple):
    """An inner and an outer step size, and whether they are those of the paper that the experiment is taken from."""

    alpha: float
    outer: float
    published: bool = False


class Outer(NamedTuple):
    """An outer optimiser: its name on the page, and the function that makes it from a step size."""

    name: str
    make: Callable[[float], optax.GradientTransformation]


GRADIENT_DESCENT, ADAM = Outer("gradient descent", optax.sgd), Outer("Adam", optax.adam)


@dataclass(frozen=True)
class Experiment:
    r"""A problem with its meta-training and the way in which it is judged.

    Arguments:
        title, about: the heading of the page, and its sentences about loss, tasks and parameters.
        problem: the problem, whose `sample_task` also draws the held-out tasks.
        initial: the function from a key to initial parameters.
        optimizer: the outer optimiser.
        settings: the pairs of step sizes.
        tasks_per_step: tasks of a meta-step.
        every: meta-steps between evaluations.
        inner_steps, samples, delta: N, Q and $\delta$.
        held_out: the number of tasks that the loss after N steps is averaged over; they are the same ones always.
    """

    title: str
    about: str
    problem: ax.FiniteSum
    initial: Callable[[Any], PyTree]
    optimizer: Outer
    settings: tuple[StepSizes, ...]
    tasks_per_step: int
    every: int
    inner_steps: int = 3
    samples: int = 10
    delta: float = 1e-2
    held_out: int = 500

    def method(self, curvature: Any, alpha: float | Array) -> ax.MetaGradient:
        """The meta-gradient with this strategy."""
        return ax.MetaGradient(ax.Inner(self.inner_steps, alpha), curvature)


def check_sizes(seeds: int, steps: int) -> tuple[int, int]:
    """The numbers of seeds and meta-steps as Python integers, if an experiment can have them: a band takes two seeds."""
    return check_whole("", "seeds", seeds, 2, _MOST_SEEDS), check_whole("", "steps", steps)


def initial_key(seed: int) -> Any:
    """The key of a seed's initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), _INITIAL)


def train_all(experiment: Experiment, seeds: int, steps: int, say: Say) -> list[Row]:
    """The held-out loss of every method, setting and seed along training, as rows of the CSV (part "training").

    Arguments:
        experiment: what is trained.
        seeds: the number of seeds 0, 1, ...; a seed's initial parameters and tasks are the same for all methods.
        steps: meta-steps.
        say: called with a sentence about the progress.
    """
    rows: list[Row] = []
    # One optimiser for each step size: another object would be compiled again.
    optimizers = {outer: experiment.optimizer.make(outer) for outer in dict.fromkeys(s.outer for s in experiment.settings)}
    # Random directions are most of the work, and threefry draws them in half the time where devices need not share the draw.
    with jax.threefry_partitionable(False):
        held_out = jax.vmap(experiment.problem.sample_task)(jax.random.split(jax.random.key(_HELD_OUT), experiment.held_out))
        for name, curvature in strategies(experiment.samples, experiment.delta).items():
            for alpha, outer, _ in experiment.settings:
                began = time.perf_counter()
                method = experiment.method(curvature, alpha)
                step = ax.make_step(experiment.problem, method, optimizers[outer], experiment.tasks_per_step)
                states = _stack([step.init(experiment.initial(initial_key(seed)), seed) for seed in range(seeds)])
                cost = method.cost().times(experiment.tasks_per_step)
                at = 0
                for count in [0, *chunks(steps, experiment.every)]:
                    states, losses = _advance(step, states, held_out, jnp.asarray(count))
                    at += count
                    for seed, loss in enumerate(losses.tolist()):
                        rows.append({
                            "part": "training", "alpha": alpha, "outer_stepsize": outer, "method": name, "seed": seed,
                            "meta_step": at, "calls": at * priced(cost, CALLS), "in_losses": at * priced(cost, IN_LOSSES),
                            "value": loss,
                        })  # fmt: skip
                seconds = time.perf_counter() - began
                say(f"{name}, α = {alpha:g}, outer step {outer:g}: {steps} meta-steps of {seeds} seeds in {seconds:.0f} s")
    return rows


def chunks(steps: int, every: int) -> list[int]:
    """The meta-steps of a run in parts of `every`, the last one perhaps shorter.

    Example:
        >>> chunks(7, 3)
        [3, 3, 1]
    """
    return [min(every, steps - at) for at in range(0, steps, every)]


def take_steps(step: ax.training.Step, state: ax.State, count: Array) -> ax.State:
    """The state after `count` meta-steps, where `count` may be traced."""
    arrays, static = eqx.partition(state, eqx.is_array)

    def one(_, arrays):
        return eqx.filter(step(eqx.combine(arrays, static))[0], eqx.is_array)

    return eqx.combine(jax.lax.fori_loop(0, count, one, arrays), static)


def _stack(states: list[ax.State]) -> ax.State:
    """The states of all seeds as one, with the seeds along the first axis of every array."""
    parts = [eqx.partition(state, eqx.is_array) for state in states]
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts)), parts[0][1])


@eqx.filter_jit
def _advance(
    step: ax.training.Step, states: ax.State, held_out: PyTree, count: Array
) -> tuple[ax.State, Float[Array, " seeds"]]:
    """The states of all seeds after `count` meta-steps, and the mean held-out loss of each seed."""
    arrays, static = eqx.partition(states, eqx.is_array)

    def advance(arrays):
        state = take_steps(step, eqx.combine(arrays, static), count)

        def judge(task):
            return step.problem.loss(ax.adapt(step.problem, state.params, task, state.inner).params, task.target)

        return eqx.filter(state, eqx.is_array), jnp.mean(jax.vmap(judge)(held_out))

    arrays, losses = jax.vmap(advance)(arrays)
    return eqx.combine(arrays, static), losses
