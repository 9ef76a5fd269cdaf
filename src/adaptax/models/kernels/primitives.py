"""Convolution with zeros around the image, and its derivative by the filters: two primitives, closed under differentiation.

Both are linear in each operand, and their transposes are again these two. A fast way to compute them is therefore fast at any
order of differentiation, in loops and under `vmap`. The compiler's derivatives of its own convolution are not. CPUs compute
the primitives in one way, other devices in another.

All operands have a leading axis, which counts sets of filters. Under `vmap` over tasks that have filters of their own, this
axis holds the tasks.
"""

import contextlib

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from adaptax.models.kernels import plain, winograd
from adaptax.models.kernels.outside import compiled

# With fewer channels than this, neighbourhoods are laid out as columns: as rows they would be too short.
_THIN = 8
# The least numbers of channels and of tiles at which Winograd's algorithm is the fastest on a CPU (measured).
_WIDE, _TILES = 32, 16
# Bytes of intermediate values at a time: about as much as a core's caches hold.
_CACHE = 4 << 20
# A matrix product with fewer rows takes longer to lay out its other operand than the caches save (measured).
_ROWS = 128
# Pixels that one product sums over. A product over all pixels would first transpose a whole operand.
_PIXELS = 2048


def convolve(x: Float[Array, "n h w inputs"], weight: Float[Array, "k k inputs outputs"]) -> Float[Array, "n h w outputs"]:
    """`plain.convolve` with fast derivatives of any order, whose products have the precision that JAX is asked for here."""
    dtype = jnp.result_type(x, weight)
    x, weight = (jnp.asarray(part, dtype)[None] for part in (x, weight))
    return _convolution.bind(x, weight, precision=jax.config.jax_default_matmul_precision)[0]  # type: ignore[attr-defined]


_convolution, _correlation = Primitive("same_convolution"), Primitive("filter_correlation")


@_convolution.def_abstract_eval
def _(x, weight, *, precision):
    return ShapedArray((*x.shape[:-1], weight.shape[-1]), x.dtype)


@_correlation.def_abstract_eval
def _(x, y, *, size, precision):
    return ShapedArray((x.shape[0], size, size, x.shape[-1], y.shape[-1]), x.dtype)


def _turned(weight):
    """The filters that turn the derivative by the output into the derivative by the image."""
    return weight[:, ::-1, ::-1].swapaxes(-1, -2)


def _convolution_by_x(ct, x, weight, *, precision):
    return _convolution.bind(ct, _turned(weight), precision=precision)


def _convolution_by_weight(ct, x, weight, *, precision):
    return _correlation.bind(x, ct, size=weight.aval.shape[1], precision=precision)


def _correlation_by_x(ct, x, y, *, size, precision):
    return _convolution.bind(y, _turned(ct), precision=precision)


def _correlation_by_y(ct, x, y, *, size, precision):
    return _convolution.bind(x, ct, precision=precision)


ad.defbilinear(_convolution, _convolution_by_x, _convolution_by_weight)
ad.defbilinear(_correlation, _correlation_by_x, _correlation_by_y)


def _batched(primitive, first, second):
    """The rule for `vmap`, which merges the mapped axis into another one.

    If both operands are mapped, their mapped axes are merged into the leading axis, the sets of filters. If one operand is,
    its mapped axis is merged into an axis that only this operand and the result have. `first` holds the number of this axis
    in the first operand and in the result, `second` its number in the second operand and in the result.
    """

    def rule(operands, dims, **params):
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        into, out = first if dims[1] is None else second if dims[0] is None else (0, 0)
        merged = [x if d is None else _merged(jnp.moveaxis(x, d, 0), into) for x, d in zip(operands, dims, strict=True)]
        return _cut(primitive.bind(*merged, **params), out, size), out

    return rule


def _merged(array, axis):
    """Merge the leading axis into axis number `axis`, counted without the leading one."""
    array = jnp.moveaxis(array, 0, axis)
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


def _cut(array, axis, count):
    """Split an axis into two, the first of them of length `count`."""
    return array.reshape(*array.shape[:axis], count, -1, *array.shape[axis + 1 :])


# The tasks of the images become more images, and those of the filters more output channels. In a correlation the tasks of the
# images become more input channels.
batching.primitive_batchers[_convolution] = _batched(_convolution, (1, 1), (4, 4))
batching.primitive_batchers[_correlation] = _batched(_correlation, (4, 3), (4, 4))


def _each(function, first, second):
    """Apply a function of one image batch and one set of filters along the leading axis of both operands."""
    if first.shape[0] == 1:
        return function(first[0], second[0])[None]
    return lax.map(lambda pair: function(*pair), (first, second))


def _equal(n, most):
    """The largest divisor of n that is at most `most`."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _groups(most, arrays):
    """Cut images into equal groups of at most `most`, if need be after appending images of zeros."""
    n = arrays[0].shape[0]
    fits = min(n, most)
    equal = _equal(n, most)
    # Appending zeros copies all images. Groups of half the size without it are preferred.
    at_once = equal if 2 * equal >= fits else fits
    count = -(-n // at_once)
    filled = [jnp.pad(part, ((0, count * at_once - n), *[(0, 0)] * (part.ndim - 1))) for part in arrays]
    return [part.reshape(count, at_once, *part.shape[1:]) for part in filled]


def _in_groups(function, most, x):
    """Apply a function of images to groups of at most `most` images, one group after another."""
    (groups,) = _groups(most, [x])
    if len(groups) == 1:
        return function(x)
    found = lax.map(function, groups)
    return found.reshape(-1, *found.shape[2:])[: len(x)]


def _summed(function, most, arrays):
    """Sum a function's values over groups of at most `most` images, one group after another."""
    groups = _groups(most, arrays)
    if len(groups[0]) == 1:
        return function(*arrays)
    found = jax.eval_shape(function, *(part[0] for part in groups))
    return lax.scan(lambda total, group: (total + function(*group), None), jnp.zeros(found.shape, found.dtype), groups)[0]


