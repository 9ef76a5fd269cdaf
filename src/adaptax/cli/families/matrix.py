"""The task family `matrix`: rank-one matrix factorisation, whose constants are known."""

from dataclasses import dataclass
from typing import ClassVar

from adaptax.cli.options import Count, CountOrZero, Positive
from adaptax.cli.training import Training


@dataclass(frozen=True, kw_only=True)
class Matrix(Training):
    """Rank-one matrix factorisation (docs/theory.md, section 10)."""

    task: ClassVar[str] = "matrix"

    inner_steps: CountOrZero = 3
    steps: Count = 2000
    tasks_per_step: Count = 10
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
