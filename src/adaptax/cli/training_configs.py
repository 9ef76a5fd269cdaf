"""What `adaptax train` takes for regression and images, as typed dataclasses. Imports no JAX."""

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
    """Few-shot classification of characters from an Omniglot zip, or of any images, with a convolutional network."""

    task: ClassVar[str] = "images"

    steps: int = 5000
    tasks_per_step: int = 16
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the step size of the outer optimiser falls to zero over --steps (of a run that goes on, over the new number)."""
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
    validation: Label = None
    """Judge on these every --evaluate-every meta-steps, and keep the best: as many classes of --data (alphabets of an
    Omniglot zip) as a number says, drawn by --seed; or an alphabet, or a split of --data, by name (default: none)."""
    cache: File = None
    """Folder where images are prepared once and mapped into memory (default: they are read anew)."""
    ways: int = 5
    """Classes of a task."""
    shots: int = 1
    """Support images of each class."""
    queries: int = 5
    """Target images of each class."""
    method: Literal["maml", "prototypical", "pretrain"] = "maml"
    """prototypical does not adapt: images go to the nearest class mean of the network's features (--inner-steps 0). pretrain
    tells all training classes apart and is fine-tuned when it is judged, by N steps of --stepsize NUMBER and up to twice as
    many."""
    model: Literal["conv4", "resnet12"] = "conv4"
    """The network."""
    channels: int = 32
    """Channels of conv4's blocks, or of the first of resnet12's."""
    norm: Literal["batch", "group", "layer"] = "batch"
    """Over what is normalised: all images at hand (predictions are then transductive), or each image by itself."""
    head: Literal["per-class", "shared"] = "shared"
    """Whether the inner steps begin with a class vector for each class, or with one for all."""
    adapt: Literal["head", "everything"] = "head"
    """What the inner steps change (what pretrain is fine-tuned in): the last layer, or the whole network."""
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
