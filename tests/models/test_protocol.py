"""Networks of a user's own: their heads, and the other things that the library finds on them by name."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cross_entropy, no_tasks

import adaptax as ax
from adaptax.models.protocol import HasFeatures, HasMoments, Moments, Network, TakesGiven, is_moments, offers, require


class Equinox(eqx.Module):
    """An equinox network, applied by `vmap`, whose head lies deeper and is named by a property."""

    mlp: eqx.nn.MLP

    def __call__(self, images):
        return jax.vmap(self.mlp)(images)

    @property
    def head(self):
        return self.mlp.layers[-1]


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=[])
@dataclass
class Affine:
    weight: Any
    bias: Any


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=[])
@dataclass
class Registered:
    """A dataclass of the user's own; its layers are a list."""

    layers: list

    def __call__(self, images):
        for layer in self.layers:
            images = jnp.tanh(images) @ layer.weight + (0 if layer.bias is None else layer.bias)
        return images


def equinox(outputs, bias=True, inputs=3):
    mlp = eqx.nn.MLP(inputs, outputs, 4, 1, use_final_bias=bias, key=jax.random.key(0))
    return Equinox(mlp)


def registered(outputs, bias=True, inputs=3):
    draw = partial(jax.random.normal, jax.random.key(1))
    return Registered([Affine(draw((inputs, 4)), draw((4,))), Affine(draw((4, outputs)), draw((outputs,)) if bias else None)])


NETWORKS = pytest.mark.parametrize("make", [equinox, registered])


@NETWORKS
@pytest.mark.parametrize("bias", [True, False])
def test_one_output_is_spread_over_classes(make, bias):
    model, images = make(1, bias), jnp.linspace(-1, 1, 6).reshape(2, 3)
    spread = ax.models.shared_head(5)(model)
    np.testing.assert_allclose(spread(images), jnp.repeat(model(images), 5, axis=1), rtol=1e-6)
    fresh = ax.models.fresh_head(spread, 2)
    assert fresh(images).shape == (2, 2) and not jnp.any(fresh(images))
    weight, offset = ax.models.head_of(spread)
    assert weight.shape == (4, 5) and (offset is not None) == bias


@NETWORKS
def test_with_head_puts_in_what_head_of_takes_out(make):
    model, other = make(3), make(4)
    assert eqx.tree_equal(ax.models.with_head(model, ax.models.head_of(model)), model)
    # The head of a square layer is transposed as any other.
    square = make(4)
    changed = ax.models.with_head(square, ax.models.Head(jnp.arange(16.0).reshape(4, 4), jnp.zeros(4)))
    np.testing.assert_array_equal(ax.models.head_of(changed).weight, jnp.arange(16.0).reshape(4, 4))
    wider = ax.models.with_head(model, ax.models.head_of(other))
    assert wider(jnp.ones((2, 3))).shape == (2, 4) and eqx.tree_equal(ax.models.head_of(wider), ax.models.head_of(other))
    with pytest.raises(ax.InputError, match="needs a head with a bias"):
        ax.models.with_head(model, ax.models.Head(jnp.zeros((4, 5)), None))


@NETWORKS
def test_the_head_alone_adapts(make, x64):
    model = jax.tree.map(lambda leaf: leaf.astype(float) if eqx.is_array(leaf) else leaf, make(3))
    labels = jnp.arange(6) % 3
    batch = jax.random.normal(jax.random.key(3), (6, 3)), labels
    problem, task = ax.FiniteSum(cross_entropy, no_tasks), ax.Task(batch, batch)
    inner = ax.Inner(3, 0.5, adapt=ax.models.head_only(model))
    adapted = ax.adapt(problem, model, task, inner).params
    before, after = ax.models.head_of(model), ax.models.head_of(adapted)
    assert not np.allclose(before.weight, after.weight) and not np.allclose(before.bias, after.bias)
    assert eqx.tree_equal(ax.models.with_head(adapted, before), model)
    # Choices of the same leaves are equal, so that one compiled program serves both.
    assert ax.models.head_only(model) == ax.models.head_only(make(1))


def test_head_only_takes_any_head():
    class Deep(eqx.Module):
        body: eqx.nn.Linear
        head: eqx.nn.MLP

    model = Deep(eqx.nn.Linear(2, 3, key=jax.random.key(0)), eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1)))
    paths = {"head.layers.0.weight", "head.layers.0.bias", "head.layers.1.weight", "head.layers.1.bias"}
    arrays = [path for path in ax.models.head_only(model).paths if "layers" in path]
    assert set(arrays) == paths
    with pytest.raises(ax.InputError, match=r"bias of shape \(outputs,\), which MLP has not"):
        ax.models.head_of(model)


@pytest.mark.parametrize("model", [{"w": jnp.ones(3)}, jnp.ones(3), Registered([])])
def test_networks_without_a_head(model):
    for function in (ax.models.head_of, ax.models.head_only, ax.models.fresh_head, ax.models.shared_head(3)):
        with pytest.raises(ax.InputError, match=r"whose last layer is its head, which .* has not: call that layer head"):
            function(model)


def test_a_weight_the_other_way_round_is_refused():
    with pytest.raises(ax.InputError, match=r"weight of shape \(inputs, outputs\)"):
        ax.models.head_of(Registered([Affine(jnp.ones((5, 2)), jnp.ones(5))]))


class Everything(eqx.Module):
    def __call__(self, images, given=None):
        return images

    def features(self, images):
        return images

    def moments(self, images):
        return Moments(images.mean(0), images.var(0))


def test_what_networks_offer():
    conv4 = ax.models.conv4(5, key=jax.random.key(0), channels=2)
    for protocol in (Network, TakesGiven, HasFeatures, HasMoments):
        assert offers(conv4, protocol) and offers(Everything(), protocol) and not offers(jnp.ones(2), protocol)
        require("here", Everything(), protocol)
        with pytest.raises(ax.InputError, match=r"^here takes a network .*, which .* is not: use one such as"):
            require("here", jnp.ones(2), protocol)
    mlp = ax.models.mlp((2, 3), key=jax.random.key(0))
    assert [offers(mlp, protocol) for protocol in (Network, TakesGiven, HasFeatures, HasMoments)] == [True, False, False, False]
    assert offers(jax.tree_util.Partial(lambda w, x, **options: x @ w, jnp.ones((2, 2))), TakesGiven)
    assert not offers(jax.tree_util.Partial(lambda w, x: x @ w, jnp.ones((2, 2))), TakesGiven)


def test_moments_are_named_tuples_of_a_mean_and_a_variance():
    found = ax.models.conv4(5, key=jax.random.key(0), channels=2).moments(jnp.ones((2, 28, 28, 1)))
    assert [is_moments(part) for part in found] == [True] * 4
    assert not is_moments(found) and not is_moments((1, 2)) and not is_moments(jnp.ones(2))
