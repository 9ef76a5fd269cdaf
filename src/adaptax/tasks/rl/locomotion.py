"""HalfCheetah and Ant with unknown goals: a direction, a velocity or a position, which adaptation has to find out."""

import abc
import math
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from adaptax.errors import InputError
from adaptax.problem import Resampling
from adaptax.tasks.rl.environment import Environment, as_horizon, problem
from adaptax.tasks.rl.physics import MJX, MuJoCo, Physics
from adaptax.tasks.rl.surrogates import published_surrogate

Goal = Literal["direction", "velocity", "position"]


class Locomotion(Environment):
    r"""A MuJoCo body driven by torques a in $[-1, 1]^k$.

    The observation holds all positions and velocities but the place on the ground, which is observed only if the goal is a
    position.

    With v the forward velocity over a step and x the position after it, the reward of a step is $gv$ for a direction
    $g = \pm1$, $-|v - g|$ for a velocity g, $-\|x - g\|_1$ for a position g in the plane, less the cost of the torques. The
    ant also gains a constant while it is upright.

    Arguments:
        physics: `MuJoCo(name)` or `MJX(name)`, the engine that moves the body.
        goal: "direction", "velocity" or, for the ant alone, "position".
        horizon: H.

    Errors: `InputError` for an unknown goal or a horizon that is not a positive whole number.

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; Rothfuss et al. (2019), ICLR; docs/theory.md, section 10.4.
    """

    physics: Physics
    goal: Goal = eqx.field(static=True)
    horizon: int = eqx.field(static=True, converter=as_horizon)

    # The kinds of goals, each with its largest magnitude.
    goals: ClassVar[dict[str, float]] = {}
    control_cost: ClassVar[float]

    def __check_init__(self):
        if self.goal not in self.goals:
            raise InputError(
                f"{type(self).__name__}(goal={self.goal!r}) must be {' or '.join(map(repr, self.goals))}: change goal=."
            )

    @property
    def host(self) -> bool:
        """Whether steps call the host: the engine decides."""
        return self.physics.host

    @property
    @abc.abstractmethod
    def sizes(self) -> tuple[int, int]:
        """The sizes of an observation and of an action."""

    def reset(self, task, key):
        position_key, velocity_key = jax.random.split(key)
        start = self.start_positions()
        positions = start + jax.random.uniform(position_key, start.shape, minval=-0.1, maxval=0.1)
        velocities = 0.1 * jax.random.normal(velocity_key, (self.sizes[0] - len(start) + self.hidden_positions(),))
        return self.physics.start(positions, velocities)

    def observe(self, task, state):
        positions, velocities = self.physics.coordinates(state)
        return jnp.concatenate([positions[self.hidden_positions() :], velocities])

    def step(self, task, state, action, key):
        inputs, outputs = self.sizes
        if action.shape != (outputs,):
            raise InputError(
                f"{type(self).__name__} takes {outputs} torques, and the policy gives {action.shape}: make it "
                f"GaussianPolicy(mlp(({inputs}, ..., {outputs}), key=key), {outputs})."
            )
        torques = jnp.clip(action, -1, 1).astype(jnp.float32)
        new = self.physics.advance(state, torques)
        before, after = (self.physics.coordinates(s)[0] for s in (state, new))
        speed = (after[0] - before[0]) / self.physics.interval
        if self.goal == "position":
            gain = -jnp.sum(jnp.abs(after[:2] - task))
        else:
            gain = task * speed if self.goal == "direction" else -jnp.abs(speed - task)
        bonus, done = self.survival(after)
        return new, gain + bonus - self.control_cost * jnp.sum(torques**2), done

    @abc.abstractmethod
    def start_positions(self) -> Array:
        """The positions around which episodes begin."""

    @abc.abstractmethod
    def hidden_positions(self) -> int:
        """The number of leading positions that are not observed: those in the plane, unless the goal is a position."""

    def survival(self, positions: Array) -> tuple[Any, Array]:
        """The bonus for being upright, which is added to the reward, and whether the episode ends."""
        return 0.0, jnp.array(False)


class HalfCheetah(Locomotion):
    r"""Gymnasium's half cheetah: 17 coordinates, 6 torques, 0.05 s a step. The reward loses $0.05\|a\|^2$.

    Arguments:
        physics: `MuJoCo("half_cheetah")` or `MJX("half_cheetah")`.
        goal: "direction" or "velocity".
        horizon: H.

    Errors: those of `cheetah`.

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; docs/theory.md, section 10.4.
    """

    goals: ClassVar[dict[str, float]] = {"direction": 1.0, "velocity": 2.0}
    control_cost: ClassVar[float] = 0.05

    @property
    def sizes(self):
        return 17, 6

    def start_positions(self):
        return jnp.zeros(9)

    def hidden_positions(self):
        return 1


