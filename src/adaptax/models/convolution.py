"""Convolutions as matrix products, with normalisation and pooling: the parts of the convolutional networks."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from adaptax.errors import InputError
from adaptax.models.mlp import Linear

NORMS = ("batch", "group", "layer")
GROUPS = 8
# Winograd's minimal filtering F(2x2, 3x3): input, filter and output transform of one axis, and of both by Kronecker products.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_INPUT2, _FILTER2, _OUTPUT2 = (np.kron(matrix, matrix) for matrix in (_INPUT, _FILTER, _OUTPUT))
_OFFSETS = [(i, j) for i in range(3) for j in range(3)]
_EPSILON = 1e-5


class Moments(NamedTuple):
    """Mean and variance of each channel before normalisation."""

    mean: Float[Array, "*steps channels"]
    variance: Float[Array, "*steps channels"]


# Whose statistics normalise by batch: all images at hand, the first so many of them, or fixed ones (one for each unit).
Given = int | Moments | tuple | None


class Unit(eqx.Module):
    """Same convolution without bias, and normalisation with a learned scale and shift.

    By batch it has the statistics of the images at hand, or those that `given` says.

    Everything is matrix products and elementwise, at any order of differentiation and under `vmap`: compilers' own
    convolutions are slow with one filter per task, and in some derivatives.
    """

    weight: Float[Array, "k k inputs outputs"]
    scale: Float[Array, " outputs"]
    shift: Float[Array, " outputs"]
    norm: str = eqx.field(static=True, default="batch")

    def __call__(self, x: Float[Array, "n h w inputs"], given: Given = None) -> Float[Array, "n h w outputs"]:
        y, apart = _convolve(x, self.weight)
        mean, factor = self._statistics(y, apart, given)
        return (_whole(y, apart) - mean) * factor + self.shift

    def moments(self, x: Float[Array, "n h w inputs"]) -> Any:
        """The statistics that these images have here."""
        flat = _convolve(x, self.weight)[0].reshape(-1, self.scale.shape[0])
        mean = flat.mean(0)
        return Moments(mean, ((flat - mean) ** 2).mean(0))

    def _statistics(self, y, apart, given):
        """The mean, and the scale over the deviation, of each channel; of each image too if it is normalised by itself."""
        if self.norm == "batch":
            if isinstance(given, Moments):
                return given.mean, self.scale * lax.rsqrt(given.variance + _EPSILON)
            y = y if given is None else y[:, :given] if apart else y[:given]
            flat = y.reshape(-1, y.shape[-1])
            mean = flat.mean(0)
            return mean, self.scale * lax.rsqrt(((flat - mean) ** 2).mean(0) + _EPSILON)
        groups = GROUPS if self.norm == "group" else 1
        first = jnp.moveaxis(y, 1, 0) if apart else y
        flat = first.reshape(first.shape[0], -1, groups, y.shape[-1] // groups)
        mean = flat.mean((1, 3), keepdims=True)
        inverse = lax.rsqrt(((flat - mean) ** 2).mean((1, 3), keepdims=True) + _EPSILON)
        each = lambda x: jnp.repeat(x[:, 0, :, 0], y.shape[-1] // groups, axis=1)[:, None, None]  # noqa: E731
        return each(mean), self.scale * each(inverse)


class Block(Unit):
    """A `Unit`, then relu and 2x2 max pool."""

    def __call__(self, x: Float[Array, "n h w inputs"], given: Given = None) -> Float[Array, "n h2 w2 outputs"]:
        y, apart = _convolve(x, self.weight)
        mean, factor = self._statistics(y, apart, given)
        # Normalisation and relu are monotone, so a quarter of the work is left if the pool comes first. What is compared is
        # the stored y, up to a sign: a maximum over recomputed, hence rounded, numbers has no reliable derivative.
        sign = lax.stop_gradient(jnp.where(self.scale < 0, -1, 1).astype(y.dtype))
        a, b, c, d = (sign * part for part in _windows(y, apart))
        largest = sign * _larger(_larger(a, b), _larger(c, d))
        return jax.nn.relu((largest - mean) * factor + self.shift)


class ConvNet(eqx.Module):
    """Blocks that each halve the image, and a linear head; a subclass says how features become a row."""

    blocks: tuple[Any, ...]
    head: Linear
    image: tuple[int, int, int] = eqx.field(static=True)

    def __call__(self, images: Float[Array, "n h w c"], given: Given = None) -> Float[Array, "n ways"]:
        return self.head(self.features(images, given))

    def features(self, images: Float[Array, "n h w c"], given: Given = None) -> Float[Array, "n features"]:
        """What the head is applied to.

        Batches are normalised by all their images, by their first `given` ones, or by statistics that `moments` gave.
        """
        x = self._checked(images)
        for block, part in zip(self.blocks, each(given, len(self.blocks)), strict=True):
            x = block(x, part)
        return self.row(x)

    def moments(self, images: Float[Array, "n h w c"]) -> tuple[Any, ...]:
        """The statistics that a batch has in all units, for `given`.

        Errors: `InputError` if each image is normalised by itself.
        """
        x, found = self._checked(images), []
        for block in self.blocks:
            found.append(block.moments(x))
            x = block(x)
        if any(unit.norm != "batch" for unit in jax.tree.leaves(self.blocks, is_leaf=_is_unit)):
            raise InputError('Only a network with norm="batch" has statistics of batches: leave them out for this one.')
        return tuple(found)

    def _checked(self, images):
        if images.ndim != 4 or images.shape[1:] != self.image:
            name, shape = type(self).__name__.lower(), ", ".join(map(str, self.image))
            raise InputError(f"{name} takes images of shape (n, {shape}), not {images.shape}: reshape them.")
        return images

    @abc.abstractmethod
    def row(self, x: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        """One row for each image of what the last block gives."""


def each(given: Given, count: int) -> tuple[Any, ...]:
    """What is given to each of so many parts."""
    return given if isinstance(given, tuple) and not isinstance(given, Moments) else (given,) * count


def _is_unit(part: Any) -> bool:
    return isinstance(part, Unit)


def check_sizes(where: str, ways: Any, channels: Any, image: Any) -> None:
    """Refuse sizes that are no whole numbers, and images that cannot be halved four times."""
    sizes = (ways, channels, *image)
    if len(image) != 3 or not all(hasattr(size, "__index__") and size >= 1 for size in sizes):
        text = f"{where}({ways}, channels={channels}, image={image})"
        raise InputError(f"{text} needs whole numbers of at least 1, three for image.")
    if min(image[:2]) < 16:
        raise InputError(f"{where} halves images four times, so {image[0]}x{image[1]} is too small: make them at least 16x16.")


def unit(key, size: int, inputs: int, outputs: int, norm: str, initialize, dtype, kind: type[Unit] = Unit) -> Any:
    """A unit of size x size filters with weights from an initializer, scales 1 and shifts 0."""
    weight = initialize(key, (size, size, inputs, outputs), dtype)
    return kind(weight, jnp.ones(outputs, dtype), jnp.zeros(outputs, dtype), norm)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """2x2 max pool; an odd last row or column is left out."""
    a, b, c, d = _windows(x, False)
    return _larger(_larger(a, b), _larger(c, d))


def check_norm(where: str, norm: object, channels: int) -> None:
    """Refuse a normalisation that there is not, or that does not divide the channels."""
    if norm not in NORMS:
        raise InputError(f"{where}(norm={norm!r}) must be {', '.join(map(repr, NORMS[:-1]))} or {NORMS[-1]!r}.")
    if norm == "group" and channels % GROUPS:
        raise InputError(f'{where}(norm="group") cuts channels into {GROUPS} groups: make {channels} a multiple of {GROUPS}.')


def _convolve(x, weight):
    """The convolution, and whether the four pixels of the pooling windows are apart, on a leading axis of 4."""
    if weight.shape[0] == 1:
        return x @ weight[0, 0], False
    h, w, inputs = x.shape[1:]
    if h % 2 or w % 2:
        return _rows(x, weight), False
    return (_thin if inputs < 8 else _winograd)(x, weight), True


def _windows(y, apart):
    """The four pixels of all pooling windows."""
    if apart:
        return [part[0] for part in lax.split(y, [1] * 4)]
    h, w = y.shape[1:3]
    return [y[:, i : h // 2 * 2 : 2, j : w // 2 * 2 : 2] for i in range(2) for j in range(2)]


def _whole(y, apart):
    """The image of which the windows are apart."""
    if not apart:
        return y
    _, n, h, w, c = y.shape
    return y.reshape(2, 2, n, h, w, c).transpose(2, 3, 0, 4, 1, 5).reshape(n, 2 * h, 2 * w, c)


def _larger(a, b):
    return jnp.where(a >= b, a, b)


def _padded(x):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _rows(x, weight):
    """Any size: one row of 9 inputs for each pixel. Returns (n, h, w, outputs)."""
    n, h, w, inputs = x.shape
    p = _padded(x)
    rows = jnp.concatenate([p[:, i : i + h, j : j + w] for i, j in _OFFSETS], axis=-1).reshape(-1, 9 * inputs)
    return (rows @ weight.reshape(9 * inputs, -1)).reshape(n, h, w, -1)


def _thin(x, weight):
    """Even sizes, few channels: one column for each pixel, the four pixels of a pooling window apart.

    Returns (4, n, h / 2, w / 2, outputs).
    """
    n, h, w, inputs = x.shape
    p = _padded(x)
    columns = jnp.stack([p[:, i : i + h, j : j + w, k] for i, j in _OFFSETS for k in range(inputs)])
    columns = columns.reshape(-1, n, h // 2, 2, w // 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(9 * inputs, -1)
    y = lax.dot_general(columns, weight.reshape(9 * inputs, -1), (((0,), (0,)), ((), ())))
    return y.reshape(4, n, h // 2, w // 2, -1)


def _winograd(x, weight):
    """Even sizes, many channels: 2x2 outputs at a time with 16 products for each pair of channels instead of 36.

    The transforms are matrix products with constants, so that their derivatives are matrix products too. Returns
    (4, n, h / 2, w / 2, outputs). Source: Lavin, Gray (2016), Fast algorithms for convolutional neural networks.
    """
    n, h, w, inputs = x.shape
    rows, columns = h // 2, w // 2
    constant = lambda matrix: jnp.asarray(matrix, x.dtype)  # noqa: E731
    p = _padded(x).reshape(n, rows + 1, 2, columns + 1, 2, inputs).transpose(2, 4, 0, 1, 3, 5)
    # The tile of output (2a, 2b) begins at padded pixel (2a, 2b); pixel (i, j) of all tiles is a shifted quarter of them.
    tiles = [p[i % 2, j % 2, :, i // 2 : i // 2 + rows, j // 2 : j // 2 + columns] for i in range(4) for j in range(4)]
    tiles = (constant(_INPUT2) @ jnp.stack(tiles).reshape(16, -1)).reshape(16, -1, inputs)
    filters = (constant(_FILTER2) @ weight.reshape(9, -1)).reshape(16, inputs, -1)
    products = lax.dot_general(tiles, filters, (((2,), (1,)), ((0,), (0,))))
    return (constant(_OUTPUT2) @ products.reshape(16, -1)).reshape(4, n, rows, columns, -1)
