"""Learners from files and run folders."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from adaptax import _archive as archive
from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.learner.file import read
from adaptax.learner.learner import Learner
from adaptax.methods.base import AbstractMethod
from adaptax.problem import AbstractProblem
from adaptax.training.memory import Memory
from adaptax.training.older import older
from adaptax.training.outer_defaults import default_optimizer
from adaptax.training.run import Run
from adaptax.training.step import State, Step, make_step

# The learner that `adaptax train` writes into its run folder when it ends.
FILE = "learner.npz"
# The model that `adaptax train table` writes.
TABLE = "table.npz"
WEIGHTS = Path(__file__).parents[1] / "weights"


def load(
    path: str | os.PathLike,
    *,
    problem: AbstractProblem | None = None,
    params: PyTree = None,
    method: AbstractMethod | None = None,
    optimizer: optax.GradientTransformation | None = None,
    memory: Memory | None = None,
    inner: Inner | None = None,
    predict: Any = None,
) -> Any:
    """A learner from a file that `Learner.save` wrote, from a folder of `adaptax train`, or from one of `ax.train(out=)`.

    A file knows the networks of `ax.models`, the mean squared error and the cross entropy; networks and losses of your own are
    given. Nothing in a file is executed. A file of `MetaRegressor.save` or `MetaClassifier.save`, or a folder of
    `adaptax train table`, gives that estimator.

    Arguments:
        path: the file, or the run folder; or the name of a model that comes with the package: "sinusoid", "omniglot-conv4-32"
            (a few characters of each of any number of classes) or "parkinsons", whose card is `about["card"]` (`about_`).
        problem: the problem (a file: if its loss is your own; a folder of `ax.train`: needed).
        params: parameters of the trained structure, such as w_0 (a file: if the network is your own; a folder of `ax.train`:
            needed).
        method: for a folder of `ax.train`, the method it was trained with (needed).
        optimizer, memory: for a folder of `ax.train`, as they were given there (default: None, as there).
        inner: the inner loop, whose step sizes are replaced by the file's (default: as the file says).
        predict: as for `ax.Learner`.

    Returns: a `Learner`; of a run with `validation=` the best state, else that of the newest checkpoint.

    Errors: `InputError` if there is nothing there, the file is no learner or of a later version, or something is missing or
        does not fit; nothing is changed.

    Example:
        >>> import adaptax as ax, jax, os, tempfile
        >>> params = ax.models.mlp((1, 8, 1), key=jax.random.key(0))
        >>> learner = ax.Learner(ax.tasks.sinusoid(), params, ax.Inner(3, 0.01), about={"trained": "not at all"})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learner.save(os.path.join(folder, "sine.npz"))
        ...     again = ax.load(os.path.join(folder, "sine.npz"))
        >>> again.inner.steps, again.about
        (3, {'trained': 'not at all'})
    """
    path = _packaged(path)
    if path.is_dir() and (path / TABLE).is_file():
        path /= TABLE
    if not path.is_dir():
        if archive.kind_of(path) == "adaptax table model":
            from adaptax.tables import estimators
            from adaptax.tables.file import read as read_table

            return read_table(path, {"regressor": estimators.MetaRegressor, "classifier": estimators.MetaClassifier})
        return _from_file(path, problem, params, inner, predict)
    if not Run.is_run(path):
        raise InputError(f"There is no run in {path}: give the folder of a training, or a file that Learner.save wrote.")
    run = Run(path)
    if "task" in run.config():
        if not (path / FILE).is_file():
            raise InputError(f"{path.name} has no {FILE} yet: give its adaptax train command again, which finishes the run.")
        return _from_file(path / FILE, problem, params, inner, predict)
    if problem is None or params is None or method is None:
        text = f"{path.name} is a run of ax.train, which knows no functions"
        raise InputError(f"{text}: give load(problem=, params=, method=) as they were given there.")
    config = run.config()
    optimizer = default_optimizer(config["steps"]) if optimizer is None else optimizer
    state = read_state(run, make_step(problem, method, optimizer, config.get("tasks_per_step", 1), memory=memory), params)
    about = {"step": int(state.step)}
    return Learner(problem, state.params, state.inner, predict=predict, samples=method.samples, about=about)


def _packaged(path: str | os.PathLike) -> Path:
    """The file of a model that comes with the package, if that is what is named and nothing else has the name."""
    found = Path(path)
    if found.exists() or found.name != str(path) or found.suffix:
        return found
    within = WEIGHTS / f"{found}.npz"
    if not within.is_file():
        names = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.npz")))
        raise InputError(f"There is no file or folder {found}, and no model of this name in the package: it has {names}.")
    return within


def _from_file(path: Path, problem: Any, params: PyTree, inner: Inner | None, predict: Any) -> Learner:
    found = read(path, problem=problem, params=params, inner=inner)
    return Learner(found.problem, found.params, found.inner, predict=predict, about=found.about)


def read_state(run: Run, step: Step, params: PyTree, best: bool = True) -> State:
    """The state of a run: that which did best on validation tasks if there is one and `best`, else the newest.

    Arguments:
        run: the run.
        step: its meta-step.
        params: parameters of the run's structure.
        best: whether to look for the best state.
    """
    like = _blank(step, params)
    templates = (like, lambda: older(step, like))
    found = run.checkpoints.load_best(*templates) if best else None
    return run.checkpoints.load(*templates) if found is None else found


def _blank(step: Step, params: PyTree) -> State:
    """A state with the shapes of the run's, to read a checkpoint into; no step size is measured for it."""
    shapes = eqx.filter_eval_shape(step.init, params, 0)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(fill, shapes)
