"""Few-shot classification tasks (episodes), sampled on the device from images by class."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from adaptax._checks import check_true_or_false, check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.distinct import distinct
from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.distortion import Affine
from adaptax.tasks.images.scoring import Accuracy, Batch, CrossEntropy


class Draw(eqx.Module):
    """The random choices of one episode, from which its images are fetched and changed.

    Arguments:
        support, target: rows of the array of all images.
        turns: quarter turns of the images of each class, 0 to 3.
        keys: for flips and distortions, one for the support and one for the target set.
        classes: the class of each way among all classes, where a rotated class is a class of its own.
    """

    support: Int[Array, "ways shots"]
    target: Int[Array, "ways queries"]
    turns: Int[Array, " ways"]
    keys: Key[Array, "2"]
    classes: Int[Array, " ways"]


class SampleEpisode(eqx.Module):
    """`sample_task` of `few_shot`. The images are a leaf, so that programs take them as an argument, not a constant.

    Arguments:
        images: all images on the device, or None if they stay on the host.
        starts, counts: first row and number of images of each class.
        host: the data whose images are fetched from the host, or None.
        ways, shots, queries, flips, distortion: as for `few_shot`.
        rotations: 4 if each class turned by a multiple of 90 degrees is a class of its own, else 1.
    """

    images: UInt8[Array, "n size size channels"] | None
    starts: Int[Array, " classes"]
    counts: Int[Array, " classes"]
    host: ImageClasses | None = eqx.field(static=True)
    ways: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    rotations: int = eqx.field(static=True)
    flips: bool = eqx.field(static=True)
    distortion: Affine | None

    @property
    def class_count(self) -> int:
        """The number of classes that episodes are drawn from, rotated ones included."""
        return self.counts.shape[0] * self.rotations

    def __call__(self, key: Key[Array, ""]) -> Task:
        return self.episode(self.draw(key))

    def episode(self, draw: Draw) -> Task:
        """The episode of a draw."""
        # Support and target are fetched apart: on the CPU, splitting one distorted array takes XLA three times as long.
        return self.task(draw, self._fetch(draw.support), self._fetch(draw.target))

    def draw(self, key: Key[Array, ""]) -> Draw:
        """Draw the classes, their images, their turns, and the keys for flips and distortions."""
        class_key, image_key, support_key, target_key = jax.random.split(key, 4)
        classes = distinct(class_key, self.class_count, self.ways)
        turns, unturned = jnp.divmod(classes, self.counts.shape[0])

        def images_of(key, count):
            return distinct(key, count, self.shots + self.queries)

        keys = jax.random.split(image_key, self.ways)
        rows = self.starts[unturned, None] + jax.vmap(images_of)(keys, self.counts[unturned])
        support, target = rows[:, : self.shots], rows[:, self.shots :]
        return Draw(support, target, turns, jnp.stack([support_key, target_key]), classes)

    def task(self, draw: Draw, support: UInt8[Array, "..."], target: UInt8[Array, "..."]) -> Task:
        """The episode of a draw, given the images of its rows."""
        return Task(self._batch(support, draw.turns, draw.keys[0]), self._batch(target, draw.turns, draw.keys[1]))

    def pixels(self) -> np.ndarray:
        """All images, on the host."""
        return self.host.images if self.host is not None else np.asarray(self.images)

    def _fetch(self, rows: Int[Array, "ways each"]) -> UInt8[Array, "ways each size size channels"]:
        """The images of these rows, from the device or through a callback from the host."""
        if self.host is None:
            assert self.images is not None  # few_shot
            return self.images[rows]
        pixels = self.host.images
        shape = jax.ShapeDtypeStruct((*rows.shape, *pixels.shape[1:]), pixels.dtype)
        return jax.pure_callback(lambda rows: np.asarray(pixels[np.asarray(rows)]), shape, rows, vmap_method="broadcast_all")

    def _batch(self, images: UInt8[Array, "ways each size size channels"], turns: Int[Array, " ways"], key: Array) -> Batch:
        """The images turned, flipped and distorted, as numbers in [0, 1], and their labels."""
        labels = jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), images.shape[1])
        images = turn(images, turns) if self.rotations > 1 else images
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
    r"""Few-shot classification: tell `ways` new classes apart, given `shots` labelled images of each.

    A task draws `ways` classes, and from each class `shots` images for the support and `queries` others for the target
    set, all uniformly and without replacement. Classes may have different numbers of images. The loss is the mean softmax
    cross entropy of `params(images)`. The metric `accuracy` is the share of images whose largest logit is that of their
    class; the first one counts where several logits are largest.

    Arguments:
        data: from `read_characters`, `read_images` or `prepare_images`, or made from your own arrays.
        ways: number of classes of a task, at least 2 (default 5).
        shots: number of support images of each class (default 1).
        queries: number of target images of each class (default 5).
        rotations: True (default) makes three more classes of each one, its images turned by 90, 180 and 270 degrees. This
            is usual for characters; give False for photographs.
        distortion: a random affine distortion of every image of support and target, or None (default).
        flips: True mirrors every image, left to right, with probability 1/2 (default False).
        keep: where the images stay: on the `'device'` (default), or on the `'host'`, in memory or in their file, if they
            do not fit on the device. `episodes` then brings batches to the device ahead of time.

    Returns: a `FiniteSum` problem. `task.support` and `task.target` are pairs (images, labels). For the support set, images
        are float32 in [0, 1] of shape (ways * shots, size, size, channels), labels int32 of shape (ways * shots,); for the
        target set `queries` stands for `shots`.

    Errors: `InputError` if there are too few classes or images, or if an argument is out of its range.

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
    ways = check_whole("few_shot", "ways", ways, least=2)
    shots, queries = check_whole("few_shot", "shots", shots), check_whole("few_shot", "queries", queries)
    turns = 4 if check_true_or_false("few_shot", "rotations", rotations) else 1
    flips = check_true_or_false("few_shot", "flips", flips)
    if not isinstance(data, Characters | ImageClasses):
        raise InputError("few_shot takes Characters or ImageClasses: give it what adaptax.tasks.read_images returns.")
    if distortion is not None and not isinstance(distortion, Affine):
        raise InputError("few_shot(distortion=...) must be None or an adaptax.tasks.Affine: give one of them.")
    if keep not in ("device", "host"):
        raise InputError(f"few_shot(keep={keep!r}) must be 'device' or 'host': change keep=.")
    data = _as_classes(data) if isinstance(data, Characters) else data
    if ways > len(data) * turns:
        counted = ", rotations counted" if rotations else ""
        raise InputError(f"There are only {len(data) * turns} classes{counted}: give ways= at most that.")
    if shots + queries > (fewest := min(data.counts)):
        message = (
            f"The class with the fewest images has {fewest}, but shots={shots} and queries={queries} ask for {shots + queries}"
        )
        raise InputError(f"{message}: give fewer shots= or queries=, or data with more images of each class.")
    data = data.compact() if keep == "device" else data
    images, host = (jnp.asarray(data.images), None) if keep == "device" else (None, data)
    starts, counts = jnp.asarray(data.starts, jnp.int32), jnp.asarray(data.counts, jnp.int32)
    sample = SampleEpisode(images, starts, counts, host, ways, shots, queries, turns, flips, distortion)
    return FiniteSum(CrossEntropy(ways), sample, metrics=Accuracy(ways))


def _as_classes(data: Characters) -> ImageClasses:
    classes, drawings, size, _ = data.images.shape
    return ImageClasses(data.images.reshape(-1, size, size, 1), data.names, (drawings,) * classes)


def turn(images: UInt8[Array, "ways each size size ..."], turns: Int[Array, " ways"]) -> UInt8[Array, "..."]:
    """Turn row i of the images anticlockwise by `turns[i]` times 90 degrees, as `np.rot90` does."""
    which = jnp.broadcast_to(turns.reshape(-1, *[1] * (images.ndim - 1)), images.shape)
    return jax.lax.select_n(which, *(jnp.rot90(images, k, axes=(2, 3)) for k in range(4)))
