"""The commands of `adaptax` and their options, as typed dataclasses. Imports no JAX, so that help answers at once."""

from collections import ChainMap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from adaptax import __version__
from adaptax.cli import options
from adaptax.cli.families import FAMILIES
from adaptax.cli.parse import Group
from adaptax.cli.reproduce import EXPERIMENTS
from adaptax.cli.table_options import Table

RunFolder = tyro.conf.Positional[Path]
Format = Literal["table", "json"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate the newest checkpoint of a run on held-out tasks; the best one, if it was trained with --validation."""

    run: RunFolder
    """The run folder."""
    format: Format = "table"
    """Form of the output."""
    tasks: Annotated[options.OptionalInt, options.Whole(2)] = None
    """Held-out tasks (default: as after training)."""
    inner_steps: options.OptionalCountOrZero = None
    """M: judge after 0, 1, ..., M inner steps (default: as after training)."""
    seed: options.Seed = 1
    """Decides the held-out tasks."""
    data: options.OptionalData = None
    """Where the training data lie now, if they have been moved."""
    test_data: options.OptionalData = None
    """Where the test data lie now, if they have been moved."""
    model: options.OwnNetwork = None
    """The function of a network of your own, as in training; it is imported only if you name it here."""
    coordinator: options.OptionalAddress = None
    """Address of process 0 with a free port, where several processes share the tasks (default: as SLURM, Open MPI or
    Kubernetes says, otherwise this process alone)."""
    processes: options.OptionalCount = None
    """How many processes share them (with --coordinator; 1: this one alone)."""
    process_id: options.OptionalCountOrZero = None
    """Which of them this one is, from 0 (with --coordinator). Process 0 prints, and it alone reads the run folder."""

    def execute(self) -> int:
        from adaptax.cli.evaluate import evaluate

        return evaluate(self)


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """Adapt what was trained to a new case, from a few examples, and predict others."""

    run: RunFolder
    """The run folder of adaptax train, or a file that save() wrote."""
    support: Path
    """Examples to adapt to: a folder for each class of pictures (or a zip of them), or rows of a table with their targets."""
    predict: Path
    """What to predict: a folder of pictures or one picture; or rows of a table."""
    out: Path = Path("predictions.csv")
    """The CSV file to write."""
    explain: bool = False
    """Say how the loss fell along the steps, and which error is to be expected."""
    model: options.OwnNetwork = None
    """The function of a network of your own, as in training; it is imported only if you name it here."""

    def execute(self) -> int:
        from adaptax.cli.adapt import adapt

        return adapt(self)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure the theory's constants at the newest checkpoint of a run, and bound the norm of its meta-gradient."""

    run: RunFolder
    """The run folder."""
    epsilon: options.OptionalPositive = None
    """Accuracy to show: that the norm of the meta-gradient is at most this (default: bounds only)."""
    tasks: Annotated[int, options.Whole(8)] = 200
    """Tasks of the bound; the constants are measured on others, 32 at most (4 for images)."""
    seed: options.Seed = 0
    """Decides the tasks, which are never those of training."""
    format: Format = "table"
    """Form of the output."""
    model: options.OwnNetwork = None
    """The function of a network of your own, as in training; it is imported only if you name it here."""
    coordinator: options.OptionalAddress = None
    """Address of process 0 with a free port, where several processes share the tasks (default: as SLURM, Open MPI or
    Kubernetes says, otherwise this process alone)."""
    processes: options.OptionalCount = None
    """How many processes share them (with --coordinator; 1: this one alone)."""
    process_id: options.OptionalCountOrZero = None
    """Which of them this one is, from 0 (with --coordinator). Process 0 prints, and it alone reads the run folder."""

    def execute(self) -> int:
        from adaptax.cli.measure import measure

        return measure(self)


@dataclass(frozen=True, kw_only=True)
class Video:
    """Record the policy of a run on HalfCheetah or Ant before and after adaptation to one goal, as an animated GIF."""

    run: RunFolder
    """The run folder."""
    out: Path = Path("video.gif")
    """The animated GIF to write."""
    goal: tuple[float, ...] = ()
    """Direction (-1 or 1), velocity, or place (two numbers); default: drawn as in training."""
    seed: options.Seed = 0
    """Decides the goal, the adaptation and the episodes."""
    inner_steps: options.OptionalCountOrZero = None
    """Inner steps of the adaptation (default: as after training)."""

    def execute(self) -> int:
        from adaptax.cli.video import video

        return video(self)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Meta-train sinusoids with 10 inner steps in about a minute, beside two baselines, and draw what was learned."""

    out: options.OutputFolder = Path("demo")
    """Folder for sinusoids.png and demo.json."""
    steps: options.Count = 5000
    """Meta-steps."""
    seed: options.Seed = 0
    """Decides the whole demonstration."""

    def execute(self) -> int:
        from adaptax.cli.demo import demo

        return demo(self)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The meta-steps, tasks and samples with which the convergence theorem promises an accuracy, at the least cost."""

    epsilon: options.Positive = 0.1
    """Accuracy: the mean of ||gradient of the meta-loss|| at a random iterate is to be at most this."""
    inner_steps: Annotated[options.Count, tyro.conf.arg(aliases=["--steps"])] = 5
    """N, gradient steps of the inner loop."""
    case: Literal["finite-sum", "resampling"] = "finite-sum"
    """Support and target sets, or fresh samples."""
    rule: Literal["guaranteed", "two-sided"] = "guaranteed"
    """guaranteed: alpha = gamma / (N L); two-sided: the smaller of gamma_plus / lambda and gamma / (N mu), for inner losses
    that are convex or nearly so."""
    gamma: float = 0.125
    """gamma of --rule: the bound on alpha N mu, with L in place of mu for guaranteed."""
    gamma_plus: options.Positive = 1.0
    """gamma_plus of the two-sided rule, at most 2."""
    adapted_gradient: options.OptionalPositive = None
    """Bound on the root mean square over tasks of the gradient's norm after adaptation, wherever the run goes (two-sided)."""
    spread: options.OptionalPositive = None
    """Bound on the standard deviation of meta-gradients over tasks (two-sided; default: from --adapted-gradient)."""
    c_beta: float = 2.0
    """Factor of the outer step size 1 / (C_beta L_hat)."""
    optimise_c_beta: bool = False
    """Choose C_beta with the sizes."""
    constants: options.OptionalPath = None
    """JSON or TOML file with L, rho, sigma and gap, and where they count sigma_g, sigma_H, b."""
    measure: Annotated[str | None, tyro.conf.arg(metavar="TASK|RUN", help_behavior_hint="")] = None
    """Measure the constants on a task (sinusoid, matrix) at its initial parameters, or on a run folder's newest checkpoint."""
    tasks: Annotated[int, options.Whole(2)] = 64
    """Tasks to measure on."""
    seed: options.Seed = 0
    """Decides the parameters and tasks that are measured."""
    format: Format = "table"
    """Form of the output."""

    def execute(self) -> int:
        from adaptax.cli.plan import plan

        return plan(self)


# The families as they are when one is asked for, and tables, which are trained in another way.
_OTHERS: dict[str, Any] = {"table": Table}
_FAMILIES: dict[str, Any] = FAMILIES
_TASKS = ChainMap(_OTHERS, _FAMILIES)

COMMANDS = Group(
    "command",
    f"adaptax {__version__}: meta-learning by gradient descent with many inner steps. (--version prints the version.) "
    "Exit codes: 0; 1 where training diverged or the system refused something; 2 for a mistake in the input; 130 and 143 "
    "after SIGINT and SIGTERM, when a run with --out is saved and the same command goes on.",
    {
        "train": Group("task", "Meta-train on a family of tasks", _TASKS),
        "adapt": Adapt,
        "evaluate": Evaluate,
        "measure": Measure,
        "video": Video,
        "demo": Demo,
        "plan": Plan,
        "reproduce": Group("experiment", "Run a reference experiment", EXPERIMENTS),
    },
)
