"""The fully connected network, applied to a batch of row vectors."""

from collections.abc import Callable, Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from adaptax._checks import check_whole
from adaptax.errors import InputError


class Linear(eqx.Module):
    """Affine map x W + b of a batch of rows; `weight` has shape (in, out), `bias` (out,)."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        return x @ self.weight + self.bias


class MLP(eqx.Module):
    """A fully connected network, built by `mlp`. Its only leaves are the weights and biases of `layers`."""

    layers: tuple[Linear, ...]
    activation: Callable = eqx.field(static=True)

    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        if x.ndim != 2 or x.shape[1] != self.layers[0].weight.shape[0]:
            raise InputError(f"mlp takes a batch of shape (n, {self.layers[0].weight.shape[0]}), not {x.shape}: reshape x.")
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def linear(inputs: int, outputs: int, *, key: PRNGKeyArray, scale: float = 2.0, dtype=None) -> Linear:
    """A `Linear` layer with weights N(0, scale / inputs) and zero bias (scale 2 is that of He et al. 2015, for relu)."""
    weight = jax.random.normal(key, (inputs, outputs), dtype) * (scale / inputs) ** 0.5
    return Linear(weight, jnp.zeros((outputs,), weight.dtype))


def mlp(sizes: Sequence[int], *, key: PRNGKeyArray, activation: Callable = jax.nn.relu, dtype=None, init: str = "he") -> MLP:
    r"""Fully connected network $x_{i+1} = \phi(x_i W_i + b_i)$, without $\phi$ after the last layer.

    The result is both the parameters and the model: a pytree whose only leaves are the weights and biases, which is called as
    a function of a batch of row vectors.

    Arguments:
        sizes: the widths of input, hidden layers and output, at least two; (1, 40, 40, 1) has two hidden layers. Weight i
            has shape (sizes[i], sizes[i + 1]); biases begin at 0.
        key: random key of the initial weights.
        activation: $\phi$, applied to arrays of shape (n, width) (default `jax.nn.relu`).
        dtype: number type of the parameters (default: JAX's, float32 unless double precision is enabled).
        init: distribution of the weights: N(0, 2 / inputs) ("he", default), or N(0, 2 / (inputs + outputs)) ("glorot"), which
            keeps the outputs of a policy small.

    Returns: an `MLP`: `model(x)` takes x of shape (n, sizes[0]) to shape (n, sizes[-1]).

    Errors: `InputError` if there are fewer than two sizes, a size is not a whole number of at least 1, `activation` is not a
        function, `dtype` is no floating-point type, or `init` is unknown; from `model(x)` if x has another shape.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> model = ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
        >>> model(jnp.ones((10, 1))).shape
        (10, 1)
        >>> sum(leaf.size for leaf in jax.tree.leaves(model))
        1761

    Source: the network of Finn, Abbeel, Levine (2017), ICML, for sinusoids; initial weights: He et al. (2015), ICCV;
    Glorot and Bengio (2010), AISTATS.
    """
    if not isinstance(sizes, Iterable) or len(sizes := tuple(sizes)) < 2:
        raise InputError(f"mlp(sizes={sizes!r}) must be two or more whole numbers: give widths such as (1, 40, 1).")
    sizes = tuple(check_whole("mlp", f"sizes[{i}]", size) for i, size in enumerate(sizes))
    if not callable(activation):
        raise InputError(f"mlp(activation={activation!r}) must be a function of an array: give one such as jax.nn.tanh.")
    if not jnp.issubdtype(jnp.zeros((), dtype).dtype, jnp.floating):
        raise InputError(f"mlp(dtype={jnp.dtype(dtype).name}) must be a floating-point type: give one such as jnp.float32.")
    if init not in ("he", "glorot"):
        raise InputError(f'mlp(init={init!r}) must be "he" or "glorot": change init=.')
    keys, layers = jax.random.split(key, len(sizes) - 1), []
    for inputs, outputs, layer_key in zip(sizes[:-1], sizes[1:], keys, strict=True):
        scale = 2.0 if init == "he" else 2 * inputs / (inputs + outputs)
        layers.append(linear(inputs, outputs, key=layer_key, dtype=dtype, scale=scale))
    return MLP(tuple(layers), activation)
