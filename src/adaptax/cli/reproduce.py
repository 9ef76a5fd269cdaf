"""`adaptax reproduce`: the reference experiments, each into a folder of its own. Imports no JAX before one is run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from adaptax.cli.options import Count, OutputFolder, Positive, Seed, Whole

Seeds = Annotated[int, Whole(2)]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A reference experiment, which is a subclass: its fields are its options."""

    experiment: ClassVar[str]

    out: OutputFolder

    def compute(self) -> None:
        """Run the experiment and write its page."""
        raise NotImplementedError("abstract")

    def execute(self) -> int:
        """Run the experiment; how far it is goes to stderr, and where the page is to stdout."""
        self.compute()
        print(f"The results are described in {self.out / 'README.md'}.")
        return 0


@dataclass(frozen=True, kw_only=True)
class HessianEstimators(Experiment):
    """Bias and variance of each estimator of Hessian-vector products, over directions and radii."""

    experiment: ClassVar[str] = "hessian-estimators"

    out: OutputFolder = Path("reproduced/hessian-estimators")
    """Folder for the CSV, the figures and README.md."""
    repeats: Annotated[int, Whole(10)] = 200
    """Independent products behind every number."""
    seed: Seed = 0
    """Decides the losses, the points and all directions."""

    def compute(self) -> None:
        from adaptax.reproduce.estimators import hessian_estimators

        hessian_estimators(self.out, self.repeats, self.seed, _say)


@dataclass(frozen=True, kw_only=True)
class Matrix(Experiment):
    """Rank-one matrix factorisation, meta-trained with every method."""

    experiment: ClassVar[str] = "matrix"

    out: OutputFolder = Path("reproduced/matrix")
    """Folder for the CSV, the figures and README.md."""
    seeds: Seeds = 5
    """Runs of each method; the bands are over them."""
    steps: Count = 2000
    """Meta-steps."""

    def compute(self) -> None:
        from adaptax.reproduce.matrix import matrix

        matrix(self.out, self.seeds, self.steps, _say)


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Experiment):
    """Regression of sinusoids, meta-trained with every method."""

    experiment: ClassVar[str] = "sinusoid"

    out: OutputFolder = Path("reproduced/sinusoid")
    """Folder for the CSV, the figures and README.md."""
    seeds: Seeds = 5
    """Runs of each method; the bands are over them."""
    steps: Count = 3000
    """Meta-steps."""

    def compute(self) -> None:
        from adaptax.reproduce.sinusoid import sinusoid

        sinusoid(self.out, self.seeds, self.steps, _say)


@dataclass(frozen=True, kw_only=True)
class Rates(Experiment):
    """Convergence, floors, cost against N, bias, and where step sizes fail, on problems with known constants."""

    experiment: ClassVar[str] = "rates"

    out: OutputFolder = Path("reproduced/rates")
    """Folder for the CSV, the figures and README.md."""
    seeds: Seeds = 8
    """Runs behind every band."""
    scale: Positive = 1.0
    """Multiplies the numbers of meta-steps and draws."""

    def compute(self) -> None:
        from adaptax.reproduce.rates import rates

        rates(self.out, self.seeds, self.scale, _say)


@dataclass(frozen=True, kw_only=True)
class Navigation(Experiment):
    """Planar navigation by reinforcement learning, meta-trained with every method."""

    experiment: ClassVar[str] = "navigation"

    out: OutputFolder = Path("reproduced/navigation")
    """Folder for the CSV, the figures and README.md; given again, an experiment that was stopped goes on."""
    seeds: Seeds = 5
    """Runs of each method; the intervals are over them."""
    steps: Count = 200
    """Meta-steps."""
    processes: Count = 1
    """Runs at a time, each on cores of its own if there are so many."""

    def compute(self) -> None:
        from adaptax.reproduce.navigation import navigation

        navigation(self.out, self.seeds, self.steps, _say, processes=self.processes)


EXPERIMENTS: dict[str, type[Experiment]] = {
    kind.experiment: kind for kind in (HessianEstimators, Matrix, Sinusoid, Rates, Navigation)
}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
