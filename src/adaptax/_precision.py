"""The arithmetic of a loss's forward and backward pass; iterates, derivatives and their sums keep the parameters' type."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from adaptax import _tree
from adaptax.curvature import Exact, FirstOrder
from adaptax.errors import InputError
from adaptax.gradients import AutoDiff

# The arithmetic of the path and of its curvature, by the name that a method takes.
ARITHMETICS = {
    None: (None, None),
    "bfloat16": ("bfloat16", "bfloat16"),
    "bfloat16_curvature": (None, "bfloat16"),
    "tensorfloat32_curvature": (None, "tensorfloat32"),
}


def check_precision(precision: Any, mode: str, curvature: Any, gradients: Any) -> None:
    """Refuse anything but the known kinds of arithmetic, and those that a method's other parts cannot have or do not use."""
    if precision not in ARITHMETICS:
        names = ", ".join(f'"{name}"' for name in ARITHMETICS if name)
        raise InputError(
            f"precision={precision!r} must be one of {names}, or None (the type of the parameters); for double precision, make "
            "the parameters float64."
        )
    if precision is None:
        return
    path, of_curvature = ARITHMETICS[precision]
    if not (isinstance(curvature, Exact | FirstOrder) and isinstance(gradients, AutoDiff)):
        raise InputError(
            f'precision="{precision}" has too few digits for differences: take ax.curvature.Exact() or FirstOrder() and '
            "gradients that are differentiated, or leave precision= out."
        )
    if path != of_curvature and (mode == "backprop" or isinstance(curvature, FirstOrder)):
        who = 'mode="backprop"' if mode == "backprop" else "FirstOrder"
        raise InputError(
            f'precision="{precision}" is for Hessian-vector products, and {who} forms none: take "bfloat16", or leave it out.'
        )


def evaluate(arithmetic: str | None, function: Callable, params: PyTree, batch: PyTree, state: PyTree = None) -> Any:
    """`function(params, batch)`, or `function(params, batch, state)` where there is a state, in an arithmetic.

    "bfloat16" rounds the floating-point arrays of the function, the parameters and the batch; the state keeps its type. The
    result has the types of the parameters and of the state again. "tensorfloat32" rounds the factors of products where the
    device can. None changes no array, and forms products of float32 in full where a device would round their factors, unless
    `jax_default_matmul_precision` is set.
    """
    carried = () if state is None else (state,)
    if arithmetic != "bfloat16":
        with _products(arithmetic):
            return function(params, batch, *carried)
    # A state of weak type would take that of whatever it meets.
    carried = jax.tree.map(lambda x: lax.convert_element_type(x, x.dtype) if _tree.is_floating(x) else x, carried)
    out = _rounded(function)(_rounded(params), _rounded(batch), *carried)
    dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(params) if _tree.is_floating(leaf)))
    if not isinstance(out, tuple):
        return out.astype(dtype)
    value, after = out
    after = jax.tree.map(lambda old, new: new.astype(old.dtype) if _tree.is_floating(new) else new, state, after)
    return value.astype(dtype), after


def _rounded(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if _tree.is_floating(x) else x, tree)


def _products(arithmetic: str | None) -> contextlib.AbstractContextManager:
    """How products of float32 are formed: by JAX's own choice on a CPU, and where somebody has chosen."""
    if arithmetic is None and (jax.default_backend() == "cpu" or jax.config.jax_default_matmul_precision is not None):  # type: ignore[attr-defined]
        return contextlib.nullcontext()
    return jax.default_matmul_precision(arithmetic or "float32")
