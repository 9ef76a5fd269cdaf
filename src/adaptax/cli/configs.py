"""What the commands take, as typed dataclasses. Imports no JAX, so that `adaptax --help` answers at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

# Options that may be left out: their help says in words what then happens.
Number = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Real = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Label = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="TASK|RUN", help_behavior_hint="")]
StepSize = Annotated[str, tyro.conf.arg(metavar="NUMBER|edge|guaranteed")]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options that all tasks share."""

    task: ClassVar[str]

    inner_steps: int = 10
    """N, gradient steps of the inner loop."""
    stepsize: StepSize = "edge"
    """Inner step size: a number, or a rule that measures curvature (edge:1.5 for another safety factor)."""
    curvature: Literal["exact", "first-order", "finite-difference", "ggs", "zeroth-order"] = "exact"
    """How Hessian-vector products are formed; ggs and zeroth-order draw 10 directions."""
    steps: int = 10_000
    """K, meta-steps from the beginning of the run."""
    tasks_per_step: int = 25
    """B, tasks of a meta-step."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Outer optimiser."""
    learning_rate: float = 1e-3
    """Step size of the outer optimiser."""
    seed: int = 0
    """Decides the whole run."""
    checkpoint_every: int = 500
    """Meta-steps between checkpoints in the run folder."""
    evaluate_every: Number = None
    """Meta-steps between short evaluations during training (default: none)."""
    monitor_every: Number = None
    """Meta-steps between measurements of the inner steps' stability (default: none)."""
    evaluation_tasks: int = 1000
    """Held-out tasks of the evaluation at the end."""
    evaluation_steps: Number = None
    """Inner steps of the evaluation at the end (default: 2 N)."""
    out: File = None
    """Run folder. The same command given again goes on where a stopped run was (default: nothing is kept)."""
    config: File = None
    """JSON or TOML file of these options by name; what is given on the command line wins."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out with its saved options; only --steps may be raised."""


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Training):
    """Regression of sinusoids from a few points, with a fully connected network."""

    task: ClassVar[str] = "sinusoid"

    shots: int = 10
    """Support points of a task."""
    queries: int = 10
    """Target points of a task."""
    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers."""


@dataclass(frozen=True, kw_only=True)
class Matrix(Training):
    """Rank-one matrix factorisation (docs/theory.md, section 10)."""

    task: ClassVar[str] = "matrix"

    inner_steps: int = 3
    stepsize: StepSize = "0.01"
    steps: int = 2000
    tasks_per_step: int = 10
    optimizer: Literal["adam", "sgd"] = "sgd"
    learning_rate: float = 3e-3
    dim: int = 20
    """Length of the vectors."""
    sigma: float = 0.1
    """Largest standard deviation of a task's vectors."""


@dataclass(frozen=True, kw_only=True)
class Images(Training):
    """Few-shot classification of characters from an Omniglot zip, or of any images, with a four-block convolutional network."""

    task: ClassVar[str] = "images"

    inner_steps: int = 5
    stepsize: StepSize = "0.4"
    steps: int = 2500
    tasks_per_step: int = 16
    checkpoint_every: int = 100
    data: File = None
    """What to train on (required): an Omniglot zip; or a folder, zip, tar (class/image.jpg) or npz (images, labels)."""
    test_data: File = None
    """The same to judge by; alphabets or classes that are also in --data are left out (default: those of --data)."""
    size: Number = None
    """Side of the images in pixels (default: 84; a zip without this option is read as Omniglot's, at 28)."""
    colour: bool = False
    """Whether images have three channels."""
    split: Label = None
    """Train on the classes below the folder, or in the list, of this name only (default: all)."""
    test_split: Label = None
    """The same of --test-data, or of --data if that is not given (default: all)."""
    cache: File = None
    """Folder where images are prepared once and mapped into memory (default: they are read anew)."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 1
    """Support images of each class."""
    queries: int = 5
    """Target images of each class."""
    channels: int = 32
    """Channels of the network's blocks."""
    head: Literal["per-class", "shared"] = "shared"
    """Whether the inner steps begin with a class vector for each class, or with one for all."""
    rotations: bool = True
    """Train on each class turned by 90, 180 and 270 degrees as three more classes."""
    flips: bool = False
    """Train on images of which half are mirrored, left to right."""
    distort: bool = True
    """Train on images under random affine maps."""
    angle: float = 0.25
    """Largest angle of a distortion, in radians."""
    scale: float = 0.2
    """Largest relative change of size of a distortion."""
    shift: float = 2.0
    """Largest shift of a distortion, in pixels."""
    shear: float = 0.0
    """Largest shear of a distortion."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run on held-out tasks."""

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
    """Folder for the CSV, the figures and README.md."""
    seeds: int = 5
    """Runs of each method; the intervals are over them."""
    steps: int = 200
    """Meta-steps."""


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
)


@dataclass(frozen=True)
class Train:
    """Meta-train a model: adaptax train sinusoid|matrix|images."""

    task: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Task]]


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)

TASKS: dict[str, type[Training]] = {kind.task: kind for kind in (Sinusoid, Matrix, Images)}
EXPERIMENTS: dict[str, type] = {
    kind.experiment: kind
    for kind in (HessianEstimators, MatrixExperiment, SinusoidExperiment, RatesExperiment, NavigationExperiment)
}
