"""The base class of task families: the options that all share, and what a family declares. Imports no JAX."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from adaptax.cli import options

if TYPE_CHECKING:
    from adaptax.cli.building import Built


@dataclass(frozen=True, kw_only=True)
class Training:
    """A task family, which is a subclass in a file of its own.

    Its fields are its options, `task` is its name, and its docstring is its help. JAX is imported inside its methods, so that
    `adaptax --help` answers without.
    """

    task: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of options, as older runs have saved them."""
    before: ClassVar[Mapping[str, Any]] = {"schedule": "constant", "clip": 0.0, "warm_up": 0}
    """Values of options for runs that were saved before the options existed, where the default is not what was done then."""
    constants_tasks: ClassVar[int] = 32
    """The most tasks that `adaptax measure` takes for the constants; each takes hundreds of Hessian-vector products."""
    not_measured: ClassVar[str | None] = None
    """Why the theory's constants cannot be measured, and what to do instead; None if they can."""

    inner_steps: options.CountOrZero = 10
    """N, gradient steps of the inner loop."""
    stepsize: options.StepSize = "auto"
    """Inner step size: a number, or a rule that measures curvature (edge:1.5 for another safety factor); auto also learns."""
    curvature: Literal["exact", "first-order", "finite-difference", "ggs", "zeroth-order"] = "exact"
    """How Hessian-vector products are formed; ggs and zeroth-order draw 10 directions."""
    steps: options.Count = 10_000
    """K, meta-steps from the beginning of the run."""
    tasks_per_step: options.Count = 25
    """B, tasks of a meta-step."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Outer optimiser."""
    learning_rate: options.Positive = 1e-2
    """Largest step size of the outer optimiser."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The step size of the outer optimiser: it rises at first and falls to zero as a cosine over --steps, as raised when
    resumed; or it is constant."""
    warm_up: options.CountOrZero = 100
    """Meta-steps over which the step size rises first, at most a twentieth of --steps; --schedule constant has none."""
    clip: options.NotNegative = 1.0
    """Norm that the meta-gradient is clipped to (0: not clipped)."""
    seed: options.Seed = 0
    """Decides the whole run."""
    checkpoint_every: options.Count = 500
    """Meta-steps between checkpoints in the run folder."""
    evaluate_every: options.OptionalCount = None
    """Meta-steps between short evaluations during training (default: none)."""
    monitor_every: options.OptionalCount = None
    """Meta-steps between measurements of the inner steps' stability (default: none)."""
    evaluation_tasks: Annotated[int, options.Whole(2)] = 1000
    """Held-out tasks of the evaluation at the end."""
    evaluation_steps: options.OptionalCountOrZero = None
    """Inner steps of the evaluation at the end (default: 2 N)."""
    out: Annotated[options.UnsavedPath, options.NewFolder()] = None
    """Run folder. The same command given again goes on where a stopped run was (default: nothing is kept)."""
    config: options.UnsavedPath = None
    """JSON or TOML file of these options by name; what is given on the command line wins."""
    coordinator: Annotated[options.OptionalAddress, options.Mark.UNSAVED] = None
    """Address of process 0 with a free port, where several processes take the run together (default: as SLURM, Open MPI or
    Kubernetes says, otherwise this process alone)."""
    processes: Annotated[options.OptionalCount, options.Mark.UNSAVED] = None
    """How many processes take the run together (with --coordinator; 1: this one alone)."""
    process_id: Annotated[options.OptionalCountOrZero, options.Mark.UNSAVED] = None
    """Which of them this one is, from 0 (with --coordinator). Process 0 prints, and it alone reads and writes --out."""
    parameter_shards: Annotated[options.Count, options.Mark.UNSAVED] = 1
    """How many devices hold one copy of the network together, where it does not fit into one (1: each has a copy)."""
    resume: Annotated[tyro.conf.FlagCreatePairsOff[bool], options.Mark.UNSAVED] = False
    """Continue the run in --out with its saved options; only --steps may be raised."""

    def build(self) -> "Built":
        """The problem, the parameters, the method and the optimiser, and what the result is judged on.

        Errors: `InputError` if something cannot be built.
        """
        raise NotImplementedError("abstract")

    def check_together(self) -> None:
        """Refuse options that do not go together.

        Errors: `InputError`.
        """

    def kinks(self) -> str | None:
        """The units of the network whose derivative jumps, so that its loss has no finite rho; None if there are none."""

    def limits(self) -> Iterator[str]:
        """The limits of the numbers that `adaptax measure` prints, one sentence each."""
        yield "measured at one w and on its inner paths: lower estimates of suprema over all w"
        if units := self.kinks():
            yield f"the network has {units}, so no finite rho: its measured value grows as the radius of the difference falls"
        rule = options.canonical_stepsize(self.stepsize)
        outside = [f"the {rule} step size"] if rule.startswith(("auto", "edge")) else []
        outside += ["outer Adam"] if self.optimizer == "adam" else []
        if outside:
            yield f"no convergence theorem covers {' or '.join(outside)}"

    def last_step(self) -> int:
        """The number of inner steps up to which the result is judged."""
        return 2 * self.inner_steps if self.evaluation_steps is None else self.evaluation_steps
