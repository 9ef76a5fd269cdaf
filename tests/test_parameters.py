"""What a parameter is: the same leaves adapt, train, are measured and saved as the user's own library would train."""

import dataclasses
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.errors import NotTrained
from adaptax.training.older import older
from adaptax.training.run import Run

X = jax.random.normal(jax.random.key(0), (6, 3))
TASK = ax.Task((X, jnp.ones(6)), (X, jnp.ones(6)))
DECAYING = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))


def squared(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


def one_task(key):
    return TASK


PROBLEM = ax.FiniteSum(squared, one_task)


class Scaled(eqx.Module):
    w: jax.Array
    temperature: float = 2.0
    slope: float = 0.1
    power: int = 1
    centred: bool = True

    def __call__(self, x):
        x = x - jnp.mean(x, 0) if self.centred else x
        y = (x @ self.w) ** self.power / self.temperature
        return jax.nn.leaky_relu(y, self.slope) if self.slope > 0 else y


class Normalised(eqx.Module):
    """Batch statistics in front of a linear map, behind stop_gradient."""

    w: jax.Array
    mean: jax.Array

    def __call__(self, x):
        return (x - jax.lax.stop_gradient(self.mean)) @ self.w


def train(problem, params, inner=None, optimizer=None, **options):
    method = ax.MetaGradient(ax.Inner(2, 0.1) if inner is None else inner)
    optimizer = optax.adamw(0.1, weight_decay=0.5) if optimizer is None else optimizer
    return ax.train(problem, params, method, optimizer=optimizer, steps=3, tasks_per_step=2, **options)[0]


def unrolled(params, steps, rate, loss=squared):
    """The meta-gradient as plain Equinox gives it."""

    def objective(model):
        for _ in range(steps):
            model = eqx.apply_updates(model, jax.tree.map(lambda g: -rate * g, eqx.filter_grad(loss)(model, TASK.support)))
        return loss(model, TASK.target)

    return eqx.filter_grad(objective)(params)


@pytest.mark.long
def test_python_numbers_of_a_module_are_settings_and_the_rest_trains_as_in_equinox():
    model = Scaled(jnp.array([1.0, -0.5, 0.3]))
    gradient = ax.MetaGradient(ax.Inner(2, 0.1))(PROBLEM, model, TASK)[1]
    expected = unrolled(model, 2, 0.1)
    np.testing.assert_allclose(gradient.w, expected.w, rtol=1e-5)
    assert gradient.temperature is expected.temperature is None
    adapted = ax.adapt(PROBLEM, model, TASK, ax.Inner(2, 0.1)).params
    trained = train(PROBLEM, model, ax.Inner(2, ax.stepsize.Edge())).params
    for found in (adapted, trained):
        assert (found.temperature, found.slope, found.power, found.centred) == (2.0, 0.1, 1, True)
        assert type(found.temperature) is float
    ax.measure.constants(PROBLEM, model, ax.Inner(2, 0.1), tasks=2, iterations=2)
    ax.evaluate(PROBLEM, model, ax.Inner(2, 0.1), steps=[0, 2], tasks=2)


def test_dropout_and_attention_of_equinox_keep_their_settings():
    net = eqx.nn.Sequential([eqx.nn.Linear(3, 1, key=jax.random.key(0)), eqx.nn.Dropout(0.5)])

    def dropped(model, batch):
        return squared(lambda x: jax.vmap(lambda row: model(row, key=jax.random.key(1)))(x)[:, 0], batch)

    assert train(ax.FiniteSum(dropped, one_task), net).params.layers[1].p == 0.5
    attention, y = eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0)), jnp.ones((5, 8))

    def loss(model, batch):
        return jnp.mean((model(batch, batch, batch) - batch) ** 2)

    adapted = ax.adapt(ax.FiniteSum(loss, one_task), attention, ax.Task(y, y), ax.Inner(1, 0.1)).params
    expected = eqx.apply_updates(attention, jax.tree.map(lambda g: -0.1 * g, eqx.filter_grad(loss)(attention, y)))
    np.testing.assert_allclose(adapted.output_proj.weight, expected.output_proj.weight, rtol=1e-5)


