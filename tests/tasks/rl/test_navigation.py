"""Planar navigation: the process, its distributions, and training on it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.tasks import rl

SAMPLES = ax.Samples(6, 5, 4)


def small(std=0.3, seed=0, **options):
    problem = rl.navigation(**{"horizon": 6, **options})
    return problem, rl.GaussianPolicy(ax.models.mlp((2, 4, 2), key=jax.random.key(seed), activation=jnp.tanh), 2, std=std)


def draw(problem, goal, policy, size):
    return jax.jit(problem.draw, static_argnums=3)(goal, policy, jax.random.key(1), size)


def test_the_process():
    problem, policy = small(std=0.1)
    goal = jnp.array([0.3, -0.2])
    batch = draw(problem, goal, policy, 50)
    x, a = np.asarray(batch.observations), np.asarray(batch.actions)
    assert np.all(x[:, 0] == 0)
    np.testing.assert_allclose(x[:, 1:], x[:, :-1] + np.clip(a, -0.1, 0.1), rtol=0, atol=1e-6)
    assert np.mean(np.abs(a) > 0.1) > 0.1
    np.testing.assert_allclose(batch.rewards, -np.linalg.norm(x[:, 1:] - np.asarray(goal), axis=-1), atol=1e-6)
    assert np.all(batch.timed_out) and int(batch.steps) == 50 * 6
    np.testing.assert_allclose(problem.metrics(policy, batch)["return"], batch.rewards.sum(1).mean(), rtol=1e-6)
    # The recorded log-probabilities are those that the policy gives to its actions, of a normal density.
    assert np.max(np.abs(batch.log_ratios(policy))) < 1e-5
    z = (a[:, 0] - np.asarray(policy.mean(batch.observations[:, 0]))) / 0.1
    np.testing.assert_allclose(batch.log_probs[:, 0], (-(z**2) / 2 - np.log(0.1 * np.sqrt(2 * np.pi))).sum(-1), atol=1e-3)


def test_sparse_rewards_and_an_end_at_the_goal():
    problem, policy = small(std=0.1, sparse=True, stop=True, radius=0.1, horizon=20)
    batch = draw(problem, jnp.array([0.15, 0.05]), policy, 200)
    x, mask = np.asarray(batch.observations), np.asarray(batch.mask)
    distance = np.linalg.norm(x[:, 1:] - np.array([0.15, 0.05]), axis=-1)
    inside = (distance <= 0.1) & mask
    np.testing.assert_allclose(batch.rewards, np.where(inside, 1 - distance, 0), atol=1e-6)
    np.testing.assert_array_equal(batch.terminated, inside)
    # An episode ends once at the most, and every episode ends there or at the time limit.
    ended = np.asarray(batch.terminated).any(1)
    assert 0 < ended.sum() < 200 and np.array_equal(ended, ~np.asarray(batch.timed_out))
    assert np.array_equal(mask.sum(1), np.where(ended, np.asarray(batch.terminated).argmax(1) + 1, 20))


def test_goals():
    keys = jax.random.split(jax.random.key(0), 4000)
    square = np.asarray(jax.vmap(rl.navigation().sample_task)(keys))
    assert square.min() > -0.5 and square.max() < 0.5 and np.all(np.abs(square.mean(0)) < 4 * np.sqrt(1 / 12 / 4000))
    circle = np.asarray(jax.vmap(rl.navigation("semicircle").sample_task)(keys))
    np.testing.assert_allclose(np.linalg.norm(circle, axis=1), 1, rtol=1e-5)
    angle = np.arctan2(circle[:, 1], circle[:, 0]) / np.pi
    assert angle.min() >= 0 and abs(angle.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)


def train(devices, seed=0, steps=2, curvature=None):
    problem, policy = small()
    inner = ax.Inner(1, 0.1)
    method = ax.MetaGradient(inner, curvature or ax.curvature.Exact(), samples=SAMPLES)
    return ax.train(
        problem, policy, method, optimizer=optax.adam(1e-2), steps=steps, tasks_per_step=3, seed=seed, devices=devices
    )


def test_one_meta_step_and_the_seed_decides_it():
    problem, policy = small(horizon=3, loss=rl.LoadedDiCE(0.9))
    step = ax.make_step(problem, ax.MetaGradient(ax.Inner(1, 0.1), samples=SAMPLES), optax.sgd(0.1), 2)
    (one, info), (again, _), (other, _) = (step(step.init(policy, seed)) for seed in (0, 0, 1))

    def same(a, b):
        return [bool(jnp.all(x == y)) for x, y in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True)]

    assert all(same(one, again)) and not any(same(one, other)) and not any(same(one, step.init(policy, 0)))
    assert not info["skipped"] and np.isfinite(info["loss"])


@pytest.mark.slow
def test_devices_do_not_decide():
    (_, one), (_, two) = (train(devices) for devices in (jax.devices()[:1], jax.devices()[:2]))
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    np.testing.assert_allclose(one["grad_norm"], two["grad_norm"], rtol=1e-3)
    assert not one["skipped"].any() and np.all(np.isfinite(one["grad_norm"]))


def strategies():
    c = ax.curvature
    return {
        "FirstOrder": c.FirstOrder(), "FiniteDifference": c.FiniteDifference(delta=1e-2), "Annealed": c.Annealed(1),
        "GaussianSmoothing": c.GaussianSmoothing(samples=2), "ZerothOrder": c.ZerothOrder(samples=2),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FirstOrder", "FiniteDifference", "Annealed", "GaussianSmoothing", "ZerothOrder"])
def test_every_curvature_strategy_trains(name):
    _, history = train(jax.devices()[:1], curvature=strategies()[name])
    assert not history["skipped"].any() and np.all(np.isfinite(history["loss"]))


def test_environment_steps():
    problem, _ = small()
    inner, steps = ax.Inner(3, 0.1), rl.environment_steps
    path, last = 3 * 6 * 6, 4 * 6

    def count(curvature, **options):
        return steps(ax.MetaGradient(inner, curvature, samples=SAMPLES, **options), problem)

    c = ax.curvature
    assert count(c.Exact()) == path + 3 * 5 * 6 + last
    assert count(c.Exact(), independent_curvature=False) == path + last
    assert count(c.FirstOrder()) == path + last
    assert count(c.FiniteDifference(delta=0.01)) == path + 2 * 3 * 5 * 6 + last
    assert count(c.GaussianSmoothing(samples=4, delta=1e-3)) == path + 5 * 3 * 5 * 6 + last
    assert count(c.FiniteDifference(delta=0.01), independent_curvature=False) == path + 2 * 3 * 6 * 6 + last
    assert count(c.Exact(), store="sqrt") == count(c.Exact())
    assert count(c.Exact(), multi_step=ax.MultiStep()) == path + 3 * 5 * 6 + 3 * last
    assert steps(ax.MetaGradient(inner, samples=SAMPLES), problem, 7) == 7 * count(c.Exact())


@pytest.mark.slow
def test_the_returns_improve_by_one_step_after_training():
    problem = rl.navigation(horizon=20)
    policy = rl.GaussianPolicy(ax.models.mlp((2, 32, 2), key=jax.random.key(0), activation=jnp.tanh), 2, std=0.3)
    method = ax.MetaGradient(ax.Inner(1, 0.5), samples=ax.Samples(20, 20, 20))
    options = {"steps": [0, 1], "tasks": 200, "samples": method.samples}
    before = ax.evaluate(problem, policy, method.inner, **options)
    state, _ = ax.train(problem, policy, method, optimizer=optax.adam(5e-3), steps=150, tasks_per_step=10)
    after = ax.evaluate(problem, state.params, state.inner, **options)
    assert after.low["return"][1] > after.high["return"][0]
    assert after.low["return"][1] > before.high["return"][1]


@pytest.mark.slow
def test_a_network_baseline_lowers_the_variance_of_the_gradient():
    policy = small(std=0.1)[1]
    goal = jnp.array([0.5, 0.4])

    @jax.jit
    def variances(keys):
        def both(key):
            batch = rl.rollout(rl.Navigation(10), goal, policy, key, 11)
            network = rl.NetworkBaseline((8,), steps=30, learning_rate=0.05)
            grads = [jax.grad(rl.LVC(0.95, baseline=baseline))(policy, batch) for baseline in (None, network)]
            return [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grad)]) for grad in grads]

        return [jnp.sum(jnp.var(grads, axis=0)) for grads in jax.vmap(both)(keys)]

    plain, fitted = variances(jax.random.split(jax.random.key(0), 64))
    assert fitted < 0.3 * plain


def test_noise_drawn_at_once_is_that_drawn_step_by_step():
    problem, policy = small()

    class Stepwise(eqx.Module):
        inner: rl.GaussianPolicy

        def sample(self, observations, key):
            return self.inner.sample(observations, key)

        def log_prob(self, observations, actions):
            return self.inner.log_prob(observations, actions)

    goal = jnp.array([0.3, -0.2])
    one, other = (draw(problem, goal, each, 5) for each in (policy, Stepwise(policy)))
    assert np.std(one.actions) > 0.1
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
