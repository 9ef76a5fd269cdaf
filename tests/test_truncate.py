"""Meta-gradients through the last K steps: against plain backpropagation that stops there, and in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax

N, K, ALPHA = 7, 3, 0.1


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def case(seed=0, steps=None):
    keys = jax.random.split(jax.random.key(seed), 6)
    params = {"a": jax.random.normal(keys[0], (3, 4)), "b": jax.random.normal(keys[1], (4,))}
    shape = (6, 3) if steps is None else (steps, 6, 3)
    support = jax.random.normal(keys[2], shape), jax.random.normal(keys[3], shape[:-1])
    return params, ax.Task(support, (jax.random.normal(keys[4], (5, 3)), jax.random.normal(keys[5], (5,))))


def both(problem, params, task, inner, **more):
    """The recursion's value and gradient, and those of backpropagation."""
    ways = ({"mode": "recursion", **more}, {"mode": "backprop", **{k: v for k, v in more.items() if k != "store"}})
    return [ax.MetaGradient(inner, truncate=K, **way)(problem, params, task) for way in ways]


def agree(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


OPTIMIZERS = {"sgd": None, "momentum": optax.sgd(1.0, momentum=0.9), "adam": optax.adam(1.0, eps_root=1e-8)}


@pytest.mark.parametrize("store", ["iterates", "sqrt"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_against_backpropagation_that_stops(x64, optimizer, store):
    params, task = case()
    inner = ax.Inner(N, ALPHA, optimizer=OPTIMIZERS[optimizer], proximal=0.3)
    one, other = both(ax.FiniteSum(loss, lambda key: None), params, task, inner, store=store)
    agree(one[:2], other[:2])
    np.testing.assert_allclose(one[2].losses, other[2].losses)
    whole = ax.MetaGradient(inner)(ax.FiniteSum(loss, lambda key: None), params, task)
    np.testing.assert_allclose(one[0], whole[0])
    assert float(jnp.abs(one[1]["a"] - whole[1]["a"]).max()) > 1e-4


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("multi_step", [None, ax.MultiStep()])
def test_learned_step_sizes_and_losses_at_every_step(x64, per_step, multi_step):
    params, task = case()
    learned = ax.stepsize.Learned(ALPHA, per_step=per_step)
    inner, meta = ax.Inner(N, learned), ax.Meta(params, learned.start(params, N))
    one, other = both(ax.FiniteSum(loss, lambda key: None), meta, task, inner, multi_step=multi_step)
    agree(one[:2], other[:2])


@pytest.mark.parametrize("outer", ["last", "path"])
def test_sequences_with_a_state(x64, outer):
    def threaded(params, state, batch):
        return loss(params, batch) + state * jnp.sum(params["b"]), 0.5 * state + jnp.mean(jnp.tanh(batch[0] @ params["a"]))

    params, task = case(steps=N)
    judge = None if outer == "path" else lambda params, state, batch: loss(params, batch) + state**2
    problem = ax.Sequential(
        threaded, lambda key: None, state=lambda params: jnp.sum(params["a"]), outer=outer, target_loss=judge
    )
    one, other = both(problem, params, task, ax.Inner(N, ALPHA))
    agree(one[:2], other[:2])


def test_frozen_parameters_get_the_terms_of_the_last_steps(x64):
    params, task = case()
    inner = ax.Inner(N, ALPHA, adapt=lambda path: path == "b")
    one, other = both(ax.FiniteSum(loss, lambda key: None), params, task, inner)
    agree(one[:2], other[:2])


def test_the_product_and_its_error(x64):
    """On a quadratic both are known: v is a product of K factors, and N - K more are left out."""
    h = np.diag([-0.5, 0.2, 2.0])
    problem = ax.FiniteSum(lambda w, c: 0.5 * (w - c) @ h @ (w - c), lambda key: None, target_loss=lambda w, c: jnp.sum(w * c))
    c = jnp.array([1.0, -2.0, 0.5])
    factor = np.eye(3) - ALPHA * h
    whole = np.linalg.matrix_power(factor, N) @ c
    for kept in (1, K, N, N + 5):
        found = ax.MetaGradient(ax.Inner(N, ALPHA), truncate=kept)(problem, jnp.ones(3), ax.Task(jnp.zeros(3), c))[1]
        np.testing.assert_allclose(found, np.linalg.matrix_power(factor, min(kept, N)) @ c, rtol=1e-12)
        bound = (1 + ALPHA * 2.0) ** max(N - kept, 0) - 1
        assert np.linalg.norm(found - whole) <= bound * np.linalg.norm(found) + 1e-12
    # Along one direction of the most negative curvature the bound is attained.
    along = jnp.array([1.0, 0, 0])
    sharp = ax.MetaGradient(ax.Inner(N, ALPHA), truncate=K)(problem, jnp.ones(3), ax.Task(jnp.zeros(3), along))[1]
    error = abs(float(sharp[0]) - factor[0, 0] ** N)
    np.testing.assert_allclose(error, ((1 + ALPHA * 0.5) ** (N - K) - 1) * float(sharp[0]), rtol=1e-12)


def test_the_derivative_by_what_does_not_adapt_converges_in_k(x64):
    """On a strongly convex loss the terms of early steps shrink by 1 - alpha mu each."""
    mu, steps, alpha = 1.0, 60, 0.3
    problem = ax.FiniteSum(lambda p, c: 0.5 * mu * jnp.sum((p["w"] - p["r"] - c) ** 2), lambda key: None,
                           target_loss=lambda p, c: jnp.sum(p["w"] * c))  # fmt: skip
    params, task = {"w": jnp.ones(2), "r": jnp.zeros(2)}, ax.Task(jnp.zeros(2), jnp.ones(2))
    inner = ax.Inner(steps, alpha, adapt=lambda path: path == "w")
    whole = ax.MetaGradient(inner)(problem, params, task)[1]["r"]
    for kept in (5, 10, 20):
        found = ax.MetaGradient(inner, truncate=kept)(problem, params, task)[1]["r"]
        left = (1 - alpha * mu) ** kept - (1 - alpha * mu) ** steps
        np.testing.assert_allclose(whole - found, left, rtol=1e-9)


def test_its_cost_and_what_is_kept():
    cost = ax.MetaGradient(ax.Inner(N, ALPHA), truncate=K).cost()
    assert (cost.gradients, cost.hessian_vector_products) == (N + 1, K)
    params, task = case()
    problem = ax.FiniteSum(loss, lambda key: None)

    def memory(steps, truncate):
        method = ax.MetaGradient(ax.Inner(steps, 0.01), truncate=truncate)
        run = jax.jit(lambda params, task: method(problem, params, task)[1])
        return run.lower(params, task).compile().memory_analysis().temp_size_in_bytes

    # The losses along the path are kept, 4 bytes each; the iterates, 64 bytes each, are not.
    assert memory(1000, K) - memory(10, K) < 1000 * 16 < memory(1000, None) - memory(10, None)
    with pytest.raises(ax.InputError, match=r"MetaGradient\(truncate=0\)"):
        ax.MetaGradient(ax.Inner(2, 0.1), truncate=0)
