"""Few-shot classification tasks made of characters, sampled on the device."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Task
from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.distortion import Affine

Batch = tuple[Float[Array, "n size size 1"], Int[Array, " n"]]


class SampleEpisode(eqx.Module):
    """`sample_task` of `few_shot`. The images are a leaf, so that programs take them as an argument, not a constant."""

    images: UInt8[Array, "classes drawings size size"]
    ways: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    turns: int = eqx.field(static=True)
    distortion: Affine | None

    def __call__(self, key: Key[Array, ""]) -> Task:
        class_key, drawing_key, support_key, target_key = jax.random.split(key, 4)
        classes, drawings = self.images.shape[:2]
        chosen = distinct(class_key, classes * self.turns, self.ways)
        keys = jax.random.split(drawing_key, self.ways)
        columns = jax.vmap(lambda k: distinct(k, drawings, self.shots + self.queries))(keys)
        # Two small programs: XLA on the CPU takes three times as long when one distorted array is split afterwards.
        support = self._batch(chosen, columns[:, : self.shots], support_key)
        return Task(support, self._batch(chosen, columns[:, self.shots :], target_key))

    def _batch(self, chosen: Int[Array, " ways"], columns: Int[Array, "ways each"], key: Key[Array, ""]) -> Batch:
        classes, _, size, _ = self.images.shape
        images = turn(self.images[chosen[:, None] % classes, columns], chosen // classes)
        images = images.reshape(-1, size, size).astype(jnp.float32) / 255
        if self.distortion is not None:
            images = self.distortion(images, key)
        return images[..., None], jnp.repeat(jnp.arange(self.ways, dtype=jnp.int32), columns.shape[1])


def few_shot(
    characters: Characters,
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    rotations: bool = True,
    distortion: Affine | None = None,
) -> FiniteSum:
    r"""Few-shot classification: tell `ways` unseen classes apart, given `shots` labelled images of each.

    A task is a draw of classes, and of different drawings of each for support and target, all without replacement. The
    loss is the mean softmax cross entropy of `params(images)`, and the metric `accuracy` the share of images whose
    largest logit is the right one (of equal logits the first counts).

    Arguments:
        characters: from `read_characters`, or made of one's own arrays.
        ways: number of classes of a task, at least 2 (default 5).
        shots: number of support images of each class (default 1).
        queries: number of target images of each class (default 5).
        rotations: whether each class turned by 90, 180 and 270 degrees is three more classes (default True).
        distortion: a random affine map of every image of support and target, or none (default).

    Returns: a `FiniteSum` problem. `task.support` and `task.target` are pairs (images, labels): float32 in [0, 1] of
        shape (ways * shots, size, size, 1), int32 of shape (ways * shots,); the target with `queries` for `shots`.

    Errors: `InputError` if there are too few classes or drawings, or a number is not positive.

    Example:
        >>> import jax, numpy as np
        >>> from adaptax.tasks import Characters, few_shot
        >>> names = tuple(f"Greek/character{i:02}" for i in range(1, 7))
        >>> problem = few_shot(Characters(np.zeros((6, 20, 28, 28), np.uint8), names), ways=5, shots=1, queries=3)
        >>> task = problem.sample_task(jax.random.key(0))
        >>> task.support[0].shape, task.target[1].shape
        ((5, 28, 28, 1), (15,))

    Source: Vinyals et al. (2016), NeurIPS; rotations as new classes: Santoro et al. (2016), ICML.
    """
    for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"few_shot({name}={value!r}) must be a whole number of at least {least}: change {name}=.")
    if not isinstance(characters, Characters):
        raise InputError("few_shot takes Characters: give it what adaptax.tasks.read_characters returns.")
    if distortion is not None and not isinstance(distortion, Affine):
        raise InputError("few_shot(distortion=...) must be None or an adaptax.tasks.Affine: give one of them.")
    turns = 4 if rotations else 1
    classes, drawings = characters.images.shape[:2]
    if ways > classes * turns:
        raise InputError(f"There are only {classes * turns} classes, rotations counted: give ways= at most that.")
    if shots + queries > drawings:
        message = f"The class with the fewest images has {drawings}, but shots + queries is {shots + queries}"
        raise InputError(f"{message}: give fewer shots or queries, or data with more images of each class.")
    sample = SampleEpisode(jnp.asarray(characters.images), ways, shots, queries, turns, distortion)
    return FiniteSum(CrossEntropy(ways), sample, metrics=Accuracy(ways))


def distinct(key: Key[Array, ""], n: int, k: int) -> Int[Array, " k"]:
    """`k` of the numbers 0..n-1 in random order without repeats: the first steps of a Fisher-Yates shuffle."""
    # A shuffle of all n, as jax.random.choice does it, sorts: at n = 4,000 that costs a hundred times as much.
    places = jax.random.randint(key, (k,), jnp.arange(k), n)
    swap = lambda i, order: order.at[i].set(order[places[i]]).at[places[i]].set(order[i])  # noqa: E731
    return jax.lax.fori_loop(0, k, swap, jnp.arange(n))[:k]


def turn(images: UInt8[Array, "ways each size size"], turns: Int[Array, " ways"]) -> UInt8[Array, "ways each size size"]:
    """Row i of the images turned by 90 degrees `turns[i]` times, anticlockwise, as `np.rot90`."""
    which = jnp.broadcast_to(turns[:, None, None, None], images.shape)
    return jax.lax.select_n(which, *(jnp.rot90(images, k, axes=(2, 3)) for k in range(4)))


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


def _logits(params: Callable, images: Array, ways: int) -> Float[Array, "n ways"]:
    if not callable(params):
        raise InputError("few_shot takes a model as parameters, called as params(images): use adaptax.models.conv4.")
    logits = params(images)
    # Too few outputs would not fail: indexing beyond the last of them gives NaN.
    if logits.shape != (images.shape[0], ways):
        message = f"The model returns an array of shape {logits.shape} for {images.shape[0]} images of {ways} classes"
        raise InputError(f"{message}: give it {ways} outputs.")
    return logits
