"""adaptax: meta-learning by gradient descent with many inner steps.

Names are imported when first used, so that `import adaptax` and the command line stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_NAMES = {
    "Adapted": "adaptation",
    "Cost": "cost",
    "Curve": "training.evaluate",
    "FiniteSum": "problem",
    "Implicit": "implicit",
    "Info": "inner",
    "Inner": "inner",
    "InputError": "errors",
    "Memory": "training.memory",
    "Meta": "stepsize",
    "MetaGradient": "metagrad",
    "MultiStep": "metagrad",
    "Pool": "problem",
    "Reptile": "reptile",
    "Resampling": "problem",
    "Samples": "problem",
    "State": "training.step",
    "Task": "problem",
    "adapt": "adaptation",
    "evaluate": "training.evaluate",
    "make_step": "training.step",
    "train": "training.loop",
}
_PACKAGES = ("curvature", "errors", "gradients", "measure", "models", "stepsize", "tasks", "theory", "training")

__all__ = [
    "Adapted",
    "Cost",
    "Curve",
    "FiniteSum",
    "Implicit",
    "Info",
    "Inner",
    "InputError",
    "Memory",
    "Meta",
    "MetaGradient",
    "MultiStep",
    "Pool",
    "Reptile",
    "Resampling",
    "Samples",
    "State",
    "Task",
    "adapt",
    "curvature",
    "errors",
    "evaluate",
    "gradients",
    "make_step",
    "measure",
    "models",
    "stepsize",
    "tasks",
    "theory",
    "train",
    "training",
]

if TYPE_CHECKING:
    from adaptax import curvature, errors, gradients, measure, models, stepsize, tasks, theory, training
    from adaptax.adaptation import Adapted, adapt
    from adaptax.cost import Cost
    from adaptax.errors import InputError
    from adaptax.implicit import Implicit
    from adaptax.inner import Info, Inner
    from adaptax.metagrad import MetaGradient, MultiStep
    from adaptax.problem import FiniteSum, Pool, Resampling, Samples, Task
    from adaptax.reptile import Reptile
    from adaptax.stepsize import Meta
    from adaptax.training.evaluate import Curve, evaluate
    from adaptax.training.loop import train
    from adaptax.training.memory import Memory
    from adaptax.training.step import State, make_step


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(import_module(f"adaptax.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:
        return import_module(f"adaptax.{name}")
    raise AttributeError(f"module 'adaptax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
