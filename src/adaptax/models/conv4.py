"""The four-block convolutional network of few-shot image classification."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from adaptax.models.convolution import Block, ConvNet, check_norm, check_sizes, unit
from adaptax.models.mlp import Linear


class Conv4(ConvNet):
    """Four convolution blocks and a linear head; built by `conv4`. The leaves are those of `blocks` and `head`."""

    def row(self, x):
        return x.reshape(x.shape[0], -1)


def conv4(
    ways: int, *, key: PRNGKeyArray, channels: int = 64, image: tuple[int, int, int] = (28, 28, 1), norm: str = "batch",
    dtype=None,
) -> Conv4:  # fmt: skip
    r"""Four blocks of convolution, batch normalisation, relu and max pool, and a linear head: the standard network.

    A block is $x \mapsto \max_{2\times2}\,\mathrm{relu}\big(\mathrm{norm}(x * W)\big)$, where `norm` subtracts a mean and
    divides by a deviation (with 1e-5 added to the variance), then has a learned scale and shift. There are no running
    statistics. What the mean is over decides what a prediction may know:

    - "batch", the literature's usual choice for MAML: each channel over all images at hand, so that a target image's
      prediction depends on the other target images. Accuracies are *transductive*, and higher for it. `model(images,
      given=n)` takes the statistics of the first n images: with the support set before the target images, predictions
      depend on that and on the image alone (`ax.tasks.both_accuracies`). `model(images, given=model.moments(others))` takes
      those of other images; `ax.training.step_statistics` measures them on training tasks for each number of inner steps.
    - "group": 8 groups of channels, each image by itself; "layer": all channels of an image. A prediction depends on the
      image alone.

    Arguments:
        ways: classes, the length of the output.
        key: of the initial weights (Glorot's uniform distribution; scales 1, shifts and biases 0).
        channels: of each block (32 and 64 are common).
        image: height, width and channels of the images; height and width at least 16, since each block halves them.
        norm: "batch" (default), "group" or "layer".
        dtype: of the parameters (default: JAX's default).

    Returns: a module; `model(images)` takes (n, height, width, channels) and gives logits (n, ways).

    Errors: `InputError` if a size is not a whole number of at least 1, the images are too small, there is no such `norm`,
    or it is "group" and channels is no multiple of 8.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> model = ax.models.conv4(5, key=jax.random.key(0), channels=8)
        >>> model(jnp.ones((2, 28, 28, 1))).shape
        (2, 5)

    Source: Vinyals et al. (2016), Matching networks for one shot learning; Finn et al. (2017), section C.1; Wu, He (2018),
    Group normalization, ECCV; on what transduction gains: Nichol, Achiam, Schulman (2018), arXiv 1803.02999, section 6.2.
    """
    check_sizes("conv4", ways, channels, image)
    check_norm("conv4", norm, channels)
    keys = jax.random.split(key, 5)
    glorot = jax.nn.initializers.glorot_uniform()
    dtype = jnp.zeros((), dtype).dtype
    widths = [image[2]] + [channels] * 4
    blocks = [unit(k, 3, a, b, norm, glorot, dtype, Block) for k, a, b in zip(keys, widths, widths[1:], strict=False)]
    features = math.prod(size // 16 for size in image[:2]) * channels
    head = Linear(glorot(keys[4], (features, ways), dtype), jnp.zeros(ways, dtype))
    return Conv4(tuple(blocks), head, (image[0], image[1], image[2]))
