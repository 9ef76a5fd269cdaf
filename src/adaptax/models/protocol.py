"""The interface between networks and the library: the call, and the methods that a network may offer beside it.

A network is any pytree that is a function of a batch: an equinox module, a registered dataclass, or a
`jax.tree_util.Partial`. Its parameters are its floating-point leaves. It inherits nothing from this library. Everything beyond
the call `model(images)` is optional, and is found by name:

- a keyword `given` of the call (`TakesGiven`), needed by `ax.tasks.both_accuracies` and `ax.tasks.with_statistics`;
- a method `features(images)` (`HasFeatures`), needed by `ax.tasks.prototypical`;
- a method `moments(images)` (`HasMoments`), needed by `ax.training.step_statistics`;
- a last layer called `head`, or the last of `layers` (`Head`), needed by `ax.models.shared_head` and `fresh_head`.

`require` refuses a network that lacks what is needed.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from adaptax.errors import InputError


class Moments(NamedTuple):
    """Mean and variance of each channel before normalisation."""

    mean: Float[Array, "*steps channels"]
    variance: Float[Array, "*steps channels"]


# The statistics that normalise a batch: those of all its images (None), of its first n images, or what `moments` returned.
Given = int | Moments | tuple | None


class Network(Protocol):
    """A network: its call takes a batch of inputs and returns one row of outputs for each of them."""

    def __call__(self, images: Float[Array, "n *shape"], /) -> Float[Array, "n outputs"]: ...


class TakesGiven(Protocol):
    """A network whose call also takes the statistics that normalise the batch.

    `given=None` stands for those of the whole batch, `given=n` for those of its first n images, and `given=moments` for
    what the method `moments` returned.
    """

    def __call__(self, images: Float[Array, "n *shape"], /, *, given: Given = None) -> Float[Array, "n outputs"]: ...


@runtime_checkable
class HasFeatures(Protocol):
    """A network with `features(images)`: the rows (or arrays) that its head is applied to, one for each image."""

    def features(self, images: Float[Array, "n *shape"], /) -> Float[Array, "n *features"]: ...


@runtime_checkable
class HasMoments(Protocol):
    """A network with `moments(images)`: the statistics of a batch at every normalisation, in the form that `given` takes.

    They are a pytree whose parts are named tuples with `mean` and `variance`, such as `Moments`.
    """

    def moments(self, images: Float[Array, "n *shape"], /) -> PyTree: ...


_WORDS: dict[Any, str] = {
    Network: "a network that is called as model(images)",
    TakesGiven: "a network that is called as model(images, given=n)",
    HasFeatures: "a network with a method features(images)",
    HasMoments: "a network with a method moments(images)",
}


def offers(model: Any, protocol: Any) -> bool:
    """Whether a network offers what a protocol of this module asks for.

    Arguments:
        model: the network.
        protocol: `Network`, `TakesGiven`, `HasFeatures` or `HasMoments`.

    Example:
        >>> import adaptax as ax, jax
        >>> from adaptax.models.protocol import HasFeatures, TakesGiven, offers
        >>> model = ax.models.mlp((2, 8, 3), key=jax.random.key(0))
        >>> offers(model, HasFeatures), offers(model, TakesGiven)
        (False, False)
        >>> offers(ax.models.conv4(5, key=jax.random.key(0)), TakesGiven)
        True
    """
    if protocol is Network:
        return callable(model)
    if protocol is TakesGiven:
        return callable(model) and _takes(model, "given")
    return isinstance(model, protocol)


def require(where: str, model: Any, protocol: Any) -> None:
    """Refuse a network that does not offer what `where` needs.

    Arguments:
        where: the function that needs it, for the message.
        model, protocol: as for `offers`.

    Errors: `InputError`.

    Example:
        >>> import adaptax as ax, jax
        >>> from adaptax.models.protocol import HasFeatures, require
        >>> require("prototypical", ax.models.mlp((2, 3), key=jax.random.key(0)), HasFeatures)
        Traceback (most recent call last):
        adaptax.errors.InputError: prototypical takes a network with a method features(images), which MLP is not: use one such
        as adaptax.models.conv4.
    """
    if not offers(model, protocol):
        text = f"{where} takes {_WORDS[protocol]}, which {type(model).__name__} is not"
        raise InputError(f"{text}: use one such as adaptax.models.conv4.")


def is_moments(part: Any) -> bool:
    """Whether a part of what `moments` returned is the mean and the variance of one normalisation."""
    return isinstance(part, tuple) and {"mean", "variance"} <= set(getattr(part, "_fields", ()))


class Head(NamedTuple):
    """Weights and bias of a network's last layer, which takes features x to outputs x W + b.

    The layer lies at the attribute `head` of the network (which may be a property), or is the last of its `layers`. It is
    any pytree with `weight` of shape (inputs, outputs) and `bias` of shape (outputs,) or None; or an `equinox.nn.Linear`,
    whose weight of shape (outputs, inputs) is transposed here.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"] | None