@pytest.mark.parametrize("how", ["adapt", "train", "resampling", "learned"])
def test_statistics_behind_stop_gradient_are_neither_decayed_nor_moved(how):
    model = Normalised(jnp.array([1.0, -0.5, 0.3]), jnp.array([1.0, 2.0, 3.0]))
    inner = ax.Inner(2, optimizer=DECAYING)
    if how == "adapt":
        found = ax.adapt(PROBLEM, model, TASK, inner).params
    elif how == "train":
        found = train(PROBLEM, model, inner).params
    elif how == "resampling":
        problem = ax.Resampling(squared, lambda key: 0, lambda task, w, key, size: (jax.random.normal(key, (size, 3)), 1.0))
        found = train(problem, model, inner).params
    else:
        found = train(PROBLEM, model, ax.Inner(2, ax.stepsize.Learned(0.1, per="parameter"))).params.params
    np.testing.assert_array_equal(found.mean, model.mean)
    assert np.all(np.asarray(found.w) != np.asarray(model.w))
    # Its gradient is the zero that JAX gives, so that optimisers of the user's own find the structure they expect.
    gradient = ax.MetaGradient(inner)(PROBLEM, model, TASK)[1]
    np.testing.assert_array_equal(gradient.mean, 0.0)


def test_an_array_used_by_the_target_loss_alone_is_trained_outside_and_does_not_adapt():
    params = {"w": jnp.ones(3), "bias": jnp.array(2.0)}
    problem = ax.FiniteSum(
        lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2),
        one_task,
        target_loss=lambda p, b: jnp.mean((b[0] @ p["w"] + p["bias"] - b[1]) ** 2),
    )
    inner = ax.Inner(1, optimizer=DECAYING)
    assert ax.adapt(problem, params, TASK, inner).params["bias"] == 2.0
    assert train(problem, params, inner).params["bias"] < 2.0


def test_a_dead_unit_whose_gradient_happens_to_be_zero_is_a_parameter():
    def loss(p, batch):
        return jnp.mean((jax.nn.relu(batch[0] @ p["w"] - 100.0) + p["bias"] - batch[1]) ** 2)

    params = {"w": jnp.ones(3), "bias": jnp.array(2.0)}
    decayed = ax.adapt(ax.FiniteSum(loss, one_task), params, TASK, ax.Inner(1, optimizer=DECAYING)).params
    np.testing.assert_allclose(decayed["w"], 0.95, rtol=1e-6)


def test_statistics_within_loops_and_conditions_are_found():
    params = {"w": jnp.ones(3), "mean": jnp.ones(3)}

    def loss(p, batch):
        def add(total, row):
            centred = row - jax.lax.stop_gradient(p["mean"])
            return total + jax.lax.cond(row[0] > 0, lambda r: r @ p["w"], lambda r: -(r @ p["w"]), centred), None

        return jax.lax.scan(add, 0.0, batch[0])[0] ** 2

    adapted = ax.adapt(ax.FiniteSum(loss, one_task), params, TASK, ax.Inner(2, optimizer=DECAYING)).params
    np.testing.assert_array_equal(adapted["mean"], params["mean"])


@pytest.mark.parametrize("trainable", [lambda path: "stats" not in path, {"params": True, "stats": False}])
def test_arrays_that_trainable_leaves_out_are_constants(trainable):
    params = {"params": jnp.ones(3), "stats": jnp.full(3, 2.0)}

    def loss(p, batch):
        return jnp.mean(((batch[0] * p["stats"]) @ p["params"] - batch[1]) ** 2)

    problem = ax.FiniteSum(loss, one_task, trainable=trainable)
    inner = ax.Inner(2, optimizer=DECAYING)
    assert ax.MetaGradient(inner)(problem, params, TASK)[1]["stats"] is None
    for found in (ax.adapt(problem, params, TASK, inner).params, train(problem, params, inner).params):
        np.testing.assert_array_equal(found["stats"], params["stats"])
        assert not np.allclose(found["params"], params["params"])


