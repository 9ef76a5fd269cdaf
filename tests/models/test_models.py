"""Models: shapes, types, keys, refusals, and the convolutional networks against ones made of the compiler's operations."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative

import adaptax as ax

# Some sides are odd in one of the four blocks, where the pooling leaves out a row or a column: 7 and 3; 21, 15, 5, 7 and 3; 5.
IMAGES = [(28, 28, 1), (21, 30, 3), (16, 20, 3)]


def normalised(unit, x):
    """Convolution and normalisation, by the compiler's operation for each part."""
    x = jax.lax.conv_general_dilated(x, unit.weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if unit.norm == "batch":
        mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) * unit.scale + unit.shift
    parts = jnp.split(x, 8 if unit.norm == "group" else 1, axis=-1)
    parts = [(p - p.mean((1, 2, 3), keepdims=True)) / jnp.sqrt(p.var((1, 2, 3), keepdims=True) + 1e-5) for p in parts]
    return jnp.concatenate(parts, -1) * unit.scale + unit.shift


def pooled(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def reference(model, images):
    """The forward pass of conv4."""
    x = images
    for block in model.blocks:
        x = pooled(jax.nn.relu(normalised(block, x)))
    return x.reshape(x.shape[0], -1) @ model.head.weight + model.head.bias


def residual_reference(model, images):
    """The forward pass of resnet12."""
    x, act = images, lambda y: jax.nn.leaky_relu(y, 0.1)
    for block in model.blocks:
        y = x
        for unit in block.units[:2]:
            y = act(normalised(unit, y))
        x = pooled(act(normalised(block.units[2], y) + normalised(block.shortcut, x)))
    return x.mean((1, 2)) @ model.head.weight + model.head.bias


def moved(model, seed):
    """A network whose scales, shifts and biases are not those it begins with."""
    random = np.random.default_rng(seed)
    model = jax.tree.map(lambda leaf: leaf + (0.1 * random.normal(size=leaf.shape)).astype(leaf.dtype), model)
    if isinstance(model, ax.models.Conv4):
        # Where a scale is negative, the largest output of a pooling window comes from the smallest input.
        blocks = [eqx.tree_at(lambda b: b.scale, b, b.scale.at[::3].multiply(-1)) for b in model.blocks]
        model = eqx.tree_at(lambda model: model.blocks, model, tuple(blocks))
    return model


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module", params=IMAGES, ids=["28x28x1", "21x30x3", "16x20x3"])
def conv(request):
    """A network, and images for it."""
    model = ax.models.conv4(5, key=jax.random.key(0), channels=8, image=request.param)
    return moved(model, 1), normal((6, *request.param), 2)


def cross_entropy(forward, model, images):
    return -jnp.mean(jax.nn.log_softmax(forward(model, images))[:, 1])


def refused(match, function, *arguments, **options):
    with pytest.raises(ax.InputError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def refused_images(match, make, shape):
    """A network of two classes refuses images of this shape while it is traced."""
    refused(match, jax.eval_shape, lambda x: make(2, key=jax.random.key(0))(x), jax.ShapeDtypeStruct(shape, "float32"))


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "make",
    [
        lambda key: ax.models.mlp((3, 5, 2), key=key),
        lambda key: ax.models.conv4(2, key=key, channels=3),
    ],
    ids=["mlp", "conv4"],
)
def test_the_key_decides_the_parameters(make):
    one, other = make(jax.random.key(0)), make(jax.random.key(1))
    assert same(one, make(jax.random.key(0)))
    assert not same(one, other)


def test_mlp_shapes_and_start():
    model = ax.models.mlp([3, 200, 100, 2], key=jax.random.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(3, 200), (200,), (200, 100), (100,), (100, 2), (2,)]
    assert all(not layer.bias.any() for layer in model.layers)
    assert float(jnp.std(model.layers[1].weight)) == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert model(jnp.ones((7, 3))).shape == (7, 2)
    assert model(jnp.ones((0, 3))).shape == (0, 2)


def test_mlp_is_what_its_formula_says(x64):
    model = ax.models.mlp((3, 6, 4, 2), key=jax.random.key(0), activation=jnp.tanh)
    model = moved(model, 1)
    x = np.random.default_rng(0).normal(size=(5, 3))
    w1, b1, w2, b2, w3, b3 = (np.asarray(leaf) for leaf in jax.tree.leaves(model))
    expected = np.tanh(np.tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, rtol=1e-12)
    relu = ax.models.mlp((1, 4, 1), key=jax.random.key(0))
    w1, _, w2, _ = (np.asarray(leaf) for leaf in jax.tree.leaves(relu))
    np.testing.assert_allclose(relu(jnp.asarray(x[:, :1])), np.maximum(x[:, :1] @ w1, 0) @ w2, rtol=1e-12)


def shapes(function, *arguments):
    """Types and shapes of the function's results, without computing them."""
    return {(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(function, *arguments))}


@pytest.mark.parametrize(
    "dtype, double, expected",
    [
        (None, False, "float32"),
        (None, True, "float64"),
        ("float32", True, "float32"),
        ("float64", True, "float64"),
        ("bfloat16", False, "bfloat16"),
    ],
)
def test_types(dtype, double, expected):
    with jax.enable_x64(double):
        for make, batch, outputs in (
            (partial(ax.models.mlp, (2, 3, 1), dtype=dtype), (4, 2), 1),
            (partial(ax.models.conv4, 2, channels=2, dtype=dtype), (4, 28, 28, 1), 2),
        ):
            assert {found for found, _ in shapes(lambda m=make: m(key=jax.random.key(0)))} == {jnp.dtype(expected)}
            output = shapes(lambda x, m=make: m(key=jax.random.key(0))(x), jax.ShapeDtypeStruct(batch, expected))
            assert output == {(jnp.dtype(expected), (4, outputs))}


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0), (3, -1, 2), (3, 2.5), (True, 2), 5, "12", (3, None)])
def test_sizes_that_cannot_be(sizes):
    match = r"must be (two or more whole numbers: give widths|a whole number of at least 1: change sizes\[[01]\])"
    refused(match, ax.models.mlp, sizes, key=jax.random.key(0))


