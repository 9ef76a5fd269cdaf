"""Which leaves adapt, at which rates: learned step sizes, masks, schedules, and leaves that are not numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import no_tasks, regression, relative

import adaptax as ax

METHODS = {"iterates": {}, "sqrt": {"store": "sqrt"}}
STEPS = 4


def by_hand(problem, model, task, rates, adapts, steps=STEPS):
    """Value of a plain Python loop; `rates(j)` gives a tree like the model, `adapts` a tree of booleans."""
    w = model
    for j in range(steps):
        gradient = jax.grad(problem.loss)(w, task.support)
        w = jax.tree.map(lambda a, g, r, on: a - r * g if on else a, w, gradient, rates(j), adapts)
    return problem.target_loss(w, task.target)


def everywhere(model):
    return jax.tree.map(lambda _: True, model)


@pytest.mark.parametrize("store", METHODS)
@pytest.mark.parametrize("per_step", [False, True], ids=["shared", "per_step"])
@pytest.mark.parametrize("per", ["scalar", "leaf", "parameter"])
def test_learned_step_sizes(x64, per, per_step, store):
    problem, model, task = regression(sizes=(1, 4, 1))
    learned = ax.stepsize.Learned(0.2, per=per, per_step=per_step)
    start = learned.start(model, STEPS).tree
    # Rates that all differ, so that a mixed-up order of steps or leaves shows.
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    numbers = iter(np.random.default_rng(0).uniform(0.05, 0.4, size))
    start = jax.tree.map(lambda leaf: jnp.array([next(numbers) for _ in range(leaf.size)]).reshape(leaf.shape), start)

    def value(meta):
        at = lambda j: jax.tree.map(lambda r: r[j], meta.stepsize) if per_step else meta.stepsize  # noqa: E731
        spread = lambda j: jax.tree.map(lambda _: at(j), model) if per == "scalar" else at(j)  # noqa: E731
        return by_hand(problem, meta.params, task, spread, everywhere(model))

    meta = ax.Meta(model, start)
    expected_value, expected = jax.jit(jax.value_and_grad(value))(meta)
    got_value, grad, _ = ax.MetaGradient(ax.Inner(STEPS, learned), **METHODS[store])(problem, meta, task)
    assert abs(got_value - expected_value) < 1e-12
    assert relative(grad.params, expected.params) < 1e-10
    assert relative(grad.stepsize, expected.stepsize) < 1e-10


def test_learned_step_sizes_given_as_a_prefix_of_the_parameters(x64):
    problem = ax.FiniteSum(lambda w, b: jnp.sum(jnp.cos(w["a"][0] * w["a"][1] - b)) * w["b"], no_tasks)
    params = {"a": [jnp.array([0.3, 1.2]), jnp.array([0.7, -0.4])], "b": jnp.array(1.5)}
    task = ax.Task(jnp.array([0.2, 0.1]), jnp.array([0.5, -0.3]))
    rates = {"a": jnp.array([0.3, 0.1]), "b": jnp.array(0.2)}
    learned = ax.stepsize.Learned(rates)
    start = learned.start(params, STEPS).tree
    assert relative(start, rates) == 0

    def value(meta):
        spread = lambda j: {"a": [meta.stepsize["a"]] * 2, "b": meta.stepsize["b"]}  # noqa: E731
        return by_hand(problem, meta.params, task, spread, everywhere(params))

    meta = ax.Meta(params, start)
    grad = ax.MetaGradient(ax.Inner(STEPS, learned))(problem, meta, task)[1]
    assert relative(grad, jax.grad(value)(meta)) < 1e-10


def test_rates_beyond_the_last_step_are_the_last_one(x64):
    problem, model, task = regression()
    learned = ax.stepsize.Learned(0.2, per_step=True)
    short = ax.Meta(model, jnp.array([0.1, 0.3]))
    long = ax.Meta(model, jnp.array([0.1, 0.3, 0.3, 0.3]))
    method = ax.MetaGradient(ax.Inner(4, learned))
    a, b = method(problem, short, task), method(problem, long, task)
    assert a[0] == b[0]
    # The held entry collects the derivatives of all the steps that use it.
    assert relative(a[1].stepsize, jnp.array([b[1].stepsize[0], b[1].stepsize[1:].sum()])) < 1e-12


HEAD = "layers.2"


@pytest.mark.parametrize("form", ["predicate", "prefix"])
@pytest.mark.parametrize("kind", [{}, {"store": "sqrt"}, {"mode": "backprop"}], ids=["iterates", "sqrt", "backprop"])
def test_frozen_leaves_get_their_full_meta_gradient(x64, kind, form):
    problem, model, task = regression(sizes=(1, 4, 4, 1))
    adapts = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator=".").startswith(HEAD), model
    )
    assert sum(jax.tree.leaves(adapts)) == 2
    adapt = (lambda path: path.startswith(HEAD)) if form == "predicate" else adapts
    inner = ax.Inner(STEPS, 0.3, adapt=adapt)
    shared = jax.tree.map(lambda _: 0.3, model)
    expected = jax.jit(jax.grad(lambda w: by_hand(problem, w, task, lambda j: shared, adapts)))(model)
    assert relative(ax.MetaGradient(inner, **kind)(problem, model, task)[1], expected) < 1e-10
    adapted = ax.adapt(problem, model, task, inner).params
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), adapted, model)
    assert jax.tree.leaves(moved) == jax.tree.leaves(adapts)
    # To first order, what adapts and what does not gets the target gradient at w_N.
    first = ax.MetaGradient(inner, ax.curvature.FirstOrder())(problem, model, task)[1]
    assert relative(first, jax.grad(problem.loss)(adapted, task.target)) < 1e-10


def test_a_short_prefix_stands_for_whole_subtrees():
    problem = ax.FiniteSum(lambda w, b: jnp.sum((w["a"][0] + w["a"][1] + w["b"] - b) ** 2), no_tasks)
    params = {"a": [jnp.ones(2), jnp.ones(2)], "b": jnp.ones(2)}
    task = ax.Task(jnp.zeros(2), jnp.zeros(2))
    adapted = ax.adapt(problem, params, task, ax.Inner(1, 0.1, adapt={"a": True, "b": False})).params
    np.testing.assert_allclose(adapted["a"], 0.4 * np.ones((2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(adapted["b"], np.ones(2))


def test_learned_step_sizes_with_a_mask(x64):
    problem, model, task = regression(sizes=(1, 4, 4, 1))
    learned = ax.stepsize.Learned(0.3, per="leaf", per_step=True)
    inner = ax.Inner(STEPS, learned, adapt=lambda path: not path.startswith("layers.0"))
    adapts = jax.tree_util.tree_map_with_path(
        lambda path, _: not jax.tree_util.keystr(path, simple=True, separator=".").startswith("layers.0"), model
    )
    meta = ax.Meta(model, learned.start(model, STEPS).tree)

    def value(meta):
        rates = lambda j: jax.tree.map(lambda r: r[j], meta.stepsize)  # noqa: E731
        return by_hand(problem, meta.params, task, rates, adapts)

    expected = jax.jit(jax.grad(value))(meta)
    for kind in METHODS.values():
        assert relative(ax.MetaGradient(inner, **kind)(problem, meta, task)[1], expected) < 1e-10


@pytest.mark.parametrize("kind", [{}, {"store": "sqrt"}, {"mode": "backprop"}], ids=["iterates", "sqrt", "backprop"])
def test_schedules(x64, kind):
    problem, model, task = regression()
    alphas = [0.4, 0.1, 0.3, 0.2]
    at = lambda j: jax.tree.map(lambda _: alphas[j], model)  # noqa: E731
    expected = jax.jit(jax.grad(lambda w: by_hand(problem, w, task, at, everywhere(model))))(model)
    for stepsize in (lambda j: alphas[j], jnp.array(alphas)):
        _, grad, info = ax.MetaGradient(ax.Inner(STEPS, stepsize), **kind)(problem, model, task)
        assert relative(grad, expected) < 1e-10
        assert abs(info.stepsize - 0.25) < 1e-12


@pytest.mark.filterwarnings("ignore:The parameter half is the Python number 0.5")
def test_leaves_that_are_not_floating_point_pass_through():
    params = {"w": jnp.array([1.0, 2.0]), "count": jnp.array([3]), "on": jnp.array(True), "name": "tanh", "half": 0.5}

    def loss(p, b):
        scale = jnp.where(p["on"], p["count"][0], 0) * (2 if p["name"] == "tanh" else 0)
        return scale * jnp.sum((p["w"] - b) ** 2) + p["half"] ** 2

    problem, task = ax.FiniteSum(loss, no_tasks), ax.Task(jnp.zeros(2), jnp.ones(2))
    inner = ax.Inner(1, 0.05)
    _, grad, _ = ax.MetaGradient(inner)(problem, params, task)
    assert [grad[name] for name in ("count", "on", "name", "half")] == [None] * 4
    # w_1 = (1 - 0.05 * 12) w_0; and the target gradient is 12 (w_1 - 1).
    np.testing.assert_allclose(grad["w"], 0.4 * 12 * (0.4 * params["w"] - 1), rtol=1e-6)
    adapted = ax.adapt(problem, params, task, inner).params
    assert (adapted["name"], adapted["half"]) == ("tanh", 0.5)
    np.testing.assert_array_equal(adapted["count"], params["count"])
    np.testing.assert_allclose(adapted["w"], 0.4 * params["w"], rtol=1e-6)
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf, leaf]), task)
    for in_flight in (1, 2, 3):
        mean = ax.MetaGradient(inner).batch(problem, params, tasks, in_flight=in_flight)[1]
        np.testing.assert_allclose(mean["w"], grad["w"], rtol=1e-6)
        assert mean["name"] is None
        assert mean["count"] is None


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow), pytest.param("float64", marks=pytest.mark.slow)]
)
def test_dtype_is_preserved(x64, dtype):
    problem, model, task = regression(jnp.dtype(dtype))
    doubled = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (model, task))
    reference = ax.MetaGradient(ax.Inner(3, 0.1))(problem, *doubled)[1]
    for kind in ({}, {"store": "sqrt"}, {"mode": "backprop"}):
        value, grad, info = ax.MetaGradient(ax.Inner(3, 0.1), **kind)(problem, model, task)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves((value, grad, info.losses))} == {dtype}
        assert relative(grad, reference) < {"bfloat16": 0.1, "float32": 1e-5, "float64": 1e-12}[dtype]
    adapted = ax.adapt(problem, model, task, ax.Inner(3, 0.1))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((adapted.params, adapted.losses))} == {dtype}
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), task)
    value, grad, _ = ax.MetaGradient(ax.Inner(3, 0.1)).batch(problem, model, tasks)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((value, grad))} == {dtype}
