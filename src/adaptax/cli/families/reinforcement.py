"""The options and parts that all families of reinforcement learning share: policy, surrogate loss, outer steps."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from adaptax.cli import options
from adaptax.cli.training import Training
from adaptax.errors import InputError

# Products with the divergence's Hessian are most of a meta-step's work, and few tasks show it as well as all.
_REGION_TASKS = 4


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Training):
    """Reinforcement learning in an environment, which the subclass names."""

    renamed: ClassVar[Mapping[str, str]] = {"trace": "gae_lambda"}
    not_measured: ClassVar[str | None] = (
        "Reinforcement learning has no support sets to measure constants on, and its losses have no known lower bound: use "
        "ax.measure.constants from Python, with a loss that is not normalised."
    )
    activation: ClassVar[str] = "tanh"
    """The policy's activation function, by its name in `jax.nn`."""

    inner_steps: options.CountOrZero = 1
    steps: options.Count = 200
    tasks_per_step: options.Count = 20
    optimizer: Literal["proximal", "trust-region", "adam", "sgd"] = "proximal"
    """Outer optimiser: proximal takes --epochs steps of Adam on a meta-step's episodes, each through the adaptation;
    trust-region makes no use of --learning-rate, --schedule, --warm-up and --clip."""
    learning_rate: options.Positive = 3e-3
    epochs: options.Count = 10
    """Steps of proximal on the episodes of one meta-step, at most."""
    clip_ratio: options.Positive = 0.3
    """How far the adapted policy's probability ratios are followed away from 1 by proximal."""
    radius: options.Positive = 0.02
    """The largest mean divergence between adapted policies of one meta-step and the next: proximal ends its steps before it,
    trust-region goes as far as it."""
    checkpoint_every: options.Count = 10
    evaluation_tasks: Annotated[int, options.Whole(2)] = 40
    evaluation_steps: options.OptionalCountOrZero = 3
    """Inner steps of the evaluation at the end."""
    trajectories: options.Count = 20
    """Episodes of each inner step, Hessian factor and last gradient, of each task."""
    horizon: options.Count = 100
    """Steps after which an episode is cut off."""
    discount: options.Fraction = 0.99
    """Discount of the rewards, for each step."""
    gae_lambda: options.Fraction = 1.0
    """Lambda of generalised advantage estimation."""
    surrogate: Literal["loaded-dice", "dice", "lvc", "likelihood-ratio"] = "lvc"
    """The loss whose derivatives estimate the policy's gradient and Hessian; dice takes no baseline."""
    baseline: Literal["linear", "none"] = "linear"
    """The baseline that is fitted to each batch and subtracted from returns to go."""
    normalise: bool = True
    """Standardise the advantages of each batch, as published step sizes suppose."""
    independent_curvature: bool = False
    """Draw episodes of their own for Hessians, instead of using those of the inner steps again, as proximal does."""
    hidden: options.Widths = (64, 64)
    """Widths of the policy's hidden layers."""

    def problem(self, loss: Any) -> Any:
        """The environment with its goals, and the surrogate loss."""
        raise NotImplementedError("abstract")

    def kinks(self) -> str | None:
        return "relu units" if self.activation == "relu" and self.hidden else None

    def check_together(self) -> None:
        if self.optimizer == "proximal" and self.curvature != "exact":
            raise InputError(
                f"--curvature {self.curvature} has no effect on --optimizer proximal, which differentiates through the inner "
                "steps: use --optimizer trust-region or adam with it."
            )

        if self.optimizer == "proximal" and self.independent_curvature:
            raise InputError(
                "--independent-curvature has no effect on --optimizer proximal, which goes through the episodes of the steps: "
                "leave it out, or use another --optimizer."
            )

    def build(self):
        import jax

        import adaptax as ax
        from adaptax.cli.building import Built, initial_key, method_of

        n, problem = self.trajectories, self.problem(_loss(self))
        method = method_of(self, samples=ax.Samples(n, n, n), independent_curvature=self.independent_curvature)
        inputs, outputs = problem.draw.environment.sizes
        unit = getattr(jax.nn, self.activation)
        # Larger weights than these saturate every action at the start.
        sizes = (inputs, *self.hidden, outputs)
        network = ax.models.mlp(sizes, key=initial_key(self.seed), activation=unit, init="glorot")
        return Built(
            problem, ax.tasks.rl.GaussianPolicy(network, outputs), method,
            _outer(self), problem,
            f"new goals, {n} episodes for each inner step", environment_steps=_environment_steps(self, method, problem),
        )  # fmt: skip


def _loss(config: Reinforcement) -> Any:
    from adaptax.tasks import rl

    names = {"dice": rl.DiCE, "loaded-dice": rl.LoadedDiCE, "lvc": rl.LVC, "likelihood-ratio": rl.LikelihoodRatio}
    return names[config.surrogate](config.discount, **_advantages(config))


def _advantages(config: Reinforcement) -> dict[str, Any]:
    """How losses make advantages; dice has none."""
    from adaptax.tasks import rl

    if config.surrogate == "dice":
        return {"per_step": True}
    return {
        "baseline": rl.LinearBaseline() if config.baseline == "linear" else None,
        "gae_lambda": config.gae_lambda,
        "normalise": config.normalise,
        "discount_weighting": not config.normalise,
        "per_step": True,
    }


def _outer(config: Reinforcement) -> Any:
    from adaptax.cli.building import optimizer_of
    from adaptax.tasks import rl

    if config.optimizer == "trust-region":
        return _trust_region(config.radius)
    if config.optimizer != "proximal":
        return optimizer_of(config)
    loss = rl.Clipped(config.discount, clip=config.clip_ratio, **_advantages(config))
    steps = config.epochs * config.steps if config.schedule == "cosine" else None
    rates = config.learning_rate, steps, config.clip or None, config.epochs * config.warm_up
    return _proximal(loss, config.epochs, config.radius, *rates)


@functools.cache
def _proximal(
    loss: Any, epochs: int, radius: float, learning_rate: float, steps: int | None, clip: float | None, warm_up: int
) -> Any:
    """One object for the same options, so that runs in one process share their programs."""
    import optax

    from adaptax.outer import Proximal
    from adaptax.tasks import rl
    from adaptax.training.outer_defaults import outer_optimizer

    adam = outer_optimizer(optax.adam, learning_rate, steps, clip, warm_up)
    return Proximal(loss, adam, epochs, divergence=rl.mean_kl, radius=radius)


@functools.cache
def _trust_region(radius: float) -> Any:
    """One object for the same radius, so that runs in one process share their programs."""
    from adaptax.outer import TrustRegion
    from adaptax.tasks import rl

    return TrustRegion(rl.mean_kl, radius, tasks=_REGION_TASKS)


def _environment_steps(config: Reinforcement, method: Any, problem: Any) -> int:
    """Environment steps of one meta-step."""
    from adaptax.tasks import rl

    steps = rl.environment_steps(method, problem, config.tasks_per_step)
    if config.optimizer in ("proximal", "trust-region") and not method.keeps_draws:
        # The inner paths and their ends are drawn once more, and held fixed.
        steps += config.tasks_per_step * config.horizon * config.trajectories * (config.inner_steps + 1)
    return steps
