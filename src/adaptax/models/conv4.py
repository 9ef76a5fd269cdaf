"""The four-block convolutional network of few-shot image classification."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from adaptax.errors import InputError
from adaptax.models.mlp import Linear


def _convolve(x, weight):
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, axis=-1) @ weight.reshape(-1, weight.shape[-1])


class Block(eqx.Module):
    """3x3 same convolution without bias, batch normalisation by the batch's own statistics, relu, 2x2 max pool."""

    weight: Float[Array, "3 3 inputs outputs"]
    scale: Float[Array, " outputs"]
    shift: Float[Array, " outputs"]

    def __call__(self, x: Float[Array, "n h w inputs"]) -> Float[Array, "n h2 w2 outputs"]:
        y = _convolve(x, self.weight)
        mean = y.mean((0, 1, 2))
        variance = ((y - mean) ** 2).mean((0, 1, 2))
        y = jax.nn.relu((y - mean) * (self.scale * jax.lax.rsqrt(variance + 1e-5)) + self.shift)
        n, h, w, c = y.shape
        return y[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


class Conv4(eqx.Module):
    """Four convolution blocks and a linear head; built by `conv4`."""

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
    """Four-block convolutional network."""
    keys = jax.random.split(key, 5)
    glorot = jax.nn.initializers.glorot_uniform()
    blocks, inputs = [], image[2]
    dtype = jnp.zeros((), dtype).dtype
    for k in keys[:4]:
        blocks.append(Block(glorot(k, (3, 3, inputs, channels), dtype), jnp.ones(channels, dtype), jnp.zeros(channels, dtype)))
        inputs = channels
    features = (image[0] // 16) * (image[1] // 16) * channels
    return Conv4(tuple(blocks), Linear(glorot(keys[4], (features, ways), dtype), jnp.zeros(ways, dtype)), image)
