"""Gymnasium environments that can be told their task, as a resampling problem."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from adaptax._checks import check_real
from adaptax.errors import InputError
from adaptax.problem import Resampling
from adaptax.tasks.rl.environment import Environment, as_horizon, problem
from adaptax.tasks.rl.policies import CategoricalPolicy, SoftmaxPolicy
from adaptax.tasks.rl.simulators import Simulators
from adaptax.tasks.rl.surrogates import published_surrogate


class GymnasiumEnvironment(Environment):
    """Episodes of gymnasium environments, stepped by a callback of the compiled program; made by `gymnasium_family`.

    Arguments:
        simulators: the environments on the host.
        horizon: H.
        low, high: the bounds that actions are clipped to (None: the actions are finitely many).
    """

    simulators: Simulators = eqx.field(static=True)
    horizon: int = eqx.field(static=True, converter=as_horizon)
    low: tuple[float, ...] | None = eqx.field(static=True)
    high: tuple[float, ...] | None = eqx.field(static=True)

    @property
    def host(self) -> bool:
        """Whether steps call the host: always."""
        return True

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers a network takes and gives: those of an observation, and a mean or a logit for each entry or choice.

        A `Discrete` observation counts its values, so that both are the shape of a `SoftmaxPolicy`'s logits.
        """
        return self.simulators.observations.size, self.simulators.actions.outputs

    @property
    def choices(self) -> int | tuple[int, ...] | None:
        """What `CategoricalPolicy` chooses from: a number for `Discrete`, numbers for other finite spaces, None for boxes."""
        return self.simulators.actions.choices

    def check_policy(self, policy):
        if isinstance(policy, SoftmaxPolicy) and policy.logits.shape != self.sizes:
            raise InputError(
                f"The policy is a table for {policy.logits.shape} states and actions, and the environment has {self.sizes}: "
                "change the shape of its logits."
            )
        if isinstance(policy, CategoricalPolicy) and self.choices is not None and policy.choices != self.choices:
            raise InputError(f"The environment has {self.choices} choices, and the policy {policy.choices}: change choices=.")

    def reset(self, task, key):
        seed = jax.random.bits(key)
        leaves, structure = jax.tree.flatten(task)
        ranks = tuple(jnp.ndim(leaf) for leaf in leaves)
        shapes = jax.ShapeDtypeStruct((), jnp.uint32), self._observed()
        # Declared as a side effect, so that the compiler does not merge the resets of two episodes with one key.
        call = buffer_callback(
            _reset_callback(self.simulators, structure, ranks), shapes, has_side_effect=True, vmap_method="broadcast_all"
        )
        return tuple(call(seed, *map(jax.lax.stop_gradient, leaves)))

    def observe(self, task, state):
        return state[1]

    def step(self, task, state, action, key):
        space = self.simulators.actions
        fits = action.shape == space.shape or (action.ndim <= 1 and action.size == space.size)
        real = jnp.issubdtype(action.dtype, jnp.floating)
        if not fits or real != (self.choices is None):
            numbers, made = "real", f"GaussianPolicy(network, {space.size})"
            if self.choices is not None:
                numbers, made = "whole", f"CategoricalPolicy(network, {self.choices})"
            raise InputError(
                f"The environment takes actions of shape {space.shape} that are {numbers} numbers, and the policy gives "
                f"{action.shape}, {action.dtype}: use ax.tasks.rl.{made}, whose network gives {self.sizes[1]} numbers."
            )
        number = jax.ShapeDtypeStruct((), jnp.float32)
        shapes = self._observed(), number, jax.ShapeDtypeStruct((), jnp.bool)
        step = _step_callback(self.simulators, self.horizon)
        call = buffer_callback(step, shapes, has_side_effect=True, vmap_method="broadcast_all")
        observation, reward, done = call(state[0], jax.lax.stop_gradient(action.ravel()))
        return (state[0], observation), reward, done

    def _observed(self) -> jax.ShapeDtypeStruct:
        seen = self.simulators.observations
        # JAX's own precision, which may be single.
        return jax.ShapeDtypeStruct(seen.shape, jnp.result_type(float) if seen.dtype == np.float64 else seen.dtype)


