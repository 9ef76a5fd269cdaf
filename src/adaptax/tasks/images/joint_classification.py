"""Joint classification: one classifier of all training classes, whose features are then fine-tuned to new classes."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Key

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.images.episodes import SampleEpisode
from adaptax.tasks.images.scoring import Accuracy, CrossEntropy


def joint_classification(problem: FiniteSum) -> FiniteSum:
    r"""Ordinary classification of all training classes at once: the pre-training of the usual fine-tuning baseline.

    A task is a batch: all images of an episode of a `few_shot` problem, each labelled by the number of its class among
    *all* classes, where rotated classes are classes of their own. Train a network with that many outputs on it with N = 0
    inner steps. Then give the network a new head (`ax.models.fresh_head`), and fine-tune either all of it or the head
    alone to the tasks of a `few_shot` problem.

    Arguments:
        problem: from `few_shot`.

    Returns: a `FiniteSum`; `joint_classification(problem).loss.ways` is the number of classes.

    Errors: `InputError` if the problem is not from `few_shot`.

    Example:
        >>> import adaptax as ax, jax, numpy as np
        >>> data = ax.tasks.ImageClasses(np.zeros((9, 32, 32, 1), np.uint8), ("bee", "cat", "dog"), (3, 3, 3))
        >>> problem = ax.tasks.joint_classification(ax.tasks.few_shot(data, ways=2, queries=2, rotations=False))
        >>> problem.loss.ways, problem.sample_task(jax.random.key(0)).target[1].shape
        (3, (6,))

    Source: Chen et al. (2019), A closer look at few-shot classification, ICLR; Tian et al. (2020), ECCV.
    """
    sample = getattr(problem, "sample_task", None)
    if not isinstance(sample, SampleEpisode):
        raise InputError("joint_classification takes the problem that adaptax.tasks.few_shot returns: give it that.")
    return FiniteSum(CrossEntropy(sample.class_count), _SampleBatch(sample), metrics=Accuracy(sample.class_count))


class _SampleBatch(eqx.Module):
    """`sample_task` of `joint_classification`."""

    sample: SampleEpisode

    def __call__(self, key: Key[Array, ""]) -> Task:
        draw = self.sample.draw(key)
        task = self.sample.episode(draw)
        parts: list[Any] = [task.support, task.target]
        images = jnp.concatenate([images for images, _ in parts])
        labels = draw.classes[jnp.concatenate([labels for _, labels in parts])].astype(jnp.int32)
        return Task((images, labels), (images, labels))