@pytest.mark.long
def test_batch_statistics_of_flax_are_neither_decayed_nor_moved():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.out = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.drop(nnx.relu(self.norm(self.hidden(x)))))[:, 0]

    net = Net(nnx.Rngs(0))
    net.norm.mean[...] = jnp.arange(4.0)
    graph, state = nnx.split(net)
    inner = ax.Inner(2, optimizer=DECAYING)
    merged = ax.FiniteSum(lambda state, batch: squared(nnx.merge(graph, state), batch), one_task)
    for problem, params in ((PROBLEM, net), (merged, state)):
        for found in (ax.adapt(problem, params, TASK, inner).params, train(problem, params, inner).params):
            norm = found.norm if problem is PROBLEM else found["norm"]
            np.testing.assert_array_equal(norm.mean[...], jnp.arange(4.0))
            np.testing.assert_array_equal(norm.var[...], 1.0)
            assert not np.allclose(norm.scale[...], 1.0)


def test_variables_of_flax_that_hold_python_numbers_are_said():
    nnx = pytest.importorskip("flax.nnx")
    params = {"w": nnx.Param(jnp.ones(3)), "bias": nnx.Param(0.5)}

    def loss(p, batch):
        return jnp.mean((batch[0] @ p["w"][...] + p["bias"].get_value() - batch[1]) ** 2)

    with pytest.warns(NotTrained, match=r"The parameter bias is the Python number 0.5"):
        ax.adapt(ax.FiniteSum(loss, one_task), params, TASK, ax.Inner(1, 0.1))


def test_a_python_number_in_a_plain_container_is_said_to_be_no_parameter():
    params = {"w": jnp.ones(3), "bias": 0.5, "steps": 3}
    problem = ax.FiniteSum(lambda p, b: jnp.mean((b[0] @ p["w"] + p["bias"] - b[1]) ** 2), one_task)
    with pytest.warns(NotTrained, match=r"parameter bias is the Python number 0.5.*jnp.asarray\(0.5\)"):
        adapted = ax.adapt(problem, params, TASK, ax.Inner(1, 0.1)).params
    assert adapted["bias"] == 0.5


@pytest.mark.parametrize(
    "params",
    [{"w": jnp.ones(3, jnp.complex64), "b": jnp.zeros(())}, {"w": np.ones(3, np.complex128), "b": jnp.zeros(())}],
)
def test_complex_parameters_are_refused_by_name_unless_they_are_constants(params):
    def loss(p, batch):
        return jnp.mean((jnp.real(batch[0] @ p["w"]) + p["b"] - batch[1]) ** 2)

    problem, inner = ax.FiniteSum(loss, one_task), ax.Inner(1, 0.3)
    calls = {
        "adapt": lambda: ax.adapt(problem, params, TASK, inner),
        "method": lambda: ax.MetaGradient(inner)(problem, params, TASK),
        "train": lambda: train(problem, params, inner),
        "evaluate": lambda: ax.evaluate(problem, params, inner, [0, 1], tasks=2),
        "resolve": lambda: train(problem, params, ax.Inner(1, ax.stepsize.Edge())),
        "frozen": lambda: train(problem, params, ax.Inner(1, 0.3, adapt={"w": False, "b": True})),
    }
    for call in calls.values():
        with pytest.raises(ax.InputError, match=r"parameter w \(complex\d+\[3\]\) is complex.*jax.lax.complex.*trainable="):
            call()
    constant = ax.FiniteSum(loss, one_task, trainable={"w": False, "b": True})
    np.testing.assert_array_equal(train(constant, params, inner).params["w"], params["w"])
    behind = ax.FiniteSum(lambda p, b: loss(jax.tree.map(jax.lax.stop_gradient, p) | {"b": p["b"]}, b), one_task)
    np.testing.assert_array_equal(ax.adapt(behind, params, TASK, inner).params["w"], params["w"])


