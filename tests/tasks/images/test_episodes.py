"""Few-shot tasks: no repeats, rotations, labels, determinism, and the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import Affine, Characters, few_shot
from adaptax.tasks.distinct import distinct
from adaptax.tasks.images.episodes import turn

SIZE = 8


@functools.cache
def coded(classes=6, drawings=7):
    """Images that carry their class, drawing and orientation in three corners' pixels."""
    images = np.zeros((classes, drawings, SIZE, SIZE), np.uint8)
    images[:, :, 0, 0] = 255
    images[:, :, 0, 1] = np.arange(classes)[:, None]
    images[:, :, 0, 2] = np.arange(drawings)
    return Characters(images, tuple(f"A/{i}" for i in range(classes)))


def decode(image):
    """(class, drawing, quarter turns) of an image."""
    pixels = np.rint(np.asarray(image)[..., 0] * 255).astype(int)
    for turns in range(4):
        upright = np.rot90(pixels, -turns)
        if upright[0, 0] == 255:
            assert upright.sum() == upright[0, :3].sum()
            return int(upright[0, 1]), int(upright[0, 2]), turns
    raise AssertionError("no corner is marked")


def sample(n=1, seed=0, **options):
    problem = few_shot(coded(), **options)
    return jax.jit(jax.vmap(problem.sample_task))(jax.random.split(jax.random.key(seed), n))


@pytest.mark.parametrize("rotations", [True, False])
def test_an_episode_holds_what_it_should(rotations):
    tasks = sample(40, ways=5, shots=2, queries=3, rotations=rotations)
    (support, support_labels), (target, target_labels) = tasks.support, tasks.target
    assert support.shape == (40, 10, SIZE, SIZE, 1) and target.shape == (40, 15, SIZE, SIZE, 1)
    assert support.dtype == target.dtype == jnp.float32
    assert support_labels.dtype == target_labels.dtype == jnp.int32
    assert np.all(support_labels == np.repeat(np.arange(5), 2)) and np.all(target_labels == np.repeat(np.arange(5), 3))
    turns_seen = set()
    for i in range(40):
        kinds = {}
        seen = [(*decode(x), int(y)) for x, y in zip(support[i], support_labels[i], strict=True)]
        seen += [(*decode(x), int(y)) for x, y in zip(target[i], target_labels[i], strict=True)]
        for character, _, turns, label in seen:
            kinds.setdefault(label, set()).add((character, turns))
            turns_seen.add(turns)
        assert all(len(kind) == 1 for kind in kinds.values())
        assert len(set.union(*kinds.values())) == 5
        assert len({(character, drawing, turns) for character, drawing, turns, _ in seen}) == 25
    assert turns_seen == (set(range(4)) if rotations else {0})


def test_all_classes_and_all_drawings_at_once():
    tasks = sample(3, ways=6, shots=3, queries=4, rotations=False)
    for i in range(3):
        seen = {decode(x)[:2] for x in (*tasks.support[0][i], *tasks.target[0][i])}
        assert seen == {(c, d) for c in range(6) for d in range(7)}
    assert sample(1, ways=24).support[0].shape == (1, 24, SIZE, SIZE, 1)


def test_classes_and_drawings_are_uniform():
    n = 3000
    tasks = sample(n, ways=2, shots=1, queries=1)
    pixels = np.rint(np.asarray(tasks.support[0][:, 0, :, :, 0]) * 255).astype(int)
    found = np.array([decode(p[..., None] / 255) for p in pixels])
    for column, kinds in zip(found.T, (6, 7, 4), strict=True):
        counts = np.bincount(column, minlength=kinds)
        assert np.all(np.abs(counts - n / kinds) < 4.5 * np.sqrt(n / kinds * (1 - 1 / kinds)))


def test_distinct_is_a_uniform_arrangement():
    n = 6000
    draws = jax.vmap(lambda key: distinct(key, 4, 2))(jax.random.split(jax.random.key(5), n))
    counts = np.bincount(np.asarray(draws @ jnp.array([4, 1])), minlength=16).reshape(4, 4)
    assert np.all(np.diag(counts) == 0)
    off = counts[~np.eye(4, dtype=bool)]
    assert np.all(np.abs(off - n / 12) < 4.5 * np.sqrt(n / 12 * (11 / 12)))
    assert sorted(distinct(jax.random.key(0), 9, 9).tolist()) == list(range(9))


def test_turn_is_rot90():
    images = jax.random.randint(jax.random.key(0), (4, 3, 5, 5), 0, 256).astype(jnp.uint8)
    turns = jnp.array([2, 0, 3, 1])
    for row, k, turned in zip(np.asarray(images), turns, turn(images, turns), strict=True):
        np.testing.assert_array_equal(turned, np.rot90(row, int(k), axes=(1, 2)))


