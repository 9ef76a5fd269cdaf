"""Methods: ways to make a gradient for the outer parameters out of a task."""

from adaptax._cost import Cost
from adaptax.methods.base import AbstractMethod
from adaptax.methods.implicit import Implicit
from adaptax.methods.metagrad import MetaGradient, MultiStep
from adaptax.methods.reptile import Reptile

__all__ = ["AbstractMethod", "Cost", "Implicit", "MetaGradient", "MultiStep", "Reptile"]
