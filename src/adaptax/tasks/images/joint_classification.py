"""Joint training: one classifier of all training classes, whose features are then fine-tuned to new ones."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Key

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.images.episodes import SampleEpisode
from adaptax.tasks.images.scoring import Accuracy, CrossEntropy


def joint_classification(problem: FiniteSum) -> FiniteSum:
    r"""The images of a `few_shot` problem with the numbers of their classes: ordinary classification, the other usual baseline.

    A task is a batch: all images of an episode, labelled by which of *all* classes they show (turned ones are classes of
    their own). Train with N = 0 inner steps a network with that many outputs; then give it a new head
    (`ax.models.fresh_head`) and fine-tune it to the tasks of a `few_shot` problem, everything or the head alone.

    Arguments:
        problem: from `few_shot`.

    Returns: a `FiniteSum`; `joint_classification(problem).loss.ways` is how many classes there are.

    Errors: `InputError` if the problem is not of that kind.

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
    classes = sample.counts.shape[0] * sample.turns
    return FiniteSum(CrossEntropy(classes), _SampleBatch(sample), metrics=Accuracy(classes))


class _SampleBatch(eqx.Module):
    """`sample_task` of joint training."""

    episode: SampleEpisode

    def __call__(self, key: Key[Array, ""]) -> Task:
        drawn = self.episode.draw(key)
        task = self.episode.of(drawn)
        parts: list[Any] = [task.support, task.target]
        images = jnp.concatenate([images for images, _ in parts])
        labels = drawn.classes[jnp.concatenate([labels for _, labels in parts])].astype(jnp.int32)
        return Task((images, labels), (images, labels))
