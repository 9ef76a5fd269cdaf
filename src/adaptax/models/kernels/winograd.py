"""Winograd's minimal filtering: a convolution by 3x3 filters with a quarter of the products.

A tile of 4x4 outputs depends on 6x6 pixels of the image. These pixels and the filters are transformed to 6x6 numbers for each
channel. At each of the 36 places the transformed pixels are multiplied by the transformed filters and summed over the channels,
and the sums are transformed to the 4x4 outputs.

Source: Lavin, Gray (2016), Fast algorithms for convolutional neural networks, CVPR.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Side of a tile of outputs, and of the pixels that it depends on.
TILE, SEEN = 4, 6
# The transforms along one axis: of pixels, of filters, and from the sums of products to outputs.
_PIXELS = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
])  # fmt: skip
_FILTERS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def filters(weight: Float[Array, "3 3 inputs outputs"]) -> Float[Array, "6 6 inputs outputs"]:
    """Transform filters along both axes."""
    both = np.kron(_FILTERS, _FILTERS)
    return _by(both, weight.reshape(9, -1)).reshape(SEEN, SEEN, *weight.shape[2:])


def convolution(x: Float[Array, "n h w inputs"], filters: Float[Array, "6 6 inputs outputs"]) -> Float[Array, "n h w outputs"]:
    """The convolution with zeros around the image, by transformed filters."""
    n, h, w, _ = x.shape
    inputs, outputs = filters.shape[2:]
    pixels = _pixels(x).reshape(SEEN**2, -1, inputs)
    products = _product(pixels, filters.reshape(SEEN**2, inputs, outputs), 1).reshape(SEEN, SEEN, -1, outputs)
    half = _combined(_OUTPUTS, [products[i] for i in range(SEEN)])
    y = _combined(_OUTPUTS, [half[:, j] for j in range(SEEN)], axis=1)
    y = y.reshape(TILE, TILE, n, -(-h // TILE), -(-w // TILE), outputs).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(n, y.shape[1] * TILE, -1, outputs)[:, :h, :w]


def correlation(x: Float[Array, "n h w inputs"], y: Float[Array, "n h w outputs"]) -> Float[Array, "6 6 inputs outputs"]:
    """The derivative of `convolution` by the transformed filters, from the derivative y by its output."""
    n, h, w, outputs = y.shape
    rows, columns = -(-h // TILE), -(-w // TILE)
    back = _OUTPUTS.T
    p = jnp.pad(y, ((0, 0), (0, rows * TILE - h), (0, columns * TILE - w), (0, 0)))
    p = p.reshape(n, rows, TILE, columns * TILE, outputs)
    half = _combined(back, [p[:, :, i] for i in range(TILE)]).reshape(SEEN, n, rows, columns, TILE, outputs)
    back = _combined(back, [half[..., j, :] for j in range(TILE)], axis=1).reshape(SEEN**2, -1, outputs)
    pixels = _pixels(x).reshape(SEEN**2, -1, x.shape[-1])
    return _product(pixels, back, 0).reshape(SEEN, SEEN, x.shape[-1], outputs)


def filters_back(gradient: Float[Array, "6 6 inputs outputs"]) -> Float[Array, "3 3 inputs outputs"]:
    """The derivative by the filters, from the derivative by the transformed ones."""
    both = np.kron(_FILTERS, _FILTERS)
    return _by(both.T, gradient.reshape(SEEN**2, -1)).reshape(3, 3, *gradient.shape[2:])


def _pixels(x):
    """Transform the pixels that each tile of outputs depends on."""
    n, h, w, inputs = x.shape
    rows, columns = -(-h // TILE), -(-w // TILE)
    # In the image with zeros around it, a tile of outputs at (a, b) depends on the pixels from (a, b) on. Pixel (i, j) of all
    # tiles together is therefore a shifted, strided part of that image.
    p = jnp.pad(x, ((0, 0), (1, (rows + 1) * TILE - h - 1), (1, (columns + 1) * TILE - w - 1), (0, 0)))
    p = p.reshape(n, rows + 1, TILE, -1, inputs)
    half = _combined(_PIXELS, [p[:, i // TILE : i // TILE + rows, i % TILE] for i in range(SEEN)])
    half = half.reshape(SEEN, n, rows, columns + 1, TILE, inputs)
    return _combined(_PIXELS, [half[:, :, :, j // TILE : j // TILE + columns, j % TILE] for j in range(SEEN)], axis=1)


def _combined(matrix, parts, axis=0):
    """Stack the linear combinations of arrays that the rows of a matrix give.

    Each has few terms that are not zero, so sums are faster than a matrix product.
    """
    rows = [[c * part if c != 1 else part for c, part in zip(row.tolist(), parts, strict=True) if c] for row in matrix]
    return jnp.stack([sum(row[1:], row[0]) for row in rows], axis)


def _by(matrix, array):
    """A matrix product in full precision on every device."""
    return jnp.matmul(jnp.asarray(matrix, array.dtype), array, precision=lax.Precision.HIGHEST)


def _product(pixels, other, summed):
    """The matrix product at each of the 36 places, summed over channels (summed = 1) or over tiles (summed = 0)."""
    contracted = ((2,), (1,)) if summed else ((1,), (1,))
    return lax.dot_general(pixels, other, (contracted, ((0,), (0,))))
