"""Fixed statistics for batch normalisation, one set for each number of inner steps."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from adaptax.errors import InputError
from adaptax.models.protocol import HasMoments, TakesGiven, is_moments, require
from adaptax.problem import FiniteSum
from adaptax.tasks.images.scoring import CrossEntropy, TargetCrossEntropy, share_right, target_of


class StepStatistics(eqx.Module):
    """Statistics of all normalisations of a network after each number of inner steps, from `ax.training.step_statistics`.

    Arguments:
        steps: numbers of inner steps, in rising order.
        given: what the network takes as `given`, with a leading axis over `steps`.
    """

    steps: Int[Array, " steps"]
    given: PyTree

    def at(self, steps: Any) -> PyTree:
        """The statistics after `steps` steps, or after the next larger number that was measured, or after the last."""
        index = jnp.minimum(jnp.searchsorted(self.steps, steps), len(self.steps) - 1)
        return jax.tree.map(lambda leaf: leaf[index], self.given)


class MomentsOf(eqx.Module):
    """The metrics of `step_statistics`: for every normalisation, mean and mean of squares over the target images."""

    def __call__(self, params: HasMoments, batch: Any) -> dict[str, Array]:
        require("step_statistics", params, HasMoments)
        found = params.moments(target_of(batch)[0])
        # Means of squares, unlike variances, may be averaged over tasks.
        squares = jax.tree.map(lambda part: part._replace(variance=part.variance + part.mean**2), found, is_leaf=is_moments)
        return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(squares)}


class WithStatistics(eqx.Module):
    """The metrics of a problem, and the accuracy under fixed statistics."""

    by_step: ClassVar[bool] = True
    metrics: Callable
    statistics: StepStatistics

    def __call__(self, params: TakesGiven, batch: Any, steps: Any) -> dict[str, Array]:
        require("with_statistics", params, TakesGiven)
        images, labels = target_of(batch)
        share = share_right(params(images, given=self.statistics.at(steps)), labels)
        return {**self.metrics(params, batch), "accuracy_step_statistics": share}


def with_statistics(problem: FiniteSum, statistics: StepStatistics) -> FiniteSum:
    """Add to a `few_shot` problem the accuracy under fixed statistics for each number of inner steps.

    The metric `accuracy_step_statistics` is the accuracy of the adapted network if it normalises by the statistics that
    training tasks have after the same number of steps. A prediction then depends on the support set, through adaptation,
    and on its own image alone.

    Arguments:
        problem: from `few_shot` or `both_accuracies`.
        statistics: from `ax.training.step_statistics`.

    Errors: `InputError` if the problem is not of that kind; when used, if the network does not take `given`.

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
