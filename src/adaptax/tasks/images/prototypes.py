"""Prototypical networks: classification by the nearest class mean of the support set, without adaptation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from adaptax.errors import InputError
from adaptax.models.protocol import HasFeatures, require
from adaptax.problem import FiniteSum
from adaptax.tasks.images.scoring import Batch, CrossEntropy, Pair, WithSupport, share_right


def prototypical(problem: FiniteSum) -> FiniteSum:
    r"""The tasks of a `few_shot` problem for a prototypical network, the usual baseline that does not adapt.

    Let $f$ be the network's features and $c_k$ the mean of $f$ over the support images of class k. The logits of a target
    image x are $-\|f(x) - c_k\|^2$. The loss is their mean cross entropy; the metric `accuracy` is the share of target
    images whose nearest class mean is that of their class. Support and target images go through the network together.
    Train and evaluate with N = 0 inner steps: `ax.MetaGradient(ax.Inner(0, 1.0))` and `ax.evaluate(..., steps=[0])`.

    Arguments:
        problem: from `few_shot`.

    Returns: a `FiniteSum` whose targets are pairs (support, target). Its parameters are a network with a method
        `features(images)`, such as `ax.models.conv4` and `resnet12`, whose head is not used.

    Errors: `InputError` if the problem is not from `few_shot`; when used, if the network has no `features`.

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
    """Mean cross entropy of the logits, which are minus the squared distances to the class means."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: HasFeatures, batch: Batch | Pair) -> Float[Array, ""]:
        logits, labels = _logits(params, batch, self.ways)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class NearestMeanAccuracy(eqx.Module):
    """The metric `accuracy`: the share of images whose nearest class mean is that of their class."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: HasFeatures, batch: Batch | Pair) -> dict[str, Array]:
        return {"accuracy": share_right(*_logits(params, batch, self.ways))}


def _logits(params: HasFeatures, batch: Any, ways: int) -> tuple[Float[Array, "n ways"], Int[Array, " n"]]:
    """Logits of the target images, and their labels. A batch that is no pair is both support and target set."""
    require("prototypical", params, HasFeatures)
    support, target = batch if isinstance(batch[0], tuple) else (batch, batch)
    features = params.features(jnp.concatenate([support[0], target[0]]))
    of_support, of_target = jnp.split(features.reshape(len(features), -1), [len(support[0])])
    classes = jax.nn.one_hot(support[1], ways, dtype=of_support.dtype)
    means = classes.T @ of_support / classes.sum(0)[:, None]
    return -jnp.sum((of_target[:, None] - means) ** 2, axis=-1), target[1]