class Ant(Locomotion):
    r"""Gymnasium's ant without contact forces: 27 coordinates (29 with its position), 8 torques, 0.05 s a step.

    The reward loses $0.005\|a\|^2$. For a direction or a velocity it gains 0.05 while the torso is between 0.2 and 1 m above
    the ground, and the episode ends when it is not. With a position as the goal there is neither bonus nor end.

    Arguments:
        physics: `MuJoCo("ant")` or `MJX("ant")`.
        goal: "direction", "velocity" or "position".
        horizon: H.

    Errors: those of `ant`.

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; Rothfuss et al. (2019), ICLR; docs/theory.md, section 10.4.
    """

    goals: ClassVar[dict[str, float]] = {"direction": 1.0, "velocity": 3.0, "position": 3.0}
    control_cost: ClassVar[float] = 0.005

    @property
    def sizes(self):
        return 29 - self.hidden_positions(), 8

    def start_positions(self):
        return jnp.array([0.0, 0.0, 0.75, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])

    def hidden_positions(self):
        return 0 if self.goal == "position" else 2

    def survival(self, positions):
        if self.goal == "position":
            return 0.0, jnp.array(False)
        upright = jnp.all(jnp.isfinite(positions)) & (positions[2] >= 0.2) & (positions[2] <= 1.0)
        return jnp.where(upright, 0.05, 0.0), ~upright


def _direction(key: Key[Array, ""], largest: float) -> Float[Array, ""]:
    return jax.random.choice(key, largest * jnp.array([-1.0, 1.0]))


def _velocity(key: Key[Array, ""], largest: float) -> Float[Array, ""]:
    return jax.random.uniform(key, (), minval=0.0, maxval=largest)


def _position(key: Key[Array, ""], largest: float) -> Float[Array, "2"]:
    angle, area = jax.random.uniform(key, (2,))
    return largest * jnp.sqrt(area) * jnp.stack([jnp.cos(2 * math.pi * angle), jnp.sin(2 * math.pi * angle)])


_SAMPLERS = {"direction": _direction, "velocity": _velocity, "position": _position}


class _SampleGoal(eqx.Module):
    """`sample_task(key)`: a goal of one kind."""

    goal: Goal = eqx.field(static=True)
    largest: float = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Array:
        return _SAMPLERS[self.goal](key, self.largest)


def _physics(model: str, physics: str | None) -> Physics:
    if physics is None:
        physics = "mujoco" if jax.default_backend() == "cpu" else "mjx"
    engines = {"mujoco": MuJoCo, "mjx": MJX}
    if physics not in engines:
        raise InputError(f'physics={physics!r} must be "mujoco" (the C engine) or "mjx" (on the device): change physics=.')
    return engines[physics](model)


def _problem(body: Any, model: str, goal: Goal, horizon: int, physics: str | None, loss: Any) -> Resampling:
    environment = body(_physics(model, physics), goal, horizon)
    return problem(environment, _SampleGoal(goal, body.goals[goal]), published_surrogate() if loss is None else loss)


def cheetah(
    goal: Literal["direction", "velocity"] = "direction", *, horizon: int = 100, physics: str | None = None, loss: Any = None
) -> Resampling:
    r"""MuJoCo's half cheetah with an unknown direction or velocity to run at, as a resampling problem; see `HalfCheetah`.

    Arguments:
        goal: "direction" (-1 or 1, default) or "velocity" (uniform on [0, 2], in m/s).
        horizon: H (default 100).
        physics: "mujoco", the C engine in double precision, called by the compiled program; "mjx", mujoco-mjx on the device
            (default: "mujoco" on a CPU, "mjx" on an accelerator).
        loss: the surrogate (default: `LVC(0.99, baseline=LinearBaseline(), per_step=True, normalise=True,
            discount_weighting=False)`, as in published code).

    Returns: an `ax.Resampling` whose parameters are a policy for 17 observations and 6 actions, for instance
        `GaussianPolicy(ax.models.mlp((17, 64, 64, 6), key=key), 6)`, with the metric "return".

    Errors: `InputError` for an unknown goal or physics, a horizon that is not a positive whole number, or without MuJoCo
        (`pip install 'adaptax[rl]'`).

    Example:
        >>> import adaptax as ax, jax
        >>> problem = ax.tasks.rl.cheetah("direction", horizon=5)  # doctest: +SKIP
        >>> policy = ax.tasks.rl.GaussianPolicy(ax.models.mlp((17, 64, 64, 6), key=jax.random.key(0)), 6)
        >>> batch = problem.draw(problem.sample_task(jax.random.key(1)), policy, jax.random.key(2), 20)  # doctest: +SKIP

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; docs/theory.md, section 10.4.
    """
    return _problem(HalfCheetah, "half_cheetah", goal, horizon, physics, loss)


def ant(goal: Goal = "direction", *, horizon: int = 100, physics: str | None = None, loss: Any = None) -> Resampling:
    r"""MuJoCo's ant with an unknown direction, velocity or position to reach, as a resampling problem; see `Ant`.

    Arguments:
        goal: "direction" (-1 or 1, default), "velocity" (uniform on [0, 3], in m/s) or "position" (uniform on the
            disc of radius 3 m).
        horizon, physics, loss: those of `cheetah`.

    Returns: an `ax.Resampling` whose parameters are a policy for 27 observations (29 for a position) and 8 actions, with
        the metric "return".

    Errors: those of `cheetah`.

    Example:
        >>> import adaptax as ax, jax
        >>> problem = ax.tasks.rl.ant("position", horizon=5)  # doctest: +SKIP
        >>> policy = ax.tasks.rl.GaussianPolicy(ax.models.mlp((29, 64, 64, 8), key=jax.random.key(0)), 8)

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; Rothfuss et al. (2019), ICLR; docs/theory.md, section 10.4.
    """
    return _problem(Ant, "ant", goal, horizon, physics, loss)
