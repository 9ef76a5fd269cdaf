"""Few iterates in memory: the schedule is the best there is, the gradient the same, the count exact, the memory bounded."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax._schedule import places_for, schedule, split

N, ALPHA = 9, 0.1


@functools.cache
def fewest(length, free):
    """The fewest steps to take again, over all places for the next kept point."""
    if length == 1:
        return 0
    if not free:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, free - 1) + fewest(m, free) for m in range(1, length))


@functools.cache
def taken(length, free):
    if length == 1:
        return 0
    if not free:
        return length * (length - 1) // 2
    m = split(length, free)
    return m + taken(length - m, free - 1) + taken(m, free)


def test_no_schedule_takes_fewer_steps():
    assert all(taken(length, free) == fewest(length, free) for length in range(1, 121) for free in range(10))


def test_every_point_is_where_the_schedule_says():
    for steps in range(1, 34):
        for places in (*range(1, 12), 40):
            plan, kept = schedule(steps, places), {}
            for j in range(steps):
                kept[plan.keep[j]] = j
            made = again = 0
            for j in reversed(range(steps)):
                while made < plan.ends[j]:
                    assert kept[plan.source[made]] == plan.start[made]
                    kept[plan.target[made]] = plan.start[made] + plan.count[made]
                    again += plan.count[made]
                    made += 1
                assert kept[plan.place[j]] == j
            assert made == len(plan.source) and again == plan.again and max(kept) <= places
            # The bound of theory.md, section 1: at most r times with the way forward, so r - 1 times again.
            r = next(r for r in range(steps + 1) if math.comb(places + r, places) >= steps)
            times = np.zeros(steps, int)
            for first, count in zip(plan.start, plan.count, strict=True):
                times[first : first + count] += 1
            assert times.max() <= max(r - 1, 0)
    for steps in (10, 100, 1000):
        assert schedule(steps, places_for(steps)).again <= steps


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)


def case(steps=None):
    keys = jax.random.split(jax.random.key(0), 6)
    params = {"a": jax.random.normal(keys[0], (3, 4)), "b": jax.random.normal(keys[1], (4,))}
    shape = (6, 3) if steps is None else (steps, 6, 3)
    support = jax.random.normal(keys[2], shape), jax.random.normal(keys[3], shape[:-1])
    return params, ax.Task(support, (jax.random.normal(keys[4], (5, 3)), jax.random.normal(keys[5], (5,))))


INNERS = {
    "sgd": ax.Inner(N, ALPHA),
    "momentum": ax.Inner(N, ALPHA, optimizer=optax.sgd(1.0, momentum=0.9), proximal=0.3),
    "frozen": ax.Inner(N, ALPHA, adapt=lambda path: path == "b"),
    "per step": ax.Inner(N, ax.stepsize.Learned(ALPHA, per="leaf", per_step=True)),
}


@pytest.mark.parametrize("store", [1, 2, 3, 5, N - 2, N, "sqrt", "offload"])
@pytest.mark.parametrize("name", INNERS)
def test_the_gradient_is_that_of_all_iterates(x64, name, store):
    inner, (params, task) = INNERS[name], case()
    w = ax.Meta(params, inner.stepsize.start(params, N)) if name == "per step" else params
    problem = ax.FiniteSum(loss, lambda key: None)
    whole, found = (ax.MetaGradient(inner, store=kind)(problem, w, task) for kind in ("iterates", store))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found[:2], whole[:2])
    np.testing.assert_array_equal(found[2].losses, whole[2].losses)


def test_a_state_with_random_keys_is_kept_too(x64):
    def noisy(params, state, batch):
        key, now = jax.random.split(state["key"])
        factor = 1 + 0.1 * jax.random.normal(now)
        return factor * loss(params, batch), {"key": key, "mean": 0.5 * state["mean"] + factor * jnp.sum(params["b"])}

    params, task = case(N)
    state = {"key": jax.random.key(3), "mean": jnp.zeros(())}
    problem = ax.Sequential(noisy, lambda key: None, state=state, target_loss=lambda w, s, b: loss(w, b) + s["mean"] ** 2)
    whole, found = (ax.MetaGradient(INNERS["sgd"], store=kind)(problem, params, task) for kind in ("iterates", 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found[:2], whole[:2])
    away = ax.MetaGradient(INNERS["sgd"], store="offload")(problem, params, task)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), away[:2], whole[:2])


def test_ax_adapt_and_truncation_and_batches_take_it(x64):
    params, task = case()
    problem, inner = ax.FiniteSum(loss, lambda key: None), INNERS["sgd"]

    def outer(store):
        return jax.grad(lambda w: loss(ax.adapt(problem, w, task, inner, store=store).params, task.target))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), outer(2), outer("iterates"))
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), task)
    batches = [ax.MetaGradient(inner, store=store, truncate=6).batch(problem, params, tasks)[1] for store in (2, "iterates")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *batches)


@pytest.mark.parametrize("store", [1, 2, 4, "sqrt", "iterates", "offload"])
def test_the_count_of_steps_is_exact(store):
    calls = []

    def counted(w, c):
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * jnp.sum((w - c) ** 2)

    method = ax.MetaGradient(ax.Inner(N, ALPHA), ax.curvature.FiniteDifference(delta=1e-3), store=store)
    task = ax.Task(jnp.zeros(2), jnp.ones(2))
    jax.block_until_ready(method(ax.FiniteSum(counted, lambda key: None), jnp.ones(2), task))
    jax.effects_barrier()
    assert len(calls) == method.cost().gradients


def test_memory_does_not_grow_with_n():
    params, task = case()
    problem = ax.FiniteSum(loss, lambda key: None)
    wide = {"a": jnp.tile(params["a"], (1, 500)), "b": jnp.tile(params["b"], 500)}

    def memory(steps, store):
        method = ax.MetaGradient(ax.Inner(steps, 1e-4), store=store)
        run = jax.jit(lambda params, task: method(problem, params, task)[1])
        return run.lower(wide, task).compile().memory_analysis().temp_size_in_bytes

    at_eight = memory(8, "iterates")
    assert memory(1024, 8) < 1.3 * at_eight
    assert memory(2, "sqrt") <= memory(2, "iterates")
    assert memory(1024, "iterates") > 20 * at_eight


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("in_flight", [None, 1])
def test_accelerators_keep_iterates_in_the_memory_of_the_host(platform, in_flight):
    params, task = case()
    problem, tasks = ax.FiniteSum(loss, lambda key: None), jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), task)
    leaves = len(jax.tree.leaves(params))

    def placements(store):
        method = ax.MetaGradient(INNERS["sgd"], store=store)
        run = jax.jit(lambda params: method.batch(problem, params, tasks, in_flight=in_flight)[1])
        text = run.trace(params).lower(lowering_platforms=(platform,)).as_text()
        return [text.count(f'_xla_buffer_placement = "{kind}"') for kind in ("pinned_host", "device")]

    assert placements("iterates") == [0, 0]
    # One transfer of each leaf in the body of each of the two loops.
    assert placements("offload") == [leaves, leaves]


@pytest.mark.parametrize("store", [0, -1, 2.0, True, "some", None])
def test_refusals(store):
    with pytest.raises(ax.InputError, match="the number of iterates to keep"):
        ax.MetaGradient(ax.Inner(2, 0.1), store=store)
