"""The trust-region outer step: against closed forms, and on navigation."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax import _devices as dev
from adaptax.outer import TrustRegion
from adaptax.tasks import rl

A = np.array([[2.0, 0.5], [0.5, 1.0]])
M = np.array([[1.0, -0.3], [-0.3, 3.0]])
ALPHA, RADIUS = 0.2, 1e-3
START = np.array([1.0, -2.0])


def quadratic():
    loss = lambda w, c: 0.5 * (w - c) @ jnp.asarray(A) @ (w - c)  # noqa: E731
    return ax.FiniteSum(loss, lambda key: ax.Task(*jax.random.normal(key, (2, 2))))


def apart(old, new, batch):
    return 0.5 * (new - old) @ jnp.asarray(M) @ (new - old)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_step_of_a_quadratic(x64, steps):
    problem, inner = quadratic(), ax.Inner(steps, ALPHA)
    step = ax.make_step(problem, ax.MetaGradient(inner), TrustRegion(apart, RADIUS, 1e-9), tasks_per_step=3)
    start = step.init(jnp.asarray(START), seed=0)
    state, info = step(start)
    keys = step.keys(start.key, jnp.array(0), jnp.arange(3))
    _, grad, _ = ax.MetaGradient(inner).batch(problem, jnp.asarray(START), step.sample(keys))
    # The adapted parameters move by R^N: F = R^N M R^N.
    path = np.linalg.matrix_power(np.eye(2) - ALPHA * A, steps)
    fisher = path @ M @ path
    x = np.linalg.solve(fisher, grad)
    full = -x * np.sqrt(2 * RADIUS / (x @ fisher @ x))
    shrunk = 0.8 ** int(state.opt_state.backtracks)
    assert shrunk >= 0.8 and not info["skipped"]
    np.testing.assert_allclose(state.params - START, shrunk * full, rtol=1e-5)
    np.testing.assert_allclose(state.opt_state.divergence, shrunk**2 * RADIUS, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_the_divergence_s_hessian_may_be_of_the_first_tasks_alone(x64, devices):
    """A divergence whose scale is each task's own shows which tasks F is formed on."""
    problem, tasks = quadratic(), ax.Task(*[jnp.arange(10.0).reshape(5, 2)] * 2)
    scaled = lambda old, new, batch: (1 + batch[0]) * apart(old, new, batch)  # noqa: E731
    method, mesh = ax.MetaGradient(ax.Inner(1, ALPHA)), dev.mesh_of(jax.devices()[:devices], 5)
    path = np.eye(2) - ALPHA * A
    # Of the first three; or, on two devices with the shares 0, 1, 2 and 3, 4, of the first two of each.
    used = [0, 1, 2] if devices == 1 else [0, 1, 3, 4]
    step = ax.make_step(problem, method, TrustRegion(scaled, RADIUS, 1e-9, tasks=3), 5)
    state, _ = dataclasses.replace(step, mesh=mesh)(step.init(jnp.asarray(START)), tasks)
    fisher = (1 + 2 * np.mean(used)) * path @ M @ path
    _, grad, _ = method.batch(problem, jnp.asarray(START), tasks)
    x = np.linalg.solve(fisher, grad)
    full = -x * np.sqrt(2 * RADIUS / (x @ fisher @ x)) * 0.8 ** int(state.opt_state.backtracks)
    np.testing.assert_allclose(state.params - START, full, rtol=1e-5)


def test_a_step_that_does_not_lower_the_loss_is_not_taken(x64):
    step = ax.make_step(quadratic(), ax.MetaGradient(ax.Inner(1, ALPHA)), TrustRegion(apart, 1e8, backtracks=2), 3)
    start = step.init(jnp.asarray(START), seed=0)
    state, _ = step(start)
    np.testing.assert_array_equal(state.params, START)
    assert int(state.opt_state.backtracks) == 2 and float(state.opt_state.divergence) == 0


