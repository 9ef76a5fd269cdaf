"""How the gradients of the inner steps and the last gradient are formed."""

from adaptax.gradients.autodiff import AutoDiff
from adaptax.gradients.base import AbstractGradient
from adaptax.gradients.smoothed import Smoothed

__all__ = ["AbstractGradient", "AutoDiff", "Smoothed"]
