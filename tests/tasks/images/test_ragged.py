"""Episodes of classes with different numbers of images, in colour; flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import Affine, Characters, ImageClasses, few_shot

COUNTS = (3, 9, 4, 6)


def coded(counts=COUNTS, size=4):
    """Images whose every pixel is (class, number in the class, 255)."""
    images = np.zeros((sum(counts), size, size, 3), np.uint8)
    images[..., 0] = np.repeat(np.arange(len(counts)), counts)[:, None, None]
    images[..., 1] = np.concatenate([np.arange(n) for n in counts])[:, None, None]
    images[..., 2] = 255
    return ImageClasses(images, tuple("abcdef"[: len(counts)]), counts)


def sampler(problem):
    """Many episodes at once, as one program."""
    return jax.jit(jax.vmap(problem.sample_task))


def equal(one, two):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def found(images):
    """(class, number) of images of any leading shape."""
    return np.rint(np.asarray(images)[..., 0, 0, :2] * 255).astype(int)


@pytest.fixture(scope="module")
def drawn():
    """Many episodes of three ways, one shot and two queries."""
    problem = few_shot(coded(), 3, 1, 2, rotations=False)
    return sampler(problem)(jax.random.split(jax.random.key(0), 2000))


def test_no_image_twice_and_labels_by_class(drawn):
    assert drawn.support[0].shape == (2000, 3, 4, 4, 3) and drawn.target[0].shape == (2000, 6, 4, 4, 3)
    assert np.all(np.asarray(drawn.support[0])[..., 2] == 1)
    support, target = found(drawn.support[0]), found(drawn.target[0])
    assert np.array_equal(np.repeat(support[:, :, 0], 2, axis=1), target[:, :, 0])
    assert all(len(set(row)) == 3 for row in support[:, :, 0])
    for one, two in zip(support, target, strict=True):
        assert len({tuple(x) for x in (*one, *two)}) == 9
    assert np.all(
        np.concatenate([support, target], axis=1)[..., 1] < np.array(COUNTS)[np.concatenate([support, target], 1)[..., 0]]
    )


def test_classes_and_images_are_uniform(drawn):
    first = found(drawn.support[0])[:, 0]
    for c, count in enumerate(COUNTS):
        rows = first[first[:, 0] == c][:, 1]
        assert abs(len(rows) - 500) < 4.5 * np.sqrt(2000 * 3 / 16)
        seen = np.bincount(rows, minlength=count)
        assert len(seen) == count
        assert np.all(np.abs(seen - len(rows) / count) < 4.5 * np.sqrt(len(rows) / count * (1 - 1 / count)) + 1e-9)


def test_classes_split_off_are_the_right_ones():
    part = coded().take(["b", "d"])
    draw = few_shot(part, 2, 1, 5, rotations=False, keep="host").sample_task.draw(jax.random.key(0))
    assert set(found(part.images[np.asarray(draw.target)] / 255)[..., 0].ravel()) == {1, 3}


@pytest.mark.slow
def test_the_same_episodes_for_equal_counts_as_for_characters():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 6), dtype=np.uint8)
    names = tuple("abcde")
    flat = ImageClasses(images.reshape(-1, 6, 6, 1), names, (4,) * 5)
    keys = jax.random.split(jax.random.key(3), 2)
    one, two = (few_shot(data, 5, 1, 3, rotations=False) for data in (Characters(images, names), flat))
    assert equal(sampler(one)(keys), sampler(two)(keys))


def test_flips_mirror_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    data = ImageClasses(images, ("a", "b"), (20, 20))
    plain, flipped = (few_shot(data, 2, 10, 10, rotations=False, flips=f) for f in (False, True))
    keys = jax.random.split(jax.random.key(0), 5)

    def batches(problem):
        return np.stack([problem.sample_task._batch(images.reshape(2, 20, 4, 4, 3), None, key)[0] for key in keys])

    x, y = batches(plain), batches(flipped)
    same, mirrored = np.all(x == y, (2, 3, 4)), np.all(x[:, :, :, ::-1] == y, (2, 3, 4))
    assert np.all(same ^ mirrored) and abs(int(mirrored.sum()) - 100) < 4.5 * np.sqrt(50)


def test_a_distortion_moves_all_channels_alike():
    grey = jax.random.uniform(jax.random.key(0), (3, 8, 8))
    moved = Affine()(grey, jax.random.key(1))
    both = Affine()(jnp.stack([grey, 2 * grey], -1), jax.random.key(1))
    np.testing.assert_allclose(both, jnp.stack([moved, 2 * moved], -1), atol=1e-6)


def test_refusals():
    with pytest.raises(InputError, match=r"fewest images has 3, but shots=1 and queries=5 ask for 6: give fewer"):
        few_shot(coded(), 2)
    with pytest.raises(InputError, match=r"There are only 4 classes: give ways="):
        few_shot(coded(), 5, 1, 2, rotations=False)
    with pytest.raises(InputError, match=r"keep='disk'.*'device' or 'host'"):
        few_shot(coded(), 2, 1, 1, keep="disk")
