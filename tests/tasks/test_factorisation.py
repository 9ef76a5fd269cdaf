"""Rank-one factorisation: the loss against the matrix, its accuracy near the minima, the distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import factorisation, factorisation_init


def matrix_loss(w, y):
    return jnp.sum((jnp.outer(w, w) - jnp.outer(y, y)) ** 2) / 4


def test_loss_gradient_and_hessian_are_those_of_the_matrix():
    with jax.enable_x64(True):
        loss = factorisation().loss
        for seed in range(3):
            w, y = jax.random.normal(jax.random.key(seed), (2, 20))
            for transform in (lambda f: f, jax.grad, jax.hessian):
                ours, theirs = (jax.jit(transform(f))(w, y) for f in (loss, matrix_loss))
                np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11 * np.abs(theirs).max())


def test_no_digits_are_lost_near_the_minima():
    y = np.float32([1.0, 2.0, 3.0])
    for sign in np.float32([1, -1]):
        w = sign * y + np.float32([1e-4, 0, 0])
        exact = float(matrix_loss_in_double(w, y))
        assert factorisation(dim=3).loss(jnp.asarray(w), jnp.asarray(y)) == pytest.approx(exact, rel=1e-5)
        expanded = ((w @ w) ** 2 - 2 * (w @ y) ** 2 + (y @ y) ** 2) / 4
        assert abs(expanded - exact) > 0.5 * exact  # so the test can tell the two forms apart


def matrix_loss_in_double(w, y):
    w, y = w.astype(np.float64), y.astype(np.float64)
    return np.sum((np.outer(w, w) - np.outer(y, y)) ** 2) / 4


def test_support_and_target_share_their_scale_only():
    n, dim = 4000, 20
    tasks = jax.vmap(factorisation(dim, sigma=0.3).sample_task)(jax.random.split(jax.random.key(0), n))
    assert tasks.support.shape == tasks.target.shape == (n, dim)
    support, target = (np.asarray(v, float) for v in (tasks.support, tasks.target))
    # The mean square of a vector estimates sigma_i^2, and E sigma_i^2 = 0.03, var(sigma_i^2) = 0.0081 * 4 / 45.
    squares = np.stack([(v**2).mean(1) for v in (support, target)])
    variance = 0.0081 * (4 / 45 + 2 / dim / 5)
    assert np.all(np.abs(squares.mean(1) - 0.03) < 4 * np.sqrt(variance / n))
    expected = (4 / 45) / (4 / 45 + 2 / dim / 5)
    assert abs(np.corrcoef(squares)[0, 1] - expected) < 0.05
    cosines = (support * target).sum(1) / np.linalg.norm(support, axis=1) / np.linalg.norm(target, axis=1)
    assert abs(cosines.mean()) < 4 / np.sqrt(n * dim) and abs((cosines**2).mean() * dim - 1) < 0.15
    assert abs(support.mean()) < 4 * np.sqrt(0.03 / n / dim)


def test_initial_parameters():
    w = np.asarray(jax.vmap(factorisation_init)(jax.random.split(jax.random.key(0), 5000)), float)
    assert w.shape == (5000, 20)
    assert abs(w.mean()) < 4 * np.sqrt(2 / 21 / w.size)
    assert abs(w.var() - 2 / 21) < 4 * (2 / 21) * np.sqrt(2 / w.size)
    np.testing.assert_array_equal(factorisation_init(jax.random.key(3)), factorisation_init(jax.random.key(3)))


def test_keys_decide():
    sample = factorisation().sample_task
    one, again, two = (sample(jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.support, again.support)
    assert not np.allclose(one.support, two.support) and not np.allclose(one.support, one.target)


def test_refusals():
    for dim in (0, -1, 2.0, True):
        for function in (factorisation, lambda dim: factorisation_init(jax.random.key(0), dim)):
            with pytest.raises(InputError, match=r"dim=.* must be a whole number of at least 1: change dim="):
                function(dim)
    for sigma in (0, -0.1, float("nan"), float("inf"), None):
        with pytest.raises(InputError, match=r"sigma=.* must be a positive number"):
            factorisation(sigma=sigma)
    with pytest.raises(InputError, match=r"takes an array of shape \(20,\) as parameters, not \(20, 1\)"):
        factorisation().loss(jnp.ones((20, 1)), jnp.ones(20))


def test_numbers_of_numpy():
    sample = factorisation(np.int64(3), np.float32(0.5)).sample_task
    assert (sample.dim, sample.sigma) == (3, 0.5) and (type(sample.dim), type(sample.sigma)) == (int, float)
    assert factorisation_init(jax.random.key(0), np.int32(5)).shape == (5,)
