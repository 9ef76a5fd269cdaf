"""The loss and the metrics of few-shot classification."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from adaptax.errors import InputError
from adaptax.models.protocol import Network, TakesGiven, require
from adaptax.problem import FiniteSum, Task

Batch = tuple[Float[Array, "n size size channels"], Int[Array, " n"]]
# The support and the target set of one task.
Pair = tuple[Batch, Batch]


class CrossEntropy(eqx.Module):
    """Mean softmax cross entropy of `params(images)` and the labels."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Network, batch: Batch) -> Float[Array, ""]:
        images, labels = batch
        return optax.softmax_cross_entropy_with_integer_labels(_logits(params, images, self.ways), labels).mean()


class Accuracy(eqx.Module):
    """The metric `accuracy`: the share of images whose largest logit is that of their class."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Network, batch: Batch) -> dict[str, Array]:
        images, labels = batch
        return {"accuracy": share_right(_logits(params, images, self.ways), labels)}


class WithSupport(eqx.Module):
    """A `sample_task` whose target is the pair of support and target set of another one's."""

    sample: Callable[[Key[Array, ""]], Task]

    def __call__(self, key: Key[Array, ""]) -> Task:
        task = self.sample(key)
        return Task(task.support, (task.support, task.target))


class TargetCrossEntropy(eqx.Module):
    """`CrossEntropy` of the target set of a pair (support, target)."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Network, pair: Pair) -> Float[Array, ""]:
        return CrossEntropy(self.ways)(params, pair[1])


class BothAccuracies(eqx.Module):
    """The metric `accuracy`, and `accuracy_nontransductive`, for which the support set normalises the target images."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: TakesGiven, pair: Pair) -> dict[str, Array]:
        require("both_accuracies", params, TakesGiven)
        (support, _), (images, labels) = pair
        logits = params(jnp.concatenate([support, images]), given=len(support))[len(support) :]
        return {**Accuracy(self.ways)(params, pair[1]), "accuracy_nontransductive": share_right(logits, labels)}


def both_accuracies(problem: FiniteSum) -> FiniteSum:
    """Add to a `few_shot` problem the accuracy that a network has if the target images come one by one.

    A network with `norm="batch"` normalises the target images by each other's statistics, so its `accuracy` is
    transductive. The added metric `accuracy_nontransductive` is the accuracy of the same adapted network if the statistics
    of the support set normalise the target images, as they did in the inner steps. Training on the problem does not change.

    Arguments:
        problem: from `few_shot`.

    Returns: a `FiniteSum` whose targets are pairs (support, target), for networks that take `given`, such as
        `ax.models.conv4` and `resnet12`.

    Errors: `InputError` if the problem is not from `few_shot`; when used, if the network does not take `given`.

    Example:
        >>> import adaptax as ax, jax, numpy as np
        >>> data = ax.tasks.ImageClasses(np.zeros((9, 32, 32, 1), np.uint8), ("bee", "cat", "dog"), (3, 3, 3))
        >>> problem = ax.tasks.both_accuracies(ax.tasks.few_shot(data, ways=2, queries=2))
        >>> forward = lambda w, x, given=None: (x - x[:given].mean(0)).reshape(len(x), -1) @ w
        >>> model = jax.tree_util.Partial(forward, np.ones((1024, 2), np.float32))
        >>> sorted(ax.evaluate(problem, model, ax.Inner(1, 0.1), steps=[1], tasks=2).mean)
        ['accuracy', 'accuracy_nontransductive', 'loss']

    Source: Nichol, Achiam, Schulman (2018), arXiv 1803.02999, section 6.2.
    """
    if not isinstance(problem, FiniteSum) or not isinstance(problem.loss, CrossEntropy):
        raise InputError("both_accuracies takes the problem that adaptax.tasks.few_shot returns: give it that.")
    ways = problem.loss.ways
    sample = WithSupport(problem.sample_task)
    return FiniteSum(problem.loss, sample, target_loss=TargetCrossEntropy(ways), metrics=BothAccuracies(ways))


def share_right(logits: Float[Array, "n ways"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """The share of rows whose largest logit, the first if there are several, is that of their label."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.promote_types(logits.dtype, jnp.float32))


def target_of(batch: Any) -> Batch:
    """The target set of a pair (support, target); a batch that is no pair is its own target set."""
    return batch[1] if isinstance(batch[0], tuple) else batch


def _logits(params: Network, images: Array, ways: int) -> Float[Array, "n ways"]:
    require("few_shot", params, Network)
    logits = params(images)
    # Checked here because JAX does not refuse an index beyond the last output: the loss would be NaN.
    if logits.shape != (images.shape[0], ways):
        message = f"The model returns an array of shape {logits.shape} for {images.shape[0]} images of {ways} classes"
        raise InputError(f"{message}: give it {ways} outputs.")
    return logits
