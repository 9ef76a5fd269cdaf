"""Measured convergence beside the theorems: rates, floors, costs, bias, and the step sizes at which training converges."""

from adaptax.reproduce.rates.experiment import rates

__all__ = ["rates"]
