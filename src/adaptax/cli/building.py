"""Parts that all task families are built from: the method, the inner loop, the outer optimiser, the initial key."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

import adaptax as ax
from adaptax.cli.options import canonical_stepsize
from adaptax.training.outer_defaults import outer_optimizer
from adaptax.training.step import Step

if TYPE_CHECKING:
    from adaptax.cli.training import Training

# Meta-steps fold small numbers into the seed's key; the initial parameters come from one that no run reaches.
_INITIAL = 2**32 - 1
_CURVATURES = {
    "exact": ax.curvature.Exact,
    "first-order": ax.curvature.FirstOrder,
    "finite-difference": ax.curvature.FiniteDifference,
    "ggs": ax.curvature.GaussianSmoothing,
    "zeroth-order": ax.curvature.ZerothOrder,
}


@dataclass(frozen=True)
class Built:
    """The problem, the method and everything else that the options of a run describe.

    Arguments:
        problem, params, method, optimizer: as `ax.train` takes them.
        held_out: the problem on whose tasks the result is judged.
        judged_on: what these tasks are, in words.
        left_out: alphabets or classes of the test data that were left out because they are training data too.
        environment_steps: how many environment steps a meta-step takes, in reinforcement learning.
        calibration: training tasks, whose statistics of batches for each inner step are judged with too.
        tuned: a function from a state to the parameters and the inner loop that it is judged with (default: its own).
        validation: the problem whose tasks choose the best state, if there is one.
        reading: what a learner's file says of how inputs are read, by kind.
    """

    problem: ax.FiniteSum | ax.Resampling
    params: Any
    method: ax.MetaGradient
    optimizer: optax.GradientTransformation
    held_out: ax.FiniteSum | ax.Resampling
    judged_on: str
    left_out: tuple[str, ...] = ()
    environment_steps: int | None = None
    validation: ax.FiniteSum | None = None
    calibration: ax.FiniteSum | None = None
    tuned: Callable[[Any], tuple[Any, ax.Inner]] | None = None
    reading: dict[str, Any] = field(default_factory=dict)

    def step(self, tasks_per_step: int) -> Step:
        """The meta-step, whose `init` says what the state looks like."""
        return ax.make_step(self.problem, self.method, self.optimizer, tasks_per_step)


def method_of(config: "Training", inner: ax.Inner | None = None, **more: Any) -> ax.MetaGradient:
    """The meta-gradient that the options give; it is made here alone, so that an option reaches it in every family.

    Arguments:
        config: the options.
        inner: the inner loop (default: that of the options).
        more: arguments of `ax.MetaGradient` that only this family sets.
    """
    return ax.MetaGradient(inner_of(config) if inner is None else inner, _CURVATURES[config.curvature](), **more)


def inner_of(config: "Training", **more: Any) -> ax.Inner:
    """The inner loop that the options give; `more` are arguments of `ax.Inner` that only this family sets."""
    return ax.Inner(config.inner_steps, parse_stepsize(config.stepsize), **more)


def optimizer_of(config: "Training") -> optax.GradientTransformation:
    """The outer optimiser that the options give."""
    steps = config.steps if config.schedule == "cosine" else None
    return _optimizer(config.optimizer, config.learning_rate, steps, config.clip, config.warm_up)


@functools.cache
def _optimizer(name: str, learning_rate: float, steps: int | None, clip: float, warm_up: int) -> optax.GradientTransformation:
    """One object for the same options, so that runs in one process share their compiled programs."""
    return outer_optimizer({"adam": optax.adam, "sgd": optax.sgd}[name], learning_rate, steps, clip or None, warm_up)


def initial_key(seed: int) -> Any:
    """The key of the initial parameters."""
    return jax.random.fold_in(jax.random.key(seed), _INITIAL)


def mean_stepsize(inner: ax.Inner) -> float:
    """The step size of a resolved inner loop; the mean over parameters where each has its own."""
    stepsize = inner.stepsize
    return float(
        ax.stepsize.Rates(stepsize.tree).mean() if isinstance(stepsize, ax.stepsize.LearnedRates) else np.mean(stepsize)
    )


def parse_stepsize(text: str) -> Any:
    """A number, or the rule of that name."""
    rule, _, gamma = canonical_stepsize(text).partition(":")
    rules = {"auto": ax.stepsize.Auto, "edge": ax.stepsize.Edge, "guaranteed": ax.stepsize.Guaranteed}
    if rule not in rules:
        return float(rule)
    return rules[rule](float(gamma)) if gamma else rules[rule]()
