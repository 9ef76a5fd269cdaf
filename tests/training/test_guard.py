"""Step sizes held below the edge of stability in training: those of `ax.stepsize.Auto` and learned ones."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.inner_path import TaskPath
from adaptax.stepsize import Auto, Learned, LearnedRates
from adaptax.stepsize.guard import hold
from adaptax.stepsize.measurement import first_estimate

# The largest eigenvalue of the tiny problem's Hessian.
LARGEST = 4.0


def dense(path, w, rates):
    """The largest |eigenvalue| of A^(1/2) H A^(1/2) along a path, its vector and its step, by dense linear algebra."""
    best = (0.0, None, None)
    for j in range(path.steps):
        rate = rates[j] if path.rates.per_step else rates
        root = jnp.sqrt(jnp.broadcast_to(rate, w.shape))
        loss = lambda w, j=j: path.loss(w, path.rest, jnp.array(j))  # noqa: E731
        values, vectors = np.linalg.eigh(root[:, None] * jax.hessian(loss)(w) * root)
        at = int(np.argmax(np.abs(values)))
        if abs(values[at]) > best[0]:
            best = (abs(values[at]), vectors[:, at], j)
        w = w - rate * jax.grad(loss)(w)
    return best


@pytest.mark.parametrize("per, per_step", [("parameter", False), ("scalar", False), ("parameter", True)])
def test_step_sizes_beyond_the_edge_are_lowered_by_the_smallest_change(per, per_step):
    matrix = jnp.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, -1.0]])
    problem = ax.FiniteSum(lambda w, c: 0.5 * (w - c) @ matrix @ (w - c) + jnp.sum(jnp.cos(w)), lambda key: None)
    rule = Auto(per=per, per_step=per_step, growth=0.5**3, tasks=1, iterations=300)
    w, task = jnp.array([0.5, -0.2, 0.9]), ax.Task(jnp.ones(3), jnp.ones(3))
    rates = rule.start(jnp.array(0.6), w, 3)
    inner = ax.Inner(3, rule)

    def curvature(rates):
        path = TaskPath(problem, inner.with_stepsize(rates), w, task, None, ax.Samples())
        return dense(path, w, rates.tree)

    value, vector, step = curvature(rates)
    assert value > 1.5
    tasks = jax.tree.map(lambda leaf: leaf[None], task)
    lowered, estimate = hold(rule, inner, rates, first_estimate(w), problem, w, tasks, None, ax.Samples())
    np.testing.assert_allclose(estimate.curvature, value, rtol=1e-3)
    q = np.square(vector) if per == "parameter" else 1.0
    change = -np.log(value / 1.5) * q / np.sum(np.square(q))
    expected = np.asarray(rates.tree)
    if per_step:
        expected = expected.copy()
        expected[step] *= np.exp(change)
    else:
        expected = expected * np.exp(change)
    np.testing.assert_allclose(lowered.tree, expected, rtol=2e-3)
    after = curvature(lowered)[0]
    if per_step:  # Other steps may be beyond the edge too.
        assert after < value
    else:  # At the edge, to first order.
        assert abs(after - 1.5) < 0.3 * (value - 1.5)


def learned_run(alike, start, rule, steps=12, **inner):
    method = ax.MetaGradient(ax.Inner(300, rule, **inner))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ax.NotFiniteWarning)
        return ax.train(alike, start, method, optimizer=optax.sgd(1e-6), steps=steps, tasks_per_step=5)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("per", ["scalar", "parameter"])
def test_learned_step_sizes_that_begin_too_large_come_down(tiny, alike, per, signed):
    """From 12 / lambda, where 300 steps break down: halved at each meta-step until they do not."""
    state, history = learned_run(alike, tiny.start, Learned(12 / LARGEST, per=per, signed=signed))
    assert history["skipped"].tolist() == [True] * 3 + [False] * 9
    assert np.all(state.params.stepsize.tree * LARGEST < 1.6)


def test_learned_step_sizes_are_held_below_the_edge_as_those_of_auto(tiny, alike):
    """A step size of 1.9 / lambda is lowered to the edge of 1.2 / lambda at the eleventh meta-step."""
    rule = Learned(1.9 / LARGEST, growth=0.2**300)
    assert np.isclose(float(learned_run(alike, tiny.start, rule, 10)[0].params.stepsize.tree) * LARGEST, 1.9, rtol=1e-3)
    state, _ = learned_run(alike, tiny.start, rule, 12)
    np.testing.assert_allclose(state.params.stepsize.tree * LARGEST, 1.2, rtol=0.03)
    assert learned_run(alike, tiny.start, Learned(1.9 / LARGEST, growth=None), 12)[0].estimate is None


def test_learned_step_sizes_of_other_steps_have_no_edge(tiny, alike):
    """An inner optimiser, and losses that are smoothed, are trained as they are."""
    for inner in ({"optimizer": optax.sgd(1.0, momentum=0.5)}, {"gradients": ax.gradients.Smoothed()}):
        method = ax.MetaGradient(ax.Inner(3, Learned(0.01), **inner))
        assert ax.make_step(alike, method, optax.sgd(0.1), 5).guard is None


def test_losses_without_second_derivatives_are_looked_at_by_differences(alike):
    exact, first_order = (
        ax.MetaGradient(ax.Inner(3, Learned(0.01)), curvature)
        for curvature in (ax.curvature.Exact(), ax.curvature.FirstOrder())
    )
    steps = [ax.make_step(alike, method, optax.sgd(0.1), 5) for method in (exact, first_order)]
    assert [step.guard.differences for step in steps] == [False, True]


def test_a_path_that_breaks_down_is_told_and_training_goes_on(tiny, alike):
    """Thrice the step size that the curvature allows: 300 steps grow by 2 to the power of 300."""
    method = ax.MetaGradient(ax.Inner(300, Auto(gamma=3.0, tasks=5, every=1000)))
    with pytest.warns(ax.NotFiniteWarning, match="Auto lowers its step sizes then in training"):
        _, history = ax.train(alike, tiny.start, method, optimizer=optax.sgd(1e-6), steps=4, tasks_per_step=5)
    assert history["skipped"].tolist() == [True, False, False, False]


def test_the_edge_is_where_n_steps_grow_by_the_bound():
    for steps in (1, 3, 10, 100):
        assert np.isclose((Auto(growth=500.0).edge(steps) - 1) ** steps, 500.0)


def test_step_sizes_below_the_edge_stay(tiny, alike):
    rule = Auto(tasks=2, growth=8.0)
    rates = rule.start(jnp.array(0.1), tiny.start, 3)
    tasks = jax.vmap(alike.sample_task)(jax.random.split(jax.random.key(0), 2))
    same, estimate = hold(
        rule, ax.Inner(3, rule), rates, first_estimate(tiny.start), alike, tiny.start, tasks, None, ax.Samples()
    )
    np.testing.assert_array_equal(same.tree, rates.tree)
    np.testing.assert_allclose(estimate.curvature, 0.1 * LARGEST, rtol=0.05)


def held_on_one_task(loss, stepsize, task):
    """The step sizes and the estimate after one look at a path of eight steps from ones."""
    problem, rule = ax.FiniteSum(loss, lambda key: None), Auto(tasks=1)
    tasks, start = jax.tree.map(lambda leaf: leaf[None], ax.Task(task, task)), jnp.ones(2)
    if stepsize is None:
        stepsize = rule.start(jnp.array(50.0), start, 8)
    lowered, estimate = hold(
        rule, ax.Inner(8, rule), stepsize, first_estimate(start), problem, start, tasks, None, ax.Samples()
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(estimate.direction))
    return np.asarray(lowered.tree if isinstance(lowered, LearnedRates) else lowered), estimate.curvature


@pytest.mark.parametrize("stepsize", [None, jnp.array(50.0)])
def test_a_path_that_is_not_finite_halves_all_step_sizes(stepsize):
    """Also those of parameters without curvature: the place where a path broke down is not known."""
    rates, curvature = held_on_one_task(lambda w, c: jnp.exp(w[0] ** 2) + c[0] * w[1], stepsize, jnp.ones(2))
    assert np.isinf(curvature)
    np.testing.assert_allclose(rates, 25.0, rtol=1e-5)


@pytest.mark.parametrize("stepsize", [None, jnp.array(50.0)])
def test_data_that_are_not_finite_lower_no_step_size(stepsize):
    rates, curvature = held_on_one_task(lambda w, c: jnp.sum((w - c) ** 2), stepsize, jnp.array([1.0, jnp.nan]))
    assert curvature == 0
    np.testing.assert_allclose(rates, 50.0, rtol=1e-6)


def test_a_skipped_meta_step_is_followed_by_a_look(alike, tiny):
    """The step sizes come down at once, and the run goes on."""
    rule = Auto(tasks=5, every=1000)
    step = ax.make_step(alike, ax.MetaGradient(ax.Inner(300, rule)), optax.sgd(1e-6), 5)
    state = step.init(tiny.start)
    beyond = state.inner.stepsize.times(jnp.full(3, 3.0))  # A path grows as 2 to the power of 300.
    state = eqx.tree_at(lambda s: s.inner, state, state.inner.with_stepsize(beyond))
    skipped = []
    for _ in range(4):
        state, info = step(state)
        skipped.append(bool(info["skipped"]))
    assert skipped == [True, False, False, False]


def test_training_looks_again_every_few_meta_steps(tiny, alike):
    """A step size beyond the edge comes down to it, and not further."""
    rule = Auto(gamma=1.8, learn=False, tasks=2, every=2, growth=0.2**3)
    step = ax.make_step(alike, ax.MetaGradient(ax.Inner(3, rule)), optax.sgd(1e-6), 5)
    state, seen = step.init(tiny.start), []
    np.testing.assert_allclose(state.estimate.curvature, 1.8, rtol=1e-5)
    for _ in range(5):
        state, info = step(state)
        seen.append(float(info["stepsize"]))
    np.testing.assert_allclose(np.array(seen) * LARGEST, [1.8, 1.8, 1.2, 1.2, 1.2], rtol=0.03)


def test_in_double_precision(x64):
    problem = ax.FiniteSum(lambda w, c: 2 * jnp.sum((w - c) ** 2), lambda key: ax.Task(*jax.random.normal(key, (2, 3))))
    state, history = ax.train(problem, jnp.ones(3), ax.MetaGradient(ax.Inner(2)), steps=12, tasks_per_step=2)
    assert state.inner.stepsize.tree.dtype == jnp.float64 and not history["skipped"].any()
