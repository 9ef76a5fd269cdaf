"""Networks of Flax, Equinox and Haiku, with running statistics and dropout, against their own backpropagation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import relative
from networks.libraries import ALPHA, LIBRARIES, ROWS, STEPS

import adaptax as ax

EACH = pytest.mark.parametrize("name", LIBRARIES)


def sample_task(key):
    x = jax.random.normal(key, (STEPS + 1, ROWS, 5), float)
    y = jnp.argmax(x[..., :3] * jax.random.normal(jax.random.fold_in(key, 1), (3,), float), -1)
    return ax.Task((x[:-1], y[:-1]), (x[-1], y[-1]))


@pytest.fixture(params=LIBRARIES)
def network(request, x64):
    made = LIBRARIES[request.param]()
    floats = lambda tree: jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, tree)  # noqa: E731
    return made._replace(params=floats(made.params), state=floats(made.state))


def problem(network, **options):
    return ax.Sequential(network.loss, sample_task, state=network.state, target_loss=network.judged, **options)


def test_meta_gradients_are_those_of_the_library_s_own_backpropagation(network):
    task = sample_task(jax.random.key(3))

    def by_hand(params):
        state = network.state
        floats, others = eqx.partition(params, eqx.is_inexact_array)
        for j in range(STEPS):
            batch = jax.tree.map(lambda leaf, j=j: leaf[j], task.support)
            whole = lambda f, s=state, b=batch: network.loss(eqx.combine(f, others), jax.tree.map(jnp.asarray, s), b)  # noqa: E731
            gradient, state = jax.grad(whole, has_aux=True)(floats)
            floats = jax.tree.map(lambda a, g: a - ALPHA * g, floats, gradient)
        return network.judged(eqx.combine(floats, others), state, task.target)

    value, gradient, _ = ax.MetaGradient(ax.Inner(STEPS, ALPHA))(problem(network), network.params, task)
    want = eqx.filter_value_and_grad(by_hand)(network.params)
    assert relative(value, want[0]) < 1e-12
    assert relative(eqx.filter(gradient, eqx.is_array), eqx.filter(want[1], eqx.is_array)) < 1e-9


def test_statistics_move_with_the_path_and_nothing_else_does(network):
    before = [np.array(x) for x in network.statistics(network.state)]
    adapted = ax.adapt(problem(network), network.params, sample_task(jax.random.key(3)), ax.Inner(STEPS, ALPHA))
    assert all(np.array_equal(a, b) for a, b in zip(before, network.statistics(network.state), strict=True))
    after = network.statistics(adapted.state)
    assert len(after) == len(before) >= 2
    assert all(np.abs(a - np.asarray(b)).max() > 1e-3 for a, b in zip(before, after, strict=True) if a.size > 1)


@pytest.mark.long
def test_the_outer_optimiser_trains_it_and_evaluation_judges_by_running_statistics(network):
    made = problem(network, metrics=lambda params, state, batch: {"cross entropy": network.judged(params, state, batch)})
    method, optimizer = ax.MetaGradient(ax.Inner(STEPS, ALPHA)), optax.adam(0.02)
    state, _ = ax.train(made, network.params, method, optimizer=optimizer, steps=25, tasks_per_step=8, seed=0)
    before, after = (ax.evaluate(made, params, state.inner, [STEPS], 40).mean for params in (network.params, state.params))
    assert after["loss"] < before["loss"] - 0.1
    np.testing.assert_array_equal(after["loss"], after["cross entropy"])


@pytest.mark.slow
@pytest.mark.mission
def test_a_run_is_saved_and_resumed_bit_for_bit(network, tmp_path):
    made, method, optimizer = problem(network), ax.MetaGradient(ax.Inner(STEPS, ALPHA)), optax.adam(0.01)

    def train(steps, **options):
        return ax.train(made, network.params, method, optimizer=optimizer, steps=steps, tasks_per_step=2, seed=0, **options)[0]

    out = {"out": tmp_path / "run", "checkpoint_every": 2}
    train(2, **out)
    resumed, whole = train(4, **out, resume=True), train(4)
    for a, b in zip(*(jax.tree.leaves(eqx.filter(state.params, eqx.is_array)) for state in (resumed, whole)), strict=True):
        np.testing.assert_array_equal(a, b)
