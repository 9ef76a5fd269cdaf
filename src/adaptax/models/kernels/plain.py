"""Convolution and max pool by ordinary JAX operations: what the primitives compute, and what is used without them."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def convolve(x: Float[Array, "n h w inputs"], weight: Float[Array, "k k inputs outputs"]) -> Float[Array, "n h w outputs"]:
    """Cross-correlation by filters of odd size, with zeros around the image, so that the output has the image's size."""
    dtype = jnp.result_type(x, weight)
    layout = ("NHWC", "HWIO", "NHWC")
    x, weight = jnp.asarray(x, dtype), jnp.asarray(weight, dtype)
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=layout)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """The largest pixel of each 2x2 window, and the first of equal ones.

    An odd last row or column is left out. The result of a window that holds a NaN may be NaN or the largest of the others.
    """
    return pick(x, largest(x))


def largest(x: Float[Array, "n h w c"]) -> Int[Array, "n h2 w2 c"]:
    """The place of the largest pixel in each window: 0 and 1 in its first row, 2 and 3 in its second."""
    a, b, c, d = _windows(lax.stop_gradient(x))
    first, second = a >= b, c >= d
    above = jnp.where(first, a, b) >= jnp.where(second, c, d)
    return jnp.where(above, 1 - first, 3 - second).astype(jnp.int32)


def pick(x: Float[Array, "*n h w c"], place: Int[Array, "*n h2 w2 c"]) -> Float[Array, "*n h2 w2 c"]:
    """The pixel at the given place of each window; linear in x."""
    a, b, c, d = _windows(x)
    return jnp.where(place == 0, a, jnp.where(place == 1, b, jnp.where(place == 2, c, d)))


def _windows(x):
    """The four pixels of every window, as four arrays."""
    *batch, h, w, c = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2, :].reshape(-1, 2, w // 2, 2, c)
    pixels = [pixel for row in lax.split(x, [1, 1], 1) for pixel in lax.split(row, [1, 1], 3)]
    return [pixel.reshape(*batch, h // 2, w // 2, c) for pixel in pixels]
