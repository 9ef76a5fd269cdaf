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
        layers = getattr(model, "layers", None)
        head: Any = getattr(model, "head", layers[-1] if isinstance(layers, tuple) else None)
        if not isinstance(head, Linear) or head.bias.shape != (1,):
            raise InputError(
                "shared_head spreads the one output of a network over all classes: make it conv4(1, ...) or mlp((..., 1))."
            )
        spread = Linear(jnp.repeat(head.weight, self.ways, axis=1), jnp.repeat(head.bias, self.ways))
        where = lambda model: model.head if hasattr(model, "head") else model.layers[-1]  # noqa: E731
        return eqx.tree_at(where, model, spread)


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
