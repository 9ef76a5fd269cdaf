"""Any gymnasium environment that can be told its task, as a resampling problem."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from adaptax.errors import InputError
from adaptax.problem import Resampling
from adaptax.tasks.rl.environment import Environment, problem
from adaptax.tasks.rl.host import HostEnvironments
from adaptax.tasks.rl.surrogates import published


class GymnasiumEnvironment(Environment):
    """Episodes of gymnasium environments, stepped by a callback of the compiled program; made by `gymnasium_family`.

    Arguments:
        instances: the environments on the host.
        horizon: H.
        low, high: bounds that actions are clipped to (None: a finite number of actions).
    """

    instances: HostEnvironments = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    low: tuple[float, ...] | None = eqx.field(static=True)
    high: tuple[float, ...] | None = eqx.field(static=True)

    host: ClassVar[bool] = True

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of an observation and of an action (the number of states or actions where they are finitely many)."""
        spaces = self.instances.observations, self.instances.first.action_space
        inputs, outputs = (int(space.n) if hasattr(space, "n") else math.prod(space.shape) for space in spaces)
        return inputs, outputs

    def reset(self, task, key):
        seed = jax.random.bits(key)
        leaves, structure = jax.tree.flatten(task)
        ranks = tuple(jnp.ndim(leaf) for leaf in leaves)
        shapes = jax.ShapeDtypeStruct((), jnp.uint32), self._observed()
        # Two episodes are two, even with one key: what has an effect is neither merged nor left out.
        call = buffer_callback(
            _resetter(self.instances, structure, ranks), shapes, has_side_effect=True, vmap_method="broadcast_all"
        )
        return tuple(call(seed, *map(jax.lax.stop_gradient, leaves)))

    def observe(self, task, state):
        return state[1]

    def step(self, task, state, action, key):
        shape = () if self.low is None else self.instances.first.action_space.shape
        if action.shape != shape:
            raise InputError(
                f"The environment takes actions of shape {shape}, and the policy gives {action.shape}: make it for "
                f"{self.sizes[0]} observations and {self.sizes[1]} actions."
            )
        if self.low is not None:
            low, high = (jnp.asarray(bound, action.dtype).reshape(shape) for bound in (self.low, self.high))
            action = jnp.clip(action, low, high)
        number = jax.ShapeDtypeStruct((), jnp.float32)
        shapes = self._observed(), number, jax.ShapeDtypeStruct((), jnp.bool)
        stepper = _stepper(self.instances, self.horizon)
        call = buffer_callback(stepper, shapes, has_side_effect=True, vmap_method="broadcast_all")
        observation, reward, done = call(state[0], jax.lax.stop_gradient(action))
        return (state[0], observation), reward, done

    def _observed(self) -> jax.ShapeDtypeStruct:
        space = self.instances.observations
        whole = np.issubdtype(space.dtype, np.integer) and hasattr(space, "n")
        return jax.ShapeDtypeStruct(space.shape, jnp.int32 if whole else jnp.float32)


def gymnasium_family(
    make: Callable[[], Any], sample_task: Any, *, horizon: int | None = None, loss: Any = None, timeout: float = 60.0
) -> Resampling:
    r"""A family of gymnasium environments, one for each task, as a resampling problem: the program calls the host.

    Each episode has an instance of its own (they are used again), is told its task by `set_task(task)` or the attribute
    `task`, and is reset with a seed from its key, so that one integer decides a run. Actions are clipped to their bounds.
    All instances run on one thread of the host.

    Arguments:
        make: `make() -> environment`, with gymnasium's `reset(seed=)`, `step`, `observation_space` and `action_space` (a box,
            or finitely many), and `set_task(task)` or an attribute `task` on `environment.unwrapped`.
        sample_task: `sample_task(key) -> task`, a pytree of arrays, which arrive on the host as NumPy arrays.
        horizon: H (default: the environment's own time limit).
        loss: the surrogate (default: `LVC(0.99, baseline=LinearBaseline(), per_step=True, normalise=True,
            discount_weighting=False)`).
        timeout: seconds that the host may take for one step of all episodes (default 60).

    Returns: an `ax.Resampling` whose parameters are a policy, with the metric "return"; `problem.draw.environment.sizes` are
        the entries of an observation and of an action.

    Errors: `InputError` for an environment without these, without a horizon, or with bounds that are not finite and in
        order. `HostFailure` in training, with the state saved, where an environment raises, takes too long, gives a reward
        that is not finite, or cuts an episode off before the horizon.

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
        raise InputError(f"make must be a function that returns an environment, not {type(make).__name__}.")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise InputError(f"gymnasium_family(timeout={timeout!r}) must be a positive, finite number of seconds.")
    instances = HostEnvironments(make, float(timeout))
    limit = getattr(getattr(instances.first, "spec", None), "max_episode_steps", None) if horizon is None else horizon
    if limit is None:
        raise InputError("The environment has no time limit of its own: pass horizon=, the steps of an episode.")
    space, low, high = instances.first.action_space, None, None
    if not instances.discrete:
        low, high = (tuple(np.asarray(bound, np.float64).ravel().tolist()) for bound in (space.low, space.high))
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(low, high, strict=True)):
            raise InputError("The bounds of the environment's actions must be finite, each low below its high: mend its space.")
    environment = GymnasiumEnvironment(instances=instances, horizon=limit, low=low, high=high)
    return problem(environment, sample_task, published() if loss is None else loss)


# One object for one callback, so that programs are compiled once.
@functools.cache
def _resetter(instances: HostEnvironments, structure: Any, ranks: tuple[int, ...]) -> Callable[..., None]:
    def call(context: Any, out: Any, seeds: Any, *leaves: Any) -> None:
        seeds = np.asarray(seeds).copy().ravel()
        rows = [np.asarray(leaf).copy() for leaf in leaves]
        rows = [row.reshape(len(seeds), *row.shape[row.ndim - rank :]) for row, rank in zip(rows, ranks, strict=True)]
        tasks = [jax.tree.unflatten(structure, [row[i] for row in rows]) for i in range(len(seeds))]
        _fill(out, instances.reset(tasks, seeds))

    return call


@functools.cache
def _stepper(instances: HostEnvironments, horizon: int) -> Callable[..., None]:
    def call(context: Any, out: Any, numbers: Any, actions: Any) -> None:
        numbers, chosen = np.asarray(numbers).copy(), np.asarray(actions).copy()
        chosen = chosen.reshape(-1, *chosen.shape[numbers.ndim :])
        _fill(out, instances.step(numbers.ravel(), chosen, horizon))

    return call


def _fill(buffers: Any, columns: tuple[np.ndarray, ...] | None) -> None:
    """Answer the program; None, after a failure, as not a number."""
    for i, buffer in enumerate(buffers):
        result = np.asarray(buffer)
        if columns is None:
            result[...] = np.nan if np.issubdtype(result.dtype, np.floating) else 0
        else:
            result[...] = columns[i].reshape(result.shape)
