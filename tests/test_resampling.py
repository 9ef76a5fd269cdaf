"""The resampling case: three independent kinds of samples, and what they are an estimate of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import no_tasks, regression, relative, squared

import adaptax as ax

W = np.array([0.4, -0.9, 1.3])


@pytest.mark.parametrize("independent", [True, False])
def test_full_batches_make_the_two_cases_coincide(x64, independent):
    problem, model, task = regression()
    same = ax.Task(task.support, task.support)
    full = ax.Resampling(squared, no_tasks, lambda batch, params, key, size: batch)
    inner = ax.Inner(4, 0.2)
    method = ax.MetaGradient(inner, independent_curvature=independent)
    got = method(full, model, task.support, jax.random.key(0))
    assert relative(got, ax.MetaGradient(inner)(problem, model, same)) < 1e-12


def bowl(w):
    return jnp.sum(jnp.cos(w) + 0.3 * jnp.roll(w, 1) * w)


def noisy_bowl(w, noise):
    """The bowl, with zero-mean noise in the gradient and, by the same samples, in the Hessian."""
    vector, wave = noise
    return bowl(w) + jnp.mean(vector, 0) @ w + jnp.mean(wave, 0) @ jnp.cos(w)


# Every purpose has a size of its own, by which the draw knows it.
SIZES = ax.Samples(step=1, curvature=2, target=3)


def quiet_steps(task, params, key, size):
    """Noise in the Hessian factors and in the last gradient, none on the path."""
    loud = 0.0 if size == SIZES.step else 3.0
    a, b = jax.random.split(key)
    return loud * jax.random.normal(a, (size, 3)), loud * jax.random.normal(b, (size, 3))


def z_scores(draw, count=30_000, **options):
    """How many standard errors the mean over many keys lies from the exact gradient on the exact path."""
    inner = ax.Inner(3, 0.4)
    method = ax.MetaGradient(inner, samples=SIZES, **options)
    problem, w = ax.Resampling(noisy_bowl, no_tasks, draw), jnp.asarray(W)
    keys = jax.random.split(jax.random.key(7), count)
    grads = np.asarray(jax.vmap(lambda key: method(problem, w, jnp.zeros(()), key)[1])(keys))
    quiet = ax.FiniteSum(lambda w, _: bowl(w), no_tasks)
    exact = ax.MetaGradient(inner)(quiet, w, ax.Task(jnp.zeros(1), jnp.zeros(1)))[1]
    return (grads.mean(0) - exact) / (grads.std(0, ddof=1) / np.sqrt(count))


def test_the_product_is_unbiased_given_the_path(x64):
    assert np.max(np.abs(z_scores(quiet_steps))) < 4


def noise_everywhere(task, params, key, size):
    a, b = jax.random.split(key)
    return jax.random.normal(a, (size, 3)), jax.random.normal(b, (size, 3))


@pytest.mark.parametrize("store", ["iterates", "sqrt"])
def test_reused_samples_give_the_gradient_of_the_sampled_path(x64, store):
    problem, w, key = ax.Resampling(noisy_bowl, no_tasks, noise_everywhere), jnp.asarray(W), jax.random.key(1)
    options = {"samples": SIZES, "independent_curvature": False}
    reused = ax.MetaGradient(ax.Inner(5, 0.3), store=store, **options)(problem, w, jnp.zeros(()), key)
    backprop = ax.MetaGradient(ax.Inner(5, 0.3), mode="backprop", **options)(problem, w, jnp.zeros(()), key)
    assert relative(reused, backprop) < 1e-10
    # Fresh curvature samples leave the path and the value as they are, and change the gradient.
    fresh = ax.MetaGradient(ax.Inner(5, 0.3), store=store, samples=SIZES)(problem, w, jnp.zeros(()), key)
    assert fresh[0] == reused[0]
    np.testing.assert_array_equal(fresh[2].losses, reused[2].losses)
    assert relative(fresh[1], reused[1]) > 1e-2


@pytest.mark.parametrize("independent, expected", [(True, 2 * 4 + 1), (False, 4 + 1)])
def test_every_step_and_purpose_has_a_key_of_its_own(independent, expected):
    seen = {}

    def draw(task, params, key, size):
        jax.debug.callback(lambda k, s: seen.setdefault(k.tobytes(), set()).add(int(s)), jax.random.key_data(key), size)
        return jax.random.normal(key, (size, 3))

    problem = ax.Resampling(lambda w, x: jnp.mean(jnp.cos(w - x)), no_tasks, draw)
    method = ax.MetaGradient(ax.Inner(4, 0.1), samples=SIZES, independent_curvature=independent)
    method(problem, jnp.asarray(W), jnp.zeros(()), jax.random.key(0))
    jax.effects_barrier()
    assert len(seen) == expected
    # Each key is used for one purpose only, and so for one size.
    sizes = sorted(size for used in seen.values() for size in used)
    assert sizes == [1] * 4 + ([2] * 4 if independent else []) + [3]


def test_the_key_decides_everything():
    problem, w = ax.Resampling(noisy_bowl, no_tasks, noise_everywhere), jnp.asarray(W, jnp.float32)
    method = ax.MetaGradient(ax.Inner(2, 0.1))
    first, again, other = (method(problem, w, jnp.zeros(()), jax.random.key(seed)) for seed in (0, 0, 1))
    assert relative(first, again) == 0
    assert relative(first, other) > 1e-3


@pytest.mark.parametrize("options", [{}, {"independent_curvature": False, "mode": "backprop"}])
def test_draws_are_not_differentiated_by_the_parameters(x64, options):
    # Samples at w / 2: with l = |w - x|^2 / 2 the path shrinks by 1 - alpha / 2, each factor is 1 - alpha.
    problem = ax.Resampling(
        lambda w, x: 0.5 * jnp.sum((w - x[0]) ** 2), no_tasks, lambda task, params, key, size: params[None] / 2
    )
    w, alpha = jnp.asarray(W), 0.2
    _, grad, _ = ax.MetaGradient(ax.Inner(3, alpha), **options)(problem, w, jnp.zeros(()), jax.random.key(0))
    np.testing.assert_allclose(grad, (1 - alpha) ** 3 * (1 - alpha / 2) ** 3 * W / 2, rtol=1e-12)
    through = jax.grad(lambda w: jnp.sum(ax.adapt(problem, w, 0.0, ax.Inner(3, alpha), jax.random.key(0)).params))(w)
    np.testing.assert_allclose(through, (1 - alpha) ** 3 * np.ones(3), rtol=1e-12)


def test_parameters_with_leaves_that_are_not_arrays():
    params = {"w": jnp.ones(2), "activation": jnp.tanh, "count": 3}
    draw = lambda task, params, key, size: params["count"] * jax.random.normal(key, (size, 2))  # noqa: E731
    problem = ax.Resampling(lambda p, x: jnp.mean(p["activation"](p["w"] - x) ** 2), no_tasks, draw)
    value, grad, _ = ax.MetaGradient(ax.Inner(2, 0.1))(problem, params, jnp.zeros(()), jax.random.key(0))
    assert jnp.isfinite(value)
    assert grad["activation"] is None
    assert grad["count"] is None
    assert bool(jnp.all(grad["w"] != 0))
