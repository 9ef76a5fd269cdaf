"""Inner step sizes: numbers, schedules, rules from measured curvature, and learned ones."""

from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.rates import Rates, Schedule
from adaptax.stepsize.rules import AbstractRule, Edge, Estimate, Guaranteed

__all__ = ["AbstractRule", "Edge", "Estimate", "Guaranteed", "Learned", "Meta", "Rates", "Schedule"]