@pytest.mark.parametrize("shape", [(28, 0, 1), (28, 28), (28.0, 28, 1), 28, (28, 28, True)])
def test_images_that_cannot_be(shape):
    refused(r"conv4\(image(\[[012]\])?=.*whole number", ax.models.conv4, 5, key=jax.random.key(0), image=shape)
    refused(r"conv4\(ways=0\) must be a whole number", ax.models.conv4, 0, key=jax.random.key(0))
    refused(r"conv4\(channels=0\) must be a whole number", ax.models.conv4, 2, key=jax.random.key(0), channels=0)


def test_sizes_may_be_numbers_of_numpy():
    assert ax.models.mlp(np.array([2, 3, 1]), key=jax.random.key(0))(jnp.ones((4, 2))).shape == (4, 1)
    one, two = (
        jax.eval_shape(lambda s=sizes: ax.models.conv4(s[0], key=jax.random.key(0), channels=s[1], image=s[2]))
        for sizes in ((5, 8, (16, 16, 3)), (np.int64(5), np.int32(8), np.array([16, 16, 3])))
    )
    # Static fields are equal and hashable, so that one compiled program serves both.
    assert {jax.tree.structure(one)} == {jax.tree.structure(two)}


def test_other_bad_arguments_of_mlp():
    key = jax.random.key(0)
    refused("must be a function of an array: give", ax.models.mlp, (2, 1), key=key, activation=3)
    refused("must be a floating-point type: give", ax.models.mlp, (2, 1), key=key, dtype=jnp.int32)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4, 3), ()])
def test_mlp_refuses_other_shapes(shape):
    model = ax.models.mlp((3, 2), key=jax.random.key(0))
    refused(r"of shape \(n, 3\), not .*: reshape", model, jnp.ones(shape))


@pytest.mark.parametrize("shape", [(28, 28, 1), (4, 28, 28), (4, 28, 27, 1), (4, 28, 28, 3), (1, 4, 28, 28, 1)])
def test_conv4_refuses_other_shapes(shape):
    refused_images(r"of shape \(n, 28, 28, 1\), not .*: reshape", partial(ax.models.conv4, channels=2), shape)


def test_conv4_shapes():
    model = ax.models.conv4(5, key=jax.random.key(0), channels=8, image=(37, 50, 3))
    assert [block.weight.shape for block in model.blocks] == [(3, 3, 3, 8)] + 3 * [(3, 3, 8, 8)]
    assert all(bool(jnp.all(block.scale == 1)) and not block.shift.any() for block in model.blocks)
    assert model.head.weight.shape == (2 * 3 * 8, 5) and not model.head.bias.any()
    assert jax.eval_shape(model, jnp.ones((4, 37, 50, 3))).shape == (4, 5)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 9 * 3 * 8 + 3 * 9 * 64 + 4 * 16 + 48 * 5 + 5


