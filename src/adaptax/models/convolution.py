"""Convolution, normalisation and pooling: the parts of the convolutional networks."""

import abc
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.models.kernels import convolve, max_pool
from adaptax.models.mlp import Linear
from adaptax.models.protocol import Given, Moments

NORMS = ("batch", "group", "layer")
GROUPS = 8
_EPSILON = 1e-5


class Unit(eqx.Module):
    """A convolution with zeros around the image and without bias, then normalisation with a learned scale and shift.

    With norm="batch" the mean and the variance are those of the images at hand, unless `given` names others.
    """

    weight: Float[Array, "k k inputs outputs"]
    scale: Float[Array, " outputs"]
    shift: Float[Array, " outputs"]
    norm: str = eqx.field(static=True, default="batch")

    def __call__(self, x: Float[Array, "n h w inputs"], given: Given = None) -> Float[Array, "n h w outputs"]:
        y = convolve(x, self.weight)
        mean, factor = self._statistics(y, given)
        return (y - mean) * factor + self.shift

    def moments(self, x: Float[Array, "n h w inputs"]) -> Any:
        """Mean and variance of each channel over these images, before normalisation."""
        flat = convolve(x, self.weight).reshape(-1, self.scale.shape[0])
        mean = flat.mean(0)
        return Moments(mean, ((flat - mean) ** 2).mean(0))

    def _statistics(self, y, given):
        """The mean of each channel, and its scale divided by its deviation; for each image unless norm="batch"."""
        if self.norm == "batch":
            if isinstance(given, Moments):
                return given.mean, self.scale * lax.rsqrt(given.variance + _EPSILON)
            y = y if given is None else y[:given]
            flat = y.reshape(-1, y.shape[-1])
            mean = flat.mean(0)
            return mean, self.scale * lax.rsqrt(((flat - mean) ** 2).mean(0) + _EPSILON)
        groups = GROUPS if self.norm == "group" else 1
        width = y.shape[-1] // groups
        flat = y.reshape(y.shape[0], -1, groups, width)
        mean = flat.mean((1, 3), keepdims=True)
        inverse = lax.rsqrt(((flat - mean) ** 2).mean((1, 3), keepdims=True) + _EPSILON)
        mean, inverse = (jnp.repeat(part[:, 0, :, 0], width, axis=1)[:, None, None] for part in (mean, inverse))
        return mean, self.scale * inverse


class Block(Unit):
    """A `Unit`, then relu and a 2x2 max pool."""

    def __call__(self, x: Float[Array, "n h w inputs"], given: Given = None) -> Float[Array, "n h2 w2 outputs"]:
        # A filter with a negative scale changes its sign, so that normalisation and relu increase with what it gives. The pool
        # then commutes with them and comes first, which leaves them a quarter of the work.
        sign = lax.stop_gradient(jnp.where(self.scale < 0, -1, 1).astype(self.weight.dtype))
        y = convolve(x, sign * self.weight)
        if self.norm == "batch" and not isinstance(given, Moments):
            mean, factor = self._statistics(y, given)
        else:
            mean, factor = self._statistics(sign * y, given)
            mean = sign * mean
        return jax.nn.relu((max_pool(y) - mean) * (sign * factor) + self.shift)


class ConvNet(eqx.Module):
    """Blocks that each halve the image, and a linear head. The method `row` of a subclass flattens the last block's output."""

    blocks: tuple[Any, ...]
    head: Linear
    image: tuple[int, int, int] = eqx.field(static=True)

    def __call__(self, images: Float[Array, "n h w c"], given: Given = None) -> Float[Array, "n ways"]:
        return self.head(self.features(images, given))

    def features(self, images: Float[Array, "n h w c"], given: Given = None) -> Float[Array, "n features"]:
        """The rows that the head is applied to; `given` says whose statistics normalise the batch (see `models.protocol`)."""
        x = self._checked(images)
        for block, part in zip(self.blocks, given_by_part(given, len(self.blocks)), strict=True):
            x = block(x, part)
        return self.row(x)

    def moments(self, images: Float[Array, "n h w c"]) -> tuple[Any, ...]:
        """The statistics of a batch in all units, in the form that `given` takes.

        Errors: `InputError` if each image is normalised by itself.
        """
        x, found = self._checked(images), []
        for block in self.blocks:
            found.append(block.moments(x))
            x = block(x)
        if any(unit.norm != "batch" for unit in jax.tree.leaves(self.blocks, is_leaf=_is_unit)):
            raise InputError('Only a network with norm="batch" has statistics of batches: leave them out, or build it so.')
        return tuple(found)

    def _checked(self, images):
        if images.ndim != 4 or images.shape[1:] != self.image:
            name, shape = type(self).__name__.lower(), ", ".join(map(str, self.image))
            raise InputError(f"{name} takes images of shape (n, {shape}), not {images.shape}: reshape them.")
        return images

    @abc.abstractmethod
    def row(self, x: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        """The last block's output as one row for each image."""


def given_by_part(given: Given, count: int) -> tuple[Any, ...]:
    """`given` for each of a network's parts: the same for all, or one entry of a tuple each."""
    return given if isinstance(given, tuple) and not isinstance(given, Moments) else (given,) * count


def _is_unit(part: Any) -> bool:
    return isinstance(part, Unit)


def check_sizes(where: str, ways: Any, channels: Any, image: Any) -> tuple[int, int, tuple[int, int, int]]:
    """The sizes as Python's whole numbers; `InputError` for others, and for images that cannot be halved four times."""
    ways, channels = check_whole(where, "ways", ways), check_whole(where, "channels", channels)
    if not isinstance(image, Iterable) or len(image := tuple(image)) != 3:
        raise InputError(f"{where}(image={image!r}) must be height, width and channels: give three whole numbers.")
    height, width, colours = (check_whole(where, f"image[{i}]", size) for i, size in enumerate(image))
    if min(height, width) < 16:
        raise InputError(f"{where} halves images four times, so {height}x{width} is too small: make them at least 16x16.")
    return ways, channels, (height, width, colours)


def unit(key, size: int, inputs: int, outputs: int, norm: str, initialize, dtype, kind: type[Unit] = Unit) -> Any:
    """A unit with size x size filters, whose weights an initializer draws; scales are 1, shifts 0."""
    weight = initialize(key, (size, size, inputs, outputs), dtype)
    return kind(weight, jnp.ones(outputs, dtype), jnp.zeros(outputs, dtype), norm)


def check_norm(where: str, norm: object, channels: int) -> None:
    """Refuse an unknown normalisation, and one whose groups do not divide the channels."""
    if norm not in NORMS:
        raise InputError(f"{where}(norm={norm!r}) must be {', '.join(map(repr, NORMS[:-1]))} or {NORMS[-1]!r}.")
    if norm == "group" and channels % GROUPS:
        raise InputError(
            f'{where}(norm="group") cuts channels into {GROUPS} groups: make channels={channels} a multiple of {GROUPS}.'
        )
