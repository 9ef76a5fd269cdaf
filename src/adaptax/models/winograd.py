"""Winograd's minimal filtering: a convolution by 3x3 filters with a half or a quarter of the products.

Tiles of 2x2 or 4x4 outputs come from the 16 or 36 pixels they depend on: both these and the filters are transformed, multiplied
pixel by pixel, which sums over the channels, and transformed back. Source: Lavin, Gray (2016), Fast algorithms for
convolutional neural networks.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# The transforms of one axis, for tiles of this many outputs.
_PIXELS = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    4: np.array([
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]),
}  # fmt: skip
_FILTERS = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
}
_OUTPUTS = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
}


def filters(weight: Float[Array, "3 3 inputs outputs"], tile: int) -> Float[Array, "seen seen inputs outputs"]:
    """The transformed filters."""
    both = np.kron(_FILTERS[tile], _FILTERS[tile])
    return _by(both, weight.reshape(9, -1)).reshape(tile + 2, tile + 2, *weight.shape[2:])


def convolution(
    x: Float[Array, "n h w inputs"], filters: Float[Array, "seen seen inputs outputs"]
) -> Float[Array, "n h w outputs"]:
    """The same convolution, by transformed filters."""
    n, h, w, _ = x.shape
    seen, _, inputs, outputs = filters.shape
    tile = seen - 2
    pixels = _pixels(x, tile).reshape(seen**2, -1, inputs)
    products = _product(pixels, filters.reshape(seen**2, inputs, outputs), 1).reshape(seen, seen, -1, outputs)
    half = _combined(_OUTPUTS[tile], [products[i] for i in range(seen)])
    y = _combined(_OUTPUTS[tile], [half[:, j] for j in range(seen)], axis=1)
    y = y.reshape(tile, tile, n, -(-h // tile), -(-w // tile), outputs).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(n, y.shape[1] * tile, -1, outputs)[:, :h, :w]


def correlation(
    x: Float[Array, "n h w inputs"], y: Float[Array, "n h w outputs"], tile: int
) -> Float[Array, "seen seen inputs outputs"]:
    """The derivative by transformed filters of the convolution's product with y."""
    seen = tile + 2
    n, h, w, outputs = y.shape
    rows, columns = -(-h // tile), -(-w // tile)
    back = _OUTPUTS[tile].T
    p = jnp.pad(y, ((0, 0), (0, rows * tile - h), (0, columns * tile - w), (0, 0)))
    p = p.reshape(n, rows, tile, columns * tile, outputs)
    half = _combined(back, [p[:, :, i] for i in range(tile)]).reshape(seen, n, rows, columns, tile, outputs)
    back = _combined(back, [half[..., j, :] for j in range(tile)], axis=1).reshape(seen**2, -1, outputs)
    pixels = _pixels(x, tile).reshape(seen**2, -1, x.shape[-1])
    return _product(pixels, back, 0).reshape(seen, seen, x.shape[-1], outputs)


def filters_back(gradient: Float[Array, "seen seen inputs outputs"]) -> Float[Array, "3 3 inputs outputs"]:
    """The derivative by the filters from that by the transformed ones."""
    seen = gradient.shape[0]
    both = np.kron(_FILTERS[seen - 2], _FILTERS[seen - 2])
    return _by(both.T, gradient.reshape(seen**2, -1)).reshape(3, 3, *gradient.shape[2:])


def _pixels(x, tile):
    """The transformed pixels that the outputs of each tile depend on."""
    n, h, w, inputs = x.shape
    seen, rows, columns = tile + 2, -(-h // tile), -(-w // tile)
    # The tile of output (a, b) begins at padded pixel (a, b); pixel (i, j) of all tiles is a shifted part of the image.
    p = jnp.pad(x, ((0, 0), (1, (rows + 1) * tile - h - 1), (1, (columns + 1) * tile - w - 1), (0, 0)))
    p = p.reshape(n, rows + 1, tile, -1, inputs)
    part = lambda i: slice(i // tile, i // tile + rows)  # noqa: E731
    half = _combined(_PIXELS[tile], [p[:, part(i), i % tile] for i in range(seen)])
    half = half.reshape(seen, n, rows, columns + 1, tile, inputs)
    return _combined(_PIXELS[tile], [half[:, :, :, j // tile : j // tile + columns, j % tile] for j in range(seen)], axis=1)


def _combined(matrix, parts, axis=0):
    """Linear combinations of arrays, stacked; few terms each, so not as a matrix product."""
    rows = [[c * part if c != 1 else part for c, part in zip(row.tolist(), parts, strict=True) if c] for row in matrix]
    return jnp.stack([sum(row[1:], row[0]) for row in rows], axis)


def _by(matrix, array):
    return jnp.matmul(jnp.asarray(matrix, array.dtype), array, precision=lax.Precision.HIGHEST)


def _product(pixels, other, summed):
    """For each place the matrix product over channels (summed = 1) or tiles (0)."""
    contracted = ((2,), (1,)) if summed else ((1,), (1,))
    return lax.dot_general(pixels, other, (contracted, ((0,), (0,))))
