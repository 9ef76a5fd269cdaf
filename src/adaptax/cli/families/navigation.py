"""The task family `navigation`: a point in the plane that must find its goal."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from adaptax.cli.families.reinforcement import Reinforcement
from adaptax.cli.options import Fraction, Widths


@dataclass(frozen=True, kw_only=True)
class Navigation(Reinforcement):
    """A point in the plane that must find its goal (docs/theory.md, section 10)."""

    task: ClassVar[str] = "navigation"
    # As in published policies for the plane.
    activation: ClassVar[str] = "relu"

    discount: Fraction = 0.95
    hidden: Widths = (100, 100)
    goals: Literal["square", "semicircle"] = "square"
    """Where goals lie: in a square around the start, or on half a circle."""
    sparse: bool = False
    """Whether rewards are given near the goal only."""

    def problem(self, loss: Any) -> Any:
        from adaptax.tasks import rl

        return rl.navigation(self.goals, horizon=self.horizon, sparse=self.sparse, loss=loss)
