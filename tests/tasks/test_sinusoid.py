"""Sinusoid tasks: shapes, ranges, distributions, label noise, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import sinusoid, sinusoid_resampling
from adaptax.tasks.sinusoid import sample_wave


def uniform(values, low, high):
    """Whether the values look like U[low, high]: range, mean and variance within 4 standard errors."""
    u = (np.asarray(values, float).ravel() - low) / (high - low)
    n = u.size
    assert u.min() >= -1e-6 and u.max() <= 1 + 1e-6 and u.min() < 20 / n and u.max() > 1 - 20 / n
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
    assert abs(((u - 1 / 2) ** 2).mean() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)


def wave_through(x, y):
    """The amplitude and the phase of A sin(x - phi) = A cos(phi) sin(x) - A sin(phi) cos(x) by least squares."""
    basis = np.stack([np.sin(x), -np.cos(x)], 1)
    (c, s), *_ = np.linalg.lstsq(basis, y, rcond=None)
    return np.hypot(c, s), np.arctan2(s, c), np.abs(basis @ np.array([c, s]) - y).max()


def test_support_and_target_are_points_of_one_wave():
    with jax.enable_x64(True):
        problem = sinusoid(shots=4, queries=7)
        task = problem.sample_task(jax.random.key(3))
        (x, y), (target_x, target_y) = task.support, task.target
        assert x.shape == y.shape == (4, 1) and target_x.shape == target_y.shape == (7, 1)
        assert x.dtype == y.dtype == jnp.float64
        amplitude, phase, error = wave_through(np.ravel(x), np.ravel(y))
        assert error < 1e-12 and 0.1 <= amplitude <= 5 and 0 <= phase <= np.pi
        np.testing.assert_allclose(target_y, amplitude * np.sin(target_x - phase), atol=1e-10)
        assert len(np.unique(np.concatenate([x, target_x]))) == 11


def test_distributions():
    amplitude, phase = jax.vmap(sample_wave)(jax.random.split(jax.random.key(0), 20_000))
    uniform(amplitude, 0.1, 5.0)
    uniform(phase, 0.0, np.pi)
    assert abs(np.corrcoef(amplitude, phase)[0, 1]) < 4 / np.sqrt(20_000)
    tasks = jax.vmap(sinusoid().sample_task)(jax.random.split(jax.random.key(1), 2000))
    assert tasks.support[0].shape == tasks.target[0].shape == (2000, 10, 1)
    uniform(tasks.support[0], -5.0, 5.0)
    uniform(tasks.target[0], -5.0, 5.0)


def test_keys_decide():
    for sample in (sinusoid().sample_task, sinusoid_resampling().sample_task):
        one, again, two = (jax.tree.leaves(sample(jax.random.key(k))) for k in (1, 1, 2))
        assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
        assert not any(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_draws_are_fresh_and_noisy():
    problem = sinusoid_resampling(noise=0.5)
    task = (jnp.float32(2.0), jnp.float32(1.0))
    x, y = problem.draw(task, None, jax.random.key(0), 40_000)
    uniform(x, -5.0, 5.0)
    noise = np.ravel(y - 2 * jnp.sin(x - 1))
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(40_000)
    assert abs(noise.var() - 0.25) < 4 * 0.25 * np.sqrt(2 / 40_000)
    assert abs(np.corrcoef(noise, np.ravel(x))[0, 1]) < 4 / np.sqrt(40_000)
    other, _ = problem.target_batch(task, None, jax.random.key(1), 5)
    assert other.shape == (5, 1) and not np.isin(other, x[:5]).any()


def test_without_noise_a_draw_is_the_wave():
    x, y = sinusoid_resampling(noise=0).draw((jnp.float32(2.0), jnp.float32(1.0)), None, jax.random.key(0), 9)
    np.testing.assert_allclose(y, 2 * np.sin(x - 1), atol=1e-5)


def test_loss():
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [3.0]])
    for problem in (sinusoid(), sinusoid_resampling()):
        assert problem.loss(lambda x: 2 * x, (x, y)) == pytest.approx((1 + 1) / 2)
        assert problem.scores(lambda x: y, (x, y)) == {"loss": 0.0}
        with pytest.raises(InputError, match=r"returns shape \(2,\) where y has \(2, 1\): give it one output"):
            problem.loss(lambda x: x[:, 0], (x, y))
        with pytest.raises(InputError, match="called as params"):
            problem.loss(jnp.ones(3), (x, y))


@pytest.mark.parametrize("options", [{"shots": 0}, {"queries": -1}, {"shots": 2.5}, {"queries": True}])
def test_wrong_numbers_of_points(options):
    with pytest.raises(InputError, match=r"must be a whole number of at least 1: change"):
        sinusoid(**options)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), "0.3"])
def test_wrong_noise(noise):
    with pytest.raises(InputError, match=r"noise=.* must be a finite number of at least 0"):
        sinusoid_resampling(noise=noise)


def test_numbers_of_numpy():
    sample, draw = sinusoid(np.int64(3), np.uint8(2)).sample_task, sinusoid_resampling(np.float32(0.5)).draw
    assert (sample.shots, sample.queries, draw.noise) == (3, 2, 0.5)
    assert [type(value) for value in (sample.shots, sample.queries, draw.noise)] == [int, int, float]
