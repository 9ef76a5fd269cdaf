"""Meta-training: the step, the loop, callbacks, evaluation, and the run folder."""

from adaptax.training.callbacks import Callback
from adaptax.training.evaluate import Curve, evaluate
from adaptax.training.loop import Diverged, train
from adaptax.training.stability import StabilityWarning
from adaptax.training.statistics import step_statistics
from adaptax.training.step import State, Step, make_step

__all__ = [
    "Callback",
    "Curve",
    "Diverged",
    "StabilityWarning",
    "State",
    "Step",
    "evaluate",
    "make_step",
    "step_statistics",
    "train",
]
