"""Prefetching: batches of episodes are made from images on the host while the device works on earlier batches."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.images.episodes import Draw, SampleEpisode


def episodes(problem: FiniteSum, tasks_per_step: int, seed: int = 0, first: int = 0, ahead: int = 2) -> Iterator[Task]:
    r"""Batches of episodes of a `few_shot` problem, for `ax.train(problem, ..., tasks=episodes(problem, B, seed))`.

    Episode i of batch k has the key that `ax.train` gives to task i of meta-step k. It is therefore the episode that the
    problem would sample on the device with the same seed. Only the images of the batch, as bytes, are copied to the device.

    Arguments:
        problem: from `few_shot`, usually with `keep="host"`.
        tasks_per_step: B, the number of episodes in a batch, at least 1.
        seed: decides all episodes, at least 0 (default 0).
        first: number of the first batch (default 0); `ax.train` itself skips the batches that a resumed run has done.
        ahead: number of batches made ahead of time, at least 1 (default 2).

    Returns: an endless iterator of batches: `Task`s whose every leaf has a leading axis of length B.

    Errors: `InputError` if the problem is not from `few_shot`, or if a number is out of its range.

    Example:
        >>> import itertools, jax, numpy as np
        >>> from adaptax.tasks import ImageClasses, episodes, few_shot
        >>> photos = ImageClasses(np.zeros((9, 32, 32, 3), np.uint8), ("cat", "dog"), (3, 6))
        >>> problem = few_shot(photos, ways=2, queries=2, rotations=False, keep="host")
        >>> [batch.target[0].shape for batch in itertools.islice(episodes(problem, tasks_per_step=7), 2)]
        [(7, 4, 32, 32, 3), (7, 4, 32, 32, 3)]
    """
    sample = getattr(problem, "sample_task", None)
    if not isinstance(sample, SampleEpisode):
        raise InputError("episodes takes the problem that adaptax.tasks.few_shot returns: give it that, best with keep='host'.")
    count = check_whole("episodes", "tasks_per_step", tasks_per_step)
    seed, first = check_whole("episodes", "seed", seed, least=0), check_whole("episodes", "first", first, least=0)
    return _batches(sample, count, seed, first, check_whole("episodes", "ahead", ahead))


def _batches(sample: SampleEpisode, count: int, seed: int, first: int, ahead: int) -> Iterator[Task]:
    pixels, key = sample.pixels(), jax.random.key(seed)
    # The programs take the images of the batch as an argument, so the array of all images is left out.
    without_images = eqx.tree_at(lambda s: s.images, sample, None, is_leaf=lambda leaf: leaf is None)

    def make(step: int) -> Task:
        draws = _draws(without_images, key, jnp.asarray(step), count)
        rows = np.concatenate([np.asarray(draws.support), np.asarray(draws.target)], axis=2)
        images = jnp.asarray(np.asarray(pixels[rows]))
        return _tasks(without_images, draws, images[:, :, : sample.shots], images[:, :, sample.shots :])

    pool = ThreadPoolExecutor(1, "episodes")
    try:
        waiting: deque[Future[Task]] = deque(pool.submit(make, step) for step in range(first, first + ahead))
        for step in itertools.count(first + ahead):
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, step))
            yield batch
    finally:
        # Pending batches are finished, not cancelled: cancelling needs modules that may be gone when the program ends.
        pool.shutdown(wait=False)


@eqx.filter_jit
def _draws(sample: SampleEpisode, key: Array, step: Array, count: int) -> Draw:
    """The draws of one batch, by the keys that `ax.train` gives to the tasks of this meta-step."""
    step_key = jax.random.fold_in(key, step)

    def draw(index):
        return sample.draw(jax.random.fold_in(jax.random.fold_in(step_key, index), 0))

    return jax.vmap(draw)(jnp.arange(count))


@eqx.filter_jit
def _tasks(sample: SampleEpisode, draws: Draw, support: Array, target: Array) -> Task:
    return jax.vmap(sample.task)(draws, support, target)
