"""Measured constants of the theory, and a certificate of stationarity."""

from adaptax.measure.certificate import Certificate, stationarity
from adaptax.measure.measured_constants import Measured, Value, constants
from adaptax.measure.squared_norm import SquaredNorm, bound_from_gram, squared_norm

__all__ = ["Certificate", "Measured", "SquaredNorm", "Value", "bound_from_gram", "constants", "squared_norm", "stationarity"]
