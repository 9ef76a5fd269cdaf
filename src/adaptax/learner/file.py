"""The file of a learner."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax import _archive as archive
from adaptax._tree import as_parameters, is_floating, mask_tree, path_name
from adaptax.errors import InputError
from adaptax.gradients import AutoDiff
from adaptax.inner import Inner
from adaptax.learner.networks import describe, shaped
from adaptax.models.shared_head import SharedHead
from adaptax.problem import AbstractProblem, FiniteSum
from adaptax.stepsize.learned import LearnedRates
from adaptax.tasks.images.scoring import CrossEntropy
from adaptax.tasks.sinusoid import mean_squared_error

FORMAT, VERSION = "adaptax learner", 1
_PARAMS, _STEPSIZE = "params/", "stepsize/"


class Paths:
    """The predicate of the leaves that adapt, by their paths."""

    def __init__(self, paths: list[str]):
        self.paths = frozenset(paths)

    def __call__(self, path: str) -> bool:
        return path in self.paths

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and other.paths == self.paths

    def __hash__(self) -> int:
        return hash(self.paths)


class Contents(NamedTuple):
    """What a file holds, as `Learner` takes it."""

    problem: AbstractProblem
    params: PyTree
    inner: Inner
    about: dict[str, Any]


def no_tasks(key: Any) -> Any:
    """The `sample_task` of a problem that was read from a file."""
    raise InputError("A learner from a file has no tasks of its own: give the problem that has some.")


def write(path: str | os.PathLike, contents: Contents) -> None:
    """Write a file; see `Learner.save`."""
    inner, rates = contents.inner, _resolved(contents.inner)
    for what, given in (("an optimizer", inner.optimizer), ("a start", inner.start)):
        if given is not None and not isinstance(given, SharedHead):
            raise InputError(f"A file holds no functions, and this inner loop has {what} of its own: keep the run folder.")
    if not isinstance(inner.gradients, AutoDiff) or rates is None:
        what = "gradients that are not differentiated" if rates is not None else f"{inner.stepsize} for step sizes"
        raise InputError(f"A file holds step sizes and arrays, and this inner loop has {what}: give state.inner of a training.")
    params = as_parameters(contents.params)
    named = {_PARAMS + name: leaf for name, leaf in _leaves(params).items()}
    tree = rates.tree if isinstance(rates, LearnedRates) else rates
    per_step = rates.per_step if isinstance(rates, LearnedRates) else rates.ndim == 1
    named |= {_STEPSIZE + name: leaf for name, leaf in _leaves(tree).items()}
    header = {
        "network": describe(params),
        "loss": _loss(contents.problem),
        "inner": {
            "steps": inner.steps,
            "adapts": _adapting(inner, params),
            "shared_head": inner.start.ways if isinstance(inner.start, SharedHead) else None,
            "proximal": None if inner.proximal is None else float(inner.proximal),
            "per_step": per_step,
        },
        "about": contents.about,
    }
    archive.write(path, FORMAT, VERSION, header, named)


def read(path: Path, *, problem: AbstractProblem | None, params: PyTree, inner: Inner | None) -> Contents:
    """Read a file, with these in place of its own; see `ax.load`."""
    header, arrays = archive.read(path, FORMAT, VERSION, {"network", "loss", "inner", "about"})
    with archive.whole(path):
        said, about = header["network"], header["about"]
        if not isinstance(about, dict):
            raise ValueError("its header says nothing of how it came about")
        if params is None and said is None:
            raise InputError(
                f"{path.name} holds the arrays of a network of your own: give load(params=) one of the same structure."
            )
        like = shaped(said) if params is None else as_parameters(params)
        filled = _filled(like, {k.removeprefix(_PARAMS): v for k, v in arrays.items() if k.startswith(_PARAMS)}, path.name)
        if problem is None:
            problem = _problem(header["loss"], path.name)
        if inner is None:
            inner = _inner(header["inner"])
        rates = {k.removeprefix(_STEPSIZE): v for k, v in arrays.items() if k.startswith(_STEPSIZE)}
        inner = inner.with_stepsize(_rates(rates, inner.initial(filled), header["inner"]["per_step"]))
        return Contents(problem, filled, inner, about)


def about_of(path: Path) -> dict[str, Any]:
    """What a file says of how it came about, where its network is the user's own; else nothing."""
    header = archive.read(path, FORMAT, VERSION, {"network", "about"})[0]
    return header["about"] if header["network"] is None and isinstance(header["about"], dict) else {}


