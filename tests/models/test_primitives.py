"""The convolution and the pooling of the networks, with all derivatives, against the compiler's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaptax.models import primitives, winograd
from adaptax.models.pooling import max_pool

# Images, height, width, inputs, outputs, filter size: Winograd's algorithm whole and in unequal groups, odd sizes, one channel,
# colours to few channels, images too small for it, other filters, those in groups, single pixels in chunks.
SHAPES = [
    (2, 14, 12, 32, 40, 3), (47, 12, 12, 40, 32, 3), (3, 13, 11, 32, 32, 3), (2, 10, 9, 1, 16, 3), (2, 8, 8, 3, 32, 3),
    (2, 3, 3, 32, 32, 3), (2, 9, 8, 12, 5, 5), (7, 28, 27, 12, 5, 5), (6, 20, 21, 5, 7, 1),
]  # fmt: skip


def native(x, weight):
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def reduced(x):
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def normal(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def operands(shape, sets=()):
    n, h, w, inputs, outputs, size = shape
    return normal((*sets, n, h, w, inputs), 0), normal((*sets, size, size, inputs, outputs), 1)


def close(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and float(jnp.abs(a - b).max()) <= 1e-12 * float(jnp.abs(b).max())


def second_order(function, *at):
    """A value, all first derivatives of a nonlinear sum, and their derivative along a direction."""
    total = lambda *at: jnp.sum(jnp.sin(function(*at)))  # noqa: E731
    gradient = jax.grad(total, range(len(at)))
    along = tuple(jnp.cos(part) for part in at)
    return function(*at), jax.jvp(gradient, at, along), jax.vjp(gradient, *at)[1](along)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_convolution_with_its_derivatives(x64, shape):
    at = operands(shape)
    close(jax.jit(lambda *at: second_order(primitives.convolve, *at))(*at), jax.jit(lambda *at: second_order(native, *at))(*at))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [*((axes, (2, 8, 8, 9, 10, 3)) for axes in ((0, 0), (0, None), (None, 0), (3, 2))), ((0, 0), (4, 8, 8, 32, 33, 3))],
)
def test_the_convolution_under_vmap(x64, axes, shape):
    images, filters = (operands(shape, (3,) if axis is not None else ())[i] for i, axis in enumerate(axes))
    at = tuple(
        part if axis is None else jnp.moveaxis(part, 0, axis) for part, axis in zip((images, filters), axes, strict=True)
    )
    both = (jax.jit(jax.vmap(lambda *at, f=f: second_order(f, *at), axes)) for f in (primitives.convolve, native))
    close(*(function(*at) for function in both))


def test_the_convolution_under_vmap_of_vmap(x64):
    x, weight = operands((2, 6, 6, 3, 4, 3), (2, 3))
    close(jax.vmap(jax.vmap(primitives.convolve))(x, weight), jax.vmap(jax.vmap(native))(x, weight))
    close(jax.vmap(jax.vmap(primitives.convolve, (0, None)), (None, 0))(x[0], weight[:, 0]),
          jax.vmap(jax.vmap(native, (0, None)), (None, 0))(x[0], weight[:, 0]))  # fmt: skip


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[3], SHAPES[6], SHAPES[8]])
def test_the_ways_of_other_machines(x64, shape, sets):
    x, weight = operands(shape, (sets,))
    y = jax.vmap(native)(x, weight)
    close(primitives._convolution_elsewhere(x, weight), y)
    expected = jax.vmap(lambda x, w, y: jax.vjp(lambda w: native(x, w), w)[1](y)[0])(x, weight, y)
    close(primitives._correlation_elsewhere(x, y, size=shape[-1]), expected)


@pytest.mark.parametrize(("side", "channels", "images"), [(28, 64, 9), (84, 64, 1), (42, 160, 2), (10, 640, 15)])
def test_groups_fit_the_caches_but_have_rows_enough(side, channels, images):
    assert primitives._tiles_fit(jax.ShapeDtypeStruct((75, side, side, channels), jnp.float32), channels) == images


def test_winograd(x64):
    x, weight = operands((2, 7, 9, 5, 6, 3))
    y, back = jax.vjp(native, x, weight)
    close(winograd.convolution(x, winograd.filters(weight)), y)
    close(winograd.filters_back(winograd.correlation(x, y)), back(y)[1])


def test_rounding_in_single_precision():
    x, weight = (part.astype(jnp.float32) for part in operands((2, 28, 28, 64, 64, 3)))
    exact = lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest")
    assert float(jnp.abs(primitives.convolve(x, weight) - exact).max() / jnp.abs(exact).max()) < 2e-5


def test_programs_for_other_machines():
    x, weight = operands(SHAPES[0], (3,))
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, weight: max_pool(primitives.convolve(x, weight)).sum(), (0, 1))))
    traced = gradient.trace(x, weight)
    for platform in ("cuda", "tpu"):
        # With filters of their own the tasks are matrix products there.
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "dot_general" in program and "stablehlo.convolution" not in program


def test_half_precision():
    x, weight = (part.astype(jnp.bfloat16) for part in operands(SHAPES[0]))
    exact = native(x.astype(jnp.float32), weight.astype(jnp.float32))
    found = primitives.convolve(x, weight)
    assert found.dtype == jnp.bfloat16 and float(jnp.abs(found - exact).max() / jnp.abs(exact).max()) < 1e-2


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 3)])
def test_the_pool_with_its_derivatives(x64, shape):
    x = normal(shape, 0)
    close(second_order(max_pool, x), second_order(reduced, x))
    several = normal((3, *shape), 1)
    close(jax.vmap(lambda x: second_order(max_pool, x))(several), jax.vmap(lambda x: second_order(reduced, x))(several))
    close(jax.vmap(lambda x: second_order(max_pool, x), 4)(jnp.moveaxis(several, 0, 4)),
          jax.vmap(lambda x: second_order(reduced, x))(several))  # fmt: skip


def test_the_pool_takes_the_first_of_equal_pixels():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 3, 2, 0].set(1).at[0, 2, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.nansum(max_pool(x)))(x)[0, :2, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])
    pooled = max_pool(x)[0, :, :, 0]
    assert pooled[1, 1] == 1 and jnp.isnan(max_pool(x.at[0, 3, 1, 0].set(jnp.nan))[0, 1, 0, 0])


def test_what_is_pooled_in_vain_has_no_derivative():
    x = jnp.ones((1, 4, 4, 1))
    both = lambda x: jax.jit(lambda x: (max_pool(x), x.sum()))(x)[1]  # noqa: E731
    assert float(jax.grad(both)(x).sum()) == 16
    again = lambda x: jax.jit(lambda x: (jax.grad(lambda x: max_pool(x).sum())(x), x.sum()))(x)[1]  # noqa: E731
    assert float(jax.grad(again)(x).sum()) == 16