def test_keys_decide_and_jit_agrees():
    problem = few_shot(coded(), distortion=Affine())
    jitted = jax.jit(lambda sample_task, key: sample_task(key))
    one, again, two = (jitted(problem.sample_task, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.target[0], again.target[0])
    eager = problem.sample_task(jax.random.key(1))
    np.testing.assert_allclose(eager.target[0], one.target[0], atol=1e-6)
    assert not np.allclose(one.target[0], two.target[0])


def test_images_are_a_leaf_and_not_a_constant_of_programs():
    problem = few_shot(coded())
    assert [leaf.dtype for leaf in jax.tree.leaves(problem)] == [jnp.uint8, jnp.int32, jnp.int32]
    program = jax.jit(lambda sample_task, key: sample_task(key)).lower(problem.sample_task, jax.random.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(program.in_avals[0])][:1] == [(42, SIZE, SIZE, 1)]
    assert jax.tree.structure(problem) == jax.tree.structure(few_shot(coded()))


def test_distortion_changes_support_and_target_only_when_given():
    rng = np.random.default_rng(0)
    flat = Characters(rng.integers(0, 256, (5, 2, SIZE, SIZE), dtype=np.uint8), tuple("abcde"))
    plain = few_shot(flat, queries=1, rotations=False).sample_task(jax.random.key(3))
    assert {x.tobytes() for x in np.rint(np.asarray(plain.support[0]) * 255)} <= {
        x[..., None].astype(np.float32).tobytes() for x in flat.images.reshape(-1, SIZE, SIZE)
    }
    bent = few_shot(flat, queries=1, rotations=False, distortion=Affine()).sample_task(jax.random.key(3))
    none = Affine(angle=0.0, scale=0.0, shift=0.0)
    same = few_shot(flat, queries=1, rotations=False, distortion=none).sample_task(jax.random.key(3))
    for name in ("support", "target"):
        x, y, z = (getattr(task, name)[0] for task in (plain, bent, same))
        assert np.abs(x - y).max(axis=(1, 2, 3)).min() > 0.05
        np.testing.assert_allclose(x, z, atol=1e-6)
        assert y.min() >= 0 and y.max() <= 1


def test_loss_and_accuracy():
    problem = few_shot(coded(), ways=3)
    images, labels = jnp.zeros((4, SIZE, SIZE, 1)), jnp.array([0, 1, 2, 2], jnp.int32)
    logits = jnp.array([[2.0, 0.0, -1.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.1, 0.2]])
    expected = -np.mean(np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(4), labels])
    assert problem.loss(lambda x: logits, (images, labels)) == pytest.approx(expected, rel=1e-6)
    scores = problem.scores(lambda x: logits, (images, labels))
    assert scores["accuracy"] == 0.5 and scores["loss"].shape == ()
    with pytest.raises(InputError, match=r"shape \(4, 2\) for 4 images of 3 classes: give it 3 outputs"):
        problem.loss(lambda x: logits[:, :2], (images, labels))
    with pytest.raises(InputError, match=r"few_shot takes a network that is called as model\(images\)"):
        problem.loss(logits, (images, labels))


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, jnp.asarray])
def test_numpys_numbers_are_the_same_options(number):
    one = few_shot(coded(), number(3), number(2), number(4), rotations=np.False_, flips=np.True_)
    two = few_shot(coded(), 3, 2, 4, rotations=False, flips=True)
    # Equal static fields of equal hash: the same compiled program serves both.
    one, two = jax.tree.structure(one), jax.tree.structure(two)
    assert one == two and hash(one) == hash(two)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ways": 1}, "ways=1.*at least 2"),
        ({"ways": 25}, "only 24 classes, rotations counted: give ways="),
        ({"ways": 7, "rotations": False}, "only 6 classes"),
        ({"shots": 0}, "shots=0.*at least 1"),
        ({"queries": 2.0}, "queries=2.0.*whole number"),
        ({"shots": 3, "queries": 5}, r"fewest images has 7, but shots=3 and queries=5 ask for 8: give fewer"),
        ({"distortion": 0.25}, "None or an adaptax.tasks.Affine"),
        ({"rotations": 4}, "rotations=4.*True or False: change rotations="),
        ({"flips": 1}, "flips=1.*True or False: change flips="),
    ],
)
def test_refusals(options, match):
    with pytest.raises(InputError, match=match):
        few_shot(coded(), **options)


def test_only_characters():
    with pytest.raises(InputError, match="few_shot takes Characters or ImageClasses"):
        few_shot(coded().images)
