import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.training import Diverged, loop


def spoilt(tiny, chance):
    """The tiny problem, where a task's loss is not a number with this chance."""

    def sample(key):
        bad = jax.random.uniform(jax.random.fold_in(key, 9)) < chance
        return jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), tiny.sample(key))

    return ax.FiniteSum(tiny.loss, sample)


def test_one_seed_decides_a_run(tiny):
    one, other, third = (tiny.train(seed=seed) for seed in (0, 0, 1))
    assert tiny.same(one[0], other[0]) and tiny.same_history(one[1], other[1])
    assert not np.any(one[1]["loss"] == third[1]["loss"])


@pytest.mark.optimised
def test_training_is_a_loop_of_steps_bit_for_bit(tiny):
    state, history = tiny.train(tiny.edge)
    step = ax.make_step(tiny.problem, tiny.edge, tiny.adam, 5)
    by_hand, losses, sizes = step.init(tiny.start, seed=0), [], []
    for _ in range(12):
        by_hand, info = step(by_hand)
        losses.append(float(info["loss"]))
        sizes.append(float(info["stepsize"]))
    assert tiny.same(state, by_hand)
    assert losses == history["loss"].tolist() and sizes == history["stepsize"].tolist()


def test_the_length_of_chunks_changes_nothing(tiny, monkeypatch):
    lengths, runs = {0.0: [], 1e9: []}, []
    for seconds, seen in lengths.items():
        monkeypatch.setattr(loop, "_SECONDS", seconds)
        runs.append(tiny.train(callback=lambda state, record, seen=seen: seen.append(len(record["loss"]))))
    assert lengths == {0.0: [1] * 12, 1e9: [1, 2, 4, 5]}
    assert tiny.same(runs[0][0], runs[1][0]) and tiny.same_history(runs[0][1], runs[1][1])


@pytest.mark.parametrize("devices", ("one", "two"))
def test_nothing_is_traced_after_the_first_chunk_nor_in_the_same_run_again(tiny, devices):
    # A transformation without extra arguments is wrapped anew for each step, which must not count as another one.
    optimizer = optax.GradientTransformation(*optax.sgd(0.1))
    traces = []
    options = {"optimizer": optimizer, "devices": getattr(tiny, devices), "steps": 40}
    before = tiny.traces
    tiny.train(**options, evaluate_every=8, callback=lambda state, record: traces.append(tiny.traces))
    # The last of chunks 1, 2, 4, 1 ends at step 8, where the evaluation is compiled.
    traces = [traces[0], *traces[3:]]
    assert len(traces) > 3 and before < traces[0] < traces[1] == traces[-1]
    tiny.train(**options, seed=4)
    tiny.train(**{**options, "steps": 7})
    assert tiny.traces == traces[-1]


def test_the_default_optimiser_is_adam_clipped_by_norm_on_a_cosine(tiny):
    own = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 3)))
    default, again = (tiny.train(optimizer=o, steps=3)[0] for o in (None, own))
    assert tiny.same(default.params, again.params)
    before = tiny.traces
    tiny.train(optimizer=None, steps=3)
    assert tiny.traces == before


def test_a_state_goes_on_where_it_stopped(tiny):
    whole, history = tiny.train(tiny.edge)
    half, first = tiny.train(tiny.edge, steps=5)
    rest, second = tiny.train(tiny.edge, state=half)
    assert tiny.same(whole, rest)
    assert tiny.same_history(history, {name: np.concatenate([first[name], second[name]]) for name in first})
    done, empty = tiny.train(tiny.edge, state=whole)
    assert tiny.same(done, whole) and {len(values) for values in empty.values()} == {0}


def test_the_history_has_one_entry_a_step(tiny):
    state, history = tiny.train()
    assert list(history) == ["loss", "grad_norm", "stepsize", "skipped", "not_finite"]
    assert {name: (x.shape, x.dtype.kind) for name, x in history.items()} == {
        name: ((12,), "b" if name == "skipped" else "f") for name in history
    }
    np.testing.assert_allclose(history["stepsize"], 0.1, rtol=1e-6)
    assert int(state.step) == 12 and isinstance(float(state.inner.stepsize), float)


def test_rules_are_measured_on_schedule(tiny):
    rule = tiny.edge.inner.stepsize
    seen = []
    # The targets stay; the curvature is 4 in every task, and the estimate starts too high.
    step = ax.make_step(tiny.problem, tiny.edge, tiny.adam, 5)
    start = step.init(tiny.start)
    np.testing.assert_allclose(start.estimate.curvature, 4, rtol=1e-3)
    np.testing.assert_allclose(start.inner.stepsize, 0.25, rtol=1e-3)
    high = jax.tree.map(lambda x: x, start)
    object.__setattr__(high, "estimate", type(start.estimate)(jnp.array(40.0), start.estimate.direction))
    state = high
    for _ in range(10):
        state, info = step(state)
        seen.append(float(info["curvature"]))
        np.testing.assert_allclose(info["stepsize"], 1 / info["curvature"], rtol=1e-5)
        np.testing.assert_allclose(state.inner.stepsize, info["stepsize"], rtol=1e-5)
    assert rule.every == 4 and rule.decay == 0.5
    np.testing.assert_allclose(seen, [40] * 4 + [20] * 4 + [10] * 2, rtol=1e-5)
    _, history = tiny.train(tiny.edge, state=high, steps=10)
    np.testing.assert_allclose(history["stepsize"], 1 / np.array(seen), rtol=1e-5)


