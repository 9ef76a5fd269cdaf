"""Fully connected network on a batch of row vectors."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from adaptax.errors import InputError


class Linear(eqx.Module):
    """Affine map x W + b of a batch of rows; `weight` has shape (in, out), `bias` (out,)."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        return x @ self.weight + self.bias


class MLP(eqx.Module):
    """Fully connected network; built by `mlp`. The only leaves are the weights and biases of `layers`."""

    layers: tuple[Linear, ...]
    activation: Callable = eqx.field(static=True)

    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        if x.ndim != 2 or x.shape[1] != self.layers[0].weight.shape[0]:
            raise InputError(f"mlp takes a batch of shape (n, {self.layers[0].weight.shape[0]}), not {x.shape}: reshape x.")
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def linear(inputs: int, outputs: int, *, key: PRNGKeyArray, scale: float = 2.0, dtype=None) -> Linear:
    """A `Linear` layer with weights N(0, scale / inputs) and zero bias (scale 2: He et al. 2015, made for relu)."""
    weight = jax.random.normal(key, (inputs, outputs), dtype) * (scale / inputs) ** 0.5
    return Linear(weight, jnp.zeros((outputs,), weight.dtype))


def mlp(sizes: Sequence[int], *, key: PRNGKeyArray, activation: Callable = jax.nn.relu, dtype=None) -> MLP:
    """Fully connected network."""
    keys = jax.random.split(key, len(sizes) - 1)
    layers = [linear(a, b, key=k, dtype=dtype) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)]
    return MLP(tuple(layers), activation)
