"""The residual network of twelve convolutions, the larger standard of few-shot image classification."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from adaptax.errors import InputError
from adaptax.models.convolution import ConvNet, Unit, check_norm, check_sizes, given_by_part, unit
from adaptax.models.kernels import max_pool
from adaptax.models.mlp import Linear
from adaptax.models.protocol import Given

_SLOPE = 0.1


class Residual(eqx.Module):
    """Three 3x3 units beside a 1x1 unit, then a leaky relu and a 2x2 max pool."""

    units: tuple[Unit, Unit, Unit]
    shortcut: Unit

    def __call__(self, x: Float[Array, "n h w inputs"], given: Given = None) -> Float[Array, "n h2 w2 outputs"]:
        (first, second, third), (a, b, c, d) = self.units, given_by_part(given, 4)
        y = third(_leaky(second(_leaky(first(x, a)), b)), c) + self.shortcut(x, d)
        return _leaky(max_pool(y))

    def moments(self, x: Float[Array, "n h w inputs"]) -> tuple[Any, ...]:
        """The statistics of these images in the four units."""
        first, second, third = self.units
        y = _leaky(first(x))
        z = _leaky(second(y))
        return first.moments(x), second.moments(y), third.moments(z), self.shortcut.moments(x)


class ResNet12(ConvNet):
    """Four residual blocks, the mean over pixels, and a linear head, built by `resnet12`."""

    def row(self, x):
        return x.mean((1, 2))


def resnet12(
    ways: int, *, key: PRNGKeyArray, channels: int = 64, image: tuple[int, int, int] = (84, 84, 3), norm: str = "batch",
    dtype=None,
) -> ResNet12:  # fmt: skip
    r"""Four residual blocks of three convolutions each, the mean over pixels, and a linear head.

    With $u_k(x) = \mathrm{norm}(x * W_k)$ and $\sigma$ the leaky relu of slope 0.1, a block is
    $x \mapsto \sigma\big(\max_{2\times2}(u_3(\sigma(u_2(\sigma(u_1(x))))) + u_0(x))\big)$, where
    $W_0$ has size 1x1 and the other filters 3x3. The blocks are $c$, $5c/2$, $5c$ and $10c$ wide: 64, 160, 320 and 640 as
    published. There is no dropout.

    Arguments:
        ways: number of classes, the length of the output.
        key: random key of the initial weights (He's normal distribution, in the head Glorot's uniform one; scales are 1,
            shifts and biases 0).
        channels: $c$, an even number (default 64).
        image: height, width and channels of the images (default 84, 84, 3); height and width are at least 16, since each
            block halves them.
        norm: "batch" (default), "group" or "layer", as explained at `conv4`.
        dtype: number type of the parameters (default: JAX's default).

    Returns: a module; `model(images)` takes (n, height, width, channels) and gives logits (n, ways).

    Errors: `InputError` if a size is not a whole number of at least 1, `channels` is odd, the images are too small, `norm` is
    unknown, or it is "group" and a block's width is no multiple of 8; from `model(images)` if the images have another shape.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> make = lambda key: ax.models.resnet12(5, key=key, channels=4, image=(16, 16, 3))
        >>> model = jax.eval_shape(make, jax.random.key(0))
        >>> [block.shortcut.weight.shape[-1] for block in model.blocks]
        [4, 10, 20, 40]
        >>> jax.eval_shape(lambda key: make(key)(jnp.ones((2, 16, 16, 3))), jax.random.key(0)).shape
        (2, 5)

    Source: Lee, Maji, Ravichandran, Soatto (2019), Meta-learning with differentiable convex optimization, CVPR; Oreshkin et
    al. (2018), TADAM, NeurIPS.
    """
    ways, channels, image = check_sizes("resnet12", ways, channels, image)
    if channels % 2:
        raise InputError(
            f"resnet12(channels={channels}) must be even, since the second block is 5/2 times as wide: change channels=."
        )
    widths = [image[2], channels, channels * 5 // 2, channels * 5, channels * 10]
    for width in widths[1:]:
        check_norm("resnet12", norm, width)
    he, glorot = jax.nn.initializers.he_normal(), jax.nn.initializers.glorot_uniform()
    dtype = jnp.zeros((), dtype).dtype
    keys, blocks = jax.random.split(key, (5, 4)), []
    for (a, b, c, d), i, o in zip(keys[:4], widths, widths[1:], strict=False):
        units = unit(a, 3, i, o, norm, he, dtype), unit(b, 3, o, o, norm, he, dtype), unit(c, 3, o, o, norm, he, dtype)
        blocks.append(Residual(units, unit(d, 1, i, o, norm, he, dtype)))
    head = Linear(glorot(keys[4, 0], (widths[-1], ways), dtype), jnp.zeros(ways, dtype))
    return ResNet12(tuple(blocks), head, image)


def _leaky(x):
    return jnp.where(x >= 0, x, _SLOPE * x)
