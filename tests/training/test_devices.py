import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax import _devices as dev


def test_there_are_two_devices(tiny):
    assert len(tiny.two) == 2


@pytest.mark.parametrize("count", (1, 5))
def test_one_device_and_two_give_the_same_run(tiny, count):
    (one, first), (two, second) = (tiny.train(tasks_per_step=count, devices=d) for d in (tiny.one, tiny.two))
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=2e-5)
    np.testing.assert_allclose(first["grad_norm"], second["grad_norm"], rtol=2e-5)
    np.testing.assert_allclose(one.params, two.params, rtol=2e-5, atol=1e-6)
    assert tiny.same(one.key, two.key)


@pytest.mark.parametrize("method", ("fixed", "edge"))
def test_host_tasks_are_spread_with_nothing_added(tiny, method):
    runs = [tiny.train(getattr(tiny, method), tasks=tiny.batches(6), steps=6, devices=d) for d in (tiny.one, tiny.two)]
    np.testing.assert_allclose(runs[0][1]["loss"], runs[1][1]["loss"], rtol=2e-5)
    np.testing.assert_allclose(runs[0][1]["stepsize"], runs[1][1]["stepsize"], rtol=2e-5)
    np.testing.assert_allclose(runs[0][0].params, runs[1][0].params, rtol=2e-5, atol=1e-6)


def test_samples_follow_the_task_and_not_the_device(tiny):
    draw = lambda task, w, key, size: task.support + jax.random.normal(key, (size, 3))  # noqa: E731
    problem = ax.Resampling(lambda w, x: jnp.mean(tiny.loss(w, x)), tiny.sample, draw)
    method = ax.MetaGradient(ax.Inner(2, 0.1), samples=ax.Samples(2, 3, 4))
    runs = [tiny.train(method, problem, steps=4, tasks_per_step=3, devices=d) for d in (tiny.one, tiny.two)]
    np.testing.assert_allclose(runs[0][1]["loss"], runs[1][1]["loss"], rtol=2e-5)
    np.testing.assert_allclose(runs[0][0].params, runs[1][0].params, rtol=2e-5, atol=1e-6)


def test_the_filling_of_weight_zero_may_be_anything(tiny):
    # Three tasks on two devices: the fourth place samples a task of its own, here one whose loss is not finite.
    fourth = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 3), 0)
    bad = jax.random.key_data(fourth)

    def sample(key):
        spoilt = jnp.where(jnp.all(jax.random.key_data(key) == bad), jnp.nan, 1.0)
        return jax.tree.map(lambda x: spoilt * x, tiny.sample(key))

    problem = ax.FiniteSum(tiny.loss, sample)
    run = lambda count: tiny.train(problem=problem, tasks_per_step=count, steps=1, devices=tiny.two)[1]  # noqa: E731
    runs = [run(3)]
    with pytest.warns(ax.NotFiniteWarning, match="1 of 4 tasks was not finite, task 3"):
        runs.append(run(4))
    assert not runs[0]["skipped"][0] and np.isfinite(runs[0]["loss"][0])
    assert runs[1]["skipped"][0] and np.isnan(runs[1]["loss"][0])


def test_what_training_returns_may_be_used_anywhere(tiny):
    state, _ = tiny.train(devices=tiny.two)
    placed = jax.device_put(jnp.ones(3), tiny.two[1])
    assert (state.params + placed).devices() == {tiny.two[1]}
    more, _ = tiny.train(state=state, steps=14, devices=tiny.two[1:])
    assert int(more.step) == 14
    assert np.isfinite(ax.evaluate(tiny.problem, more.params, more.inner, [1], 4, devices=tiny.one).mean["loss"][0])


def test_a_mesh_has_no_device_without_work(tiny):
    assert dev.mesh_of(tiny.two, 1).size == 1
    assert dev.mesh_of(None, 1) is None
    assert dev.mesh_of(tiny.two, 5).size == 2 and dev.share(dev.mesh_of(tiny.two, 5), 5) == 3
    with pytest.raises(ax.InputError, match="at least one device"):
        dev.mesh_of([], 5)


def test_results_stay_replicated_and_collect_brings_them_home(tiny):
    mesh = dev.mesh_of(tiny.two, 2)
    tree = {"key": jax.random.key(5), "x": jnp.arange(3.0), "n": 2}
    spread = dev.replicate(mesh, tree)
    assert spread["x"].devices() == set(tiny.two)
    home = dev.collect(mesh, spread)
    assert home["x"].devices() == {tiny.one[0]} and home["n"] == 2
    assert tiny.same(home, tree)
