"""Tasks as users bring them: what holds numbers becomes an array, a list of tasks is stacked, the rest is refused by name."""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from adaptax._tree import first_line
from adaptax.errors import InputError

_NUMBER = bool | int | float | complex


def as_task(task: PyTree, name: str = "task") -> PyTree:
    """One task. Text, Python numbers, functions and other values that compare by value stay as they are: programs hold them.

    Errors: `InputError` for a leaf that neither holds numbers nor can be held, named by its path.
    """

    def leaf(where, value):
        array = _as_array(where, value)
        if array is not None:
            return array
        held = isinstance(value, _NUMBER | str | bytes | enum.Enum) or callable(value) or _hashes_by_value(value)
        if held and not isinstance(value, type | np.dtype):
            return value
        raise _refusal(where, value)

    return _map(leaf, task, name)


def as_batch(tasks: PyTree, name: str = "tasks") -> PyTree:
    """A batch of tasks, all leaves arrays; a list of tasks becomes one pytree with a leading axis over them.

    Tasks (also in a tuple), and mappings and other named structures in a list, are one task each. A tuple of anything else is a
    structure of stacked arrays. A list of arrays that could be either is refused.

    Errors: `InputError` for tasks in a list that cannot be stacked, and for a leaf without numbers, named by its path.
    """
    if isinstance(tasks, Iterator):
        raise InputError(f"{name} is a {type(tasks).__name__}: give list({name}).")
    return _map(_array_only, _stacked(tasks, name), name)


def as_drawn(task: PyTree) -> PyTree:
    """A task that `sample_task` draws, all leaves arrays, since tasks are drawn many at a time."""
    return _map(_array_only, task, "task")


def _array_only(where: str, value: Any) -> Any:
    array = _as_array(where, value)
    if array is None and isinstance(value, _NUMBER):
        array = _as_array(where, np.asarray(value))
    if array is None:
        raise _refusal(where, value)
    return array


def _map(function: Callable[[str, Any], Any], tree: PyTree, name: str) -> PyTree:
    """Map `function(path, leaf)`; a tree of JAX's arrays is returned as it is."""
    if isinstance(tree, type):
        raise InputError(f"{name} is the class {tree.__name__}: call it, as in ax.Task(support, target).")
    try:
        paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, Iterator | range))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} has a dict whose keys cannot be sorted ({first_line(error)}): use keys of one type."
        ) from error
    if all(isinstance(leaf, jax.Array) for _, leaf in paths):
        return tree
    return structure.unflatten([function(name + jax.tree_util.keystr(path), leaf) for path, leaf in paths])


def _as_array(where: str, value: Any) -> Any:
    """The numbers of a leaf as an array, None if it has none."""
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"{where} is a masked array, whose mask would be lost: fill it, and give the mask as a leaf of its own."
        )
    if hasattr(value, "__jax_array__"):
        return jnp.asarray(value)
    value = np.asarray(value) if isinstance(value, range) else value
    if isinstance(value, str | bytes | type) or not hasattr(value, "__array__"):
        return None
    try:
        array = np.asarray(value)
    except Exception as error:
        text = f"{where} is a {type(value).__name__} that NumPy cannot read ({first_line(error)})"
        raise InputError(f"{text}: give it as a NumPy array.") from error
    if array.dtype.kind in "fc" and array.dtype.itemsize > 8 * (1 + (array.dtype.kind == "c")):
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.complex128)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == bool or (jnp.issubdtype(array.dtype, np.number) and array.dtype.kind != "m"):
        _check_range(where, array)
        return array
    raise _refusal(where, array)


def _check_range(where: str, array: np.ndarray) -> None:
    """Refuse whole numbers that JAX would cut off without a word."""
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if array.dtype.kind in "iu" and kept != array.dtype and array.size:
        bounds, ends = np.iinfo(kept), (int(array.min()), int(array.max()))
        if bad := [end for end in ends if not bounds.min <= end <= bounds.max]:
            text = f"{where} holds {bad[0]}, which does not fit {kept}"
            raise InputError(f"{text}: number from 0, or set jax.config.update('jax_enable_x64', True).")


