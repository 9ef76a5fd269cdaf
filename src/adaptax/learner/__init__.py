"""What training leaves behind, ready for use: load it, adapt it to a new case, predict, save it as one file."""

from adaptax.learner.learner import Learner, Predictor
from adaptax.learner.load import load

__all__ = ["Learner", "Predictor", "load"]
