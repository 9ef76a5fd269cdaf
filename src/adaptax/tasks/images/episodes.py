"""Few-shot classification tasks made of images by class, sampled on the device."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.distortion import Affine
from adaptax.tasks.images.scoring import Accuracy, Batch, CrossEntropy


class Draw(eqx.Module):
    """What an episode is made of: its classes, turned ones counted; rows of the images by class; keys to change images by."""

    support: Int[Array, "ways shots"]
    target: Int[Array, "ways queries"]
    turns: Int[Array, " ways"]
    keys: Key[Array, "2"]
    classes: Int[Array, " ways"]


class SampleEpisode(eqx.Module):
    """`sample_task` of `few_shot`. The images are a leaf, so that programs take them as an argument, not a constant."""

    images: UInt8[Array, "n size size channels"] | None
    starts: Int[Array, " classes"]
    counts: Int[Array, " classes"]
    host: ImageClasses | None = eqx.field(static=True)
    most: int = eqx.field(static=True)
    ways: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    turns: int = eqx.field(static=True)
    flips: bool = eqx.field(static=True)
    distortion: Affine | None

    def __call__(self, key: Key[Array, ""]) -> Task:
        return self.of(self.draw(key))

    def of(self, draw: Draw) -> Task:
        """The episode of a draw."""
        # Two small programs: XLA on the CPU takes three times as long when one distorted array is split afterwards.
        return self.task(draw, self._rows(draw.support), self._rows(draw.target))

    def draw(self, key: Key[Array, ""]) -> Draw:
        """Which classes, which images of them, and how they are changed."""
        class_key, drawing_key, support_key, target_key = jax.random.split(key, 4)
        classes = self.counts.shape[0]
        chosen = distinct(class_key, classes * self.turns, self.ways)
        kind, keys = chosen % classes, jax.random.split(drawing_key, self.ways)
        pick = lambda k, count: distinct(k, count, self.shots + self.queries, self.most)  # noqa: E731
        rows = self.starts[kind, None] + jax.vmap(pick)(keys, self.counts[kind])
        support, target = rows[:, : self.shots], rows[:, self.shots :]
        return Draw(support, target, chosen // classes, jnp.stack([support_key, target_key]), chosen)

    def task(self, draw: Draw, support: UInt8[Array, "..."], target: UInt8[Array, "..."]) -> Task:
        """The episode, given the images of its rows."""
        return Task(self._batch(support, draw.turns, draw.keys[0]), self._batch(target, draw.turns, draw.keys[1]))

    def pixels(self) -> np.ndarray:
        """All images, on the host."""
        return self.host.images if self.host is not None else np.asarray(self.images)

    def _rows(self, rows: Int[Array, "ways each"]) -> UInt8[Array, "ways each size size channels"]:
        if self.host is None:
            assert self.images is not None  # few_shot
            return self.images[rows]
        pixels = self.host.images
        shape = jax.ShapeDtypeStruct((*rows.shape, *pixels.shape[1:]), pixels.dtype)
        return jax.pure_callback(lambda rows: np.asarray(pixels[np.asarray(rows)]), shape, rows, vmap_method="broadcast_all")

    def _batch(self, images: UInt8[Array, "ways each size size channels"], turns: Int[Array, " ways"], key: Array) -> Batch:
        labels = jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), images.shape[1])
        images = turn(images, turns) if self.turns > 1 else images
        images = images.reshape(-1, *images.shape[2:]).astype(jnp.float32) / 255
        if self.flips:
            mirrored = jax.random.bernoulli(jax.random.fold_in(key, 1), shape=labels.shape)
            images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.distortion is not None and images.shape[3] == 1:
            images = self.distortion(images[..., 0], key)[..., None]
        elif self.distortion is not None:
            images = self.distortion(images, key)
        return images, labels


def few_shot(
    data: Characters | ImageClasses,
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    rotations: bool = True,
    distortion: Affine | None = None,
    flips: bool = False,
    keep: Literal["device", "host"] = "device",
) -> FiniteSum:
    r"""Few-shot classification: tell `ways` unseen classes apart, given `shots` labelled images of each.

    A task is a draw of classes, and of different images of each for support and target, all without replacement; classes
    may have different numbers of images. The loss is the mean softmax cross entropy of `params(images)`, and the metric
    `accuracy` the share of images whose largest logit is the right one (of equal logits the first counts).

    Arguments:
        data: from `read_characters`, `read_images` or `prepare_images`, or made of one's own arrays.
        ways: number of classes of a task, at least 2 (default 5).
        shots: number of support images of each class (default 1).
        queries: number of target images of each class (default 5).
        rotations: whether each class turned by 90, 180 and 270 degrees is three more classes (default True, as is usual
            for characters; give False for photographs).
        distortion: a random affine map of every image of support and target, or none (default).
        flips: whether every image is mirrored, left to right, with probability 1/2 (default False).
        keep: where the images lie: on the `'device'` (default), or on the `'host'`, in memory or in their file, if they
            are too many; `episodes` then brings batches ahead of time.

    Returns: a `FiniteSum` problem. `task.support` and `task.target` are pairs (images, labels): float32 in [0, 1] of
        shape (ways * shots, size, size, channels), int32 of shape (ways * shots,); the target with `queries` for `shots`.

    Errors: `InputError` if there are too few classes or images, or a number is not positive.

    Example:
        >>> import jax, numpy as np
        >>> from adaptax.tasks import Characters, ImageClasses, few_shot
        >>> names = tuple(f"Greek/character{i:02}" for i in range(1, 7))
        >>> problem = few_shot(Characters(np.zeros((6, 20, 28, 28), np.uint8), names), ways=5, shots=1, queries=3)
        >>> task = problem.sample_task(jax.random.key(0))
        >>> task.support[0].shape, task.target[1].shape
        ((5, 28, 28, 1), (15,))
        >>> photos = ImageClasses(np.zeros((9, 32, 32, 3), np.uint8), ("cat", "dog"), (3, 6))
        >>> few_shot(photos, ways=2, queries=2, rotations=False).sample_task(jax.random.key(0)).target[0].shape
        (4, 32, 32, 3)

    Source: Vinyals et al. (2016), NeurIPS; rotations as new classes: Santoro et al. (2016), ICML.
    """
    for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"few_shot({name}={value!r}) must be a whole number of at least {least}: change {name}=.")
    if not isinstance(data, Characters | ImageClasses):
        raise InputError("few_shot takes Characters or ImageClasses: give it what adaptax.tasks.read_images returns.")
    if distortion is not None and not isinstance(distortion, Affine):
        raise InputError("few_shot(distortion=...) must be None or an adaptax.tasks.Affine: give one of them.")
    if keep not in ("device", "host"):
        raise InputError(f"few_shot(keep={keep!r}) must be 'device' or 'host': change keep=.")
    turns = 4 if rotations else 1
    data = _flat(data) if isinstance(data, Characters) else data
    if ways > len(data) * turns:
        counted = ", rotations counted" if rotations else ""
        raise InputError(f"There are only {len(data) * turns} classes{counted}: give ways= at most that.")
    if shots + queries > (fewest := min(data.counts)):
        message = f"The class with the fewest images has {fewest}, but shots + queries is {shots + queries}"
        raise InputError(f"{message}: give fewer shots or queries, or data with more images of each class.")
    data = data.compact() if keep == "device" else data
    images, host = (jnp.asarray(data.images), None) if keep == "device" else (None, data)
    starts, counts = jnp.asarray(data.starts, jnp.int32), jnp.asarray(data.counts, jnp.int32)
    most, flips = max(data.counts), bool(flips)
    sample = SampleEpisode(images, starts, counts, host, most, ways, shots, queries, turns, flips, distortion)
    return FiniteSum(CrossEntropy(ways), sample, metrics=Accuracy(ways))


def _flat(data: Characters) -> ImageClasses:
    classes, drawings, size, _ = data.images.shape
    return ImageClasses(data.images.reshape(-1, size, size, 1), data.names, (drawings,) * classes)


def distinct(key: Key[Array, ""], n: int | Int[Array, ""], k: int, most: int | None = None) -> Int[Array, " k"]:
    """`k` of the numbers 0..n-1 in random order without repeats: the first steps of a Fisher-Yates shuffle.

    Where n is not known when the program is made, `most` is the largest that it can be.
    """
    # A shuffle of all n, as jax.random.choice does it, sorts: at n = 4,000 that costs a hundred times as much.
    places = jax.random.randint(key, (k,), jnp.arange(k), n)
    swap = lambda i, order: order.at[i].set(order[places[i]]).at[places[i]].set(order[i])  # noqa: E731
    return jax.lax.fori_loop(0, k, swap, jnp.arange(n if most is None else most))[:k]


def turn(images: UInt8[Array, "ways each size size ..."], turns: Int[Array, " ways"]) -> UInt8[Array, "..."]:
    """Row i of the images turned by 90 degrees `turns[i]` times, anticlockwise, as `np.rot90`."""
    which = jnp.broadcast_to(turns.reshape(-1, *[1] * (images.ndim - 1)), images.shape)
    return jax.lax.select_n(which, *(jnp.rot90(images, k, axes=(2, 3)) for k in range(4)))
