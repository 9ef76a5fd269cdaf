"""What `adaptax train` takes for reinforcement learning, as typed dataclasses. Imports no JAX."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from adaptax.cli.training_configs import Number, StepSize, Training


@dataclass(frozen=True, kw_only=True)
class Reinforcement(Training):
    """The options that all environments share."""

    inner_steps: int = 1
    stepsize: StepSize = "0.1"
    steps: int = 200
    tasks_per_step: int = 20
    optimizer: Literal["trust-region", "adam", "sgd"] = "trust-region"
    """Outer optimiser; --learning-rate is not used by trust-region."""
    radius: float = 0.01
    """Of the trust region: the largest mean divergence between adapted policies of one meta-step and the next."""
    checkpoint_every: int = 10
    evaluation_tasks: int = 40
    evaluation_steps: Number = 3
    """Inner steps of the evaluation at the end."""
    trajectories: int = 20
    """Episodes of each inner step, Hessian factor and last gradient, of each task."""
    horizon: int = 100
    """Steps after which an episode is cut off."""
    discount: float = 0.99
    """Of the rewards."""
    trace: float = 1.0
    """Lambda of the generalised advantages."""
    surrogate: Literal["loaded-dice", "dice", "lvc", "likelihood-ratio"] = "lvc"
    """Whose derivatives estimate the policy's gradient and Hessian; dice takes no baseline."""
    baseline: Literal["linear", "none"] = "linear"
    """What is subtracted from returns to go, fitted to each batch."""
    normalise: bool = True
    """Standardise the advantages of each batch, as published step sizes suppose."""
    independent_curvature: bool = True
    """Draw episodes of their own for Hessians, instead of using those of the inner steps again."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the policy's hidden layers."""


@dataclass(frozen=True, kw_only=True)
class Navigation(Reinforcement):
    """A point in the plane that must find its goal (docs/theory.md, section 10)."""

    task: ClassVar[str] = "navigation"

    discount: float = 0.95
    hidden: tuple[int, ...] = (100, 100)
    goals: Literal["square", "semicircle"] = "square"
    """Where goals lie: in a square around the start, or on half a circle."""
    sparse: bool = False
    """Whether rewards are given near the goal only."""


@dataclass(frozen=True, kw_only=True)
class Body(Reinforcement):
    """What HalfCheetah and Ant have in common."""

    stepsize: StepSize = "0.5"
    trace: float = 0.9
    """Lambda of the generalised advantages."""


@dataclass(frozen=True, kw_only=True)
class CheetahDir(Body):
    """MuJoCo's half cheetah that must find out whether to run forwards or backwards (needs the extra rl)."""

    task: ClassVar[str] = "cheetah-dir"


@dataclass(frozen=True, kw_only=True)
class CheetahVel(Body):
    """MuJoCo's half cheetah that must find out how fast to run (needs the extra rl)."""

    task: ClassVar[str] = "cheetah-vel"


@dataclass(frozen=True, kw_only=True)
class AntDir(Body):
    """MuJoCo's ant that must find out whether to run forwards or backwards (needs the extra rl)."""

    task: ClassVar[str] = "ant-dir"


@dataclass(frozen=True, kw_only=True)
class AntVel(Body):
    """MuJoCo's ant that must find out how fast to run (needs the extra rl)."""

    task: ClassVar[str] = "ant-vel"


@dataclass(frozen=True, kw_only=True)
class AntGoal(Body):
    """MuJoCo's ant that must find out where to run to (needs the extra rl)."""

    task: ClassVar[str] = "ant-goal"
