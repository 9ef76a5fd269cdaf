"""The loss of few-shot classification, and how often it is right."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from adaptax.errors import InputError

Batch = tuple[Float[Array, "n size size channels"], Int[Array, " n"]]


class CrossEntropy(eqx.Module):
    """Mean softmax cross entropy of `params(images)` and the labels."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Callable, batch: Batch) -> Float[Array, ""]:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(_logits(params, images, self.ways), labels).mean()


class Accuracy(eqx.Module):
    """The share of the images whose largest logit is the right one."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Callable, batch: Batch) -> dict[str, Array]:
        images, labels = batch
        right = jnp.argmax(_logits(params, images, self.ways), axis=-1) == labels
        return {"accuracy": jnp.mean(right, dtype=images.dtype)}


def _logits(params: Callable, images: Array, ways: int) -> Float[Array, "n ways"]:
    if not callable(params):
        raise InputError("few_shot takes a model as parameters, called as params(images): use adaptax.models.conv4.")
    logits = params(images)
    # Too few outputs would not fail: indexing beyond the last of them gives NaN.
    if logits.shape != (images.shape[0], ways):
        message = f"The model returns an array of shape {logits.shape} for {images.shape[0]} images of {ways} classes"
        raise InputError(f"{message}: give it {ways} outputs.")
    return logits
