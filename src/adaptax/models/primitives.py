"""Convolution with zeros around the image, and its derivative by the filters: two primitives, closed under differentiation.

Both are linear in each operand, and so are their transposes, which are again these two: what is fast for them is fast at any
order of differentiation, in loops and under `vmap`, where compilers' derivatives of their own convolutions are not. Each kind
of machine computes them in its own way. All operands have a leading axis of sets of filters: under `vmap` over tasks with
filters of their own it holds the tasks.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from adaptax.models import winograd

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Fewer channels than this are too short for rows of neighbourhoods.
_THIN = 8
# From so many channels and tiles on, Winograd's algorithm pays on a CPU (measured).
_WIDE, _TILES = 32, 16
# Bytes of intermediate values at a time: about what a core's caches hold.
_CACHE = 4 << 20
# With fewer rows a matrix product takes longer to lay out its other operand than the caches save (measured).
_ROWS = 128
# Pixels that one product sums over at a time, where one over all would first transpose an operand as a whole.
_PIXELS = 2048


def convolve(x: Float[Array, "n h w inputs"], weight: Float[Array, "k k inputs outputs"]) -> Float[Array, "n h w outputs"]:
    """Cross-correlation by filters of odd size, with zeros around the image, so that the output is as large."""
    dtype = jnp.result_type(x, weight)
    x, weight = (jnp.asarray(part, dtype)[None] for part in (x, weight))
    return _convolution.bind(x, weight)[0]


_convolution, _correlation = Primitive("same_convolution"), Primitive("filter_correlation")


@_convolution.def_abstract_eval
def _(x, weight):
    return ShapedArray((*x.shape[:-1], weight.shape[-1]), x.dtype)


@_correlation.def_abstract_eval
def _(x, y, *, size):
    return ShapedArray((x.shape[0], size, size, x.shape[-1], y.shape[-1]), x.dtype)


def _turned(weight):
    """The filters by which the derivative by the image is a convolution of the output's."""
    return weight[:, ::-1, ::-1].swapaxes(-1, -2)


def _convolution_by_x(ct, x, weight):
    return _convolution.bind(ct, _turned(weight))


def _convolution_by_weight(ct, x, weight):
    return _correlation.bind(x, ct, size=weight.aval.shape[1])


def _correlation_by_x(ct, x, y, *, size):
    return _convolution.bind(y, _turned(ct))


def _correlation_by_y(ct, x, y, *, size):
    return _convolution.bind(x, ct)


ad.defbilinear(_convolution, _convolution_by_x, _convolution_by_weight)
ad.defbilinear(_correlation, _correlation_by_x, _correlation_by_y)


def _batched(primitive, first, second):
    """The rule of `vmap`: an operand that is alone in having tasks gives them to an axis of its own, which the result has too.

    `first` and `second` are these axes of the operand and of the result. If both have tasks they join the sets of filters.
    """

    def rule(operands, dims, **params):
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        into, out = first if dims[1] is None else second if dims[0] is None else (0, 0)
        merged = [x if d is None else _merged(jnp.moveaxis(x, d, 0), into) for x, d in zip(operands, dims, strict=True)]
        return _cut(primitive.bind(*merged, **params), out, size), out

    return rule


def _merged(array, axis):
    """Move the leading axis in front of what is then axis `axis + 1`, and merge the two."""
    array = jnp.moveaxis(array, 0, axis)
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])


def _cut(array, axis, count):
    """Split an axis in two, the first of length `count`."""
    return array.reshape(*array.shape[:axis], count, -1, *array.shape[axis + 1 :])


# Images join images, output channels join output channels; in a correlation input channels join input channels.
batching.primitive_batchers[_convolution] = _batched(_convolution, (1, 1), (4, 4))
batching.primitive_batchers[_correlation] = _batched(_correlation, (4, 3), (4, 4))


def _each(function, first, second):
    """A function of the two operands without their leading axis, over it."""
    if first.shape[0] == 1:
        return function(first[0], second[0])[None]
    return lax.map(lambda pair: function(*pair), (first, second))


def _equal(n, most):
    """The size of the largest equal groups of n, of at most so many."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def _groups(most, arrays):
    """Images cut into groups of at most so many, or filled up with images of zeros to groups of exactly so many."""
    n = arrays[0].shape[0]
    fits = min(n, most)
    equal = _equal(n, most)
    # Filling up copies all images, so equal groups may be smaller.
    at_once = equal if 2 * equal >= fits else fits
    count = -(-n // at_once)
    filled = [jnp.pad(part, ((0, count * at_once - n), *[(0, 0)] * (part.ndim - 1))) for part in arrays]
    return [part.reshape(count, at_once, *part.shape[1:]) for part in filled]


def _in_groups(function, most, x):
    """A function of images, for groups of them."""
    (groups,) = _groups(most, [x])
    if len(groups) == 1:
        return function(x)
    found = lax.map(function, groups)
    return found.reshape(-1, *found.shape[2:])[: len(x)]


def _summed(function, most, arrays):
    """The sum of a function's values for all groups of images."""
    groups = _groups(most, arrays)
    if len(groups[0]) == 1:
        return function(*arrays)
    found = jax.eval_shape(function, *(part[0] for part in groups))
    return lax.scan(lambda total, group: (total + function(*group), None), jnp.zeros(found.shape, found.dtype), groups)[0]