def test_conv4_is_the_network_it_stands_for(conv):
    got, expected = jax.jit(lambda model, x: model(x))(*conv), jax.jit(reference)(*conv)
    assert float(jnp.std(expected)) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_derivatives_of_conv4(x64):
    model = moved(ax.models.conv4(5, key=jax.random.key(0), channels=8, image=IMAGES[2], dtype=jnp.float32), 1)
    model, direction = (jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree) for tree in (model, moved(model, 3)))
    images = jnp.asarray(normal((6, *IMAGES[2]), 2), jnp.float64)

    def derivatives(forward, **options):
        gradient = jax.grad(lambda m: cross_entropy(forward, m, images))
        return jax.jit(lambda m: jax.jvp(gradient, (m,), (direction,))).lower(model).compile(options)(model)

    # The reference need not be fast, so it is compiled as it stands.
    pairs = zip(derivatives(lambda m, x: m(x)), derivatives(reference, xla_backend_optimization_level=0), strict=True)
    for got, expected in pairs:
        assert relative(got, expected) < 1e-9


def test_images_of_whole_numbers():
    model = moved(ax.models.conv4(5, key=jax.random.key(0), channels=8, image=IMAGES[2]), 1)
    assert any(float(block.scale.min()) < 0 for block in model.blocks)
    images = np.random.default_rng(0).integers(0, 9, (6, *IMAGES[2]), np.uint8)
    np.testing.assert_array_equal(model(jnp.asarray(images)), model(jnp.asarray(images, jnp.float32)))


@pytest.mark.parametrize("norm", ["batch", "group", pytest.param("layer", marks=pytest.mark.slow)])
def test_normalisations_are_what_they_are_called(norm):
    images = normal((6, *IMAGES[1]), 2)
    model = moved(ax.models.conv4(5, key=jax.random.key(0), channels=16, image=IMAGES[1], norm=norm), 1)
    run = jax.jit(lambda model, x: model(x))
    whole = run(model, images)
    np.testing.assert_allclose(whole, jax.jit(reference)(model, images), atol=2e-5)
    # A prediction depends on the other images at hand with "batch" only.
    alone = float(jnp.abs(run(model, images[:3]) - whole[:3]).max())
    assert alone > 1e-2 if norm == "batch" else alone < 1e-5


# Sides that are even, odd, and even again: 20, 10, 5, 2.
RESIDUAL = (20, 22, 3)


@pytest.mark.long
@pytest.mark.parametrize("norm", ["batch", pytest.param("layer", marks=pytest.mark.slow)])
def test_resnet12_is_the_network_it_stands_for(x64, norm):
    model = moved(ax.models.resnet12(5, key=jax.random.key(0), channels=4, image=RESIDUAL, norm=norm), 1)
    assert [block.shortcut.weight.shape for block in model.blocks] == [
        (1, 1, 3, 4),
        (1, 1, 4, 10),
        (1, 1, 10, 20),
        (1, 1, 20, 40),
    ]
    assert model.head.weight.shape == (40, 5)
    images = jnp.asarray(normal((4, *RESIDUAL), 2), jnp.float64)

    def value_and_gradient(forward):
        return jax.jit(jax.value_and_grad(lambda model: cross_entropy(forward, model, images)))(model)

    for got, expected in zip(value_and_gradient(lambda m, x: m(x)), value_and_gradient(residual_reference), strict=True):
        assert relative(got, expected) < 1e-9


def test_resnet12_and_normalisations_refuse():
    key, small = jax.random.key(0), (16, 16, 3)
    refused("must be even", ax.models.resnet12, 5, key=key, channels=3, image=small)
    refused("give three whole numbers", ax.models.resnet12, 5, key=key, image=(84, 84))
    refused("too small: make them at least 16x16", ax.models.resnet12, 5, key=key, image=(84, 12, 3))
    refused("must be 'batch', 'group' or 'layer'", ax.models.conv4, 5, key=key, norm="instance")
    refused("make channels=12 a multiple of 8", ax.models.conv4, 5, key=key, channels=12, norm="group")
    refused("make channels=4 a multiple of 8", ax.models.resnet12, 5, key=key, channels=4, image=small, norm="group")
    grey = (4, 16, 16, 1)
    refused_images(r"of shape \(n, 16, 16, 3\), not .*: reshape", partial(ax.models.resnet12, channels=2, image=small), grey)