def gymnasium_family(
    make: Callable[[], Any], sample_task: Any, *, horizon: int | None = None, loss: Any = None, timeout: float = 60.0
) -> Resampling:
    r"""A family of gymnasium environments, one for each task, as a resampling problem.

    The compiled program calls the host for every step of all episodes. Each episode has an instance of its own, which a later
    episode uses again; it is told its task by `set_task(task)` or through the attribute `task`, and is reset with a seed from
    its key, so that one integer decides a run. All instances run on one thread of the host.

    The policy sees the numbers of a `Box` in their shape, of a `Discrete` the index from 0, and of `MultiDiscrete`,
    `MultiBinary`, `Dict` and `Tuple` the flat vector of `gymnasium.spaces.utils.flatten`, one-hot where there is a choice.
    It acts by the numbers of a `Box`, which are clipped to its bounds (`GaussianPolicy`), or by indices from 0 for `Discrete`,
    `MultiDiscrete` and `MultiBinary`, to which their `start` is added (`CategoricalPolicy`); `Dict` and `Tuple` of either kind
    take the numbers of their parts one after another. Other spaces are refused.

    Arguments:
        make: `make() -> environment`, a new one each time, with gymnasium's `reset(seed=)`, `step`, `observation_space` and
            `action_space`, and `set_task(task)` or an attribute `task` on it or on what it wraps.
        sample_task: `sample_task(key) -> task`, a pytree of arrays, which the environment receives as NumPy arrays.
        horizon: H (default: the environment's own time limit).
        loss: the surrogate (default: `LVC(0.99, baseline=LinearBaseline(), per_step=True, normalise=True,
            discount_weighting=False)`).
        timeout: seconds that the host may take for one step of all episodes, positive (default 60).

    Returns: an `ax.Resampling` whose parameters are a policy, with the metric "return". With
        `environment = problem.draw.environment`, `environment.sizes` are the numbers that a network takes and gives, and
        `environment.choices` is what `CategoricalPolicy` chooses from.

    Errors: `InputError` for an environment without these members, several environments in one, a space of another kind, action
        bounds that are not finite, a horizon that is missing or beyond the time limit, or a horizon or timeout that is not
        positive; when episodes are drawn, for a policy that does not fit. `HostFailure`, in training with the state saved,
        when an environment raises, takes too long, gives an observation that its space does not hold or a number that is
        not finite, cuts an episode off before the horizon, or has another interface.

    Example:
        >>> import adaptax as ax, gymnasium, jax  # doctest: +SKIP
        >>> class Pendulum(gymnasium.envs.classic_control.PendulumEnv):  # doctest: +SKIP
        ...     def set_task(self, task):
        ...         self.m = float(task)
        >>> mass = lambda key: jax.random.uniform(key, (), minval=0.5, maxval=2.0)
        >>> problem = ax.tasks.rl.gymnasium_family(Pendulum, mass, horizon=200)  # doctest: +SKIP

    Source: docs/theory.md, section 2.1.
    """
    if not callable(make):
        text = f"make must be a function that returns an environment, not {type(make).__name__}"
        raise InputError(f"{text}: pass one such as lambda: gymnasium.make('Pendulum-v1').unwrapped.")
    simulators = Simulators(make, check_real("gymnasium_family", "timeout", timeout, above=0))
    limit = simulators.limit
    if horizon is None:
        horizon = limit or getattr(getattr(simulators.first, "spec", None), "max_episode_steps", None)
    if horizon is None:
        raise InputError("The environment has no time limit of its own: pass horizon=, the steps of an episode.")
    if limit is not None and as_horizon(horizon) > limit:
        text = f"horizon={horizon} is longer than the environment's time limit of {limit} steps"
        raise InputError(f"{text}: pass horizon={limit}, or make environments with a longer limit.")
    low, high = (None, None) if simulators.actions.choices else (tuple(side.tolist()) for side in simulators.actions.bounds)
    environment = GymnasiumEnvironment(simulators=simulators, horizon=horizon, low=low, high=high)
    return problem(environment, sample_task, published_surrogate() if loss is None else loss)


# Cached: with the same function object a program is not compiled again.
@functools.cache
def _reset_callback(simulators: Simulators, structure: Any, ranks: tuple[int, ...]) -> Callable[..., None]:
    def call(context: Any, out: Any, seeds: Any, *leaves: Any) -> None:
        seeds = np.asarray(seeds).copy().ravel()
        rows = [np.asarray(leaf).copy() for leaf in leaves]
        rows = [row.reshape(len(seeds), *row.shape[row.ndim - rank :]) for row, rank in zip(rows, ranks, strict=True)]
        tasks = [jax.tree.unflatten(structure, [row[i] for row in rows]) for i in range(len(seeds))]
        _fill(out, simulators.reset(tasks, seeds))

    return call


@functools.cache
def _step_callback(simulators: Simulators, horizon: int) -> Callable[..., None]:
    def call(context: Any, out: Any, numbers: Any, actions: Any) -> None:
        numbers, chosen = np.asarray(numbers).copy(), np.asarray(actions).copy()
        chosen = chosen.reshape(-1, *chosen.shape[numbers.ndim :])
        _fill(out, simulators.step(numbers.ravel(), chosen, horizon))

    return call


def _fill(buffers: Any, columns: tuple[np.ndarray, ...] | None) -> None:
    """Write the results into the program's buffers; after a failure (None) not-a-number, and zero for integers."""
    for i, buffer in enumerate(buffers):
        result = np.asarray(buffer)
        if columns is None:
            result[...] = np.nan if np.issubdtype(result.dtype, np.floating) else 0
        else:
            result[...] = columns[i].reshape(result.shape)
