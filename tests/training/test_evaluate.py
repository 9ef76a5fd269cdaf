import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax


def direct(problem, params, inner, tasks, steps):
    """The target loss of every task after n steps, by `ax.adapt` at each n."""
    table = []
    for n in steps:
        adapted = jax.vmap(lambda task, n=n: ax.adapt(problem, params, task, ax.Inner(n, inner.stepsize)).params)(tasks)
        table.append(jax.vmap(problem.target_loss)(adapted, tasks.target))
    return np.stack(table, axis=1).astype(np.float64)


def test_the_curve_is_that_of_adapt_at_each_number_of_steps(tiny):
    tasks, steps = tiny.batches(1, size=7)[0], [0, 1, 4, 9]
    inner = ax.Inner(3, 0.1)
    curve = ax.evaluate(tiny.problem, tiny.start, inner, reversed(steps), tasks)
    table = direct(tiny.problem, tiny.start, inner, tasks, steps)
    assert curve.steps.tolist() == steps and list(curve.mean) == ["loss"]
    np.testing.assert_allclose(curve.mean["loss"], table.mean(axis=0), rtol=1e-5)
    half = 1.959964 * table.std(axis=0, ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(curve.high["loss"], table.mean(axis=0) + half, rtol=1e-5)
    np.testing.assert_allclose(curve.low["loss"], table.mean(axis=0) - half, rtol=1e-5, atol=1e-6)


def test_sampled_tasks_follow_from_the_seed(tiny):
    inner = ax.Inner(3, 0.1)
    run = lambda seed: ax.evaluate(tiny.problem, tiny.start, inner, [0, 2], 6, seed).mean["loss"]  # noqa: E731
    one, again, other = run(1), run(1), run(2)
    assert np.array_equal(one, again)
    assert not np.any(one == other)
    # Key i of the seed gives task i, whatever the number of tasks.
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(1), i), 0) for i in range(6)]
    tasks = jax.vmap(tiny.sample)(jnp.stack(keys))
    np.testing.assert_allclose(one, direct(tiny.problem, tiny.start, inner, tasks, [0, 2]).mean(axis=0), rtol=1e-5)


def test_devices_and_tasks_in_flight_do_not_matter(tiny):
    calls = [(tiny.one, None), (tiny.two, None), (tiny.two, 2)]
    curves = [
        ax.evaluate(tiny.problem, tiny.start, ax.Inner(3, 0.1), [0, 3], 5, in_flight=size, devices=devices)
        for devices, size in calls
    ]
    for curve in curves[1:]:
        for a, b in zip(curve[1:], curves[0][1:], strict=True):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_step_sizes_beyond_those_trained_with(tiny):
    (tasks,) = tiny.batches(1, size=2)
    curve = lambda stepsize, steps=(1, 2, 5), n=2: ax.evaluate(  # noqa: E731
        tiny.problem, tiny.start, ax.Inner(n, stepsize), steps, tasks
    ).mean["loss"]
    # Per-step step sizes: the last one is repeated.
    held = curve([0.05, 0.2])
    np.testing.assert_allclose(held, curve([0.05, 0.2, 0.2, 0.2, 0.2], n=5), rtol=1e-6)
    assert not np.allclose(held[2], curve(0.2)[2], rtol=1e-3)
    np.testing.assert_allclose(held, curve(lambda j: 0.05 if j == 0 else 0.2), rtol=1e-6)
    np.testing.assert_allclose(curve([0.05, 0.2], steps=[0]), curve(0.1, steps=[0]), rtol=1e-6)
    # A rule that is not resolved: the curvature is 4 at most, and never negative.
    np.testing.assert_allclose(curve(ax.stepsize.Edge()), curve(0.25), rtol=1e-3)
    np.testing.assert_allclose(curve(ax.stepsize.Guaranteed(gamma_plus=0.5)), curve(0.5 / 4), rtol=1e-3)