def _hashes_by_value(value: Any) -> bool:
    if type(value).__hash__ in (None, object.__hash__):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _refusal(where: str, value: Any) -> InputError:
    """Why a leaf cannot be used, and what to do."""
    kind = value.dtype.kind if isinstance(value, np.ndarray) else ""
    out, said = "leave it out of the task, or give it as", repr(value)
    said = said if len(said) <= 40 and "\n" not in said else said.split("\n")[0][:37] + "..."
    if isinstance(value, str | bytes):
        return InputError(f"{where} is text ({said}): {out} an integer.")
    if kind in ("U", "S", "T"):
        return InputError(f"{where} is text (an array {list(value.shape)} of it): {out} integers.")
    if kind in ("M", "m"):
        return InputError(
            f"{where} holds times ({value.dtype}): {out} numbers, such as .astype('int64') less the first of them."
        )
    if kind == "V":
        return InputError(f"{where} has named fields ({', '.join(value.dtype.names or ())}): give each as a leaf of its own.")
    if kind == "O":
        lengths = {np.shape(entry) for entry in value.ravel() if isinstance(entry, list | tuple | np.ndarray | jax.Array)}
        if len(lengths) > 1:
            return InputError(f"{where} is ragged, with entries of different lengths: pad them to one length, and give a mask.")
        entry = type(value.ravel()[0]).__name__ if value.size else "nothing"
        return InputError(f"{where} is an array of objects ({entry}): make it numbers, as by .astype(float).")
    if isinstance(value, _NUMBER):
        return InputError(f"{where} is a number ({said}): {out} an array.")
    if isinstance(value, Iterator | set | frozenset):
        return InputError(f"{where} is a {type(value).__name__}: {out} an array.")
    if isinstance(value, type | np.dtype):
        return InputError(f"{where} is a type ({said}): leave it out of the task, or give its name as text.")
    remedy = "leave it out of the task, or make its class a pytree, such as equinox.Module"
    return InputError(f"{where} is an object of the class {type(value).__name__}: {remedy}.")


def _stacked(tasks: PyTree, name: str) -> PyTree:
    """A list of tasks as one pytree with a leading axis over them; anything else as it is."""
    if type(tasks) not in (list, tuple) or not tasks:
        return tasks
    named = all(hasattr(task, "support") and hasattr(task, "target") and not isinstance(task, type) for task in tasks)
    if not named:
        if type(tasks) is tuple:
            return tasks
        named = all(type(task) not in (list, tuple) and not jax.tree_util.all_leaves([task]) for task in tasks)
    trees = [_map(_array_only, task, f"{name}[{index}]") for index, task in enumerate(tasks)]
    odd = _first_odd(trees, name)
    if not named:
        leading = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(trees)}
        whole = len(leading) == 1 and leading != {()}
        if odd is None and whole:
            text = f"{name} is a list of arrays, each of which may be a task or a part of all tasks"
            raise InputError(f"{text}: give jnp.stack({name}) for the first, tuple({name}) for the second.")
        if odd is not None:
            return tasks
    if odd is not None:
        raise InputError(odd)
    return jax.tree.map(lambda *leaves: (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves), *trees)


def _first_odd(trees: list[PyTree], name: str) -> str | None:
    """How one of the trees differs from the first, in a sentence."""
    paths, structure = jax.tree_util.tree_flatten_with_path(trees[0])
    for index, tree in enumerate(trees):
        if jax.tree.structure(tree) != structure:
            return f"{name}[{index}] is made up differently from {name}[0]: give all tasks the same parts."
        for (path, first), leaf in zip(paths, jax.tree.leaves(tree), strict=True):
            if np.shape(leaf) != np.shape(first):
                part, shapes = jax.tree_util.keystr(path), (list(np.shape(leaf)), list(np.shape(first)))
                text = f"{name}[{index}]{part} has the shape {shapes[0]} and {name}[0]{part} the shape {shapes[1]}"
                return f"{text}: cut or pad the tasks to one size."
    return None