def test_two_real_arrays_take_the_place_of_a_complex_one():
    params = {"re": jnp.ones(3), "im": jnp.zeros(3), "b": jnp.zeros(())}

    def loss(p, batch):
        return jnp.mean((jnp.real(batch[0] @ jax.lax.complex(p["re"], p["im"])) + p["b"] - batch[1]) ** 2)

    task = ax.Task(*[(jnp.eye(3), jnp.zeros(3))] * 2)
    assert float(ax.MetaGradient(ax.Inner(1, 0.3))(ax.FiniteSum(loss, one_task), params, task)[0]) == pytest.approx(0.04)


def test_nothing_to_train_is_one_sentence():
    with pytest.raises(ax.InputError, match="No derivative of the loss reaches a parameter that adapts"):
        ax.adapt(ax.FiniteSum(lambda w, b: jnp.sum(jax.lax.stop_gradient(w)), one_task), jnp.ones(3), TASK, ax.Inner(1, 0.1))
    nothing = ax.FiniteSum(lambda w, b: jnp.sum(w**2), one_task, trainable=lambda path: False)
    with pytest.raises(ax.InputError, match=r"no floating-point leaf that is an array and trainable= selects"):
        ax.adapt(nothing, jnp.ones(3), TASK, ax.Inner(1, 0.1))
    with pytest.raises(ax.InputError, match=r"trainable= must hold True or False"):
        ax.FiniteSum(squared, one_task, trainable={"w": 1})
    with pytest.raises(ax.InputError, match=r"trainable= must be a prefix"):
        ax.adapt(ax.FiniteSum(lambda w, b: jnp.sum(w**2), one_task, trainable={"w": True}), jnp.ones(3), TASK, ax.Inner(1, 0.1))


def test_a_loss_without_derivatives_keeps_its_parameters_where_values_alone_are_used():
    problem = ax.FiniteSum(lambda w, b: jnp.sum(jnp.round(10 * (w - 1.0)) ** 2) / 100, one_task)
    inner = ax.Inner(5, 0.1, gradients=ax.gradients.Smoothed(samples=64, delta=0.1))
    adapted = ax.adapt(problem, jnp.zeros(2), TASK, inner, jax.random.key(0)).params
    assert np.linalg.norm(adapted - 1.0) < np.linalg.norm(np.ones(2))


@pytest.mark.long
def test_a_run_is_saved_and_resumed_with_its_settings_and_statistics(tmp_path):
    model = Normalised(jnp.array([1.0, -0.5, 0.3]), jnp.array([1.0, 2.0, 3.0]))
    for params in (model, Scaled(jnp.ones(3))):
        folder = tmp_path / type(params).__name__
        whole = train(PROBLEM, params)
        train(PROBLEM, params, out=folder)
        resumed = train(PROBLEM, params, out=folder, resume=True)
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True):
            np.testing.assert_array_equal(a, b)
        assert Run(folder).checkpoints.load(whole).step == 3


@pytest.mark.long
def test_a_run_begun_when_every_float_was_a_parameter_goes_on_as_it_began(tmp_path):
    class Both(Normalised):
        temperature: float = 2.0

        def __call__(self, x):
            return super().__call__(x) / self.temperature

    model = Both(jnp.array([1.0, -0.5, 0.3]), jnp.array([1.0, 2.0, 3.0]))
    inner = ax.Inner(2, ax.stepsize.Edge())
    begun = train(PROBLEM, model, inner, out=tmp_path / "run", checkpoint_every=1)
    step = ax.make_step(PROBLEM, ax.MetaGradient(inner), optax.adamw(0.1, weight_decay=0.5), 2)
    former = older(step, begun)
    assert former.opt_state[0].mu.temperature.shape == () and former.params.temperature == 2.0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "manifest.json").unlink()
    Run(tmp_path / "run").save(dataclasses.replace(former, step=jnp.array(2, jnp.int32)))
    resumed = train(PROBLEM, model, inner, out=tmp_path / "run", resume=True).params
    # AdamW decays what no derivative reaches by 1 - 0.1 * 0.5, and trains the number.
    np.testing.assert_allclose(resumed.mean, 0.95 * model.mean, rtol=1e-6)
    assert resumed.temperature.dtype == jnp.float32 and resumed.temperature != 2.0
