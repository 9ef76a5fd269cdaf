"""The task family `matrix`: rank-one matrix factorisation, whose constants are known."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from adaptax.cli.options import Count, CountOrZero, NotNegative, Positive, StepSize
from adaptax.cli.training import Training


@dataclass(frozen=True, kw_only=True)
class Matrix(Training):
    """Rank-one matrix factorisation (docs/theory.md, section 10)."""

    task: ClassVar[str] = "matrix"

    inner_steps: CountOrZero = 3
    stepsize: StepSize = "0.01"
    steps: Count = 2000
    tasks_per_step: Count = 10
    optimizer: Literal["adam", "sgd"] = "sgd"
    learning_rate: Positive = 3e-3
    schedule: Literal["cosine", "constant"] = "constant"
    warm_up: CountOrZero = 0
    clip: NotNegative = 0.0
    dim: Count = 20
    """Length of the vectors."""
    sigma: Positive = 0.1
    """Largest standard deviation of a task's vectors."""

    def build(self):
        import adaptax as ax
        from adaptax.cli.building import Built, initial_key, method_of, optimizer_of

        problem = ax.tasks.factorisation(self.dim, self.sigma)
        params = ax.tasks.factorisation_init(initial_key(self.seed), self.dim)
        return Built(problem, params, method_of(self), optimizer_of(self), problem, "new matrices")
