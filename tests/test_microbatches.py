"""Losses by parts of their batches: the same gradients, the memory of one part, and refusals where parts make no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax

N, ALPHA, EXAMPLES = 4, 0.1, 12


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def case(examples=EXAMPLES, steps=None, width=4):
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"a": jax.random.normal(keys[0], (3, width)), "b": jax.random.normal(keys[1], (width,)) / width}
    shape = (examples, 3) if steps is None else (steps, examples, 3)
    support = jax.random.normal(keys[2], shape), jax.random.normal(keys[3], shape[:-1])
    return params, ax.Task(support, (jax.random.normal(keys[4], (examples, 3)), jax.random.normal(keys[5], (examples,))))


CASES = {
    "sgd": {},
    "adam": {"optimizer": optax.adam(1.0, eps_root=1e-8)},
    "frozen": {"adapt": lambda path: path == "b"},
    "proximal": {"proximal": 0.3, "optimizer": optax.sgd(1.0, momentum=0.9)},
}


@pytest.mark.parametrize("parts", [1, 3, EXAMPLES])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_whole_batches(x64, name, parts):
    params, task = case()
    problem, inner = ax.FiniteSum(loss, lambda key: None), ax.Inner(N, ALPHA, **CASES[name])
    whole, found = (ax.MetaGradient(inner, microbatches=m)(problem, params, task) for m in (None, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found[:2], whole[:2])
    np.testing.assert_allclose(found[2].losses, whole[2].losses, rtol=1e-12)


@pytest.mark.parametrize("more", [{"mode": "backprop"}, {"store": 2}, {"truncate": 2}, {"multi_step": ax.MultiStep()}])
def test_it_goes_with_the_other_options(x64, more):
    params, task = case()
    problem, inner = ax.FiniteSum(loss, lambda key: None), ax.Inner(N, ALPHA)
    whole, found = (ax.MetaGradient(inner, microbatches=m, **more)(problem, params, task) for m in (None, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found[:2], whole[:2])


def test_sequences_and_samples(x64):
    params, task = case(steps=N)
    sequence = ax.Sequential(loss, lambda key: None, outer="path")
    draw = lambda task, w, key, size: (jax.random.normal(key, (size, 3)), jnp.ones(size))  # noqa: E731
    sampled = ax.Resampling(loss, lambda key: jnp.zeros(()), draw)
    inner = ax.Inner(N, ALPHA)
    for problem, given, more in ((sequence, task, {}), (sampled, jnp.zeros(()), {"samples": ax.Samples(6, 6, 6)})):
        key = jax.random.key(5)
        whole, found = (ax.MetaGradient(inner, microbatches=m, **more)(problem, params, given, key) for m in (None, 3))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), found[:2], whole[:2])


def test_the_memory_is_that_of_one_part():
    problem = ax.FiniteSum(loss, lambda key: None)

    def memory(examples, parts):
        params, task = case(examples, width=64)
        method = ax.MetaGradient(ax.Inner(N, ALPHA), microbatches=parts)
        run = jax.jit(lambda params, task: method(problem, params, task)[1])
        return run.lower(params, task).compile().memory_analysis().temp_size_in_bytes

    assert memory(4096, 16) < 0.25 * memory(4096, None)
    assert memory(4096, 16) < 1.5 * memory(256, None)


def test_training_takes_it():
    params, task = case()
    problem = ax.FiniteSum(loss, lambda key: jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), task))
    states = [
        ax.train(problem, params, ax.MetaGradient(ax.Inner(2, ALPHA), microbatches=m), steps=3, tasks_per_step=2, seed=0)[0]
        for m in (None, 2)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *(state.params for state in states))


def test_refusals():
    params, task = case()
    problem, inner = ax.FiniteSum(loss, lambda key: None), ax.Inner(N, ALPHA)
    with pytest.raises(ax.InputError, match="12 examples cannot be cut into microbatches=5 equal parts: take a divisor of 12"):
        ax.MetaGradient(inner, microbatches=5)(problem, params, task)
    with pytest.raises(ax.InputError, match=r"MetaGradient\(microbatches=0\)"):
        ax.MetaGradient(inner, microbatches=0)
    uneven = ax.Task((task.support, jnp.zeros(())), task.target)
    with pytest.raises(ax.InputError, match="one leading axis over the examples"):
        ax.MetaGradient(inner, microbatches=2)(
            ax.FiniteSum(lambda w, b: loss(w, b[0]), lambda key: None, target_loss=loss), params, uneven
        )
    stateful = ax.Sequential(lambda w, s, b: (loss(w, b), s), lambda key: None, state=jnp.zeros(()))
    with pytest.raises(ax.InputError, match="A loss with a state moves it by the whole batch"):
        ax.MetaGradient(inner, microbatches=2)(stateful, params, case(steps=N)[1])
