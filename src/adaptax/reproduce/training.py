"""Meta-training with every method from the same initial parameters on the same tasks, all seeds in one program."""

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
from adaptax.errors import InputError
from adaptax.reproduce.files import Row, Say
from adaptax.reproduce.methods import CALLS, IN_LOSSES, priced, strategies
from adaptax.training.step import State, Step, check_count

COLUMNS = ("part", "alpha", "outer_stepsize", "method", "seed", "meta_step", "calls", "in_losses", "value", "predicted")
# Meta-steps fold small numbers into the seed's key; the initial parameters come from one that no run reaches.
_INITIAL = 2**32 - 1
_HELD_OUT = 2**31


class Setting(NamedTuple):
    """An inner and an outer step size."""

    alpha: float
    outer: float


@dataclass(frozen=True)
class Experiment:
    r"""What is trained, and how it is judged.

    Arguments:
        problem: the problem, whose `sample_task` also draws the held-out tasks.
        initial: from a key to the initial parameters.
        optimizer: from an outer step size to the outer optimiser.
        settings: the step sizes.
        tasks_per_step: tasks of a meta-step.
        every: meta-steps between evaluations.
        inner_steps, samples, delta: N, Q and $\delta$.
        held_out: how many tasks the loss after N steps is averaged over, the same ones always.
    """

    problem: ax.FiniteSum
    initial: Callable[[Any], PyTree]
    optimizer: Callable[[float], optax.GradientTransformation]
    settings: tuple[Setting, ...]
    tasks_per_step: int
    every: int
    inner_steps: int = 3
    samples: int = 10
    delta: float = 1e-2
    held_out: int = 500

    def method(self, curvature: Any, alpha: float | Array) -> ax.MetaGradient:
        """The meta-gradient with this strategy."""
        return ax.MetaGradient(ax.Inner(self.inner_steps, alpha), curvature)


def check_sizes(seeds: int, steps: int) -> None:
    """Refuse what cannot be: a band takes two seeds."""
    check_count(seeds, "seeds", 2)
    check_count(steps, "steps")
    if seeds > 1000:
        raise InputError(f"seeds={seeds} are trained side by side: take at most 1000.")


def initial_key(seed: int) -> Any:
    """The key of a seed's initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), _INITIAL)


def train_all(experiment: Experiment, seeds: int, steps: int, say: Say) -> list[Row]:
    """The held-out loss of every method, setting and seed along training, as rows of the CSV (part "training").

    Arguments:
        experiment: what is trained.
        seeds: initial parameters and tasks are those of the seeds 0, 1, ..., equal for all methods.
        steps: meta-steps.
        say: told how far it is.
    """
    rows: list[Row] = []
    optimizers = {outer: experiment.optimizer(outer) for outer in dict.fromkeys(s.outer for s in experiment.settings)}
    # Directions are most of the work, and a threefry that need not be cut over devices draws them in half the time.
    with jax.threefry_partitionable(False):
        held_out = jax.vmap(experiment.problem.sample_task)(jax.random.split(jax.random.key(_HELD_OUT), experiment.held_out))
        for name, curvature in strategies(experiment.samples, experiment.delta).items():
            for alpha, outer in experiment.settings:
                began = time.perf_counter()
                method = experiment.method(curvature, alpha)
                step = ax.make_step(experiment.problem, method, optimizers[outer], experiment.tasks_per_step)
                states = _stack([step.init(experiment.initial(initial_key(seed)), seed) for seed in range(seeds)])
                cost = method.cost().times(experiment.tasks_per_step)
                at = 0
                for count in [0, *_chunks(steps, experiment.every)]:
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


def _chunks(steps: int, every: int) -> list[int]:
    return [min(every, steps - at) for at in range(0, steps, every)]


def _stack(states: list[State]) -> State:
    parts = [eqx.partition(state, eqx.is_array) for state in states]
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts)), parts[0][1])


@eqx.filter_jit
def _advance(step: Step, states: State, held_out: PyTree, count: Array) -> tuple[State, Float[Array, " seeds"]]:
    """`count` meta-steps of all seeds, then the mean held-out loss of each."""
    arrays, static = eqx.partition(states, eqx.is_array)

    def one(arrays):
        return eqx.filter(step(eqx.combine(arrays, static))[0], eqx.is_array)

    def judge(arrays):
        state = eqx.combine(arrays, static)
        adapt = lambda task: ax.adapt(step.problem, state.params, task, state.inner).params  # noqa: E731
        return jnp.mean(jax.vmap(lambda task: step.problem.loss(adapt(task), task.target))(held_out))

    arrays = jax.lax.fori_loop(0, count, lambda _, arrays: jax.vmap(one)(arrays), arrays)
    return eqx.combine(arrays, static), jax.vmap(judge)(arrays)
