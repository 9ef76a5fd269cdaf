from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax import _devices as dev


def test_a_step_is_the_mean_meta_gradient_handed_to_the_optimiser(tiny):
    step = ax.make_step(tiny.problem, tiny.fixed, optax.sgd(0.5), 5)
    state = step.init(tiny.start)
    (batch,) = tiny.batches(1)
    value, grad, _ = tiny.fixed.batch(tiny.problem, tiny.start, batch)
    state, info = step(state, batch)
    np.testing.assert_allclose(state.params, tiny.start - 0.5 * grad, rtol=1e-6)
    np.testing.assert_allclose(info["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(info["grad_norm"], jnp.linalg.norm(grad), rtol=1e-6)
    np.testing.assert_allclose(info["stepsize"], 0.1, rtol=1e-6)
    assert not info["skipped"] and int(state.step) == 1


def test_the_tasks_of_a_step_follow_from_seed_step_and_index_alone(tiny):
    step = ax.make_step(tiny.problem, tiny.fixed, tiny.adam, 5)
    key = jax.random.key(0)
    few, many = (jax.random.key_data(step.keys(key, jnp.array(3), jnp.arange(n))) for n in (5, 8))
    assert np.array_equal(few, many[:5])
    for other_key, at in ((key, 4), (jax.random.key(1), 3)):
        other = jax.random.key_data(step.keys(other_key, jnp.array(at), jnp.arange(5)))
        assert not np.any(np.all(other == few, axis=-1))
    state = step.init(tiny.start)
    sampled = step(state)[1]["loss"]
    given = step(state, step.sample(step.keys(state.key, state.step, jnp.arange(5))))[1]["loss"]
    np.testing.assert_allclose(sampled, given, rtol=1e-6)


def test_a_step_works_inside_the_callers_own_programs(tiny):
    step = ax.make_step(tiny.problem, tiny.fixed, tiny.adam, 2)
    state = step.init(tiny.start)
    for _ in range(3):
        state, _ = step(state)
    arrays, static = eqx.partition(step.init(tiny.start), eqx.is_array)

    @jax.jit
    def three(arrays):
        body = lambda a, _: (eqx.filter(step(eqx.combine(a, static))[0], eqx.is_array), None)  # noqa: E731
        return jax.lax.scan(body, arrays, None, length=3)[0]

    np.testing.assert_allclose(three(arrays).params, state.params, rtol=1e-6)


def test_a_step_is_compiled_once(tiny):
    step = ax.make_step(tiny.problem, tiny.fixed, optax.inject_hyperparams(optax.adam)(0.1), 2)
    state, _ = step(step.init(tiny.start))
    traces = tiny.traces
    for _ in range(3):
        state, _ = step(state)
    assert tiny.traces == traces
    assert int(state.step) == 4


def test_learned_step_sizes_move_with_the_parameters(tiny):
    method = ax.MetaGradient(ax.Inner(3, ax.stepsize.Learned(0.1, per_step=True)))
    step = ax.make_step(tiny.problem, method, optax.sgd(0.01), 5)
    state = step.init(tiny.start)
    assert isinstance(state.params, ax.Meta) and state.params.stepsize.tree.shape == (3,)
    (batch,) = tiny.batches(1)
    _, grad, _ = method.batch(tiny.problem, state.params, batch)
    after, _ = step(state, batch)
    # In the logarithm, of which an outer step moves ten times as much.
    expected = 0.1 * np.exp(-10 * 0.01 * np.asarray(grad.stepsize.free))
    np.testing.assert_allclose(after.params.stepsize.tree, expected, rtol=1e-6)
    np.testing.assert_allclose(after.params.params, tiny.start - 0.01 * grad.params, rtol=1e-6)
    assert np.all(np.asarray(after.params.stepsize.tree) != np.float32(0.1))
    # Parameters that are wrapped already are taken as they are.
    assert tiny.same(step.init(state.params), state)


def test_parameters_of_other_types_pass_through(tiny):
    loss = lambda p, c: jnp.sum((p["w"] - c.astype(jnp.bfloat16)) ** 2) * p["scale"] + 0 * p["table"][p["index"]]  # noqa: E731
    problem = ax.FiniteSum(loss, tiny.sample)
    params = {
        "w": jnp.ones(3, jnp.bfloat16), "scale": 2, "index": jnp.array(1), "table": jnp.arange(2.0), "name": None,
        "flags": np.array([True, False]),
    }  # fmt: skip
    optimizer = optax.inject_hyperparams(optax.adam)(0.1)
    options = {"optimizer": optimizer, "steps": 3, "tasks_per_step": 2, "devices": tiny.two}
    state, history = ax.train(problem, params, tiny.fixed, **options)
    assert state.params["w"].dtype == jnp.bfloat16 and not np.array_equal(state.params["w"], params["w"])
    assert state.params["scale"] == 2 and state.params["name"] is None
    assert state.params["index"].dtype == params["index"].dtype and int(state.params["index"]) == 1
    assert np.array_equal(state.params["flags"], params["flags"])
    assert np.array_equal(state.params["table"], params["table"])
    assert np.all(np.isfinite(history["loss"])) and not history["skipped"].any()


def recorder():
    """Gradient descent that keeps what it was given: three values and how far grad(value_fn) is from the gradient."""

    def init(params):
        return jnp.zeros(5)

    def update(updates, state, params, *, value, grad, value_fn, info, **extra):
        assert set(extra) == {"initial_gradients", "adapted_path"}
        slope = jax.grad(value_fn)(params)
        seen = [value, value_fn(params), info["loss"], jnp.max(jnp.abs(slope - grad)), value_fn(params + 1)]
        return -0.1 * updates, jnp.stack(seen)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize("count", (1, 2))
def test_optimisers_get_the_value_the_function_and_the_info(tiny, count):
    step = ax.make_step(tiny.problem, tiny.fixed, recorder(), 5)
    step = replace(step, mesh=dev.mesh_of(jax.devices()[:count], 5))
    (batch,) = tiny.batches(1)
    state, info = step(step.init(tiny.start), batch)
    value, again, told, gap, beside = np.asarray(state.opt_state)
    expected = [tiny.fixed.batch(tiny.problem, params, batch)[0] for params in (tiny.start, tiny.start + 1)]
    np.testing.assert_allclose([value, again, told, beside], [expected[0]] * 3 + [expected[1]], rtol=1e-5)
    assert gap < 1e-5
    assert value == info["loss"]


@pytest.mark.parametrize(
    "optimizer",
    (
        pytest.param(
            optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8, store_grad=True)),
            id="backtracking",
            marks=pytest.mark.slow,
        ),
        pytest.param(optax.polyak_sgd(), id="polyak"),
    ),
)
def test_optimisers_that_use_the_value_agree_on_one_device_and_two(tiny, optimizer):
    runs = [tiny.train(optimizer=optimizer, steps=6, devices=d)[0] for d in (tiny.one, tiny.two)]
    np.testing.assert_allclose(runs[0].params, runs[1].params, rtol=1e-4, atol=1e-5)
    assert not np.allclose(runs[0].params, tiny.start, atol=1e-3)


def test_bad_arguments_are_refused_in_a_sentence(tiny):
    cases = [
        (lambda: ax.make_step(tiny.problem, tiny.fixed, tiny.adam, 0), "tasks_per_step=0"),
        (lambda: ax.make_step(tiny.problem, tiny.fixed, tiny.adam, 2.0), "tasks_per_step=2.0"),
        (lambda: ax.make_step(tiny.problem, tiny.fixed, tiny.adam, True), "tasks_per_step=True"),
        (lambda: ax.make_step(tiny.problem, tiny.fixed, 0.1, 2), "optax.adam"),
        (lambda: ax.make_step(tiny.problem, ax.Inner(), tiny.adam, 2), r"ax.MetaGradient\(inner\)"),
        (lambda: ax.make_step(tiny.loss, tiny.fixed, tiny.adam, 2), "ax.FiniteSum, ax.Resampling or ax.Sequential"),
    ]
    for call, match in cases:
        with pytest.raises(ax.InputError, match=match) as refusal:
            call()
        assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
