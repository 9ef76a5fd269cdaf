"""One class vector for all classes, to start from: a classifier that does not depend on how classes are numbered."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax.errors import InputError
from adaptax.models.mlp import Linear


class SharedHead(eqx.Module):
    """`start` of an inner loop, made by `shared_head`."""

    ways: int = eqx.field(static=True)

    def __call__(self, model: PyTree) -> PyTree:
        head = _head(model)
        if head is None or head.bias.shape != (1,):
            raise InputError(
                "shared_head spreads the one output of a network over all classes: make it conv4(1, ...) or mlp((..., 1))."
            )
        return _with_head(model, Linear(jnp.repeat(head.weight, self.ways, axis=1), jnp.repeat(head.bias, self.ways)))


def shared_head(ways: int) -> SharedHead:
    r"""A start for the inner loop at which all classes have the same class vector: $w_0 = (\theta, h, h, \dots, h)$.

    The outer problem's parameters are a network with one output; every task begins with that output's weights and bias
    repeated for each class, and the inner steps tell them apart. A meta-trained classifier with a vector for each class
    depends on how the classes of a task happen to be numbered; this one does not. The meta-gradient by h is the sum over
    classes.

    Arguments:
        ways: the number of classes, at least 2.

    Returns: a function for `ax.Inner(start=...)`, for networks whose last layer is `head` or the last of `layers`.

    Errors: `InputError` if ways is not a whole number of at least 2; when used, if the network has not one output.

    Example:
        >>> import adaptax as ax, jax
        >>> network = ax.models.conv4(1, key=jax.random.key(0), channels=8)
        >>> inner = ax.Inner(5, 0.4, start=ax.models.shared_head(5))
        >>> inner.initial(network).head.weight.shape
        (8, 5)

    Source: Ye, Chao (2022), How to train your MAML to excel in few-shot classification (UNICORN-MAML), arXiv 2106.16245.
    """
    if isinstance(ways, bool) or not isinstance(ways, int) or ways < 2:
        raise InputError(f"shared_head(ways={ways!r}) must be a whole number of at least 2.")
    return SharedHead(ways)


def fresh_head(model: PyTree, outputs: int = 1) -> PyTree:
    """The network with a last layer of zeros, to be fine-tuned to classes that it was not trained on.

    Arguments:
        model: a network whose last layer is `head` or the last of `layers`.
        outputs: of the new layer (default 1, which `shared_head` spreads over the classes of a task).

    Errors: `InputError` if there is no such layer.

    Example:
        >>> import adaptax as ax, jax
        >>> model = ax.models.conv4(64, key=jax.random.key(0), channels=8)
        >>> ax.models.fresh_head(model).head.weight.shape
        (8, 1)

    Source: Chen et al. (2019), A closer look at few-shot classification, ICLR.
    """
    head = _head(model)
    if head is None:
        raise InputError("fresh_head takes a network whose last layer is its head, such as adaptax.models.conv4.")
    inputs, dtype = head.weight.shape[0], head.weight.dtype
    return _with_head(model, Linear(jnp.zeros((inputs, outputs), dtype), jnp.zeros(outputs, dtype)))


def _head(model: PyTree) -> Linear | None:
    layers = getattr(model, "layers", None)
    head: Any = getattr(model, "head", layers[-1] if isinstance(layers, tuple) else None)
    return head if isinstance(head, Linear) else None


def _with_head(model: PyTree, head: Linear) -> PyTree:
    return eqx.tree_at(lambda model: model.head if hasattr(model, "head") else model.layers[-1], model, head)
