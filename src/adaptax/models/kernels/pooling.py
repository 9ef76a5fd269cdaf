"""2x2 max pooling by a choice of pixels, which has no derivative, and two linear primitives, each the other's transpose.

`window_pick` takes the chosen pixel of each window out of an image, and `window_spread` puts one pixel for each window back
into an image of zeros. Both are elementwise, so compilers fuse them with the operations around them. The transposes of slices
and concatenations, which are pads, are not fused.
"""

import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from adaptax.models.kernels import plain
from adaptax.models.kernels.outside import compiled


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """`plain.max_pool` with fast derivatives of any order."""
    return _pick.bind(x, plain.largest(x))


_pick, _spread = Primitive("window_pick"), Primitive("window_spread")


@_pick.def_abstract_eval
def _(x, place):
    return ShapedArray(place.shape, x.dtype)


@_spread.def_abstract_eval
def _(x, place, *, size):
    return ShapedArray((*x.shape[:-3], *size, x.shape[-1]), x.dtype)


def _spread_as_selection(x, place, *, size):
    """Each pixel at its place in a window of zeros, and the windows side by side in an image of the given size."""
    *batch, h2, w2, c = x.shape
    places = 2 * jnp.arange(2)[:, None, None, None] + jnp.arange(2)[:, None]
    x, place = x[..., :, None, :, None, :], place[..., :, None, :, None, :]
    whole = jnp.where(place == places, x, 0).reshape(*batch, 2 * h2, 2 * w2, c)
    return jnp.pad(whole, [(0, 0)] * len(batch) + [(0, size[0] - 2 * h2), (0, size[1] - 2 * w2), (0, 0)])


def _batched(primitive):
    """The rule for `vmap`: the mapped axis comes first in both operands, and stays first in the result."""

    def rule(operands, dims, **params):
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        front = [
            jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
            for x, d in zip(operands, dims, strict=True)
        ]
        return primitive.bind(*front, **params), 0

    return rule


def _transposed(primitive, size):
    """The transpose by the first operand is the other primitive; `size` gives its parameters."""

    def rule(ct, x, place, **params):
        if type(ct) is ad.Zero:
            return ad.Zero(x.aval), None
        return primitive.bind(ct, place, **size(x)), None

    return rule


# The places are whole numbers: only the first operand has derivatives.
ad.defjvp(_pick, lambda t, x, place: _pick.bind(t, place), None)
ad.defjvp(_spread, lambda t, x, place, **params: _spread.bind(t, place, **params), None)
ad.primitive_transposes[_pick] = _transposed(_spread, lambda x: {"size": x.aval.shape[-3:-1]})
ad.primitive_transposes[_spread] = _transposed(_pick, lambda x: {})
for _primitive, _rule in ((_pick, plain.pick), (_spread, _spread_as_selection)):
    batching.primitive_batchers[_primitive] = _batched(_primitive)
    mlir.register_lowering(_primitive, mlir.lower_fun(_rule, multiple_results=False))
    _primitive.def_impl(compiled(_primitive, "size"))
