"""Fixed statistics for batch normalisation, apart for each number of inner steps."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from adaptax.errors import InputError
from adaptax.problem import FiniteSum
from adaptax.tasks.images.scoring import Batch, CrossEntropy, TargetCrossEntropy


class StepStatistics(eqx.Module):
    """Statistics of all units of a network after each number of inner steps; made by `ax.training.step_statistics`.

    Arguments:
        steps: numbers of inner steps, rising.
        given: what the network takes as `given`, with a leading axis over these.
    """

    steps: Int[Array, " steps"]
    given: PyTree

    def at(self, steps: Any) -> PyTree:
        """Those after so many steps, or after the nearest number above, or the last."""
        index = jnp.minimum(jnp.searchsorted(self.steps, steps), len(self.steps) - 1)
        return jax.tree.map(lambda leaf: leaf[index], self.given)


class MomentsOf(eqx.Module):
    """Metrics of `step_statistics`: means, and means of squares, of all units on the target images."""

    def __call__(self, params: Any, batch: Any) -> dict[str, Array]:
        if not hasattr(params, "moments"):
            raise InputError("step_statistics takes a network with moments(images): use adaptax.models.conv4 or resnet12.")
        images = batch[0][0] if isinstance(batch[0], tuple) else batch[0]
        found = params.moments(images)
        squares = jax.tree.map(lambda part: part._replace(variance=part.variance + part.mean**2), found, is_leaf=is_moments)
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(squares)}


def is_moments(part: Any) -> bool:
    """Whether this is the mean and the variance of one unit."""
    return hasattr(part, "_fields") and hasattr(part, "variance")


class WithStatistics(eqx.Module):
    """The metrics of a problem, and the accuracy under fixed statistics."""

    by_step: ClassVar[bool] = True
    metrics: Callable
    statistics: StepStatistics

    def __call__(self, params: Callable, batch: Any, steps: Any) -> dict[str, Array]:
        images, labels = self._target(batch)
        logits = params(images, given=self.statistics.at(steps))  # type: ignore[call-arg]
        share = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=images.dtype)
        return {**self.metrics(params, batch), "accuracy_step_statistics": share}

    @staticmethod
    def _target(batch: Any) -> Batch:
        return batch[1] if isinstance(batch[0], tuple) else batch


def with_statistics(problem: FiniteSum, statistics: StepStatistics) -> FiniteSum:
    """A `few_shot` problem that is also judged with fixed statistics for each number of inner steps.

    The metric `accuracy_step_statistics` is that of the adapted network with the statistics that training tasks have after as
    many steps: a prediction depends on the support set, by adaptation, and on the image alone.

    Arguments:
        problem: from `few_shot` or `both_accuracies`.
        statistics: from `ax.training.step_statistics`.

    Errors: `InputError` if the problem is not of that kind.

    Example:
        >>> import adaptax as ax, jax, numpy as np
        >>> pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 1), np.uint8)
        >>> data = ax.tasks.ImageClasses(pixels, ("bee", "cat", "dog"), (3, 3, 3))
        >>> problem = ax.tasks.few_shot(data, ways=2, queries=2)
        >>> model = ax.models.conv4(2, key=jax.random.key(0), channels=2, image=(16, 16, 1))
        >>> inner = ax.Inner(1, 0.1, lambda path: path.startswith("head"))
        >>> statistics = ax.training.step_statistics(problem, model, inner, [0, 1], tasks=2)
        >>> curve = ax.evaluate(ax.tasks.with_statistics(problem, statistics), model, inner, steps=[0, 1], tasks=2)
        >>> sorted(curve.mean)
        ['accuracy', 'accuracy_step_statistics', 'loss']

    Source: Antoniou et al. (2019), How to train your MAML, section 3 (running statistics for each step).
    """
    known = isinstance(problem, FiniteSum) and isinstance(problem.target_loss, CrossEntropy | TargetCrossEntropy)
    if not known or problem.metrics is None:
        raise InputError("with_statistics takes the problem that adaptax.tasks.few_shot returns: give it that.")
    metrics = WithStatistics(problem.metrics, statistics)
    return FiniteSum(problem.loss, problem.sample_task, target_loss=problem.target_loss, metrics=metrics)
