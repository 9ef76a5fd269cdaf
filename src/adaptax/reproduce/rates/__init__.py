"""Are the promised rates real? Convergence, floors, cost, bias, and where step sizes fail."""

from adaptax.reproduce.rates.experiment import rates

__all__ = ["rates"]
