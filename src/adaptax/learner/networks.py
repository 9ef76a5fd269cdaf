"""The library's networks as data: a description in words and numbers, and a network of that shape made of one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax.errors import InputError
from adaptax.models import MLP, Conv4, ResNet12, conv4, mlp, resnet12
from adaptax.tasks.rl.policies import GaussianPolicy

_UNITS = {name: getattr(jax.nn, name) for name in ("relu", "tanh", "gelu", "silu", "sigmoid", "softplus", "elu", "leaky_relu")}
_IMAGES: dict[str, Any] = {"conv4": (Conv4, conv4), "resnet12": (ResNet12, resnet12)}


def describe(network: PyTree) -> dict[str, Any] | None:
    """A network in words and numbers; None for a network that is not the library's own."""
    if isinstance(network, GaussianPolicy):
        mean = describe(network.mean)
        return None if mean is None else {"kind": "gaussian policy", "size": network.log_std.shape[0], "mean": mean}
    if isinstance(network, MLP):
        unit = next((name for name, function in _UNITS.items() if function is network.activation), None)
        sizes = [network.layers[0].weight.shape[0], *(layer.weight.shape[1] for layer in network.layers)]
        return None if unit is None else {"kind": "mlp", "sizes": sizes, "activation": unit}
    for kind, (made, _) in _IMAGES.items():
        if isinstance(network, made):
            first = network.blocks[0] if kind == "conv4" else network.blocks[0].units[0]
            return {
                "kind": kind,
                "ways": network.head.weight.shape[1],
                "channels": first.weight.shape[-1],
                "image": list(network.image),
                "norm": first.norm,
            }
    return None


def shaped(description: dict[str, Any]) -> PyTree:
    """A network of this description, whose arrays are shapes alone.

    Errors: `InputError` for a description that this version does not know.
    """
    kind = description.get("kind")
    try:
        if kind == "gaussian policy":
            mean, size = shaped(description["mean"]), description["size"]
            return eqx.filter_eval_shape(lambda: GaussianPolicy(_filled(mean), size))
        if kind == "mlp":
            sizes, unit = description["sizes"], _UNITS[description["activation"]]
            return eqx.filter_eval_shape(lambda: mlp(sizes, key=jax.random.key(0), activation=unit))
        if kind in _IMAGES:
            make, ways = _IMAGES[kind][1], description["ways"]
            options = {name: description[name] for name in ("channels", "image", "norm")}
            return eqx.filter_eval_shape(lambda: make(ways, key=jax.random.key(0), **options))
    except (KeyError, TypeError) as error:
        raise InputError(f"The description of a network, {description}, is not whole: save the learner again.") from error
    raise InputError(f"This version of adaptax knows no network {kind!r}: install the version that saved it.")


def _filled(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