def _native(x, weight):
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _pays(x, size, outputs):
    """Whether Winograd's algorithm is faster on a CPU; it costs digits, of which half precision has none to spare."""
    n, h, w, inputs = x.shape
    return size == 3 and x.dtype.itemsize >= 4 and min(inputs, outputs) >= _WIDE and n * (-(-h // 4)) * (-(-w // 4)) >= _TILES


def _convolution_on_cpu(x, weight):
    """One set of filters after another: a matrix product, Winograd's algorithm, or the compiler's convolution."""

    def one(x, weight):
        if weight.shape[0] == 1:
            return x @ weight[0, 0]
        if not _pays(x, weight.shape[0], weight.shape[-1]):
            if x.shape[-1] == 3 and weight.shape[-1] <= 32:
                # Four times as fast with a fourth channel of zeros.
                x, weight = jnp.pad(x, ((0, 0),) * 3 + ((0, 1),)), jnp.pad(weight, ((0, 0),) * 2 + ((0, 1), (0, 0)))
            return _native(x, weight)
        filters = winograd.filters(weight)
        return _in_groups(lambda x: winograd.convolution(x, filters), _tiles_fit(x, weight.shape[-1]), x)

    return _each(one, x, weight)


def _correlation_on_cpu(x, y, *, size):
    """Products over pixels, for as many images at a time as the caches hold: Winograd's algorithm, or rows or columns."""
    inputs, outputs = x.shape[-1], y.shape[-1]

    def rows(x, y):
        # The operand whose pixels are summed over goes first if it is the smaller: transposing it is what costs.
        near, y = _neighbours(x, size, columns=False), y.reshape(-1, outputs)
        return lax.dot_general(y, near, (((0,), (0,)), ((), ())))

    def columns(x, y):
        return jnp.matmul(_neighbours(x, size, columns=True), y.reshape(-1, outputs))

    def one(x, y):
        if size == 1:
            n, pixels = x.shape[0], x.shape[1] * x.shape[2]
            images = _equal(n, max(_PIXELS // pixels, 1))
            cut = lambda part: part.reshape(n // images, images * pixels, -1)  # noqa: E731
            return lax.dot_general(cut(x), cut(y), (((1,), (1,)), ((0,), (0,)))).sum(0)[None, None]
        if _pays(x, size, outputs):
            return winograd.filters_back(_summed(winograd.correlation, _tiles_fit(x, outputs), [x, y]))
        fit = max(_CACHE // (size**2 * x[0].size * x.dtype.itemsize), 1)
        if inputs < _THIN:
            return _summed(columns, fit, [x, y]).reshape(size, size, inputs, outputs)
        return _summed(rows, fit, [x, y]).T.reshape(size, size, inputs, outputs)

    return _each(one, x, y)


def _tiles_fit(x, outputs):
    """Images whose transformed pixels the caches hold; no fewer than give the products their rows."""
    _, h, w, inputs = x.shape
    tiles = -(-h // 4) * -(-w // 4)
    return max(_CACHE // (36 * tiles * max(inputs, outputs) * x.dtype.itemsize), -(-_ROWS // tiles))


def _neighbours(x, size, columns):
    """What the filters see of each pixel: a row of it for each pixel, or a column."""
    _, h, w, inputs = x.shape
    edge = size // 2
    p = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    seen = [p[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    if columns:
        return jnp.stack([part[..., k] for part in seen for k in range(inputs)]).reshape(size**2 * inputs, -1)
    return jnp.concatenate(seen, axis=-1).reshape(-1, size**2 * inputs)


def _convolution_elsewhere(x, weight):
    """The compiler's convolution for one set of filters; a matrix product each for many, for which it is slow."""
    if x.shape[0] == 1 and weight.shape[1] > 1:
        return _native(x[0], weight[0])[None]
    return jax.vmap(_products)(x, weight)


def _correlation_elsewhere(x, y, *, size):
    weight = jax.ShapeDtypeStruct((x.shape[0], size, size, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda weight: _convolution_elsewhere(x, weight), weight)(y)[0]


def _products(x, weight):
    """A convolution as a matrix product of what the filters see."""
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
    _primitive.def_impl(jax.jit(_primitive.bind, static_argnames="size"))
