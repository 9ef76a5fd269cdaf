"""`ax.stepsize.Auto` and learned step sizes in training: measured at first, moved in their logarithm, bounded, kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.inner_path import TaskPath
from adaptax.measure.path_curvature import Budget, measure_path
from adaptax.stepsize import Auto, Learned, LearnedRates

# The largest eigenvalue of the tiny problem's Hessian.
LARGEST = 4.0


@pytest.fixture(scope="module")
def auto():
    return ax.MetaGradient(ax.Inner(3, Auto(tasks=2)))


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


def test_in_the_resampling_case_an_array_shares_a_step_size_unless_said(tiny):
    rl = ax.tasks.rl
    problem = rl.tabular(states=2, actions=2, horizon=2)
    policy = problem.policy()
    for given, parameters in ((Auto(tasks=2), False), (Auto(tasks=2, per="parameter"), True)):
        method = ax.MetaGradient(ax.Inner(1, given))
        state = ax.make_step(problem.resampling(rl.LVC(0.9)), method, optax.sgd(0.01), 5).init(policy)
        shapes = [leaf.shape for leaf in jax.tree.leaves(state.inner.stepsize.tree)]
        assert shapes == [leaf.shape if parameters else () for leaf in jax.tree.leaves(policy)]


@pytest.mark.long
def test_in_the_resampling_case_n_steps_share_one_over_the_curvature_and_only_one_step_is_learned():
    rl = ax.tasks.rl
    made = rl.tabular(states=2, actions=2, horizon=2)
    problem, policy = made.resampling(rl.LVC(0.9)), made.policy()

    def begun(steps, **options):
        method = ax.MetaGradient(ax.Inner(steps, Auto(tasks=2, **options)))
        return ax.make_step(problem, method, optax.sgd(0.01), 5).init(policy)

    for n, gamma in ((1, 1.0), (3, 1.0), (3, 0.5)):
        # In the norm of the step sizes the curvature is then gamma over N.
        assert abs(float(begun(n, gamma=gamma).estimate.curvature) - gamma / n) < 1e-5
    assert begun(3).inner.stepsize.shape == ()
    assert all(isinstance(state.inner.stepsize, ax.stepsize.LearnedRates) for state in (begun(1), begun(3, learn=True)))


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
