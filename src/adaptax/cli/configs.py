"""What the commands take, as typed dataclasses. Imports no JAX, so that `adaptax --help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from adaptax.cli.environment_configs import AntDir, AntGoal, AntVel, CheetahDir, CheetahVel, Navigation
from adaptax.cli.training_configs import File, Images, Matrix, Name, Number, Real, Sinusoid, Training


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run on held-out tasks; the best one, if it was trained with --validation."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    format: Literal["table", "json"] = "table"
    """What to print."""
    tasks: Number = None
    """Held-out tasks (default: as after training)."""
    steps: Number = None
    """M: judge after 0, 1, ..., M inner steps (default: as after training)."""
    seed: int = 1
    """Of the held-out tasks."""
    data: File = None
    """Where the training data lie now, if they have been moved."""
    test_data: File = None
    """Where the test data lie now, if they have been moved."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure the theory's constants at the newest checkpoint of a run, and bound the norm of its meta-gradient."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    epsilon: Real = None
    """Accuracy to show: that the norm of the meta-gradient is at most this (default: bounds only)."""
    tasks: int = 200
    """Tasks of the bound; the constants are measured on others, 32 at most (4 for images)."""
    seed: int = 0
    """Of the tasks, which are never those of training."""
    format: Literal["table", "json"] = "table"
    """What to print."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """Film the policy of a run on HalfCheetah or Ant before and after adaptation to one goal."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    out: Path = Path("film.gif")
    """The animated GIF to write."""
    goal: tuple[float, ...] = ()
    """Direction (-1 or 1), velocity, or place (two numbers); default: drawn as in training."""
    seed: int = 0
    """Of the goal, the adaptation and the episodes."""
    steps: Number = None
    """Inner steps of the adaptation (default: as after training)."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Meta-train sinusoids with 10 inner steps in half a minute, beside two baselines, and draw what was learned."""

    out: Path = Path("demo")
    """Folder for sinusoids.png and demo.json."""
    steps: int = 7000
    """Meta-steps."""
    seed: int = 0
    """Decides the whole demonstration."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The meta-steps, tasks and samples with which the convergence theorem promises an accuracy, at the least cost."""

    epsilon: float = 0.1
    """Accuracy: the mean of ||gradient of the meta-loss|| at a random iterate is to be at most this."""
    steps: int = 5
    """N, gradient steps of the inner loop."""
    case: Literal["finite-sum", "resampling"] = "finite-sum"
    """Support and target sets, or fresh samples."""
    gamma: float = 0.125
    """Of the inner step size gamma / (N L)."""
    c_beta: float = 2.0
    """Of the outer step size 1 / (C_beta L_hat)."""
    optimise_c_beta: bool = False
    """Choose C_beta with the sizes."""
    constants: File = None
    """JSON or TOML file with L, rho, sigma and gap, and where they count sigma_g, sigma_H, b."""
    measure: Name = None
    """Measure the constants on a task (sinusoid, matrix) at its initial parameters, or on a run folder's newest checkpoint."""
    tasks: int = 64
    """Tasks to measure on."""
    seed: int = 0
    """Of the parameters and tasks that are measured."""
    format: Literal["table", "json"] = "table"
    """What to print."""


@dataclass(frozen=True, kw_only=True)
class HessianEstimators:
    """Bias and variance of each estimator of Hessian-vector products, over directions and radii."""

    experiment: ClassVar[str] = "hessian-estimators"

    out: Path = Path("reproduced/hessian-estimators")
    """Folder for the CSV, the figures and README.md."""
    repeats: int = 200
    """Independent products behind every number."""
    seed: int = 0
    """Decides the losses, the points and all directions."""


@dataclass(frozen=True, kw_only=True)
class MatrixExperiment:
    """Rank-one matrix factorisation, meta-trained with every method."""

    experiment: ClassVar[str] = "matrix"

    out: Path = Path("reproduced/matrix")
    """Folder for the CSV, the figures and README.md."""
    seeds: int = 5
    """Runs of each method; the bands are over them."""
    steps: int = 2000
    """Meta-steps."""


@dataclass(frozen=True, kw_only=True)
class SinusoidExperiment:
    """Regression of sinusoids, meta-trained with every method."""

    experiment: ClassVar[str] = "sinusoid"

    out: Path = Path("reproduced/sinusoid")
    """Folder for the CSV, the figures and README.md."""
    seeds: int = 5
    """Runs of each method; the bands are over them."""
    steps: int = 3000
    """Meta-steps."""


@dataclass(frozen=True, kw_only=True)
class RatesExperiment:
    """Convergence, floors, cost against N, bias, and where step sizes fail, on problems with known constants."""

    experiment: ClassVar[str] = "rates"

    out: Path = Path("reproduced/rates")
    """Folder for the CSV, the figures and README.md."""
    seeds: int = 8
    """Runs behind every band."""
    scale: float = 1.0
    """Multiplies the numbers of meta-steps and draws."""


@dataclass(frozen=True, kw_only=True)
class NavigationExperiment:
    """Planar navigation by reinforcement learning, meta-trained with every method."""

    experiment: ClassVar[str] = "navigation"

    out: Path = Path("reproduced/navigation")
    """Folder for the CSV, the figures and README.md; given again, what was stopped goes on."""
    seeds: int = 5
    """Runs of each method; the intervals are over them."""
    steps: int = 200
    """Meta-steps."""
    processes: int = 1
    """Runs at a time, each on cores of its own if there are so many."""


Experiment = (
    Annotated[HessianEstimators, tyro.conf.subcommand("hessian-estimators")]
    | Annotated[MatrixExperiment, tyro.conf.subcommand("matrix")]
    | Annotated[SinusoidExperiment, tyro.conf.subcommand("sinusoid")]
    | Annotated[RatesExperiment, tyro.conf.subcommand("rates")]
    | Annotated[NavigationExperiment, tyro.conf.subcommand("navigation")]
)


@dataclass(frozen=True)
class Reproduce:
    """Run a reference experiment: adaptax reproduce hessian-estimators|matrix|sinusoid|rates|navigation."""

    experiment: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Experiment]]


Task = (
    Annotated[Sinusoid, tyro.conf.subcommand("sinusoid")]
    | Annotated[Matrix, tyro.conf.subcommand("matrix")]
    | Annotated[Images, tyro.conf.subcommand("images")]
    | Annotated[Navigation, tyro.conf.subcommand("navigation")]
    | Annotated[CheetahDir, tyro.conf.subcommand("cheetah-dir")]
    | Annotated[CheetahVel, tyro.conf.subcommand("cheetah-vel")]
    | Annotated[AntDir, tyro.conf.subcommand("ant-dir")]
    | Annotated[AntVel, tyro.conf.subcommand("ant-vel")]
    | Annotated[AntGoal, tyro.conf.subcommand("ant-goal")]
)


@dataclass(frozen=True)
class Train:
    """Meta-train: adaptax train sinusoid|matrix|images|navigation|cheetah-dir|cheetah-vel|ant-dir|ant-vel|ant-goal."""

    task: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Task]]


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[Film, tyro.conf.subcommand("film")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)

TASKS: dict[str, type[Training]] = {
    kind.task: kind for kind in (Sinusoid, Matrix, Images, Navigation, CheetahDir, CheetahVel, AntDir, AntVel, AntGoal)
}
EXPERIMENTS: dict[str, type] = {
    kind.experiment: kind
    for kind in (HessianEstimators, MatrixExperiment, SinusoidExperiment, RatesExperiment, NavigationExperiment)
}
