"""Batches of episodes from images that stay on the host, made while the device works on those before."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.images.episodes import Draw, SampleEpisode


def episodes(problem: FiniteSum, tasks_per_step: int, seed: int = 0, first: int = 0, ahead: int = 2) -> Iterator[Task]:
    r"""Batches of the episodes of a `few_shot` problem, for `ax.train(problem, ..., tasks=episodes(problem, B, seed))`.

    Episode i of batch k has the key that `ax.train` gives to task i of meta-step k, so that it is the one which the
    problem would sample on the device with the same seed. Only its images, as bytes, are brought from the host.

    Arguments:
        problem: from `few_shot`, usually with `keep="host"`.
        tasks_per_step: B, episodes in a batch.
        seed: decides all episodes (default 0).
        first: number of the first batch (default 0); `ax.train` itself skips those that a resumed run has done.
        ahead: batches that are made ahead of time, at least 1 (default 2).

    Returns: an endless iterator of batches: `Task`s whose every leaf has a leading axis of B.

    Errors: `InputError` if the problem is not one of `few_shot`, or a number cannot be.

    Example:
        >>> import itertools, jax, numpy as np
        >>> from adaptax.tasks import ImageClasses, episodes, few_shot
        >>> photos = ImageClasses(np.zeros((9, 32, 32, 3), np.uint8), ("cat", "dog"), (3, 6))
        >>> problem = few_shot(photos, ways=2, queries=2, rotations=False, keep="host")
        >>> [batch.target[0].shape for batch in itertools.islice(episodes(problem, tasks_per_step=7), 2)]
        [(7, 4, 32, 32, 3), (7, 4, 32, 32, 3)]

    Source: none; this is bookkeeping.
    """
    sample = getattr(problem, "sample_task", None)
    if not isinstance(sample, SampleEpisode):
        raise InputError("episodes takes a problem of adaptax.tasks.few_shot: give it one, best with keep='host'.")
    for name, value, least in (
        ("tasks_per_step", tasks_per_step, 1),
        ("first", first, 0),
        ("ahead", ahead, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"episodes({name}={value!r}) must be a whole number of at least {least}: change {name}=.")
    return _stream(sample, tasks_per_step, seed, first, ahead)


def _stream(sample: SampleEpisode, count: int, seed: int, first: int, ahead: int) -> Iterator[Task]:
    pixels, key = sample.pixels(), jax.random.key(seed)
    # The programs need not hold the images: they are given those of the batch.
    bare = eqx.tree_at(lambda s: s.images, sample, None, is_leaf=lambda leaf: leaf is None)

    def make(step: int) -> Task:
        draws = _draws(bare, key, jnp.asarray(step), count)
        rows = np.concatenate([np.asarray(draws.support), np.asarray(draws.target)], axis=2)
        images = jnp.asarray(np.asarray(pixels[rows]))
        return _tasks(bare, draws, images[:, :, : sample.shots], images[:, :, sample.shots :])

    pool = ThreadPoolExecutor(1, "episodes")
    try:
        waiting: deque[Future[Task]] = deque(pool.submit(make, step) for step in range(first, first + ahead))
        for step in itertools.count(first + ahead):
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, step))
            yield batch
    finally:
        # What is under way is finished; to cancel it would need modules that may be gone at the end of the program.
        pool.shutdown(wait=False)


@eqx.filter_jit
def _draws(sample: SampleEpisode, key: Array, step: Array, count: int) -> Draw:
    at_step = jax.random.fold_in(key, step)
    fold = lambda index: jax.random.fold_in(jax.random.fold_in(at_step, index), 0)  # noqa: E731
    return jax.vmap(lambda index: sample.draw(fold(index)))(jnp.arange(count))


@eqx.filter_jit
def _tasks(sample: SampleEpisode, draws: Draw, support: Array, target: Array) -> Task:
    return jax.vmap(sample.task)(draws, support, target)