@pytest.mark.slow
def test_mean_kl_against_samples(x64):
    network = ax.models.mlp((2, 4, 2), key=jax.random.key(0))
    old = rl.GaussianPolicy(network, 2, std=0.5)
    new = rl.GaussianPolicy(ax.models.mlp((2, 4, 2), key=jax.random.key(1)), 2, std=0.7)
    observations = jnp.array([[0.3, -0.4]] * 20_000)
    actions = old.sample(observations, jax.random.key(2))
    ratio = old.log_prob(observations, actions) - new.log_prob(observations, actions)
    exact = old.divergence(new, observations[:1])[0]
    assert abs(ratio.mean() - exact) < 4 * ratio.std() / np.sqrt(20_000)
    one, two = rl.SoftmaxPolicy(jnp.array([[0.0, 1.0]])), rl.SoftmaxPolicy(jnp.array([[0.5, -1.0]]))
    p, q = (np.exp(x.log_prob(jnp.zeros(2, int), jnp.arange(2))) for x in (one, two))
    np.testing.assert_allclose(one.divergence(two, jnp.zeros(1, int))[0], np.sum(p * np.log(p / q)), rtol=1e-12)


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"shrink": 1.5}, {"iterations": 0}, {"backtracks": 0}, {"tasks": 0}])
def test_wrong_numbers(options):
    with pytest.raises(ax.InputError, match=f"TrustRegion.*{next(iter(options))}"):
        TrustRegion(apart, **options)


def test_wrong_uses():
    with pytest.raises(ax.InputError, match=r"divergence.*must be a function"):
        TrustRegion(3)
    with pytest.raises(ax.InputError, match=r"needs the adapted path, which ax\.train"):
        TrustRegion(apart).update(jnp.ones(2), None, jnp.ones(2))


@pytest.mark.slow
def test_navigation_on_one_device_and_two():
    problem = rl.navigation(horizon=6)
    policy = rl.GaussianPolicy(ax.models.mlp((2, 4, 2), key=jax.random.key(0), activation=jnp.tanh), 2, std=0.3)
    method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(6, 5, 4))
    options = {"optimizer": TrustRegion(rl.mean_kl), "steps": 2, "tasks_per_step": 3}
    runs = [ax.train(problem, policy, method, devices=d, **options) for d in (jax.devices()[:1], jax.devices()[:2])]
    (one, first), (two, second) = runs
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-3)
    assert 0 < float(one.opt_state.divergence) <= 1e-2 and not first["skipped"].any()
    assert int(one.opt_state.backtracks) == int(two.opt_state.backtracks) < 15


@pytest.mark.slow
def test_navigation_is_learned():
    # As published: advantages normalised, no weight of time, the mean over steps.
    options = {"baseline": rl.LinearBaseline(), "per_step": True, "normalise": True, "discount_weighting": False}
    problem = rl.navigation(horizon=20, loss=rl.LVC(0.95, **options))
    policy = rl.GaussianPolicy(ax.models.mlp((2, 16, 2), key=jax.random.key(0), activation=jnp.tanh), 2, std=0.3)
    method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(20, 20, 20))
    state, _ = ax.train(problem, policy, method, optimizer=TrustRegion(rl.mean_kl), steps=60, tasks_per_step=10)
    curve = ax.evaluate(problem, state.params, state.inner, steps=[0, 1], tasks=200, samples=method.samples)
    assert curve.low["return"][1] > curve.high["return"][0] + 2


def test_a_divergence_that_is_not_finite_is_no_step_that_was_not_good_enough():
    cosine = ax.tasks.cosine(dim=3)
    outer = TrustRegion(lambda old, new, batch: jnp.linalg.norm(new - old), radius=0.02)
    with pytest.warns(ax.NotFiniteWarning) as told:
        state, history = ax.train(
            cosine.finite_sum, jnp.ones(3), ax.MetaGradient(ax.Inner(2, 0.05)), optimizer=outer, steps=2, tasks_per_step=3
        )
    assert re.search("outer optimiser makes of it is not: .*, and at what it measures itself", str(told[0].message))
    assert history["skipped"].all() and not history["not_finite"].any() and np.all(np.asarray(state.params) == 1)
