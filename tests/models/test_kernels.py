"""The convolution and the pooling of the networks, as primitives and plainly, with all derivatives."""

import inspect
import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MISSION
from jax import lax

from adaptax.models import conv4, kernels
from adaptax.models.kernels import plain, pooling, primitives, winograd

# Both implementations of the two functions.
BOTH = pytest.mark.parametrize("kind", [primitives, plain], ids=["primitives", "plain"])
BOTH_POOLS = pytest.mark.parametrize("max_pool", [pooling.max_pool, plain.max_pool], ids=["primitives", "plain"])
# Images, height, width, inputs, outputs, filter size. In this order: Winograd's algorithm for all images at once, for unequal
# groups of them, and for odd sides; one channel; colours to few channels; images too small for Winograd's algorithm; filters of
# another size, for all images at once and for groups; filters of one pixel.
SHAPES = [
    (2, 14, 12, 32, 40, 3), (47, 12, 12, 40, 32, 3), (3, 13, 11, 32, 32, 3), (2, 10, 9, 1, 16, 3), (2, 8, 8, 3, 32, 3),
    (2, 3, 3, 32, 32, 3), (2, 9, 8, 12, 5, 5), (7, 28, 27, 12, 5, 5), (6, 20, 21, 5, 7, 1),
]  # fmt: skip


def native(x, weight):
    """The compiler's convolution."""
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def shifted(x, weight):
    """The convolution by its definition: a matrix product for each place of the filters."""
    size, (_, h, w, _) = len(weight), x.shape
    edge = size // 2
    p = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return sum(p[:, i : i + h, j : j + w] @ weight[i, j] for i in range(size) for j in range(size))


def reduced(x):
    """The largest pixel of each window, where no two are equal."""
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
    gradient = jax.grad(lambda *at: jnp.sum(jnp.sin(function(*at))), range(len(at)))
    along = tuple(jnp.cos(part) for part in at)
    return function(*at), jax.jvp(gradient, at, along), jax.vjp(gradient, *at)[1](along)


def agree(one, other, axes, *at):
    """Compare two functions and their derivatives, under `vmap` where there are axes."""
    found = []
    for function in (one, other):
        run = partial(second_order, function)
        found.append(jax.jit(run if axes is None else jax.vmap(run, axes))(*at))
    close(*found)


@pytest.mark.parametrize(
    "shape", [shape if i % 2 == 0 else pytest.param(shape, marks=MISSION) for i, shape in enumerate(SHAPES)]
)
def test_the_convolution_with_its_derivatives(x64, shape):
    agree(primitives.convolve, native, None, *operands(shape))


@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[6], SHAPES[8]])
def test_the_plain_convolution_with_its_derivatives(x64, shape):
    agree(plain.convolve, shifted, None, *operands(shape))


def mapped(shape, axes, sets=3):
    """Operands with an axis of sets, each where the axes say."""
    found = []
    for i, axis in enumerate(axes):
        part = operands(shape, () if axis is None else (sets,))[i]
        found.append(part if axis is None else jnp.moveaxis(part, 0, axis))
    return found


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        *((axes, (2, 8, 8, 9, 10, 3)) for axes in ((0, 0), (0, None), (None, 0), (3, 2))),
        pytest.param((0, 0), (4, 8, 8, 32, 33, 3), marks=MISSION),
    ],
)
def test_the_convolution_under_vmap(x64, axes, shape):
    agree(primitives.convolve, native, axes, *mapped(shape, axes))


def test_the_plain_convolution_under_vmap(x64):
    agree(plain.convolve, shifted, (0, 3), *mapped((2, 8, 8, 3, 4, 3), (0, 3)))


@BOTH
def test_the_convolution_under_vmap_of_vmap(x64, kind):
    x, weight = operands((2, 6, 6, 3, 4, 3), (2, 3))
    close(jax.vmap(jax.vmap(kind.convolve))(x, weight), jax.vmap(jax.vmap(shifted))(x, weight))
    close(jax.vmap(jax.vmap(kind.convolve, (0, None)), (None, 0))(x[0], weight[:, 0]),
          jax.vmap(jax.vmap(shifted, (0, None)), (None, 0))(x[0], weight[:, 0]))  # fmt: skip


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[3], SHAPES[6], SHAPES[8]])
def test_the_ways_of_other_machines(x64, shape, sets):
    x, weight = operands(shape, (sets,))
    y = jax.vmap(native)(x, weight)
    close(primitives._convolution_elsewhere(x, weight, precision=None), y)
    expected = jax.vmap(lambda x, w, y: jax.vjp(lambda w: native(x, w), w)[1](y)[0])(x, weight, y)
    close(primitives._correlation_elsewhere(x, y, size=shape[-1], precision=None), expected)


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
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, weight: pooling.max_pool(primitives.convolve(x, weight)).sum(), (0, 1))))
    traced = gradient.trace(x, weight)
    for platform in ("cuda", "tpu"):
        # With filters of their own the tasks are matrix products there.
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "dot_general" in program and "stablehlo.convolution" not in program


