"""Outer steps that need more than a gradient: of the convergence theorems, trust-region, and proximal ones, for optax."""

from adaptax.outer.adaptive import AdaptiveOuter
from adaptax.outer.proximal import Proximal
from adaptax.outer.trust_region import TrustRegion

__all__ = ["AdaptiveOuter", "Proximal", "TrustRegion"]