@pytest.mark.long
def test_guaranteed_uses_the_number_of_steps_where_curvature_is_negative(tiny):
    rule = ax.stepsize.Guaranteed()
    for problem, alpha in ((tiny.problem, 1 / 4), (ax.FiniteSum(saddle, tiny.sample), 1 / 8 / 3 / 2)):
        state, history = tiny.train(ax.MetaGradient(ax.Inner(3, rule)), problem=problem, steps=2)
        np.testing.assert_allclose(history["stepsize"], alpha, rtol=1e-3)
        np.testing.assert_allclose(state.inner.stepsize, alpha, rtol=1e-3)


def saddle(w, c):
    return 0.5 * jnp.sum(jnp.array([4.0, 1.0, -2.0]) * (w - c) ** 2)


@pytest.mark.parametrize("devices", ("one", "two"))
def test_a_step_that_is_not_finite_changes_nothing(tiny, monkeypatch, devices):
    monkeypatch.setattr(loop, "_SECONDS", 0.0)
    states = []
    with pytest.warns(ax.NotFiniteWarning, match="skipped") as told:
        state, history = tiny.train(
            problem=spoilt(tiny, 0.15), steps=20, devices=getattr(tiny, devices), callback=lambda s, _: states.append(s)
        )
    skipped = history["skipped"]
    assert len(told) == 2 and f"{skipped.sum()} of 20 meta-steps were skipped" in str(told[1].message)
    assert 3 < skipped.sum() < 17
    for name in ("loss", "grad_norm"):
        assert np.array_equal(np.isnan(history[name]), skipped)
    for before, after, bad in zip(states, states[1:], skipped[1:], strict=False):
        assert tiny.same((before.params, before.opt_state), (after.params, after.opt_state)) == bad
        assert int(after.skipped) == (int(before.skipped) + 1 if bad else 0)
    assert int(state.step) == 20 and np.all(np.isfinite(state.params))


def test_too_many_in_a_row_end_the_run_with_a_remedy_and_a_state(tiny, tmp_path):
    problem = spoilt(tiny, 1.0)
    options = {"problem": problem, "max_skipped": 4, "out": tmp_path / "run"}
    with pytest.raises(Diverged, match=r"4 meta-steps in a row up to step 4 .* task\.support") as stop:
        tiny.train(**options)
    assert "\n" not in str(stop.value)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all('"loss": null' in line and '"skipped": true' in line for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    # Asked again, it says the same and takes no further step.
    with pytest.raises(Diverged, match="up to step 4 "):
        tiny.train(**options, resume=True)
    assert (tmp_path / "run" / "history.jsonl").read_text().splitlines() == lines


def test_the_host_may_bring_the_tasks(tiny):
    batches = tiny.batches(12)
    runs = [tiny.train(tiny.edge, tasks=source) for source in (batches, iter(batches), (b for b in batches))]
    assert all(tiny.same(runs[0][0], run[0]) and tiny.same_history(runs[0][1], run[1]) for run in runs[1:])
    half, _ = tiny.train(tiny.edge, tasks=batches, steps=5)
    rest, _ = tiny.train(tiny.edge, tasks=batches[5:], state=half)
    assert tiny.same(rest, runs[0][0])
    other, _ = tiny.train(tiny.edge, tasks=tiny.batches(12, seed=4))
    assert not tiny.same(other.params, runs[0][0].params)
    before = tiny.traces
    tiny.train(tiny.edge, tasks=itertools.cycle(batches[:3]))
    assert tiny.traces == before


def test_host_tasks_that_do_not_fit_are_refused(tiny):
    with pytest.raises(ax.InputError, match=r"ended after 3 batches: it must give one batch for every meta-step\."):
        tiny.train(tasks=tiny.batches(3))
    for count in (4, 6):
        with pytest.raises(ax.InputError, match=f"gave a batch of {count} tasks: make it tasks_per_step=5"):
            tiny.train(tasks=tiny.batches(3, size=count))
    with pytest.raises(ax.InputError, match="one leading axis"):
        tiny.train(tasks=[ax.Task(jnp.zeros((5, 3)), jnp.zeros((4, 3)))])
    with pytest.raises(ax.InputError, match="iterable of task batches"):
        tiny.train(tasks=3)


def test_bad_arguments_are_refused_before_anything_is_written(tiny, tmp_path):
    out = tmp_path / "run"
    problem = ax.FiniteSum(lambda w, c: w - c, tiny.sample)
    cases = [
        ({"steps": 0}, "steps=0"),
        ({"max_skipped": 0}, "max_skipped=0"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1"),
        ({"evaluate_every": 0.5}, "evaluate_every=0.5"),
        ({"tasks_per_step": 0}, "tasks_per_step=0"),
        ({"devices": []}, "devices="),
        ({"in_flight": 0}, "in_flight=0"),
        ({"optimizer": 1e-3}, "optax.adam"),
        ({"state": {}}, "state must be"),
        ({"callback": 3}, "callback must be"),
        ({"problem": problem}, "take the mean"),
        ({"tasks": tiny.batches(3, size=4)}, "tasks_per_step=5"),
        ({"problem": problem, "tasks": tiny.batches(3)}, "take the mean"),
        ({"method": ax.MetaGradient(ax.Inner(2, adapt=[True]))}, "adapt= must be a prefix"),
    ]
    for options, match in cases:
        with pytest.raises(ax.InputError, match=match) as refusal:
            tiny.train(out=out, **options)
        assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
        assert not out.exists(), options
    for options in ({"resume": True}, {"checkpoint_every": 2}):
        with pytest.raises(ax.InputError, match="pass out=FOLDER"):
            tiny.train(**options)
