"""The meta-gradient under jit, vmap and grad, without needless recompilation; and batches of tasks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import no_tasks, regression, relative, squared

import adaptax as ax
from adaptax._batching import map_tasks

BATCH = 5


class Weighted(eqx.Module):
    """A loss that holds an array and is therefore a leaf of its problem."""

    weight: jax.Array

    def __call__(self, model, batch):
        return self.weight * squared(model, batch)


def batch_of(task, count=BATCH):
    shift = lambda leaf: jnp.stack([leaf + 0.1 * k for k in range(count)])  # noqa: E731
    return jax.tree.map(shift, task)


def one(tasks, index):
    return jax.tree.map(lambda leaf: leaf[index], tasks)


def test_everything_is_a_pytree_for_the_callers_own_jit(x64):
    _, model, task = regression()
    problem = ax.FiniteSum(Weighted(jnp.array(2.0)), no_tasks)
    method = ax.MetaGradient(ax.Inner(3, 0.1))
    expected = method(problem, model, task)
    jitted = jax.jit(lambda method, problem, model, task: method(problem, model, task))
    assert relative(jitted(method, problem, model, task), expected) < 1e-12
    # Half the loss at twice the step size is the same path.
    half = ax.FiniteSum(Weighted(jnp.array(1.0)), no_tasks)
    _, grad, _ = jitted(method.with_inner(ax.Inner(3, 0.2)), half, model, task)
    assert relative(grad, jax.tree.map(lambda leaf: leaf / 2, expected[1])) < 1e-12
    assert jitted._cache_size() == 1
    adapted = jax.jit(lambda inner: ax.adapt(problem, model, task, inner).params)(method.inner)
    assert relative(adapted, ax.adapt(problem, model, task, method.inner).params) < 1e-12


def test_rules_and_learned_step_sizes_pass_through_jit(x64):
    problem, model, task = regression()
    for stepsize, params in (
        (ax.stepsize.Edge(0.9), model),
        (ax.stepsize.Learned(0.1), ax.Meta(model, jnp.array(0.1))),
        (lambda j: 0.1, model),
    ):
        method = ax.MetaGradient(ax.Inner(2, stepsize, adapt=lambda path: "bias" not in path))
        jitted = jax.jit(lambda method, params: method(problem, params, task))
        assert relative(jitted(method, params), method(problem, params, task)) < 1e-10


def test_vmap_over_tasks_and_step_sizes(x64):
    problem, model, task = regression()
    tasks = batch_of(task)
    method = ax.MetaGradient(ax.Inner(3, 0.1))
    mapped = jax.vmap(lambda task: method(problem, model, task))(tasks)
    for k in range(BATCH):
        assert relative(one(mapped, k), method(problem, model, one(tasks, k))) < 1e-11
    alphas = jnp.array([0.05, 0.2])
    grads = jax.vmap(lambda alpha: ax.MetaGradient(ax.Inner(3, alpha))(problem, model, task)[1])(alphas)
    for k, alpha in enumerate(alphas):
        expected = ax.MetaGradient(ax.Inner(3, alpha))(problem, model, task)[1]
        assert relative(one(grads, k), expected) < 1e-11


@pytest.mark.long
def test_value_differentiates_to_the_meta_gradient(x64):
    problem, model, task = regression()
    method = ax.MetaGradient(ax.Inner(3, 0.1))
    grad = jax.grad(lambda model: method(problem, model, task)[0])(model)
    assert relative(grad, method(problem, model, task)[1]) < 1e-10
    tasks = batch_of(task)
    grad = jax.grad(lambda model: method.batch(problem, model, tasks, in_flight=2)[0])(model)
    assert relative(grad, method.batch(problem, model, tasks)[1]) < 1e-10


@pytest.mark.parametrize("in_flight", [None, 1, 2, 3, 4, 5, 99])
def test_a_batch_is_the_mean_of_single_tasks(x64, in_flight):
    problem, model, task = regression(sizes=(1, 3, 1))
    tasks = batch_of(task)
    method = ax.MetaGradient(ax.Inner(3, 0.1))
    singles = [method(problem, model, one(tasks, k)) for k in range(BATCH)]
    mean = lambda *leaves: sum(leaves) / BATCH  # noqa: E731
    value, grad, info = method.batch(problem, model, tasks, in_flight=in_flight)
    assert abs(value - mean(*[s[0] for s in singles])) < 1e-12
    assert relative(grad, jax.tree.map(mean, *[s[1] for s in singles])) < 1e-11
    assert relative(info, jax.tree.map(lambda *leaves: jnp.stack(leaves), *[s[2] for s in singles])) < 1e-11
    assert info.losses.shape == (BATCH, 3)
    assert info.value.shape == info.stepsize.shape == (BATCH,)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_batch_without_inner_steps_in_groups(in_flight):
    problem, model, task = regression(sizes=(1, 3, 1))
    method, tasks = ax.MetaGradient(ax.Inner(0, 0.1)), batch_of(task)
    _, grad, info = method.batch(problem, model, tasks, in_flight=in_flight)
    assert info.losses.shape == (BATCH, 0) and relative(grad, method.batch(problem, model, tasks)[1]) < 1e-5


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_tasks_may_have_and_give_empty_axes(in_flight):
    numbers, empty = map_tasks(lambda x: (2 * x[0], x[1]), (jnp.arange(3.0), jnp.zeros((3, 0, 4))), in_flight)
    assert numbers.tolist() == [0, 2, 4] and empty.shape == (3, 0, 4)


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_a_batch_of_random_tasks_gives_each_its_own_key(x64, in_flight):
    draw = lambda centre, w, key, size: centre + jax.random.normal(key, (size, 2))  # noqa: E731
    problem = ax.Resampling(lambda w, x: jnp.mean(jnp.cos(w - x) * w), no_tasks, draw)
    tasks, w = jnp.arange(6.0).reshape(3, 2), jnp.array([0.4, -0.2])
    keys = jax.random.split(jax.random.key(0), 3)
    method = ax.MetaGradient(ax.Inner(3, 0.3), samples=ax.Samples(2, 3, 4))
    singles = [method(problem, w, tasks[k], keys[k]) for k in range(3)]
    value, grad, info = method.batch(problem, w, tasks, keys, in_flight=in_flight)
    assert relative((value, grad), jax.tree.map(lambda *leaves: sum(leaves) / 3, *[s[:2] for s in singles])) < 1e-12
    np.testing.assert_allclose(info.losses, np.stack([s[2].losses for s in singles]), rtol=1e-12)


def test_a_batch_with_learned_step_sizes(x64):
    problem, model, task = regression(sizes=(1, 3, 1))
    learned = ax.stepsize.Learned(0.1, per="leaf", per_step=True)
    method, meta = ax.MetaGradient(ax.Inner(3, learned)), ax.Meta(model, learned.start(model, 3))
    tasks = batch_of(task)
    grads = [method(problem, meta, one(tasks, k))[1] for k in range(BATCH)]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / BATCH, *grads)
    assert relative(method.batch(problem, meta, tasks, in_flight=2)[1], expected) < 1e-11


class Counter:
    """A loss that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, model, batch):
        self.traces += 1
        return squared(model, batch)


