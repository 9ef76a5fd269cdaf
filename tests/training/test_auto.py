"""`ax.stepsize.Auto` and learned step sizes in training: measured at first, moved in their logarithm, bounded, kept."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.inner_path import TaskPath
from adaptax.measure.path_curvature import Budget, measure_path
from adaptax.stepsize import Auto, Learned, LearnedRates
from adaptax.stepsize.guard import hold
from adaptax.stepsize.measurement import first_estimate

# The largest eigenvalue of the tiny problem's Hessian.
LARGEST = 4.0


@pytest.fixture(scope="module")
def auto():
    return ax.MetaGradient(ax.Inner(3, Auto(tasks=2)))


@pytest.fixture(scope="module")
def alike(tiny):
    """The tiny problem with one centre for support and target, so that adaptation helps."""

    def sample(key):
        centre = jax.random.normal(key, (3,))
        return ax.Task(centre, centre)

    return ax.FiniteSum(tiny.loss, sample)


def step_of(tiny, method, optimizer=None):
    return ax.make_step(tiny.problem, method, optimizer or optax.sgd(0.01), 5)


def test_auto_is_the_default():
    assert isinstance(ax.Inner().stepsize, Auto)
    assert float(ax.Inner(optimizer=optax.sgd(0.1)).stepsize) == 1.0
    assert float(ax.Inner(gradients=ax.gradients.Smoothed()).stepsize) == np.float32(0.01)


def test_the_first_step_sizes_are_measured_and_the_parameters_stay_the_users_own(tiny, auto):
    state = step_of(tiny, auto).init(tiny.start)
    assert isinstance(state.inner.stepsize, LearnedRates) and state.params.shape == (3,)
    np.testing.assert_allclose(state.inner.stepsize.tree, 1 / LARGEST, rtol=1e-2)


@pytest.mark.parametrize("per, shape", [("parameter", (3,)), ("leaf", ()), ("scalar", ())])
@pytest.mark.parametrize("per_step", [False, True])
def test_the_parts_that_share_a_step_size(tiny, per, shape, per_step):
    state = step_of(tiny, ax.MetaGradient(ax.Inner(3, Auto(per=per, per_step=per_step, tasks=2)))).init(tiny.start)
    assert state.inner.stepsize.tree.shape == ((3, *shape) if per_step else shape)


def test_a_step_moves_logarithms_by_the_exact_derivative(tiny):
    """Gradient descent on (w, theta) of the mean loss after adaptation, written out for the quadratic."""
    step = step_of(tiny, ax.MetaGradient(ax.Inner(3, Auto(0.5, tasks=2))))
    state, (batch,) = step.init(tiny.start), tiny.batches(1)
    scales, first = jnp.array([1.0, 2.0, 4.0]), state.inner.stepsize.tree

    def objective(w, theta):
        def one(support, target):
            # Every coordinate contracts by (1 - a d)^3 towards its own centre.
            final = support + (1 - first * jnp.exp(10.0 * theta) * scales) ** 3 * (w - support)
            return 0.5 * jnp.sum(scales * (final - target) ** 2)

        return jnp.mean(jax.vmap(one)(batch.support, batch.target))

    by_w, by_theta = jax.grad(objective, (0, 1))(tiny.start, jnp.zeros(3))
    after, info = step(state, batch)
    np.testing.assert_allclose(after.params, tiny.start - 0.01 * by_w, rtol=1e-4)
    np.testing.assert_allclose(after.inner.stepsize.tree, first * np.exp(-10.0 * 0.01 * np.asarray(by_theta)), rtol=1e-4)
    assert np.all(np.abs(np.asarray(by_theta)) > 1e-4)
    np.testing.assert_allclose(info["grad_norm"], np.sqrt(np.sum(by_w**2) + np.sum(by_theta**2)), rtol=1e-4)


def test_the_derivative_by_logarithms_is_that_of_finite_differences():
    with jax.enable_x64(True):
        problem = ax.FiniteSum(lambda w, c: jnp.sum(jnp.cos(w - c)) + 0.1 * jnp.sum(w) ** 2, lambda key: None)
        w, task = jnp.array([0.3, -1.2, 0.8]), ax.Task(jnp.array([0.1, 0.5, -0.4]), jnp.array([0.7, 0.2, 0.3]))
        for signed in (False, True):
            method = ax.MetaGradient(ax.Inner(4, Learned(0.2, per="parameter", per_step=True, signed=signed)))
            rates = method.inner.stepsize.start(w, 4)
            value = lambda free, rates=rates, method=method: float(  # noqa: E731
                method(problem, ax.Meta(w, LearnedRates(rates.first, free, True, rates.signed)), task)[0]
            )
            free = rates.free + 0.01 * jax.random.normal(jax.random.key(0), rates.free.shape)
            at = ax.Meta(w, LearnedRates(rates.first, free, True, signed))
            grad = method(problem, at, task)[1].stepsize
            assert not np.any(grad.first)
            direction = np.random.default_rng(1).normal(size=free.shape)
            numeric = (value(free + 1e-5 * direction) - value(free - 1e-5 * direction)) / 2e-5
            np.testing.assert_allclose(np.sum(grad.free * direction), numeric, rtol=1e-7)


def test_step_sizes_stay_within_their_bound_and_positive(tiny, alike):
    step = ax.make_step(alike, ax.MetaGradient(ax.Inner(3, Auto(most=2.0, tasks=2))), optax.adam(0.05), 5)
    state = step.init(tiny.start)
    first = np.asarray(state.inner.stepsize.tree)
    for _ in range(12):
        state, _ = step(state)
        assert np.all(np.asarray(state.inner.stepsize.tree) <= 2 * first * (1 + 1e-6))
        assert np.all(np.asarray(state.inner.stepsize.tree) > 0)
    # The smallest curvature asks for a larger step size than the bound.
    assert np.isclose(float(state.inner.stepsize.tree[0]), 2 * first[0])


def test_signed_step_sizes_may_turn_negative():
    # Support and target gradients point apart, so that a step in the other direction is better.
    problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: ax.Task(-jnp.ones(2), jnp.ones(2)))
    for signed in (True, False):
        method = ax.MetaGradient(ax.Inner(1, Learned(0.1, signed=signed)))
        step = ax.make_step(problem, method, optax.sgd(0.02), 1)
        state = step.init(jnp.zeros(2))
        for _ in range(20):
            state, _ = step(state, ax.Task(-jnp.ones((1, 2)), jnp.ones((1, 2))))
        rate = float(state.params.stepsize.tree)
        assert (rate < 0) if signed else (0 < rate < 0.1)


def test_plain_step_sizes_in_meta_are_taken_as_logarithms_by_training(tiny):
    method = ax.MetaGradient(ax.Inner(3, Learned(0.5, per_step=True)))
    state = step_of(tiny, method).init(ax.Meta(tiny.start, jnp.array([0.1, 0.2, 0.3])))
    np.testing.assert_allclose(state.params.stepsize.tree, [0.1, 0.2, 0.3], rtol=1e-6)


@pytest.mark.parametrize("method", [ax.Reptile(ax.Inner(3)), ax.Implicit(ax.Inner(3, proximal=1.0))])
def test_methods_without_derivatives_by_step_sizes_keep_the_measured_one(tiny, method):
    step = step_of(tiny, method)
    state = step.init(tiny.start)
    after, _ = step(step(state)[0])
    assert jnp.shape(state.inner.stepsize) == () and float(after.inner.stepsize) == float(state.inner.stepsize)


def test_a_step_size_that_does_not_learn_is_held(tiny):
    step = step_of(tiny, ax.MetaGradient(ax.Inner(3, Auto(learn=False, tasks=2))))
    state = step.init(tiny.start)
    after, _ = step(step(state)[0])
    np.testing.assert_allclose(float(state.inner.stepsize), 1 / LARGEST, rtol=1e-2)
    assert float(after.inner.stepsize) == float(state.inner.stepsize)


def test_no_inner_step_needs_no_step_size(tiny):
    step = step_of(tiny, ax.MetaGradient(ax.Inner(0)))
    state, info = step(step.init(tiny.start))
    assert jnp.shape(state.inner.stepsize) == () and not bool(info["skipped"])


def test_a_trained_run_is_judged_and_adapts_with_its_step_sizes(tiny, alike, auto):
    state, history = tiny.train(auto, alike, steps=60)
    curve = ax.evaluate(alike, state.params, state.inner, [0, 3, 6], 20, devices=tiny.one)
    assert curve.mean["loss"][1] < 1e-2 * curve.mean["loss"][0] and curve.mean["loss"][2] < curve.mean["loss"][1]
    adapted = ax.adapt(alike, state.params, alike.sample_task(jax.random.key(3)), state.inner)
    assert adapted.losses[-1] < adapted.losses[0]
    rates = np.asarray(state.inner.stepsize.tree)
    np.testing.assert_allclose(history["stepsize"][0], 1 / LARGEST, rtol=1e-2)
    # One over each coordinate's own curvature is best.
    np.testing.assert_allclose(rates, [1, 1 / 2, 1 / 4], rtol=0.3)


def test_a_run_goes_on_bit_for_bit(tiny, auto, tmp_path):
    whole, history = tiny.train(auto)
    tiny.train(auto, steps=5, out=tmp_path / "run", checkpoint_every=5)
    resumed, again = tiny.train(auto, out=tmp_path / "run", resume=True)
    assert tiny.same(whole, resumed) and tiny.same_history(history, again)


def test_results_do_not_depend_on_the_number_of_devices(tiny, auto):
    one, two = (tiny.train(auto, devices=devices)[0] for devices in (tiny.one, tiny.two))
    np.testing.assert_allclose(one.params, two.params, rtol=1e-5)
    np.testing.assert_allclose(one.inner.stepsize.tree, two.inner.stepsize.tree, rtol=1e-5)


def test_learned_step_sizes_can_be_held_in_another_run(tiny, auto):
    state, _ = tiny.train(auto)
    held = step_of(tiny, ax.MetaGradient(state.inner))
    after, _ = held(held.init(state.params))
    np.testing.assert_array_equal(after.inner.stepsize.tree, state.inner.stepsize.tree)


def test_outer_optimisers_that_ask_for_the_loss_get_it_at_other_step_sizes(tiny, auto):
    step = step_of(tiny, auto, optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)))
    state, (batch,) = step.init(tiny.start), tiny.batches(1)
    after, info = step(state, batch)
    assert float(step(after, batch)[1]["loss"]) < float(info["loss"])


def test_an_outer_step_by_the_smoothness_of_plain_descent_says_what_to_use(tiny, auto):
    step = step_of(tiny, auto, ax.outer.AdaptiveOuter(ax.theory.Constants(L=LARGEST, rho=0.0, sigma=1.0)))
    state = step.init(tiny.start)
    with pytest.raises(ax.InputError, match=r"one step size \(ax.stepsize.Guaranteed\(\) or a number\)"):
        step(state)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Auto(gamma=0.0), "gamma"),
        (lambda: Auto(most=0.5), "most"),
        (lambda: Auto(growth=0.0), "growth"),
        (lambda: Auto(per="layer"), '"scalar", "leaf" or "parameter"'),
        (lambda: Auto(learn=2), "learn"),
        (lambda: Auto(tasks=0), "tasks"),
        (lambda: Learned(0.1, signed="no"), "signed"),
        (lambda: Learned(0.1, growth=-1.0), "growth"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ax.InputError, match=message):
        make()


def test_the_default_optimiser_warms_up_clips_and_falls():
    """Constant gradients: Adam's steps are its schedule."""
    from adaptax.training.outer_defaults import LEARNING_RATE, default_optimizer

    optimizer = default_optimizer(1000)
    state, sizes = optimizer.init(jnp.zeros(2)), []
    update = jax.jit(optimizer.update)
    for _ in range(1000):
        updates, state = update(jnp.full(2, 1e3), state)
        sizes.append(float(-updates[0]))
    assert sizes[0] < 0.1 * LEARNING_RATE and max(sizes) <= LEARNING_RATE * 1.001 and sizes[-1] < 1e-4 * LEARNING_RATE
    assert 10 < int(np.argmax(sizes)) < 100
    assert default_optimizer(1000) is optimizer
    for steps in (1, 2, 5):
        assert np.isfinite(jax.tree.leaves(default_optimizer(steps).init(jnp.zeros(1)))[-1]).all()


