"""Memory of meta-gradients: what it remembers, what the optimiser follows, and that its error goes away."""

import dataclasses
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax import _devices as dev

COUNT = 6


def pooled(tiny, count=COUNT, seed=5):
    """The tiny problem on a pool of tasks."""
    centres = np.random.default_rng(seed).normal(size=(2, count, 3)).astype(np.float32)
    return ax.FiniteSum(tiny.loss, ax.Pool(ax.Task(*centres)))


def follow():
    """An optimiser whose state is what it was last told to follow; it moves the parameters along it."""

    def update(updates, state, params, *, grad, **extra):
        assert jax.tree.structure(grad) == jax.tree.structure(updates)
        return jax.tree.map(lambda g: -0.05 * g, updates), grad

    return optax.GradientTransformationExtraArgs(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def still():
    return optax.GradientTransformation(lambda params: jnp.zeros_like(params), lambda g, state, params=None: (0 * g, g))


def drawn(step, state):
    """Which tasks of the pool this meta-step draws."""
    keys = step.keys(state.key, state.step, jnp.arange(step.tasks_per_step))
    return [int(step.problem.sample_task.index(jax.random.fold_in(key, 0))) for key in keys]


def full(problem, method, params):
    return method.batch(problem, params, problem.sample_task.tasks)[1]


def test_a_pool_is_a_uniform_sampler_with_indices():
    pool = ax.Pool({"x": np.arange(8.0).reshape(4, 2), "n": jnp.arange(4)})
    keys = jax.random.split(jax.random.key(0), 4000)
    indices, tasks = jax.vmap(pool.index)(keys), jax.vmap(pool)(keys)
    assert len(pool) == 4 and isinstance(pool.tasks["x"], jax.Array)
    assert np.array_equal(tasks["n"], indices) and np.array_equal(tasks["x"], pool.tasks["x"][indices])
    # Four standard errors of a frequency of 1/4.
    np.testing.assert_allclose(np.bincount(indices, minlength=4) / 4000, 0.25, atol=4 * np.sqrt(3 / 16 / 4000))


def test_with_all_tasks_visited_the_direction_is_the_full_meta_gradient(tiny):
    problem = pooled(tiny)
    step = ax.make_step(problem, tiny.fixed, still(), 2, memory=ax.Memory(1))
    state, seen = step.init(tiny.start), set()
    for _ in range(30):
        seen |= set(drawn(step, state))
        state, info = step(state)
        assert np.flatnonzero(state.memory.visited).tolist() == sorted(seen)
    assert len(seen) == COUNT
    expected = full(problem, tiny.fixed, tiny.start)
    np.testing.assert_allclose(state.opt_state, expected, rtol=2e-6, atol=1e-6)
    # What is recorded is the batch's own, which is another.
    assert abs(info["grad_norm"] - jnp.linalg.norm(expected)) > 1e-2


@pytest.mark.parametrize("rate", (1.0, 0.3))
@pytest.mark.parametrize("in_flight", (None, 1, 3))
def test_the_table_follows_the_formula(tiny, rate, in_flight):
    problem = pooled(tiny)
    step = ax.make_step(problem, tiny.fixed, follow(), 4, memory=ax.Memory(rate), in_flight=in_flight)
    state = step.init(tiny.start)
    memory, twice, first = {}, 0, 0
    for _ in range(12):
        indices, params = drawn(step, state), state.params
        for i in sorted(set(indices)):
            task = jax.tree.map(lambda x, i=i: x[i], problem.sample_task.tasks)
            grad = np.asarray(tiny.fixed(problem, params, task)[1], np.float64)
            memory[i] = memory[i] + rate * (grad - memory[i]) if i in memory else grad
        twice += len(indices) > len(set(indices))
        first += len(memory) < COUNT
        state, _ = step(state)
        for i in range(COUNT):
            np.testing.assert_allclose(state.memory.rows[i], memory.get(i, np.zeros(3)), rtol=1e-5, atol=1e-6)
        mean = np.mean(list(memory.values()), axis=0)
        np.testing.assert_allclose(state.opt_state, mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.params, params - 0.05 * mean, rtol=1e-5, atol=1e-6)
    assert twice > 2 and first > 0


def test_a_task_drawn_twice_counts_once_with_its_mean():
    table = dataclasses.replace(memory_table(), visited=jnp.array([True, False, False]))
    grads = jnp.array([[3.0, 1.0], [5.0, 3.0], [1.0, 1.0], [3.0, 5.0], [jnp.nan, jnp.inf]])
    indices = jnp.array([0, 0, 1, 1, 3])
    direction, increments = table.preview(jnp.array(0.5), indices, grads)
    # Row 0 was (2, 0) and meets the mean (4, 2); row 1 is new; index 3 is no row.
    expected = np.array([[3.0, 1.0], [2.0, 3.0], [0.0, 0.0]])
    after = table.add(indices, increments)
    np.testing.assert_allclose(after.rows, expected)
    np.testing.assert_allclose(direction, expected[:2].mean(0))
    assert after.visited.tolist() == [True, True, False]


def memory_table():
    from adaptax.training.memory import Table

    return Table(jnp.array([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), jnp.zeros(3, bool))


@pytest.mark.parametrize("host", (False, True))
def test_elsewhere_memory_is_the_moving_average_of_the_gradient(tiny, host):
    rate, average, params = 0.25, None, np.asarray(tiny.start, np.float64)
    problem = pooled(tiny) if host else tiny.problem
    step = ax.make_step(problem, tiny.fixed, follow(), 5, memory=ax.Memory(rate))
    batches = tiny.batches(8)
    state = step.init(tiny.start, 0, batches[0] if host else None)
    for k in range(8):
        batch = batches[k] if host else step.sample(step.keys(state.key, state.step, jnp.arange(5)))
        grad = np.asarray(tiny.fixed.batch(problem, jnp.asarray(params, jnp.float32), batch)[1], np.float64)
        average = grad if average is None else average + rate * (grad - average)
        params = params - 0.05 * average
        state, info = step(state, batch if host else None)
        np.testing.assert_allclose(state.opt_state, average, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(info["grad_norm"], np.linalg.norm(grad), rtol=2e-5)
    np.testing.assert_allclose(state.params, params, rtol=2e-5, atol=2e-6)
    assert state.memory.rows.shape == (1, 3)


def test_training_is_the_same_loop_on_one_device_and_two_and_traced_once(tiny):
    problem, memory = pooled(tiny), ax.Memory(0.5)
    options = {"problem": problem, "optimizer": optax.sgd(0.05), "memory": memory, "steps": 40, "tasks_per_step": 3}
    one, first = tiny.train(**options, devices=tiny.one)
    by_hand = ax.make_step(problem, tiny.fixed, options["optimizer"], 3, memory=memory)
    state = by_hand.init(tiny.start)
    for _ in range(40):
        state, _ = by_hand(state)
    assert tiny.same(one, state)
    before = tiny.traces
    tiny.train(**{**options, "memory": ax.Memory(0.7)}, seed=3, devices=tiny.one)
    assert tiny.traces == before
    # Three tasks on two devices: the fourth place is filling, and draws a task too.
    two, second = tiny.train(**options, devices=tiny.two)
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=2e-5)
    np.testing.assert_allclose(one.params, two.params, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(one.memory.rows, two.memory.rows, rtol=2e-5, atol=2e-6)
    assert np.array_equal(one.memory.visited, two.memory.visited)


def test_filling_touches_no_row(tiny):
    problem = pooled(tiny, 50)
    step = replace(ax.make_step(problem, tiny.fixed, follow(), 3, memory=ax.Memory(1)), mesh=dev.mesh_of(tiny.two, 3))
    state = dev.replicate(step.mesh, step.init(tiny.start))
    indices = drawn(step, state)
    state, _ = step(state)
    assert np.flatnonzero(state.memory.visited).tolist() == sorted(set(indices))
    assert np.flatnonzero(np.any(np.asarray(state.memory.rows) != 0, axis=1)).tolist() == sorted(set(indices))


@pytest.mark.parametrize("pool", (True, False))
def test_a_run_with_memory_goes_on_bit_for_bit(tiny, tmp_path, pool):
    options = {"problem": pooled(tiny) if pool else tiny.problem, "memory": ax.Memory(0.5), "out": tmp_path / "run"}
    whole, history = tiny.train(**{**options, "out": None})

    class Stop(BaseException):
        pass

    def stop(state, record):
        if int(state.step) >= 7:
            raise Stop

    with pytest.raises(Stop):
        tiny.train(**options, checkpoint_every=4, callback=stop)
    rest, again = tiny.train(**options, checkpoint_every=4, resume=True)
    assert tiny.same(whole, rest) and tiny.same_history(history, again)
    for other in (None, ax.Memory(0.4)):
        with pytest.raises(ax.InputError, match="memory is 'Memory"):
            tiny.train(**{**options, "memory": other}, resume=True)


def test_a_skipped_step_leaves_the_memory_alone(tiny):
    centres = np.random.default_rng(5).normal(size=(2, COUNT, 3)).astype(np.float32)
    centres[0, 2] = np.nan
    problem = ax.FiniteSum(tiny.loss, ax.Pool(ax.Task(*centres)))
    step = ax.make_step(problem, tiny.fixed, tiny.adam, 2, memory=ax.Memory(0.5))
    state, skipped = step.init(tiny.start), 0
    for _ in range(12):
        bad = 2 in drawn(step, state)
        after, info = step(state)
        kept = lambda state: (state.params, state.opt_state, state.memory)  # noqa: E731
        assert bool(info["skipped"]) == bad == tiny.same(kept(state), kept(after))
        state, skipped = after, skipped + bad
    assert 0 < skipped < 12 and not state.memory.visited[2]


def test_learned_step_sizes_and_parameters_of_other_types_are_remembered(tiny):
    pool = pooled(tiny).sample_task
    loss = lambda p, c: jnp.sum((p["w"] - c.astype(jnp.bfloat16)) ** 2) * p["scale"]  # noqa: E731
    params = {"w": jnp.ones(3, jnp.bfloat16), "scale": 2, "index": jnp.array(1), "name": None, "b": jnp.array(1.5)}
    method = ax.MetaGradient(ax.Inner(2, ax.stepsize.Learned(0.01, per_step=True)))
    problem = ax.FiniteSum(loss, pool)
    options = {"optimizer": optax.adam(0.1), "steps": 3, "tasks_per_step": 4, "devices": tiny.two}
    state, history = ax.train(problem, params, method, memory=ax.Memory(0.5), **options)
    rows = state.memory.rows
    assert rows.params["w"].shape == (COUNT, 3) and rows.params["w"].dtype == jnp.float32
    assert rows.params["scale"] is None and rows.params["index"] is None and rows.stepsize.free.shape == (COUNT, 2)
    assert state.params.params["w"].dtype == jnp.bfloat16 and np.any(np.asarray(rows.stepsize.free) != 0)
    assert np.all(np.isfinite(history["loss"])) and not history["skipped"].any()


def floors(problem, method, start, memory, optimizer, steps, seeds=(0, 1, 2)):
    """The norm of the full meta-gradient at the end, relative to the start, for each seed."""
    norm = lambda w: float(jnp.linalg.norm(full(problem, method, w)))  # noqa: E731
    options = {"optimizer": optimizer, "steps": steps, "tasks_per_step": 1, "memory": memory}
    return [norm(ax.train(problem, start, method, seed=s, **options)[0].params) / norm(start) for s in seeds]


@pytest.mark.long
@pytest.mark.parametrize(
    "amplitude", (pytest.param(0.0, id="quadratic", marks=pytest.mark.slow), pytest.param(0.5, id="cosine"))
)
def test_one_task_a_step_converges_with_memory_and_not_without(x64, amplitude):
    problem = ax.tasks.cosine(dim=5, tasks=32, smallest=0.7, amplitude=amplitude).finite_sum
    method, start = ax.MetaGradient(ax.Inner(3, 0.05)), 3 * jnp.ones(5)
    run = lambda memory: floors(problem, method, start, memory, optax.sgd(0.03), 6000)  # noqa: E731
    assert min(run(None)) > 1e-3
    assert max(run(ax.Memory(1))) < 1e-9
    assert max(run(ax.Memory(0.5))) < 1e-9
    # Momentum smooths the way, but the error that a constant step size leaves remains.
    host = ax.FiniteSum(problem.loss, lambda key: problem.sample_task(key))
    smooth = ax.train(host, start, method, optimizer=optax.sgd(0.03), steps=6000, tasks_per_step=1, memory=ax.Memory(0.1))[0]
    norm = lambda w: float(jnp.linalg.norm(full(problem, method, w)))  # noqa: E731
    assert norm(smooth.params) / norm(start) > 1e-3


@pytest.mark.parametrize("rate", (1.0, 0.5, 0.1))
def test_the_variance_that_one_row_leaves(rate):
    # Independent coordinates, with no inner steps: w - c, where lambda = s = 1, and beta = 1.
    size = 100_000
    sample = lambda key: ax.Task(jnp.zeros(1), jax.random.normal(key, (size,)))  # noqa: E731
    loss = lambda w, c: 0.5 * jnp.sum((w - c) ** 2)  # noqa: E731
    problem, method = ax.FiniteSum(loss, sample, target_loss=loss), ax.MetaGradient(ax.Inner(0))
    options = {"optimizer": optax.sgd(1.0), "steps": 120, "tasks_per_step": 1, "memory": ax.Memory(rate)}
    state, _ = ax.train(problem, jnp.zeros(size), method, **options)
    expected = 1 / (2 - rate / (2 - rate))
    # Four standard errors of a variance over independent Gaussian coordinates.
    assert abs(float(jnp.mean(state.params**2)) / expected - 1) < 4 * np.sqrt(2 / size)


def test_bad_input_is_refused_in_a_sentence(tiny):
    pool, memory = pooled(tiny), ax.Memory(1)
    with_table = ax.make_step(pool, tiny.fixed, tiny.adam, 2, memory=memory)
    state, bare = with_table.init(tiny.start), ax.make_step(pool, tiny.fixed, tiny.adam, 2).init(tiny.start)
    batches = tiny.batches(2)
    cases = [
        *(
            (lambda rate=rate: ax.Memory(rate), "positive number of at most 1")
            for rate in (0, -0.1, 1.5, True, "1", None, float("nan"))
        ),
        (lambda: ax.Memory(jnp.ones(2)), "positive number of at most 1"),
        (lambda: ax.Pool(ax.Task(np.ones((2, 3)), np.ones((3, 3)))), "one leading axis"),
        (lambda: ax.Pool(np.ones((0, 3))), "one leading axis"),
        (lambda: ax.Pool([1.0, np.ones(3)]), "one leading axis"),
        (lambda: ax.Pool(None), "one leading axis"),
        (lambda: tiny.train(memory=0.5), r"ax.Memory\(rate\) or None, not float"),
        (lambda: tiny.train(problem=pool, memory=memory, state=bare), "begun without a memory"),
        (lambda: tiny.train(problem=pool, state=state), "begun with a memory"),
        (lambda: tiny.train(problem=pool, memory=memory, state=state, tasks=batches), "remembers 6 tasks of a pool: leave"),
        (lambda: tiny.train(problem=pooled(tiny, 7), memory=memory, state=state), "remembers 6 tasks of a pool: let"),
        (lambda: tiny.train(memory=memory, state=state), "remembers 6 tasks of a pool: let"),
    ]
    for call, match in cases:
        with pytest.raises(ax.InputError, match=match) as refusal:
            call()
        assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
