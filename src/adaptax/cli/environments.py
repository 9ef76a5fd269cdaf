"""From a configuration of reinforcement learning to the problem, the policy and the outer optimiser."""

import functools
from typing import Any

import jax
import optax

import adaptax as ax
from adaptax.cli.environment_configs import Navigation, Reinforcement

rl = ax.tasks.rl
_SURROGATES = {"loaded-dice": rl.LoadedDiCE, "lvc": rl.LVC, "likelihood-ratio": rl.LikelihoodRatio}
# Products with the divergence's Hessian are most of a meta-step's work, and few tasks show it as well as all.
_REGION_TASKS = 4
_GOALS = {"dir": "direction", "vel": "velocity", "goal": "position"}


def problem_of(config: Reinforcement) -> ax.Resampling:
    """The environment with its goals and its surrogate loss."""
    loss = _loss(config)
    if isinstance(config, Navigation):
        return rl.navigation(config.goals, horizon=config.horizon, sparse=config.sparse, loss=loss)
    body, _, goal = config.task.partition("-")
    make: Any = {"cheetah": rl.cheetah, "ant": rl.ant}[body]
    return make(_GOALS[goal], horizon=config.horizon, loss=loss)


def policy_of(config: Reinforcement, problem: ax.Resampling, key: Any) -> Any:
    """A Gaussian policy of the environment's sizes."""
    inputs, outputs = problem.draw.environment.sizes
    # Units of published policies: relu in the plane, tanh for bodies; larger weights saturate every action at the start.
    unit = jax.nn.relu if isinstance(config, Navigation) else jax.nn.tanh
    network = ax.models.mlp((inputs, *config.hidden, outputs), key=key, activation=unit, init="glorot")
    return rl.GaussianPolicy(network, outputs)


@functools.cache
def outer(name: str, learning_rate: float, radius: float) -> optax.GradientTransformation:
    """The outer optimiser; one object for the same options, so that runs in one process share their programs."""
    if name == "trust-region":
        return ax.stepsize.TrustRegion(rl.mean_kl, radius, tasks=_REGION_TASKS)
    return {"adam": optax.adam, "sgd": optax.sgd}[name](learning_rate)


def environment_steps(config: Reinforcement, method: ax.MetaGradient, problem: ax.Resampling) -> int:
    """Environment steps of one meta-step."""
    steps = rl.environment_steps(method, problem, config.tasks_per_step)
    if config.optimizer == "trust-region":
        # It draws the inner paths and their ends once more, and holds them fixed.
        steps += config.tasks_per_step * config.horizon * config.trajectories * (config.inner_steps + 1)
    return steps


def _loss(config: Reinforcement) -> Any:
    if config.surrogate == "dice":
        return rl.DiCE(config.discount, per_step=True)
    baseline = rl.LinearBaseline() if config.baseline == "linear" else None
    return _SURROGATES[config.surrogate](
        config.discount, baseline=baseline, gae_lambda=config.trace, normalise=config.normalise,
        discount_weighting=not config.normalise, per_step=True,
    )  # fmt: skip