@pytest.mark.parametrize("call", ["single", "batch", "adapt"])
def test_another_step_size_does_not_recompile(call):
    _, model, task = regression()
    loss = Counter()
    problem = ax.FiniteSum(loss, no_tasks)

    def run(alpha):
        inner = ax.Inner(2, alpha)
        if call == "single":
            return ax.MetaGradient(inner)(problem, model, task)[0]
        if call == "batch":
            return ax.MetaGradient(inner).batch(problem, model, batch_of(task))[0]
        return ax.adapt(problem, model, task, inner).losses[-1]

    values = [float(run(0.1))]
    traces = loss.traces
    assert traces > 0
    values += [float(run(alpha)) for alpha in (0.2, 0.3)]
    assert loss.traces == traces
    assert len(set(values)) == 3


def test_a_resolved_step_size_does_not_recompile():
    _, model, task = regression()
    loss = Counter()
    problem = ax.FiniteSum(loss, no_tasks)
    inner = ax.Inner(2, ax.stepsize.Edge())
    first = ax.stepsize.resolve(inner, problem, model, batch_of(task))
    ax.adapt(problem, model, task, first)
    traces = loss.traces
    wider = jax.tree.map(lambda leaf: 1.5 * leaf, task)
    second = ax.stepsize.resolve(inner, problem, model, batch_of(wider))
    ax.adapt(problem, model, task, second)
    assert loss.traces == traces
    assert float(first.stepsize) != float(second.stepsize)
