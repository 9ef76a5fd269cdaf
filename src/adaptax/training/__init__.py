"""Meta-training: the step, the loop, evaluation, and the run folder."""

from adaptax.training.evaluate import Curve, evaluate
from adaptax.training.loop import Diverged, train
from adaptax.training.statistics import step_statistics
from adaptax.training.step import State, Step, make_step

__all__ = ["Curve", "Diverged", "State", "Step", "evaluate", "make_step", "step_statistics", "train"]
