"""What every strategy owes, whatever it does: one table (`contract.py`), one set of tests."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import COUNTED, PROBLEM, ROWS, loss, point, ticks, traces
from helpers import MISSION, flat, relative

import adaptax as ax
from adaptax import _tree

EACH = pytest.mark.parametrize("name", ROWS)
STOCHASTIC = [name for name, row in ROWS.items() if row.make(0.1).stochastic]
ALPHA, KEY = 0.3, jax.random.key(0)


def key_of(name, seed=0):
    return jax.random.key(seed) if name in STOCHASTIC else None


def run(name, alpha=ALPHA, seed=0, key=0, dtype=None, problem=PROBLEM):
    """The row's method at a point of that seed."""
    row, (w, task) = ROWS[name], point(seed, dtype)
    return row.make(alpha)(problem, row.params(w, alpha), task, key_of(name, key))


@EACH
def test_structure_and_types_are_those_of_the_parameters(name):
    for dtype in (jnp.float32, jnp.bfloat16):
        w, _ = point(0, dtype)
        value, grad, info = jax.eval_shape(lambda dtype=dtype: run(name, dtype=dtype))
        grad = grad.params if isinstance(grad, ax.Meta) else grad
        assert value.dtype == info.losses.dtype == dtype
        assert [(grad[n].shape, grad[n].dtype) for n in "ab"] == [(w[n].shape, dtype) for n in "ab"]
        assert grad["count"] is None and grad["name"] is None


# These run in CI: each has a neighbour in the ordinary suite.
LONG = (
    "smoothing momentum",
    "values antithetic",
    "antithetic",
    "multi-step momentum",
    "nesterov",
    "annealed learned",
    "first order adam",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=MISSION) if name in LONG else name for name in ROWS])