def head_of(model: PyTree, where: str = "head_of") -> Head:
    """Weights and bias of a network's head.

    Arguments:
        model: the network.
        where: the function that needs it, for the message.

    Errors: `InputError` if the network has no such layer.

    Example:
        >>> import adaptax as ax, jax
        >>> ax.models.head_of(ax.models.mlp((2, 8, 3), key=jax.random.key(0))).weight.shape
        (8, 3)
    """
    layer = _layer(model, where)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is not None and jnp.ndim(weight) == 2:
        weight = weight.T if isinstance(layer, eqx.nn.Linear) else weight
        if bias is None or jnp.shape(bias) == weight.shape[1:]:
            return Head(weight, bias)
    raise InputError(
        f"{where} takes a network whose last layer is its head, with weight of shape (inputs, outputs) and bias of shape "
        f"(outputs,), which {type(layer).__name__} has not: give the layer these."
    )


def with_head(model: PyTree, head: Head) -> PyTree:
    """The network with other weights and another bias in its head; the number of outputs may change.

    Arguments:
        model: the network.
        head: weight of shape (inputs, outputs) and bias of shape (outputs,), or None where the layer has none.

    Errors: `InputError` if the network has no such layer, or one of the two heads has a bias and the other has none.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> model = ax.models.mlp((2, 8, 3), key=jax.random.key(0))
        >>> model = ax.models.with_head(model, ax.models.Head(jnp.zeros((8, 5)), jnp.zeros(5)))
        >>> model(jnp.ones((4, 2))).shape
        (4, 5)
    """
    has_bias = head_of(model, "with_head").bias is not None
    if has_bias != (head.bias is not None):
        raise InputError(
            f"with_head needs a head {'with' if has_bias else 'without'} a bias, as the network's own: change bias."
        )
    layer, (weight, bias) = _layer(model, "with_head"), head
    if isinstance(layer, eqx.nn.Linear):
        # The sizes are static fields, so a layer of the new sizes takes its place.
        sizes = layer.in_features, weight.shape[1]
        layer = eqx.filter_eval_shape(eqx.nn.Linear, *sizes, has_bias, key=jax.random.key(0))
        weight = weight.T
    if has_bias:
        layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
    else:
        layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
    return eqx.tree_at(lambda model: _layer(model, "with_head"), model, layer)


@dataclass(frozen=True)
class HeadOnly:
    """A predicate on paths of leaves, made by `head_only`: whether a leaf belongs to the head."""

    paths: frozenset[str]

    def __call__(self, path: str) -> bool:
        return path in self.paths


def head_only(model: PyTree) -> HeadOnly:
    """A choice of leaves for `ax.Inner(adapt=...)`: the head adapts, everything before it stays as it is (ANIL).

    Arguments:
        model: a network with an attribute `head`, or whose last layer is the last of `layers`. The head may be any pytree.

    Returns: a function from a leaf's path to a boolean; it fits all networks of the same structure.

    Errors: `InputError` if the network has no head.

    Example:
        >>> import adaptax as ax, jax
        >>> model = ax.models.mlp((2, 8, 3), key=jax.random.key(0))
        >>> sorted(ax.models.head_only(model).paths)
        ['layers.1.bias', 'layers.1.weight']
        >>> inner = ax.Inner(5, 0.1, adapt=ax.models.head_only(model))

    Source: Raghu, Raghu, Bengio, Vinyals (2020), Rapid learning or feature reuse?, ICLR.
    """

    def marked_with(chosen, tree):
        return jax.tree.map(lambda leaf: chosen, tree)

    head = partial(marked_with, True)
    marked = eqx.tree_at(lambda model: _layer(model, "head_only"), marked_with(False, model), replace_fn=head)
    leaves = jax.tree_util.tree_leaves_with_path(marked)
    return HeadOnly(frozenset(jax.tree_util.keystr(path, simple=True, separator=".") for path, chosen in leaves if chosen))


def _layer(model: PyTree, where: str) -> Any:
    """The layer that is a network's head."""
    layers = getattr(model, "layers", None)
    layer = getattr(model, "head", layers[-1] if isinstance(layers, tuple | list) and layers else None)
    if layer is None:
        text = f"{where} takes a network whose last layer is its head, which {type(model).__name__} has not"
        raise InputError(f"{text}: call that layer head, or make it the last of layers.")
    return layer


def _takes(function: Any, name: str) -> bool:
    """Whether a function has a keyword of this name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True  # Some functions written in C have no signature.
    kinds = {parameter.kind for parameter in parameters.values()}
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds
