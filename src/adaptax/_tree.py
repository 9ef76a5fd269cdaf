"""Which leaves of a pytree are parameters, and the linear algebra on them that `optax.tree` has not."""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from adaptax.errors import InputError, NotTrained


def is_floating(leaf) -> bool:
    """Whether a leaf is a floating-point array; a Python number is a setting, and stays one."""
    return has_shape(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def has_shape(leaf) -> bool:
    """Whether a leaf is an array, or the shape of one."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def as_parameters(tree: PyTree) -> PyTree:
    """Floating-point arrays as JAX arrays of their own (never a weak) type; every other leaf untouched."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)) if is_floating(leaf) else leaf, tree)


def both(a: PyTree, b: PyTree) -> PyTree:
    """The leaves that two trees of booleans both select."""
    return jax.tree.map(lambda a, b: bool(a) and bool(b), a, b)


def parameter_mask(trainable: "Selection", params: PyTree) -> PyTree:
    """Which leaves of `params` can be parameters by their kind: arrays of inexact type that `trainable` selects."""

    def by_kind(node):
        counts = not _is_statistic(node)
        return jax.tree.map(lambda leaf: counts and has_shape(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact), node)

    mask = both(jax.tree.map(by_kind, params, is_leaf=_is_statistic), _selected("trainable", trainable, params))
    if not any(jax.tree.leaves(mask)):
        text = f"The parameters ({describe(params)}) have no floating-point leaf that is an array"
        raise InputError(f"{text}{'' if trainable is None else ' and trainable= selects'}: give them at least one.")
    _warn_of_numbers(params)
    return mask


def mask_tree(adapt: "Selection", params: PyTree) -> PyTree:
    """Which leaves of `params` are floating-point arrays that `adapt` selects."""
    mask = both(jax.tree.map(is_floating, params), _selected("adapt", adapt, params))
    if not any(jax.tree.leaves(mask)):
        raise InputError("adapt= selects no floating-point leaf of the parameters: let it select at least one.")
    return mask


def _selected(name: str, selection: "Selection", params: PyTree) -> PyTree:
    """The tree of booleans that a prefix of booleans or a predicate on paths stands for."""
    if selection is None:
        return jax.tree.map(lambda _: True, params)
    if not isinstance(selection, Mask):
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(selection(path_name(path))), params)
    try:
        return jax.tree.map(lambda flag, sub: jax.tree.map(lambda _: flag, sub), selection.tree(), params)
    except ValueError as error:
        text = f"{name}= must be a prefix of the parameters' structure, with True or False at its leaves"
        raise InputError(f"{text} ({first_line(error)}).") from error


def _flax_kinds(node: Any) -> list[str]:
    return [kind.__name__ for kind in type(node).__mro__ if kind.__module__.startswith("flax.nnx")]


def _is_statistic(node: Any) -> bool:
    """Whether a node is a Flax variable that is no parameter, such as `nnx.BatchStat`."""
    kinds = _flax_kinds(node)
    return "Variable" in kinds and "Param" not in kinds


def _warn_of_numbers(params: PyTree) -> None:
    """Say that a Python float where a parameter is expected, in a plain container or an `nnx.Param`, is none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda node: "Param" in _flax_kinds(node)):
        plain = path and all(isinstance(key, jax.tree_util.DictKey | jax.tree_util.SequenceKey) for key in path)
        for value in jax.tree.leaves(leaf):
            if type(value) is float and (plain or value is not leaf):
                text = f"The parameter {path_name(path)} is the Python number {value!r}, so it is a setting and is not trained"
                warnings.warn(f"{text}: make it jnp.asarray({value!r}) to train it.", NotTrained, stacklevel=2)


def path_name(path) -> str:
    """The path to a leaf as `adapt=` functions get it: its keys joined with dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def as_selection(name: str, selection: Any) -> "Selection":
    """A selection of leaves in hashable form."""
    return selection if selection is None or is_predicate(selection) else Mask(selection, name)


def is_predicate(adapt: Any) -> bool:
    """Whether `adapt` is a function; a module of booleans is a prefix, though it may be callable too."""
    return callable(adapt) and not (isinstance(adapt, eqx.Module) and jax.tree.leaves(adapt))


class Mask(eqx.Module):
    """A prefix tree of booleans in hashable form."""

    treedef: Any = eqx.field(static=True)
    leaves: tuple[bool, ...] = eqx.field(static=True)

    def __init__(self, tree: PyTree, name: str = "adapt"):
        leaves, self.treedef = jax.tree.flatten(tree)
        if not leaves or not all(isinstance(leaf, bool | np.bool_) for leaf in leaves):
            raise InputError(f"{name}= must hold True or False at every leaf, or be a function from a path to a boolean.")
        self.leaves = tuple(map(bool, leaves))

    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.treedef, self.leaves)


# None selects every leaf; a function gets the path to a leaf.
Selection = Mask | Callable[[str], bool] | None


def prefix_map(function: Callable, prefix: PyTree, *trees: PyTree) -> PyTree:
    """Map `function(r, *leaves)` with each leaf r of `prefix` spread over the subtree it stands for."""

    def spread(r, *subtrees):
        return jax.tree.map(lambda *leaves: function(r, *leaves), *subtrees)

    return jax.tree.map(spread, prefix, *trees)


def scale(factor: Array | float, x: PyTree) -> PyTree:
    """factor times x, in the types of x."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, x)


def shift(x: PyTree, width: Array | float, u: PyTree) -> PyTree:
    """x + width u, in the types of x."""
    return jax.tree.map(lambda a, b: a + jnp.asarray(width, a.dtype) * b, x, u)


def wide(x: PyTree) -> PyTree:
    """The same numbers in at least single precision."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), x)


def ravel(x: PyTree) -> Array:
    """A tree as one vector, in at least single precision."""
    return ravel_pytree(wide(x))[0]


def unraveller(x: PyTree) -> Callable[[Array], PyTree]:
    """From such a vector to a tree like this one, in its own types."""
    back = ravel_pytree(wide(x))[1]
    return lambda vector: optax.tree.cast_like(back(vector), x)


def dot(x: PyTree, y: PyTree) -> Array:
    """The inner product over all leaves, in at least single precision."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), wide(x), wide(y))
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def normal_like(key: Array, x: PyTree) -> PyTree:
    """Independent standard normal numbers in the shapes and types of the leaves."""
    leaves, treedef = jax.tree.flatten(x)
    keys = jax.random.split(key, max(len(leaves), 1))
    draws = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(treedef, draws)


def constant(x: PyTree) -> PyTree:
    """The same tree with the derivatives of its floating-point leaves cut."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if is_floating(leaf) else leaf, x)


def norm(x: PyTree) -> Array:
    """Euclidean norm over all leaves, in at least single precision, safe from overflow of the squares."""
    leaves = [leaf for leaf in jax.tree.leaves(wide(x)) if leaf.size]
    if not leaves:
        return jnp.zeros(())
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    total = jnp.asarray(sum(jnp.sum((leaf / unit) ** 2) for leaf in leaves))
    # The derivative at zero is zero and not NaN.
    return unit * jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), total)


def all_finite(x: PyTree) -> Array:
    """Whether every entry of every leaf is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(x)] or [jnp.array(True)]))


def select(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    """`x` where `condition` holds, else `y`, leaf by leaf; leaves that are not arrays are taken from `x`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, x, y)


def describe(tree: PyTree) -> str:
    """Types and shapes of the leaves, for messages."""
    leaves = jax.tree.leaves(tree)
    text = [f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else type(leaf).__name__ for leaf in leaves]
    return ", ".join(text[:4] + ["…"] * (len(text) > 4)) or "without arrays"


def first_line(error: Exception) -> str:
    """The first line of an exception's message, without its full stop."""
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".:")[:200]


def arrays_of(tree: PyTree) -> dict[str, np.ndarray]:
    """The arrays of a tree by position, keys as plain numbers, all on one device; arrays without entries hold nothing."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if _has_entries(leaf)]
    plain = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return {f"{i:05d}": np.asarray(x) for i, x in enumerate(plain)}


def with_arrays(like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    """A tree with other arrays, as `arrays_of` gave them."""
    leaves, treedef = jax.tree.flatten(like)
    values = iter(arrays[name] for name in sorted(arrays))

    def put(leaf):
        if not _has_entries(leaf):
            return leaf
        value = next(values)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(value))
        # Parameters that are cut over devices go there in parts, since one device may not have room for the whole.
        where = getattr(leaf, "sharding", None)
        return jax.device_put(value, where) if isinstance(where, NamedSharding) else jnp.asarray(value)

    return jax.tree.unflatten(treedef, [put(leaf) for leaf in leaves])


def _has_entries(leaf: Any) -> bool:
    return eqx.is_array(leaf) and leaf.size > 0
