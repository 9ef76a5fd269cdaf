"""How the Hessian-vector product of the reverse recursion is formed."""

from adaptax.curvature.base import AbstractCurvature
from adaptax.curvature.exact import Exact
from adaptax.curvature.first_order import FirstOrder

__all__ = ["AbstractCurvature", "Exact", "FirstOrder"]