def _winograd_pays(x, size, outputs):
    """Whether Winograd's algorithm is the fastest on a CPU. It loses digits, so half precision does without."""
    n, h, w, inputs = x.shape
    return size == 3 and x.dtype.itemsize >= 4 and min(inputs, outputs) >= _WIDE and n * (-(-h // 4)) * (-(-w // 4)) >= _TILES


def _convolution_on_cpu(x, weight, *, precision):
    """A matrix product, Winograd's algorithm, or the compiler's convolution, for one set of filters after another."""

    def one(x, weight):
        if weight.shape[0] == 1:
            return x @ weight[0, 0]
        if not _winograd_pays(x, weight.shape[0], weight.shape[-1]):
            if x.shape[-1] == 3 and weight.shape[-1] <= 32:
                # A fourth channel of zeros makes the compiler's convolution four times as fast.
                x, weight = jnp.pad(x, ((0, 0),) * 3 + ((0, 1),)), jnp.pad(weight, ((0, 0),) * 2 + ((0, 1), (0, 0)))
            return plain.convolve(x, weight)
        filters = winograd.filters(weight)
        return _in_groups(lambda x: winograd.convolution(x, filters), _tiles_fit(x, weight.shape[-1]), x)

    return _each(one, x, weight)


def _correlation_on_cpu(x, y, *, size, precision):
    """Winograd's algorithm, or a matrix product that sums over pixels, for as many images at a time as the caches hold."""
    inputs, outputs = x.shape[-1], y.shape[-1]

    def rows(x, y):
        # The compiler transposes the first operand, so the smaller one, y, comes first.
        near, y = _neighbours(x, size, columns=False), y.reshape(-1, outputs)
        return lax.dot_general(y, near, (((0,), (0,)), ((), ())))

    def columns(x, y):
        return jnp.matmul(_neighbours(x, size, columns=True), y.reshape(-1, outputs))

    def one(x, y):
        if size == 1:
            n, pixels = x.shape[0], x.shape[1] * x.shape[2]
            images = _equal(n, max(_PIXELS // pixels, 1))
            x, y = (part.reshape(n // images, images * pixels, -1) for part in (x, y))
            return lax.dot_general(x, y, (((1,), (1,)), ((0,), (0,)))).sum(0)[None, None]
        if _winograd_pays(x, size, outputs):
            return winograd.filters_back(_summed(winograd.correlation, _tiles_fit(x, outputs), [x, y]))
        fit = max(_CACHE // (size**2 * x[0].size * x.dtype.itemsize), 1)
        if inputs < _THIN:
            return _summed(columns, fit, [x, y]).reshape(size, size, inputs, outputs)
        return _summed(rows, fit, [x, y]).T.reshape(size, size, inputs, outputs)

    return _each(one, x, y)


def _tiles_fit(x, outputs):
    """The number of images whose transformed pixels fit into the caches, but enough for `_ROWS` rows of the products."""
    _, h, w, inputs = x.shape
    tiles = -(-h // 4) * -(-w // 4)
    return max(_CACHE // (36 * tiles * max(inputs, outputs) * x.dtype.itemsize), -(-_ROWS // tiles))


def _neighbours(x, size, columns):
    """The neighbourhood that the filters see of each pixel, as a row of a matrix, or as a column."""
    _, h, w, inputs = x.shape
    edge = size // 2
    p = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    seen = [p[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    if columns:
        return jnp.stack([part[..., k] for part in seen for k in range(inputs)]).reshape(size**2 * inputs, -1)
    return jnp.concatenate(seen, axis=-1).reshape(-1, size**2 * inputs)


def _convolution_elsewhere(x, weight, *, precision):
    """The compiler's convolution for one set of filters. It is slow for several sets, so each of these is a matrix product."""
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        if x.shape[0] == 1 and weight.shape[1] > 1:
            return plain.convolve(x[0], weight[0])[None]
        return jax.vmap(_products)(x, weight)


def _correlation_elsewhere(x, y, *, size, precision):
    weight = jax.ShapeDtypeStruct((x.shape[0], size, size, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda weight: _convolution_elsewhere(x, weight, precision=precision), weight)(y)[0]


def _products(x, weight):
    """The convolution as a matrix product of all neighbourhoods and the filters."""
    size, _, inputs, outputs = weight.shape
    columns = inputs < _THIN
    near = _neighbours(x, size, columns=columns)
    y = lax.dot_general(near, weight.reshape(-1, outputs), (((1 - columns,), (0,)), ((), ())))
    return y.reshape(*x.shape[:-1], outputs)


for _primitive, _on_cpu, _elsewhere in (
    (_convolution, _convolution_on_cpu, _convolution_elsewhere),
    (_correlation, _correlation_on_cpu, _correlation_elsewhere),
):
    mlir.register_lowering(_primitive, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
    mlir.register_lowering(_primitive, mlir.lower_fun(_elsewhere, multiple_results=False))
    _primitive.def_impl(compiled(_primitive, "size", "precision"))
