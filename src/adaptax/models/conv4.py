"""The four-block convolutional network of few-shot image classification."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from adaptax.errors import InputError
from adaptax.models.mlp import Linear

# Winograd's minimal filtering F(2x2, 3x3): input, filter and output transform of one axis, and of both by Kronecker products.
_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
_INPUT2, _FILTER2, _OUTPUT2 = (np.kron(matrix, matrix) for matrix in (_INPUT, _FILTER, _OUTPUT))
_OFFSETS = [(i, j) for i in range(3) for j in range(3)]
_EPSILON = 1e-5


class Block(eqx.Module):
    """3x3 same convolution without bias, batch normalisation by the batch's own statistics, relu, 2x2 max pool.

    Everything is matrix products and elementwise, at any order of differentiation and under `vmap`: compilers' own
    convolutions are slow with one filter per task, and in some derivatives.
    """

    weight: Float[Array, "3 3 inputs outputs"]
    scale: Float[Array, " outputs"]
    shift: Float[Array, " outputs"]

    def __call__(self, x: Float[Array, "n h w inputs"]) -> Float[Array, "n h2 w2 outputs"]:
        h, w, inputs = x.shape[1:]
        if h % 2 or w % 2:
            y = _rows(x, self.weight)
            windows = [y[:, i : h // 2 * 2 : 2, j : w // 2 * 2 : 2] for i in range(2) for j in range(2)]
        else:
            y = _thin(x, self.weight) if inputs < 8 else _winograd(x, self.weight)
            windows = [part[0] for part in lax.split(y, [1] * 4)]
        flat = y.reshape(-1, y.shape[-1])
        mean = flat.mean(0)
        factor = self.scale * lax.rsqrt(((flat - mean) ** 2).mean(0) + _EPSILON)
        # Normalisation and relu are monotone, so a quarter of the work is left if the pool comes first. What is compared is
        # the stored y, up to a sign: a maximum over recomputed, hence rounded, numbers has no reliable derivative.
        sign = lax.stop_gradient(jnp.where(self.scale < 0, -1, 1).astype(y.dtype))
        a, b, c, d = (sign * part for part in windows)
        largest = sign * _larger(_larger(a, b), _larger(c, d))
        return jax.nn.relu((largest - mean) * factor + self.shift)


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


class Conv4(eqx.Module):
    """Four convolution blocks and a linear head; built by `conv4`. The leaves are those of `blocks` and `head`."""

    blocks: tuple[Block, ...]
    head: Linear
    image: tuple[int, int, int] = eqx.field(static=True)

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n ways"]:
        if images.ndim != 4 or images.shape[1:] != self.image:
            raise InputError(
                f"conv4 takes images of shape (n, {', '.join(map(str, self.image))}), not {images.shape}: reshape them."
            )
        x = images
        for block in self.blocks:
            x = block(x)
        return self.head(x.reshape(x.shape[0], -1))


def conv4(ways: int, *, key: PRNGKeyArray, channels: int = 64, image: tuple[int, int, int] = (28, 28, 1), dtype=None) -> Conv4:
    r"""Four blocks of convolution, batch normalisation, relu and max pool, and a linear head: the standard network.

    A block is $x \mapsto \max_{2\times2}\,\mathrm{relu}\big(\mathrm{norm}(x * W)\big)$, where `norm` uses the mean and
    the variance of each channel over the batch at hand (plus 1e-5), then a learned scale and shift. There are no running
    statistics: predictions for an image depend on the batch that it comes in.

    Arguments:
        ways: classes, the length of the output.
        key: of the initial weights (Glorot's uniform distribution; scales 1, shifts and biases 0).
        channels: of each block (32 and 64 are common).
        image: height, width and channels of the images; height and width at least 16, since each block halves them.
        dtype: of the parameters (default: JAX's default).

    Returns: a module; `model(images)` takes (n, height, width, channels) and gives logits (n, ways).

    Errors: `InputError` if a size is not a whole number of at least 1, or the images are too small.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> model = ax.models.conv4(5, key=jax.random.key(0), channels=8)
        >>> model(jnp.ones((2, 28, 28, 1))).shape
        (2, 5)

    Source: Vinyals et al. (2016), Matching networks for one shot learning; Finn et al. (2017), section C.1.
    """
    sizes = (ways, channels, *image)
    if len(image) != 3 or not all(hasattr(size, "__index__") and size >= 1 for size in sizes):
        raise InputError(
            f"conv4({ways}, channels={channels}, image={image}) needs whole numbers of at least 1, three for image."
        )
    if min(image[:2]) < 16:
        raise InputError(f"conv4 halves images four times, so {image[0]}x{image[1]} is too small: make them at least 16x16.")
    keys = jax.random.split(key, 5)
    glorot = jax.nn.initializers.glorot_uniform()
    dtype = jnp.zeros((), dtype).dtype
    widths = [image[2]] + [channels] * 4
    blocks = [
        Block(glorot(k, (3, 3, a, b), dtype), jnp.ones(b, dtype), jnp.zeros(b, dtype))
        for k, a, b in zip(keys, widths, widths[1:], strict=False)
    ]
    features = math.prod(size // 16 for size in image[:2]) * channels
    head = Linear(glorot(keys[4], (features, ways), dtype), jnp.zeros(ways, dtype))
    return Conv4(tuple(blocks), head, (image[0], image[1], image[2]))
