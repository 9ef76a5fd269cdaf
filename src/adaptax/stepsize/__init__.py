"""Step sizes: inner ones (numbers, schedules, rules from measured curvature, learned ones), and outer ones."""

from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.outer import AdaptiveOuter
from adaptax.stepsize.proximal import Proximal
from adaptax.stepsize.rates import Rates, Schedule
from adaptax.stepsize.rules import AbstractRule, Edge, Estimate, Guaranteed
from adaptax.stepsize.trust import TrustRegion

__all__ = [
    "AbstractRule",
    "AdaptiveOuter",
    "Edge",
    "Estimate",
    "Guaranteed",
    "Learned",
    "Meta",
    "Proximal",
    "Rates",
    "Schedule",
    "TrustRegion",
]
