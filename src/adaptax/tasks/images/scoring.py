"""The loss of few-shot classification, and how often it is right."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task

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


class WithSupport(eqx.Module):
    """`sample_task` whose target holds the support set too."""

    sample: Callable

    def __call__(self, key: Key[Array, ""]) -> Task:
        task = self.sample(key)
        return Task(task.support, (task.support, task.target))


class TargetCrossEntropy(eqx.Module):
    """`CrossEntropy` of the target set of a pair (support, target)."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Callable, pair: tuple[Batch, Batch]) -> Float[Array, ""]:
        return CrossEntropy(self.ways)(params, pair[1])


class BothAccuracies(eqx.Module):
    """The accuracy on the target images at hand, and that of each image with the support set's statistics."""

    ways: int = eqx.field(static=True)

    def __call__(self, params: Callable, pair: tuple[Batch, Batch]) -> dict[str, Array]:
        (given, _), (images, labels) = pair
        logits = params(jnp.concatenate([given, images]), given=len(given))[len(given) :]  # type: ignore[call-arg]
        alone = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=images.dtype)
        return {**Accuracy(self.ways)(params, pair[1]), "accuracy_nontransductive": alone}


def both_accuracies(problem: FiniteSum) -> FiniteSum:
    """A `few_shot` problem that is also judged as if target images came one by one.

    A network with `norm="batch"` normalises target images by each other, so that its accuracy is transductive. Beside it
    the metric `accuracy_nontransductive` is that of the same adapted network with the statistics of the support set, as its
    inner steps had them. Training on this problem is the same.

    Arguments:
        problem: from `few_shot`.

    Returns: a `FiniteSum` whose targets are pairs (support, target), for networks that take `given`, such as
        `ax.models.conv4` and `resnet12`.

    Errors: `InputError` if the problem is not of that kind.

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


def _logits(params: Callable, images: Array, ways: int) -> Float[Array, "n ways"]:
    if not callable(params):
        raise InputError("few_shot takes a model as parameters, called as params(images): use adaptax.models.conv4.")
    logits = params(images)
    # Too few outputs would not fail: indexing beyond the last of them gives NaN.
    if logits.shape != (images.shape[0], ways):
        message = f"The model returns an array of shape {logits.shape} for {images.shape[0]} images of {ways} classes"
        raise InputError(f"{message}: give it {ways} outputs.")
    return logits
