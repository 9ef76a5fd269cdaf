"""The arithmetic of the loss: rounded where it is asked for, and nowhere else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax

BF16 = 2.0**-8


def quadratic(w, c):
    return 0.5 * jnp.sum((w - c) ** 2)


def relative(found, expected):
    a, b = (np.concatenate([np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(tree)]) for tree in (found, expected))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def networks():
    model = eqx.nn.MLP(3, 2, 16, 2, activation=jnp.tanh, key=jax.random.key(0))

    def loss(w, batch):
        return jnp.mean((jax.vmap(w)(batch[0]) - batch[1]) ** 2)

    def sample(key):
        x, y = jax.random.normal(key, (2, 8, 5))
        return ax.Task((x[:, :3], x[:, 3:]), (y[:, :3], y[:, 3:]))

    return model, ax.FiniteSum(loss, sample), sample(jax.random.key(1))


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_curvature"])
def test_iterates_and_derivatives_keep_their_digits(precision):
    """Each step changes w and v by less than bfloat16 can hold, and fifty of them by a tenth."""
    steps, alpha = 50, 1e-3
    task, w = ax.Task(jnp.full(4, 2.0), jnp.full(4, 3.0)), jnp.full(4, 1.0)
    value, grad, info = ax.MetaGradient(ax.Inner(steps, alpha), precision=precision)(
        ax.FiniteSum(quadratic, lambda key: None), w, task
    )
    shrunk = (1 - alpha) ** steps
    final = 2 - shrunk
    assert grad.dtype == info.losses.dtype == value.dtype == jnp.float32
    np.testing.assert_allclose(grad, shrunk * (final - 3), rtol=2 * BF16)
    np.testing.assert_allclose(value, 2 * (final - 3) ** 2, rtol=4 * BF16)


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_curvature"])
@pytest.mark.parametrize("adapt", [None, lambda path: "layers.2" in path])
@pytest.mark.parametrize("optimizer", [None, optax.sgd(1.0, momentum=0.9)])
def test_networks(precision, adapt, optimizer):
    """Near the gradient in single precision, and not equal to it; a frozen part is summed over the steps too."""
    model, problem, task = networks()
    inner = ax.Inner(5, 0.05, optimizer=optimizer, adapt=adapt)
    exact, found = (ax.MetaGradient(inner, precision=kind)(problem, model, task) for kind in (None, precision))
    error = relative(found[1], exact[1])
    assert 1e-5 < error < 8 * BF16
    assert {leaf.dtype for leaf in jax.tree.leaves(found[1])} == {jnp.dtype("float32")}
    if precision == "bfloat16_curvature":
        np.testing.assert_array_equal(found[2].losses, exact[2].losses)
        np.testing.assert_array_equal(found[0], exact[0])
    else:
        assert 1e-6 < relative(found[2].losses, exact[2].losses) < 4 * BF16


def test_the_sum_over_steps_of_a_frozen_part():
    """The derivative by b of many small terms of one sign, which a sum in bfloat16 would stop to add."""
    steps, alpha = 400, 1e-3

    def loss(w, c):
        return jnp.sum(w["a"] * w["b"] * c)

    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    problem = ax.FiniteSum(loss, lambda key: None, target_loss=lambda w, c: jnp.sum(w["a"]))
    inner, task = ax.Inner(steps, alpha, adapt=lambda path: path == "a"), ax.Task(jnp.ones(2), jnp.ones(2))
    grad = ax.MetaGradient(inner, precision="bfloat16")(problem, params, task)[1]
    np.testing.assert_allclose(grad["b"], -alpha * steps, rtol=2 * BF16)


def test_a_loss_with_a_state_keeps_it():
    """A moving average that a state in bfloat16 would not move, and its derivative."""
    steps = 20

    def loss(w, state, batch):
        return jnp.mean(batch * w), {"mean": 0.999 * state["mean"] + 0.001 * jnp.mean(batch * w), "count": state["count"] + 1}

    state = {"mean": jnp.asarray(1.0), "count": jnp.asarray(0)}
    problem = ax.Sequential(loss, lambda key: None, state=state, target_loss=lambda w, state, batch: state["mean"])
    task, w = ax.Task(jnp.ones((steps, 4)), jnp.ones(4)), jnp.asarray(0.5)
    value, grad, _ = ax.MetaGradient(ax.Inner(steps, 1e-6), precision="bfloat16")(problem, w, task)
    left = 0.999**steps
    np.testing.assert_allclose(value, left + 0.5 * (1 - left), rtol=BF16)
    np.testing.assert_allclose(grad, 1 - left, rtol=2 * BF16)


@pytest.mark.long
def test_rules_and_training_and_both_modes():
    """A rule measures in single precision; the recursion and plain backpropagation round alike."""
    model, problem, task = networks()
    method = ax.MetaGradient(ax.Inner(3), precision="bfloat16")
    state, history = ax.train(problem, model, method, steps=3, tasks_per_step=2, seed=0)
    assert np.isfinite(history["loss"]).all()
    assert {x.dtype for x in jax.tree.leaves(state.params) if eqx.is_array(x)} == {jnp.dtype("float32")}
    inner = ax.Inner(3, 0.05)
    grads = [
        ax.MetaGradient(inner, mode=mode, precision="bfloat16")(problem, model, task)[1] for mode in ("recursion", "backprop")
    ]
    assert relative(*grads) < 2 * BF16


def precisions(jaxpr, out=None, inside=""):
    """The precision of every product in a program, with the direction of the loop that holds it."""
    out = [] if out is None else out
    for step in jaxpr.eqns:
        if step.primitive.name in ("dot_general", "same_convolution", "filter_correlation"):
            out.append((inside, str(step.params["precision"])))
        where = inside or ("" if step.primitive.name != "scan" else "backward" if step.params["reverse"] else "forward")
        for inner in step.params.values():
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                precisions(getattr(inner, "jaxpr", inner), out, where)
    return out


def traced(precision):
    model, problem, task = networks()
    arrays, static = eqx.partition(model, eqx.is_array)
    method = ax.MetaGradient(ax.Inner(2, 0.1), precision=precision)
    run = lambda arrays, task: method(problem, eqx.combine(arrays, static), task)[:2]  # noqa: E731
    return precisions(jax.make_jaxpr(run)(arrays, task).jaxpr)


def test_products_are_full_where_a_device_would_round(monkeypatch):
    assert {kind for _, kind in traced(None)} == {"None"}
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    highest = "(Precision.HIGHEST, Precision.HIGHEST)"
    assert {kind for _, kind in traced(None)} == {highest}
    found = traced("tensorfloat32_curvature")
    assert {kind for where, kind in found if where != "backward"} == {highest}
    assert {kind for where, kind in found if where == "backward"} == {highest.replace("HIGHEST", "HIGH")}
    with jax.default_matmul_precision("bfloat16"):
        assert {kind for _, kind in traced(None)} == {"(Precision.DEFAULT, Precision.DEFAULT)"}
    jax.clear_caches()


@pytest.mark.parametrize("sets", [1, 3])
def test_the_networks_convolutions_carry_their_precision(sets):
    """Into the programs of other devices, at any order of differentiation."""
    from adaptax.models.kernels import convolve

    x, w = jnp.ones((sets, 2, 8, 8, 3)), jnp.ones((sets, 3, 3, 3, 4))

    def second(x, w):
        with jax.default_matmul_precision("float32"):
            return jax.grad(lambda w: jnp.sum(jax.grad(lambda w: jnp.sum(jax.vmap(convolve)(x, w) ** 2))(w) ** 2))(w)

    text = jax.jit(second).trace(x, w).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]
    assert products and all("HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float16"}, "must be one of"),
        ({"precision": "bfloat16", "curvature": ax.curvature.FiniteDifference()}, "too few digits for differences"),
        ({"precision": "bfloat16_curvature", "mode": "backprop"}, "forms none"),
        ({"precision": "bfloat16_curvature", "curvature": ax.curvature.FirstOrder()}, "forms none"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ax.InputError, match=message):
        ax.MetaGradient(ax.Inner(2, 0.1), **arguments)