# Held below the edge of stability.


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


def test_a_method_takes_the_step_sizes_of_meta(tiny, alike, auto):
    """What a meta-step does with its own: no step size is measured for `ax.Meta`."""
    rates = LearnedRates.of(jnp.full(3, 0.05))
    tasks = jax.vmap(alike.sample_task)(jax.random.split(jax.random.key(0), 4))
    _, grad, info = auto.batch(alike, ax.Meta(tiny.start, rates), tasks)
    np.testing.assert_allclose(info.stepsize, 0.05, rtol=1e-6)
    assert grad.stepsize.free.shape == (3,)


@pytest.mark.parametrize("per_step", [False, True])
def test_stability_is_that_in_the_norm_of_the_step_sizes(per_step):
    matrix = jnp.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, -1.0]])
    problem = ax.FiniteSum(lambda w, c: 0.5 * (w - c) @ matrix @ (w - c), lambda key: None)
    w, task = jnp.array([0.5, -0.2, 0.9]), ax.Task(jnp.ones(3), jnp.ones(3))
    first = jnp.array([[0.3, 0.1, 0.2], [0.05, 0.4, 0.1]]) if per_step else jnp.array([0.3, 0.1, 0.2])
    path = TaskPath(problem, ax.Inner(2, LearnedRates.of(first, per_step)), w, task, jax.random.key(0), ax.Samples())
    found = measure_path(path, Budget(iterations=3, changes=0, draws=1, radius=None), by_step_sizes=True)
    ends = [np.linalg.eigvalsh(np.sqrt(a)[:, None] * matrix * np.sqrt(a)) for a in np.atleast_2d(first)]
    np.testing.assert_allclose(found.lam, max(values[-1] for values in ends), rtol=1e-5)
    np.testing.assert_allclose(found.mu, max(-values[0] for values in ends), rtol=1e-5)
