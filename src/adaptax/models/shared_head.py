"""A classifier's head that starts equal for all classes, so that it does not depend on how classes are numbered."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.models.protocol import Head, head_of, with_head


class SharedHead(eqx.Module):
    """The function that `shared_head` returns: a network with one output to one with an equal output for each class."""

    ways: int = eqx.field(static=True)

    def __call__(self, model: PyTree) -> PyTree:
        weight, bias = head_of(model, "shared_head")
        if weight.shape[1] != 1:
            text = f"shared_head spreads the one output of a network over all classes, but this one has {weight.shape[1]}"
            raise InputError(f"{text}: make it with one, as conv4(1, ...) or mlp((..., 1)).")
        repeated = None if bias is None else jnp.repeat(bias, self.ways)
        return with_head(model, Head(jnp.repeat(weight, self.ways, axis=1), repeated))


def shared_head(ways: int) -> SharedHead:
    r"""A start of the inner loop at which all classes have the same class vector: $w_0 = (\theta, h, h, \dots, h)$.

    The outer problem's parameters are a network with one output. Every task begins with that output's weights and bias
    repeated for each class, and the inner steps make them differ. A meta-trained classifier with a vector for each class
    depends on how the classes of a task happen to be numbered; this one does not. The meta-gradient by h is the sum over
    classes.

    Arguments:
        ways: the number of classes, at least 2.

    Returns: a function for `ax.Inner(start=...)`, which takes a network with a head as `ax.models.Head` describes it.

    Errors: `InputError` if ways is not a whole number of at least 2; when used, if the network has no such head, or its
        head has several outputs.

    Example:
        >>> import adaptax as ax, jax
        >>> network = ax.models.conv4(1, key=jax.random.key(0), channels=8)
        >>> inner = ax.Inner(5, 0.4, start=ax.models.shared_head(5))
        >>> inner.initial(network).head.weight.shape
        (8, 5)

    Source: Ye, Chao (2022), How to train your MAML to excel in few-shot classification (UNICORN-MAML), arXiv 2106.16245.
    """
    return SharedHead(check_whole("shared_head", "ways", ways, least=2))


def fresh_head(model: PyTree, outputs: int = 1) -> PyTree:
    """The network with a head of zeros, to be fine-tuned to classes that it was not trained on.

    Arguments:
        model: a network with a head as `ax.models.Head` describes it.
        outputs: number of outputs of the new head (default 1, which `shared_head` spreads over the classes of a task).

    Errors: `InputError` if the network has no such head, or `outputs` is not a whole number of at least 1.

    Example:
        >>> import adaptax as ax, jax
        >>> model = ax.models.conv4(64, key=jax.random.key(0), channels=8)
        >>> ax.models.fresh_head(model).head.weight.shape
        (8, 1)

    Source: Chen et al. (2019), A closer look at few-shot classification, ICLR.
    """
    outputs = check_whole("fresh_head", "outputs", outputs)
    weight, bias = head_of(model, "fresh_head")
    zeros = jnp.zeros((weight.shape[0], outputs), weight.dtype)
    return with_head(model, Head(zeros, None if bias is None else jnp.zeros(outputs, bias.dtype)))