def test_transformations_change_nothing_and_arrays_do_not_recompile(x64, name):
    got = [run(name, seed=k, key=k) for k in range(2)]
    count = len(traces)
    assert relative(run(name, seed=1, key=1), got[1]) == 0
    if not isinstance(run(name)[1], ax.Meta):
        assert relative(run(name, alpha=ALPHA / 2), got[0]) > 1e-3
    assert len(traces) == count
    row, points = ROWS[name], [point(k) for k in range(2)]
    params = row.params({"count": points[0][0]["count"], "name": "cos"} | {n: points[0][0][n] for n in "ab"}, ALPHA)

    @jax.jit
    @jax.vmap
    def mapped(pair, task, key):
        w = {**points[0][0], **pair}
        full = ax.Meta(w, params.stepsize) if isinstance(params, ax.Meta) else w
        return row.make(ALPHA)(PROBLEM, full, task, key if name in STOCHASTIC else None)

    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    pairs, tasks = jax.tree.map(stack, *[({n: w[n] for n in "ab"}, task) for w, task in points])
    every = mapped(pairs, tasks, jnp.stack([jax.random.key(k) for k in range(2)]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(every))
    # Differences of values and of gradients magnify rounding by 1 / delta^2 and 1 / delta.
    assert relative(every, jax.tree.map(stack, *got)) < (1e-12 if ROWS[name].error == 1e-10 else 1e-6)


@EACH
def test_agrees_with_backpropagation_within_its_error(x64, name):
    row, (w, task) = ROWS[name], point(1)
    if row.error is None:
        pytest.skip("another method on purpose: its own tests say which")
    method, params = row.make(ALPHA), row.params(w, ALPHA)
    exact = ax.MetaGradient(method.inner, mode="backprop", multi_step=method.multi_step)
    value, grad, info = exact(PROBLEM, params, task)
    if row.error == "mean":
        keys = jax.random.split(KEY, 4000)
        found = jax.vmap(lambda key: method(PROBLEM, params, task, key)[1])(keys)
        found = np.stack([np.concatenate([np.ravel(x[k]) for x in jax.tree.leaves(found)]) for k in range(len(keys))])
        errors = found.std(0, ddof=1) / np.sqrt(len(keys))
        assert np.all(np.abs(found.mean(0) - flat(grad)) < 4 * errors + 1e-6)
        # So precise that a term left out would show.
        first = flat(ax.MetaGradient(method.inner, ax.curvature.FirstOrder())(PROBLEM, params, task)[1])
        assert np.linalg.norm(first - flat(grad)) > 6 * np.linalg.norm(errors)
        return
    got = method(PROBLEM, params, task)
    assert relative(got[1], grad) <= row.error
    assert relative((got[0], got[2]), (value, info)) < 1e-12


@EACH
def test_costs_what_it_says(name):
    ticks.clear()
    jax.block_until_ready(run(name, problem=COUNTED)[0])
    jax.effects_barrier()
    # A gradient comes with its value and a product with its gradient, for one call each.
    taken = ax.Cost(ticks["loss"] - ticks["gradient"] - ticks["product"], ticks["gradient"], ticks["product"])
    method = ROWS[name].make(ALPHA)
    expected = method.cost()
    if isinstance(getattr(method, "curvature", None), ax.curvature.Annealed) and method.curvature.first_order_steps:
        # The cost is that of the later meta-steps.
        expected = expected._replace(hessian_vector_products=0)
    assert taken == expected


@pytest.mark.parametrize("name", STOCHASTIC)
def test_directions_come_from_the_key(x64, name):
    row, (w, task) = ROWS[name], point(0)
    with pytest.raises(ax.InputError, match="draws directions: pass a key") as caught:
        row.make(ALPHA)(PROBLEM, row.params(w, ALPHA), task)
    assert not re.search(r"[.!?] [A-Z]", str(caught.value))
    assert relative(run(name, key=0)[1], run(name, key=1)[1]) > 1e-3


def drawn(monkeypatch, name):
    """All directions that one meta-gradient draws, in the order drawn."""
    seen, original = [], _tree.normal_like

    def watched(key, like):
        out = original(key, like)
        jax.debug.callback(lambda *leaves: seen.append(np.concatenate([np.ravel(x) for x in leaves])), *jax.tree.leaves(out))
        return out

    monkeypatch.setattr(_tree, "normal_like", watched)
    jax.block_until_ready(run(name, problem=ax.FiniteSum(lambda p, x: loss(p, x), PROBLEM.sample_task)))
    jax.effects_barrier()
    return seen


# Two directions for each of three factors; with estimated gradients two for each step and for the last gradient too.
# All gradients inside one product share two: differences of gradients along other directions would be noise.
FRESH = {"smoothing": 6, "values": 6, "values alone": 6 + 6 + 2, "values antithetic": 6 + 6 + 6 + 2}


@pytest.mark.parametrize("name", FRESH)
def test_directions_are_fresh_for_every_step_and_purpose(monkeypatch, name):
    seen = drawn(monkeypatch, name)
    assert len({x.tobytes() for x in seen}) == FRESH[name]
    # Three gradients a product, two directions each, where one would do.
    assert len(seen) == FRESH[name] + (3 * 2 * 2 if name == "values antithetic" else 0)


# The other rows take long to compile twice.
DEVICES = ("implicit frozen",)


@pytest.mark.parametrize("name", [name if name in DEVICES else pytest.param(name, marks=pytest.mark.slow) for name in ROWS])
def test_one_device_and_two_give_the_same_training(x64, name):
    row, (w, _) = ROWS[name], point(0)
    sample = lambda key: ax.Task(*jax.random.normal(key, (2, 3)))  # noqa: E731
    problem, optimizer = ax.FiniteSum(loss, sample), optax.sgd(0.05)
    options = {"optimizer": optimizer, "steps": 2, "tasks_per_step": 3}
    runs = [ax.train(problem, w, row.make(ALPHA), devices=jax.devices()[:count], **options) for count in (1, 2)]
    (one, first), (two, second) = runs
    for column in ("loss", "grad_norm"):
        np.testing.assert_allclose(first[column], second[column], rtol=1e-7)
    floats = lambda state: eqx.filter(state.params, eqx.is_inexact_array)  # noqa: E731
    assert relative(floats(one), floats(two)) < 1e-7
    assert not first["skipped"].any()
