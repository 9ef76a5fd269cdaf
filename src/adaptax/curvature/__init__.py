"""How the Hessian-vector product of the reverse recursion is formed."""

from adaptax.curvature.annealed import Annealed
from adaptax.curvature.base import AbstractCurvature, LocalLoss
from adaptax.curvature.exact import Exact
from adaptax.curvature.finite_difference import FiniteDifference
from adaptax.curvature.first_order import FirstOrder
from adaptax.curvature.gaussian_smoothing import GaussianSmoothing
from adaptax.curvature.zeroth_order import ZerothOrder

__all__ = [
    "AbstractCurvature",
    "Annealed",
    "Exact",
    "FiniteDifference",
    "FirstOrder",
    "GaussianSmoothing",
    "LocalLoss",
    "ZerothOrder",
]
