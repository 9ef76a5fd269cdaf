"""2x2 max pooling as a choice, which has no derivative, and two primitives that are linear: each is the other's transpose.

Both are elementwise, so compilers fuse them with what is around; the transposes of slices, concatenations and pads, are not.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """The largest of each 2x2 window, the first of equal ones; an odd last row or column is left out, a NaN may be."""
    return _pick.bind(x, _largest(x))


def _largest(x):
    """Where the largest pixel of each window is: 0 and 1 above, 2 and 3 below."""
    a, b, c, d = _windows(lax.stop_gradient(x))
    first, second = a >= b, c >= d
    above = jnp.where(first, a, b) >= jnp.where(second, c, d)
    return jnp.where(above, 1 - first, 3 - second).astype(jnp.int32)


_pick, _spread = Primitive("window_pick"), Primitive("window_spread")


@_pick.def_abstract_eval
def _(x, where):
    return ShapedArray(where.shape, x.dtype)


@_spread.def_abstract_eval
def _(x, where, *, size):
    return ShapedArray((*x.shape[:-3], *size, x.shape[-1]), x.dtype)


def _pick_as_selection(x, where):
    a, b, c, d = _windows(x)
    return jnp.where(where == 0, a, jnp.where(where == 1, b, jnp.where(where == 2, c, d)))


def _spread_as_selection(x, where, *, size):
    *batch, h2, w2, c = x.shape
    place = 2 * jnp.arange(2)[:, None, None, None] + jnp.arange(2)[:, None]
    wide = lambda part: part[..., :, None, :, None, :]  # noqa: E731
    whole = jnp.where(wide(where) == place, wide(x), 0).reshape(*batch, 2 * h2, 2 * w2, c)
    return jnp.pad(whole, [(0, 0)] * len(batch) + [(0, size[0] - 2 * h2), (0, size[1] - 2 * w2), (0, 0)])


def _windows(x):
    """The four pixels of all windows."""
    *batch, h, w, c = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2, :].reshape(-1, 2, w // 2, 2, c)
    pixels = [pixel for row in lax.split(x, [1, 1], 1) for pixel in lax.split(row, [1, 1], 3)]
    return [pixel.reshape(*batch, h // 2, w // 2, c) for pixel in pixels]


def _batched(primitive):
    def rule(operands, dims, **params):
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        front = [
            jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
            for x, d in zip(operands, dims, strict=True)
        ]
        return primitive.bind(*front, **params), 0

    return rule


def _transposed(primitive, size):
    def rule(ct, x, where, **params):
        if type(ct) is ad.Zero:
            return ad.Zero(x.aval), None
        return primitive.bind(ct, where, **size(x)), None

    return rule


# The choice is of whole numbers: only the first operand has derivatives.
ad.defjvp(_pick, lambda t, x, where: _pick.bind(t, where), None)
ad.defjvp(_spread, lambda t, x, where, **params: _spread.bind(t, where, **params), None)
ad.primitive_transposes[_pick] = _transposed(_spread, lambda x: {"size": x.aval.shape[-3:-1]})
ad.primitive_transposes[_spread] = _transposed(_pick, lambda x: {})
for _primitive, _rule in ((_pick, _pick_as_selection), (_spread, _spread_as_selection)):
    batching.primitive_batchers[_primitive] = _batched(_primitive)
    mlir.register_lowering(_primitive, mlir.lower_fun(_rule, multiple_results=False))
    _primitive.def_impl(jax.jit(_primitive.bind, static_argnames="size"))
