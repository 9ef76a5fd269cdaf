"""The file of a fitted estimator. It holds no row of the training table."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from adaptax import _archive as archive
from adaptax._tree import path_name
from adaptax.errors import InputError
from adaptax.tables.fitted import Fitted
from adaptax.tables.support import Supports

FORMAT, VERSION = "adaptax table model", 1
_PARTS = {
    "kind",
    "arguments",
    "model",
    "outputs",
    "columns",
    "support",
    "order_column",
    "names",
    "classes",
    "targets",
    "tried",
    "steps",
}
_SCORES = ("scores", "there", "place")


def write(path: str | os.PathLike, estimator: Any, about: dict[str, Any]) -> None:
    """Write a fitted estimator.

    Errors: `InputError` for arguments or classes that JSON cannot hold, and for a path that cannot be written.
    """
    fitted: Fitted = estimator.fitted_
    classifies = hasattr(estimator, "classes_")
    names = getattr(estimator, "feature_names_in_", None)
    header = {
        "kind": "classifier" if classifies else "regressor",
        "arguments": _plain(estimator.get_params()),
        "model": fitted.name,
        "outputs": fitted.outputs,
        "columns": estimator.n_features_in_,
        "support": list(estimator.support_),
        "order_column": estimator.order_column_,
        "names": None if names is None else names.tolist(),
        "classes": _plain(estimator.classes_.tolist()) if classifies else None,
        "targets": None if classifies else [estimator.y_mean_, estimator.y_scale_],
        "tried": fitted.tried,
        "steps": estimator.n_iter_,
        "about": _plain(about),
    }
    arrays = {
        "x_mean": estimator.x_mean_,
        "x_scale": estimator.x_scale_,
        "error": fitted.error,
        "before": fitted.before,
        "spread": fitted.spread,
    }
    arrays |= {f"params/{name}": leaf for name, leaf in _leaves(fitted.params).items()}
    arrays |= {f"rates/{name}": leaf for name, leaf in _leaves(fitted.rates).items()}
    for shots, parts in fitted.scores.items():
        arrays |= {f"{name}/{shots}": part for name, part in zip(_SCORES, parts, strict=True)}
    archive.write(path, FORMAT, VERSION, header, arrays)


def read(path: Path, kinds: Mapping[str, type]) -> Any:
    """The estimator of a file, of one of these kinds.

    Errors: `InputError` if it is something else.
    """
    header, arrays = archive.read(path, FORMAT, VERSION, _PARTS)
    with archive.whole(path):
        about, arguments = header.get("about", {}), header["arguments"]
        if not isinstance(about, dict) or (header["classes"] is None) != (header["kind"] == "regressor"):
            raise ValueError("its header does not fit itself")
        estimator: Any = kinds[header["kind"]](**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
        estimator.n_features_in_, estimator.order_column_ = header["columns"], header["order_column"]
        if header["names"] is not None:
            estimator.feature_names_in_ = np.array(header["names"], object)
        estimator.support_ = tuple(header["support"])
        estimator.x_mean_, estimator.x_scale_ = arrays["x_mean"], arrays["x_scale"]
        if header["classes"] is None:
            estimator.y_mean_, estimator.y_scale_ = map(float, header["targets"])
        else:
            estimator.classes_ = np.array(header["classes"])
        way = estimator._ways()[header["model"]]
        columns = estimator.n_features_in_ + -estimator.n_features_in_ % 4
        like = jax.eval_shape(lambda key: way.start(columns, header["outputs"], key), jax.random.key(0))
        params = jax.tree_util.tree_map_with_path(lambda p, _: jnp.asarray(arrays[f"params/{path_name(p)}"]), like)
        _check_shapes(params, like)
        stepsizes = {name.removeprefix("rates/"): jnp.asarray(x) for name, x in arrays.items() if name.startswith("rates/")}
        rates = jax.tree_util.tree_map_with_path(lambda p, _: stepsizes.get(path_name(p)), like) if stepsizes else None
        shots = sorted(int(name.partition("/")[2]) for name in arrays if name.startswith("there/"))
        scores: Any = {k: tuple(arrays[f"{name}/{k}"] for name in _SCORES) for k in shots}
        error = arrays["error"]
        _check_arrays(header["columns"], arrays, scores)
        estimator.fitted_ = Fitted(
            way=way, name=header["model"], params=params, rates=rates, outputs=header["outputs"], steps=header["steps"],
            tried=header["tried"], held=np.arange(len(error)), error=error, spread=arrays["spread"], before=arrays["before"],
            scores=scores,
        )  # fmt: skip
        estimator.model_, estimator.n_iter_, estimator.about_ = header["model"], header["steps"], about
        classes = header["classes"] is not None
        empty = np.zeros((0, columns), np.float32), np.zeros(0, np.int32 if classes else np.float32)
        estimator.group_names_ = np.zeros(0, int)
        estimator._supports, estimator._seed, estimator._adapted = Supports(estimator.group_names_, [empty]), 0, False
        return estimator


def _check_shapes(params: PyTree, like: PyTree) -> None:
    """Whether all parameters have the shapes of one network behind one axis over the networks of the ensemble."""
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(like), strict=True))
    if len({x.shape[:1] for x, _ in pairs}) != 1 or any(x.shape[1:] != y.shape for x, y in pairs):
        raise ValueError("its parameters have other shapes than its network")


def _check_arrays(columns: int, arrays: dict[str, np.ndarray], scores: dict[int, tuple]) -> None:
    """Whether the other arrays have the shapes in which they are written."""
    groups, of_columns = arrays["error"].shape, ("x_mean", "x_scale")
    fit = all(arrays[name].shape == (columns,) for name in of_columns) and len(groups) == 1
    fit = fit and arrays["before"].shape == arrays["spread"].shape == groups
    if not fit or any(s.ndim != 2 or s.shape != t.shape or p.shape != s.shape[:1] for s, t, p in scores.values()):
        raise ValueError("its arrays have other shapes than they are written in")


def _leaves(tree: PyTree) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _plain(value: Any) -> Any:
    """The value as JSON holds it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(f"A file cannot hold {value!r}: give the estimator plain arguments, and classes of text or numbers.")
