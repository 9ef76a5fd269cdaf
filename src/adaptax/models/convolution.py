"""Convolutions with normalisation and pooling: the parts of the convolutional networks."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from adaptax.errors import InputError
from adaptax.models.mlp import Linear
from adaptax.models.pooling import max_pool
from adaptax.models.primitives import convolve
from adaptax.models.protocol import Given, Moments

NORMS = ("batch", "group", "layer")
GROUPS = 8
_EPSILON = 1e-5


class Unit(eqx.Module):
    """Same convolution without bias, and normalisation with a learned scale and shift.

    By batch it has the statistics of the images at hand, or those that `given` says.

    The convolution is fast at any order of differentiation and with one set of filters per task: see `primitives`.
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
        """The statistics that these images have here."""
        flat = convolve(x, self.weight).reshape(-1, self.scale.shape[0])
        mean = flat.mean(0)
        return Moments(mean, ((flat - mean) ** 2).mean(0))

    def _statistics(self, y, given):
        """The mean, and the scale over the deviation, of each channel; of each image too if it is normalised by itself."""
        if self.norm == "batch":
            if isinstance(given, Moments):
                return given.mean, self.scale * lax.rsqrt(given.variance + _EPSILON)
            y = y if given is None else y[:given]
            flat = y.reshape(-1, y.shape[-1])
            mean = flat.mean(0)
            return mean, self.scale * lax.rsqrt(((flat - mean) ** 2).mean(0) + _EPSILON)
        groups = GROUPS if self.norm == "group" else 1
        flat = y.reshape(y.shape[0], -1, groups, y.shape[-1] // groups)
        mean = flat.mean((1, 3), keepdims=True)
        inverse = lax.rsqrt(((flat - mean) ** 2).mean((1, 3), keepdims=True) + _EPSILON)
        each = lambda x: jnp.repeat(x[:, 0, :, 0], y.shape[-1] // groups, axis=1)[:, None, None]  # noqa: E731
        return each(mean), self.scale * each(inverse)


class Block(Unit):
    """A `Unit`, then relu and 2x2 max pool."""

    def __call__(self, x: Float[Array, "n h w inputs"], given: Given = None) -> Float[Array, "n h2 w2 outputs"]:
        # Filters turned so that no scale is negative make what follows increasing: then the pool may come first, which leaves a
        # quarter of the work.
        sign = lax.stop_gradient(jnp.where(self.scale < 0, -1, 1).astype(self.weight.dtype))
        y = convolve(x, sign * self.weight)
        if self.norm == "batch" and not isinstance(given, Moments):
            mean, factor = self._statistics(y, given)
        else:
            mean, factor = self._statistics(sign * y, given)
            mean = sign * mean
        return jax.nn.relu((max_pool(y) - mean) * (sign * factor) + self.shift)


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


def check_norm(where: str, norm: object, channels: int) -> None:
    """Refuse a normalisation that there is not, or that does not divide the channels."""
    if norm not in NORMS:
        raise InputError(f"{where}(norm={norm!r}) must be {', '.join(map(repr, NORMS[:-1]))} or {NORMS[-1]!r}.")
    if norm == "group" and channels % GROUPS:
        raise InputError(f'{where}(norm="group") cuts channels into {GROUPS} groups: make {channels} a multiple of {GROUPS}.')
