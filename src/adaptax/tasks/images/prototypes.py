"""Prototypical networks: classification by the nearest class mean of the support set, without adaptation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from adaptax.errors import InputError
from adaptax.problem import FiniteSum
from adaptax.tasks.images.scoring import Batch, CrossEntropy, WithSupport

Pair = tuple[Batch, Batch]


def prototypical(problem: FiniteSum) -> FiniteSum:
    r"""The tasks of a `few_shot` problem for a prototypical network, the usual baseline that does not adapt.

    With $f$ the network's features and $c_k$ the mean of $f$ over the support images of class k, logits of a target image x
    are $-\|f(x) - c_k\|^2$; the loss is their mean cross entropy, the metric `accuracy` how often the nearest mean is the
    right one. Support and target images go through the network together. Train and judge with N = 0 inner steps:
    `ax.MetaGradient(ax.Inner(0, 1.0))` and `ax.evaluate(..., steps=[0])`.

    Arguments:
        problem: from `few_shot`.

    Returns: a `FiniteSum` whose targets are pairs (support, target); parameters are a network with `features(images)`, such
        as `ax.models.conv4` and `resnet12`, whose head is not used.

    Errors: `InputError` if the problem is not of that kind; when used, if the network has no features.

    Example:
        >>> import adaptax as ax, jax, numpy as np
        >>> data = ax.tasks.ImageClasses(np.zeros((9, 32, 32, 1), np.uint8), ("bee", "cat", "dog"), (3, 3, 3))
        >>> problem = ax.tasks.prototypical(ax.tasks.few_shot(data, ways=2, queries=2))
        >>> model = ax.models.conv4(1, key=jax.random.key(0), channels=4, image=(32, 32, 1))
        >>> curve = ax.evaluate(problem, model, ax.Inner(0, 1.0), steps=[0], tasks=2)
        >>> sorted(curve.mean)
        ['accuracy', 'loss']

    Source: Snell, Swersky, Zemel (2017), Prototypical networks for few-shot learning, NeurIPS.
    """
    if not isinstance(problem, FiniteSum) or not isinstance(problem.loss, CrossEntropy):
        raise InputError("prototypical takes the problem that adaptax.tasks.few_shot returns: give it that.")
    ways = problem.loss.ways
    return FiniteSum(NearestMean(ways), WithSupport(problem.sample_task), metrics=NearestMeanAccuracy(ways))


class NearestMean(eqx.Module):
    """Mean cross entropy of minus the squared distances to the class means."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Callable, batch: Batch | Pair) -> Float[Array, ""]:
        logits, labels = _logits(params, batch, self.ways)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class NearestMeanAccuracy(eqx.Module):
    """The share of the images whose nearest class mean is the right one."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Callable, batch: Batch | Pair) -> dict[str, Array]:
        logits, labels = _logits(params, batch, self.ways)
        return {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=logits.dtype)}


def _logits(params: Any, batch: Any, ways: int) -> tuple[Float[Array, "n ways"], Array]:
    """Logits of the target images and their labels; a support set alone is judged by its own means."""
    if not hasattr(params, "features"):
        raise InputError("prototypical takes a network with features(images) as parameters: use adaptax.models.conv4.")
    support, target = batch if isinstance(batch[0], tuple) else (batch, batch)
    features = params.features(jnp.concatenate([support[0], target[0]]))
    given, asked = jnp.split(features.reshape(len(features), -1), [len(support[0])])
    classes = jax.nn.one_hot(support[1], ways, dtype=given.dtype)
    means = classes.T @ given / classes.sum(0)[:, None]
    return -jnp.sum((asked[:, None] - means) ** 2, axis=-1), target[1]
