"""Planar navigation: a point that has to find an unknown goal from its rewards."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adaptax._checks import check_real, check_true_or_false
from adaptax.errors import InputError
from adaptax.problem import Resampling
from adaptax.tasks.rl.advantages import LinearBaseline
from adaptax.tasks.rl.environment import Environment, as_horizon, problem
from adaptax.tasks.rl.surrogates import LoadedDiCE

# The bound of both entries of an action.
LARGEST_STEP = 0.1


class Navigation(Environment):
    r"""A point in the plane moves by its actions, $x \leftarrow x + a$ from $x = 0$, towards a goal g, which is the task.

    The state and the observation are the position x. Both entries of an action are clipped to ±0.1. The reward of a step is
    $-\|x - g\|$ at the new position; a sparse reward is $1 - \|x - g\|$ within `radius` of the goal and 0 elsewhere.

    Arguments:
        horizon: H (default 100).
        sparse: whether the reward is sparse (default False).
        radius: the distance within which the goal counts as reached, for `sparse` and `stop` (default 0.2).
        stop: whether an episode ends when the goal is reached (default False).

    Errors: `InputError` if the horizon is not a positive whole number, the radius not positive, or `sparse` or `stop` not
        True or False.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> environment, goal = ax.tasks.rl.Navigation(), jnp.array([0.3, 0.4])
        >>> state, reward, done = environment.step(goal, jnp.zeros(2), jnp.array([5.0, 0.05]), jax.random.key(0))
        >>> [round(float(x), 3) for x in state], bool(done)
        ([0.1, 0.05], False)

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; docs/theory.md, section 10.3.
    """

    horizon: int = eqx.field(static=True, default=100, converter=as_horizon)
    sparse: bool = eqx.field(
        static=True, default=False, converter=functools.partial(check_true_or_false, "Navigation", "sparse")
    )
    radius: float = eqx.field(
        static=True, default=0.2, converter=functools.partial(check_real, "Navigation", "radius", above=0)
    )
    stop: bool = eqx.field(static=True, default=False, converter=functools.partial(check_true_or_false, "Navigation", "stop"))

    @property
    def sizes(self) -> tuple[int, int]:
        """The sizes of an observation and of an action."""
        return 2, 2

    def reset(self, task, key):
        return jnp.zeros_like(task)

    def observe(self, task, state):
        return state

    def step(self, task, state, action, key):
        new = state + jnp.clip(action, -LARGEST_STEP, LARGEST_STEP).astype(state.dtype)
        distance = jnp.sqrt(jnp.sum((new - task) ** 2))
        reached = distance <= self.radius
        reward = jnp.where(reached, 1 - distance, 0) if self.sparse else -distance
        return new, reward, reached & self.stop


def square_goal(key: Key[Array, ""]) -> Float[Array, "2"]:
    """A goal drawn uniformly from [-0.5, 0.5]²."""
    return jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)


def semicircle_goal(key: Key[Array, ""]) -> Float[Array, "2"]:
    """A goal drawn uniformly from the upper half of the unit circle."""
    angle = jax.random.uniform(key, (), minval=0.0, maxval=math.pi)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


_GOALS = {"square": square_goal, "semicircle": semicircle_goal}


def navigation(
    goals: str = "square", *, horizon: int = 100, sparse: bool = False, radius: float = 0.2, stop: bool = False,
    loss: Any = None,
) -> Resampling:  # fmt: skip
    r"""Planar navigation to an unknown goal as a resampling problem; see `Navigation`.

    Arguments:
        goals: "square", uniform on $[-0.5, 0.5]^2$ (default), or "semicircle", uniform on the upper half of the unit circle.
        horizon: H (default 100).
        sparse, radius, stop: those of `Navigation`.
        loss: the surrogate (default `LoadedDiCE(0.95, baseline=LinearBaseline(), per_step=True)`, whose gradient and Hessian
            are unbiased for minus the discounted return over H). Published code, with its $\alpha = 0.1$, adds
            `normalise=True, discount_weighting=False`.

    Returns: an `ax.Resampling` whose parameters are a policy, for instance
        `GaussianPolicy(ax.models.mlp((2, 100, 100, 2), key=key), 2)`, with the metric "return" (mean, undiscounted).

    Errors: `InputError` for unknown goals, or a number out of its range.

    Example:
        >>> import adaptax as ax, jax
        >>> problem = ax.tasks.rl.navigation(horizon=10)
        >>> policy = ax.tasks.rl.GaussianPolicy(ax.models.mlp((2, 16, 2), key=jax.random.key(0)), 2)
        >>> batch = problem.draw(problem.sample_task(jax.random.key(1)), policy, jax.random.key(2), 20)
        >>> bool(problem.metrics(policy, batch)["return"] < 0)
        True

    Source: docs/theory.md, section 10.3; the sparse semicircle: Rakelly et al. (2019), PEARL, ICML.
    """
    if goals not in _GOALS:
        raise InputError(f'navigation(goals={goals!r}) must be "square" or "semicircle": change goals=.')
    loss = LoadedDiCE(0.95, baseline=LinearBaseline(), per_step=True) if loss is None else loss
    return problem(Navigation(horizon, sparse, radius, stop), _GOALS[goals], loss)
