"""Batches of episodes made on the host: the same as those of the device, and errors in making them."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.errors import InputError
from adaptax.tasks import ImageClasses, episodes, few_shot, prepare_images


def coded():
    """Four classes of 3, 9, 4 and 6 images, whose every pixel is (class, number in the class, 255)."""
    counts = (3, 9, 4, 6)
    images = np.full((sum(counts), 4, 4, 3), 255, np.uint8)
    images[..., 0] = np.repeat(np.arange(4), counts)[:, None, None]
    images[..., 1] = np.concatenate([np.arange(n) for n in counts])[:, None, None]
    return ImageClasses(images, tuple("abcd"), counts)


def equal(one, two):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.mark.parametrize("keep", ["host", pytest.param("device", marks=pytest.mark.slow)])
def test_batches_from_the_host_are_the_episodes_of_training(keep, write, birds, picture, tmp_path):
    birds |= {"owl/2.png": picture(8), "emu/1.png": picture(9), "emu/2.png": picture(10)}
    data = prepare_images(write(tmp_path / "a.zip", birds), tmp_path / "cache", 6)
    options = {"ways": 3, "queries": 1, "rotations": keep == "device", "flips": True}
    here, there = few_shot(data, **options), few_shot(data, **options, keep=keep)
    stream, sample = episodes(there, 4, seed=5), jax.jit(jax.vmap(here.sample_task))
    for step, batch in enumerate(itertools.islice(stream, 3)):
        at_step = jax.random.fold_in(jax.random.key(5), step)
        keys = jnp.stack([jax.random.fold_in(jax.random.fold_in(at_step, i), 0) for i in range(4)])
        tasks = sample(keys)
        assert equal(tasks, batch)
    stream.close()
    assert equal(tasks, next(episodes(there, 4, seed=5, first=2)))


class Linear(eqx.Module):
    """One affine map of the pixels."""

    weight: jax.Array

    def __call__(self, images):
        return images.reshape(images.shape[0], -1) @ self.weight


@pytest.mark.slow
def test_training_and_evaluation_from_the_host():
    data, method = coded(), ax.MetaGradient(ax.Inner(1, 0.1))
    params, options = Linear(jnp.zeros((48, 3))), {"optimizer": optax.sgd(0.1), "steps": 3, "tasks_per_step": 2, "seed": 7}
    here, there = (few_shot(data, 3, 1, 2, rotations=False, keep=keep) for keep in ("device", "host"))
    one, history = ax.train(here, params, method, **options)
    two, streamed = ax.train(there, params, method, tasks=episodes(there, 2, seed=7), **options)
    np.testing.assert_allclose(one.params.weight, two.params.weight, atol=1e-6)
    np.testing.assert_allclose(history["loss"], streamed["loss"], rtol=1e-5)
    a, b = (ax.evaluate(problem, one.params, one.inner, [0, 1], 4) for problem in (here, there))
    np.testing.assert_allclose(a.mean["accuracy"], b.mean["accuracy"], atol=1e-6)


def test_what_goes_wrong_in_making_a_batch_is_told(monkeypatch):
    problem = few_shot(coded(), 3, 1, 2, rotations=False, keep="host")
    monkeypatch.setattr("adaptax.tasks.images.prefetch._draws", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(episodes(problem, 2))


def test_numpys_numbers_are_numbers():
    problem = few_shot(coded(), np.int64(2), np.int32(1), np.uint8(2), rotations=np.False_, keep="host")
    stream = episodes(problem, np.int64(2), seed=np.uint32(3), first=np.int8(1), ahead=np.array(1))
    assert equal(next(stream), next(episodes(problem, 2, seed=3, first=1)))


def test_refusals():
    with pytest.raises(InputError, match=r"episodes takes the problem that"):
        episodes(ax.tasks.sinusoid(), 2)
    problem = few_shot(coded(), 2, 1, 1, keep="host")
    for options in ({"tasks_per_step": 0}, {"seed": -1}, {"first": 1.0}, {"ahead": 0}):
        (name,) = options
        with pytest.raises(InputError, match=rf"episodes\({name}=.*: change {name}="):
            episodes(problem, **{"tasks_per_step": 2, **options})