def test_learned_step_sizes_and_their_parameters(tiny):
    (tasks,) = tiny.batches(1, size=2)
    learned = ax.Inner(2, ax.stepsize.Learned(0.1, per_step=True))
    meta = ax.Meta(tiny.start, jnp.array([0.05, 0.2]))
    curve = ax.evaluate(tiny.problem, meta, learned, [0, 1, 4], tasks)
    fixed = ax.evaluate(tiny.problem, tiny.start, ax.Inner(2, [0.05, 0.2]), [0, 1, 4], tasks)
    np.testing.assert_allclose(curve.mean["loss"], fixed.mean["loss"], rtol=1e-6)
    with pytest.raises(ax.InputError, match=r"ax\.Meta"):
        ax.evaluate(tiny.problem, tiny.start, learned, [0, 1], tasks)


def test_metrics_are_reported_beside_the_target_loss(tiny):
    metrics = lambda w, c: {"first": w[0], "gap": jnp.max(jnp.abs(w - c))}  # noqa: E731
    problem = ax.FiniteSum(tiny.loss, tiny.sample, target_loss=lambda w, c: jnp.sum(w), metrics=metrics)
    (tasks,) = tiny.batches(1, size=3)
    curve = ax.evaluate(problem, tiny.start, ax.Inner(1, 0.1), [0, 1], tasks)
    assert set(curve.mean) == set(curve.low) == set(curve.high) == {"loss", "first", "gap"}
    after = tiny.start - 0.1 * jnp.array([1.0, 2.0, 4.0]) * (tiny.start - tasks.support)
    np.testing.assert_allclose(curve.mean["first"], [1.0, jnp.mean(after[:, 0])], rtol=1e-5)
    np.testing.assert_allclose(curve.mean["loss"][1], jnp.mean(jnp.sum(after, axis=1)), rtol=1e-5)
    gaps = jnp.max(jnp.abs(after - tasks.target), axis=1)
    np.testing.assert_allclose(curve.mean["gap"][1], jnp.mean(gaps), rtol=1e-5)


def test_resampling_draws_target_samples_anew_at_every_number_of_steps():
    draw = lambda task, w, key, size: jax.random.normal(key, (size,))  # noqa: E731
    loss = lambda w, x: jnp.mean(x) + 0 * jnp.sum(w)  # noqa: E731
    problem = ax.Resampling(loss, lambda key: jnp.zeros(()), draw, metrics=lambda w, x: {"size": jnp.float32(x.size)})
    samples = ax.Samples(step=2, curvature=3, target=5)
    run = lambda steps: ax.evaluate(problem, jnp.ones(2), ax.Inner(2, 0.1), steps, 3, samples=samples)  # noqa: E731
    curve = run([0, 1, 2])
    assert len(np.unique(curve.mean["loss"])) == 3
    assert curve.mean["size"].tolist() == [5, 5, 5]
    # What is drawn after n steps does not depend on which other numbers of steps are looked at.
    np.testing.assert_allclose(run([2]).mean["loss"], curve.mean["loss"][2:], rtol=1e-6)


def test_a_second_evaluation_is_not_compiled_again(tiny):
    options = {"steps": [0, 3], "tasks": 6}
    ax.evaluate(tiny.problem, tiny.start, ax.Inner(3, 0.1), **options)
    before = tiny.traces
    ax.evaluate(tiny.problem, tiny.start + 1, ax.Inner(3, 0.2), **options, seed=5)
    assert tiny.traces == before


