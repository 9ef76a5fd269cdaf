"""The four-block convolutional network of few-shot image classification."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from adaptax.models.convolution import Block, ConvNet, check_norm, check_sizes, unit
from adaptax.models.mlp import Linear


class Conv4(ConvNet):
    """Four convolution blocks and a linear head, built by `conv4`. Its leaves are those of `blocks` and `head`."""

    def row(self, x):
        return x.reshape(x.shape[0], -1)


def conv4(
    ways: int, *, key: PRNGKeyArray, channels: int = 64, image: tuple[int, int, int] = (28, 28, 1), norm: str = "batch",
    dtype=None,
) -> Conv4:  # fmt: skip
    r"""Four blocks of convolution, batch normalisation, relu and max pool, and a linear head: the standard network.

    A block is $x \mapsto \max_{2\times2}\,\mathrm{relu}\big(\mathrm{norm}(x * W)\big)$, where `norm` subtracts a mean, divides
    by a deviation (with 1e-5 added to the variance), multiplies by a learned scale and adds a learned shift. There are no
    running statistics. The set that the mean is taken over decides what a prediction depends on:

    - "batch", the literature's usual choice for MAML, takes it over all images at hand, for each channel. A target image's
      prediction then depends on the other target images; accuracies are *transductive*, and higher for it. `model(images,
      given=n)` takes the statistics of the first n images: with the support set before the target images, a prediction
      depends on the support set and on its own image alone (`ax.tasks.both_accuracies`). `model(images,
      given=model.moments(others))` takes the statistics of other images; `ax.training.step_statistics` measures them on
      training tasks for each number of inner steps.
    - "group" takes it over each of 8 groups of channels of one image, "layer" over all channels of one image. A prediction
      then depends on its own image alone.

    Arguments:
        ways: number of classes, the length of the output.
        key: random key of the initial weights (Glorot's uniform distribution; scales are 1, shifts and biases 0).
        channels: width of each block (default 64; 32 is common too).
        image: height, width and channels of the images (default 28, 28, 1); height and width are at least 16, since each
            block halves them.
        norm: "batch" (default), "group" or "layer".
        dtype: number type of the parameters (default: JAX's default).

    Returns: a module; `model(images)` takes (n, height, width, channels) and gives logits (n, ways).

    Errors: `InputError` if a size is not a whole number of at least 1, the images are too small, `norm` is unknown, or it is
    "group" and `channels` is no multiple of 8; from `model(images)` if the images have another shape.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> model = ax.models.conv4(5, key=jax.random.key(0), channels=8)
        >>> model(jnp.ones((2, 28, 28, 1))).shape
        (2, 5)

    Source: Vinyals et al. (2016), Matching networks for one shot learning; Finn et al. (2017), section C.1; Wu, He (2018),
    Group normalization, ECCV; on the gain by transduction: Nichol, Achiam, Schulman (2018), arXiv 1803.02999, section 6.2.
    """
    ways, channels, image = check_sizes("conv4", ways, channels, image)
    check_norm("conv4", norm, channels)
    keys = jax.random.split(key, 5)
    glorot = jax.nn.initializers.glorot_uniform()
    dtype = jnp.zeros((), dtype).dtype
    widths = [image[2]] + [channels] * 4
    blocks = [unit(k, 3, a, b, norm, glorot, dtype, Block) for k, a, b in zip(keys, widths, widths[1:], strict=False)]
    features = math.prod(size // 16 for size in image[:2]) * channels
    head = Linear(glorot(keys[4], (features, ways), dtype), jnp.zeros(ways, dtype))
    return Conv4(tuple(blocks), head, image)
