"""The task family `sinusoid`: regression of sinusoids from a few points."""

from dataclasses import dataclass
from typing import ClassVar

from adaptax.cli.options import Count, Widths
from adaptax.cli.training import Training


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Training):
    """Regression of sinusoids from a few points, with a fully connected network."""

    task: ClassVar[str] = "sinusoid"

    shots: Count = 10
    """Support points of a task."""
    queries: Count = 10
    """Target points of a task."""
    hidden: Widths = (40, 40)
    """Widths of the hidden layers."""

    def build(self):
        import adaptax as ax
        from adaptax.cli.building import Built, initial_key, method_of, optimizer_of

        problem = ax.tasks.sinusoid(self.shots, self.queries)
        params = ax.models.mlp((1, *self.hidden, 1), key=initial_key(self.seed))
        return Built(problem, params, method_of(self), optimizer_of(self), problem, "new sinusoids")

    def kinks(self) -> str | None:
        return "relu units" if self.hidden else None