def test_bad_arguments_are_refused_in_a_sentence(tiny):
    inner = ax.Inner(3, 0.1)
    empty = ax.Task(jnp.zeros((4, 0)), jnp.zeros((4, 3)))
    cases = [
        ({"steps": []}, "steps="),
        ({"steps": [-1, 2]}, "steps="),
        ({"steps": [0.5]}, "steps="),
        ({"steps": 5}, "steps="),
        ({"tasks": 1}, "tasks=1 must be a whole number of at least 2"),
        ({"tasks": True}, "tasks=True"),
        ({"tasks": tiny.batches(1, size=1)[0]}, "at least 2"),
        ({"tasks": ax.Task(jnp.zeros((4, 3)), jnp.zeros((5, 3)))}, "one leading axis"),
        ({"tasks": empty}, "support set is empty"),
        ({"tasks": ax.Task(jnp.zeros((4, 7)), jnp.zeros((4, 3)))}, "fails on the support set"),
        ({"in_flight": 0}, "in_flight=0"),
        ({"seed": -1}, "seed=-1"),
        ({"inner": 0.1}, "ax.Inner"),
        ({"problem": tiny.loss}, "ax.FiniteSum"),
        ({"params": {"n": 3}, "problem": ax.FiniteSum(lambda w, c: jnp.sum(c), tiny.sample)}, "no floating-point leaf"),
    ]
    for options, match in cases:
        good = {"problem": tiny.problem, "params": tiny.start, "inner": inner, "steps": [0, 1], "tasks": 4}
        with pytest.raises(ax.InputError, match=match) as refusal:
            ax.evaluate(**{**good, **options})
        assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_tasks_that_are_not_finite_are_counted_and_the_first_is_named(tiny):
    """A given batch: a path that diverges, and data that are not finite."""
    batch = tiny.batches(1, size=9)[0]
    support, target = batch.support.copy(), batch.target.copy()
    support[4, 1], target[[6, 7], 0] = np.nan, np.inf
    with pytest.warns(ax.NotFiniteWarning) as told:
        curve = ax.evaluate(tiny.problem, tiny.start, ax.Inner(3, 0.1), [0, 1, 5], ax.Task(support, target))
    assert curve.not_finite.tolist() == [2, 3, 3] and len(told) == 1 and told[0].filename == __file__
    assert str(told[0].message) == (
        "After 0 inner steps 2 of 9 tasks were not finite; the first is task 6 (entry 6 of tasks=): the target loss at w_0 is "
        "infinite, since its data hold infinite values in task.target: clean them, or leave such tasks out."
    )
    assert not np.isfinite(curve.mean["loss"]).any() and not np.isfinite(curve.high["loss"]).any()
    # The factor of a step by the largest curvature, 4, is 1 - 4e8: its square overflows after the third.
    with pytest.warns(
        ax.NotFiniteWarning, match="After 3 inner steps 9 of 9 .* the target loss at w_3 is infinite: use a smaller"
    ):
        curve = ax.evaluate(tiny.problem, tiny.start, ax.Inner(3, 1e8), [0, 1, 2, 3, 4], batch)
    assert curve.not_finite.tolist() == [0, 0, 0, 9, 9] and np.isfinite(curve.mean["loss"]).tolist() == [True] * 3 + [False] * 2


def test_a_curve_still_unpacks_in_four_and_is_copied_whole(tiny):
    curve = ax.evaluate(tiny.problem, tiny.start, ax.Inner(3, 0.1), [0, 3], 4)
    steps, mean, low, high = curve
    assert steps.tolist() == [0, 3] and np.all(low["loss"] < mean["loss"]) and np.all(mean["loss"] < high["loss"])
    for other in (copy.deepcopy(curve), pickle.loads(pickle.dumps(curve))):
        assert other.not_finite.tolist() == [0, 0] and np.array_equal(other.mean["loss"], mean["loss"])
    assert curve._replace(steps=[0]).steps == [0]


def test_metrics_that_are_not_finite_are_named(tiny):
    problem = ax.FiniteSum(tiny.loss, tiny.sample, metrics=lambda w, c: {"log": jnp.log(c[0]), "one": jnp.ones(())})
    with pytest.warns(ax.NotFiniteWarning, match=r"the metric 'log' at w_1 is NaN: look there for log\(0\)") as told:
        curve = ax.evaluate(problem, tiny.start, ax.Inner(3, 0.1), [1], 12)
    targets = jax.vmap(tiny.sample)(
        jnp.stack([jax.random.fold_in(jax.random.fold_in(jax.random.key(1), i), 0) for i in range(12)])
    )
    bad = np.flatnonzero(np.asarray(targets.target[:, 0]) <= 0)
    assert f"{len(bad)} of 12 tasks" in str(told[0].message) and f"task {bad[0]} (problem" in str(told[0].message)
    assert curve.not_finite.tolist() == [len(bad)] and np.isfinite(curve.mean["loss"]).all() and curve.mean["one"] == [1]


def test_a_rule_is_resolved_before_a_task_is_explained(tiny):
    batch = tiny.batches(1, size=6)[0]
    target = batch.target.copy()
    target[5] = np.nan
    with pytest.warns(ax.NotFiniteWarning, match="task 5 .* the target loss at w_2 is NaN, since its data hold NaN in task"):
        ax.evaluate(tiny.problem, tiny.start, ax.Inner(2, ax.stepsize.Edge()), [2], ax.Task(batch.support, target))