@BOTH
def test_half_precision(kind):
    x, weight = (part.astype(jnp.bfloat16) for part in operands(SHAPES[0]))
    exact = native(x.astype(jnp.float32), weight.astype(jnp.float32))
    found = kind.convolve(x, weight)
    assert found.dtype == jnp.bfloat16 and float(jnp.abs(found - exact).max() / jnp.abs(exact).max()) < 1e-2


@BOTH
def test_images_of_whole_numbers_take_the_type_of_the_filters(kind):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 9, (2, 5, 4, 3), np.uint8))
    weight = normal((3, 3, 3, 2), 1).astype(jnp.float32)
    np.testing.assert_allclose(kind.convolve(x, weight), shifted(x.astype(jnp.float32), weight), rtol=1e-5, atol=1e-5)


@BOTH_POOLS
@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 7, 5, 3)])
def test_the_pool_with_its_derivatives(x64, max_pool, shape):
    agree(max_pool, reduced, None, normal(shape, 0))
    several = normal((3, *shape), 1)
    agree(max_pool, reduced, 0, several)
    agree(max_pool, reduced, 4, jnp.moveaxis(several, 0, 4))


@BOTH_POOLS
def test_the_pool_takes_the_first_of_equal_pixels(max_pool):
    x = jnp.zeros((1, 4, 4, 1)).at[0, 3, 2, 0].set(1).at[0, 2, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.nansum(max_pool(x)))(x)[0, :2, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])
    pooled = max_pool(x)[0, :, :, 0]
    assert pooled[1, 1] == 1 and jnp.isnan(max_pool(x.at[0, 3, 1, 0].set(jnp.nan))[0, 1, 0, 0])


@BOTH_POOLS
def test_a_pool_that_is_not_used_has_no_derivative(max_pool):
    x = jnp.ones((1, 4, 4, 1))

    def pooled_and_sum(x):
        return max_pool(x), x.sum()

    def gradient_and_sum(x):
        return jax.grad(lambda x: max_pool(x).sum())(x), x.sum()

    for function in (pooled_and_sum, gradient_and_sum):
        assert float(jax.grad(lambda x, f=function: jax.jit(f)(x)[1])(x).sum()) == 16


def test_the_primitives_are_chosen_where_jax_has_what_they_need():
    assert kernels.convolve is primitives.convolve and kernels.max_pool is pooling.max_pool


def loss_and_gradient():
    """A sum over the outputs of a small network, and its derivative by all leaves, as lists of numbers."""
    import jax
    import jax.numpy as jnp

    from adaptax.models import conv4

    model = conv4(3, key=jax.random.key(0), channels=2, image=(16, 16, 1))
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 1))
    found = jax.jit(jax.value_and_grad(lambda model: jnp.sum(jnp.sin(model(images)))))(model)
    return [leaf.tolist() for leaf in jax.tree.leaves(found)]


@pytest.mark.long
@pytest.mark.parametrize(
    "missing",
    [
        "jax.extend.core.Primitive",
        pytest.param("jax.interpreters.mlir.register_lowering", marks=MISSION),
        pytest.param("jax.interpreters.ad.defbilinear", marks=MISSION),
    ],
)
def test_conv4_works_without_jax_internals(x64, missing):
    module, _, name = missing.rpartition(".")
    # Equinox and optax are imported first, since they may need the same internals.
    code = f"""
import importlib, json, warnings, equinox, jax, optax
jax.config.update("jax_enable_x64", True)
delattr(importlib.import_module({module!r}), {name!r})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from adaptax.models import kernels
assert ["This version of JAX lacks" in str(warning.message) for warning in caught] == [True], caught
assert kernels.convolve is kernels.plain.convolve and kernels.max_pool is kernels.plain.max_pool
{inspect.getsource(loss_and_gradient)}
print(json.dumps(loss_and_gradient()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, expected = ([jnp.asarray(part) for part in parts] for parts in (json.loads(done.stdout), loss_and_gradient()))
    assert float(jnp.abs(expected[1]).max()) > 1e-3
    close(found, expected)


def test_networks_run_where_nothing_is_compiled():
    network, images = (
        conv4(5, key=jax.random.key(0), channels=4),
        jax.random.normal(jax.random.key(1), (2, 28, 28, 1)),
    )
    value = jax.jit(lambda images: network(images))(images)
    with jax.disable_jit():
        np.testing.assert_allclose(network(images), value, rtol=1e-4, atol=1e-5)