def _resolved(inner: Inner) -> LearnedRates | Array | None:
    """The step sizes in use, None if they are not measured yet."""
    stepsize = inner.stepsize
    return stepsize if isinstance(stepsize, LearnedRates) or eqx.is_array(stepsize) else None


def _leaves(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by their paths; a tree that is one array has the path ''."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if eqx.is_array(leaf)}


def _filled(like: PyTree, arrays: dict[str, np.ndarray], name: str) -> PyTree:
    """The tree with these arrays in place of its own."""
    wanted = {
        path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(like) if hasattr(x, "shape") and hasattr(x, "dtype")
    }
    shapes = {path: jnp.shape(x) for path, x in wanted.items()}
    found = {path: x.shape for path, x in arrays.items()}
    if odd := sorted(set(shapes.items()) ^ set(found.items())):
        path = odd[0][0]
        text = f"{path or 'the parameters'} of shape {found.get(path, 'none')} there and {shapes.get(path, 'none')} here"
        raise InputError(f"{name} holds other parameters than these ({text}): give load(params=) the network of that training.")
    return jax.tree_util.tree_map_with_path(
        lambda p, x: jnp.asarray(arrays[path_name(p)]) if path_name(p) in wanted else x, like
    )


def _rates(arrays: dict[str, np.ndarray], initial: PyTree, per_step: bool) -> Any:
    """The step sizes as the inner loop takes them."""
    if list(arrays) == [""]:
        return jnp.asarray(arrays[""])
    paths = jax.tree_util.tree_flatten_with_path(initial)[0]
    leaves = [jnp.asarray(arrays[name]) if (name := path_name(path)) in arrays else None for path, _ in paths]
    return LearnedRates.of(jax.tree.unflatten(jax.tree.structure(initial), leaves), per_step)


def _adapting(inner: Inner, params: PyTree) -> list[str] | None:
    """The paths of the leaves that adapt, None for all."""
    if inner.adapt is None:
        return None
    initial = inner.initial(params)
    chosen = mask_tree(inner.adapt, initial)
    marked = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda leaf, yes: bool(yes) and is_floating(leaf), initial, chosen)
    )
    return [path_name(path) for path, yes in marked if yes]


def _loss(problem: AbstractProblem) -> dict[str, Any] | None:
    """The inner loss in words; None for one of the user's own."""
    loss: Any = problem.loss if isinstance(problem, FiniteSum) else None
    if isinstance(loss, CrossEntropy):
        return {"kind": "cross entropy", "ways": loss.ways}
    plain = loss.func if isinstance(loss, jax.tree_util.Partial) else loss
    return {"kind": "mean squared error"} if plain is mean_squared_error else None


def _problem(loss: dict[str, Any] | None, name: str) -> FiniteSum:
    said = loss or {}
    kind = said.get("kind")
    if kind == "cross entropy" and isinstance(said.get("ways"), int):
        return FiniteSum(CrossEntropy(said["ways"]), no_tasks)
    if kind == "mean squared error":
        return FiniteSum(mean_squared_error, no_tasks)
    raise InputError(f"{name} was trained on a loss of your own: give load(problem=) the problem of that training.")


def _inner(said: dict[str, Any]) -> Inner:
    adapts, ways, proximal = said["adapts"], said["shared_head"], said["proximal"]
    return Inner(
        said["steps"], 1.0, None if adapts is None else Paths(adapts), proximal=proximal,
        start=None if ways is None else SharedHead(ways),
    )  # fmt: skip
