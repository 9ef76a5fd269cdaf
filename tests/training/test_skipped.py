"""Meta-steps that are not finite: the first is explained, all are counted, and a run that ends says why."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.training import Diverged, loop

INNER = ax.Inner(2, 0.1)
METHOD = ax.MetaGradient(INNER)
START = jnp.zeros(3)


def squares(w, c):
    return jnp.mean((w - c) ** 2)


def sample(key, chance=0.05):
    """One task in twenty has a missing value in its support set."""
    x = jax.random.normal(key, (3,))
    return ax.Task(x.at[0].set(jnp.where(jax.random.bernoulli(key, chance), jnp.nan, x[0])), x)


def keys_of(seed, step, count):
    """The keys that `sample_task` gets, by the definition in the documents."""
    fold = jax.random.fold_in
    return [fold(fold(fold(jax.random.key(seed), step), i), 0) for i in range(count)]


def lost(seed, step, count, chance=0.05):
    """Which tasks of a meta-step have a missing value."""
    return [i for i, key in enumerate(keys_of(seed, step, count)) if np.isnan(sample(key, chance).support).any()]


def task_of(said, problem):
    """The task that the sentence says how to draw."""
    code = re.search(r"problem\.sample_task\(.*?\]\)\)\)", said).group()
    return eval(code, {"problem": problem, "jax": jax, "np": np})


def train(problem, **options):
    options = {"steps": 30, "tasks_per_step": 4, "optimizer": optax.sgd(0.1), "devices": jax.devices()[:1], **options}
    return ax.train(problem, options.pop("start", START), options.pop("method", METHOD), **options)


@pytest.mark.parametrize("devices", [1, 2])
def test_the_first_is_explained_and_all_are_counted(devices):
    problem = ax.FiniteSum(squares, sample)
    expected = [lost(1, k, 5) for k in range(30)]
    with pytest.warns(ax.NotFiniteWarning) as told:
        _, history = train(problem, seed=1, tasks_per_step=5, devices=jax.devices()[:devices])
    assert history["not_finite"].tolist() == [len(bad) for bad in expected] and max(history["not_finite"]) > 1
    assert history["skipped"].tolist() == [bool(bad) for bad in expected]
    first = next(k for k, bad in enumerate(expected) if bad)
    assert first > 0
    told = [warning for warning in told if warning.category is ax.NotFiniteWarning]
    texts = [str(warning.message) for warning in told]
    assert len(texts) == 2 and all(warning.filename == __file__ for warning in told)
    number = len(expected[first])
    many = "was not finite," if number == 1 else "were not finite; the first is"
    start = f"Meta-step {first} was skipped: {number} of 5 tasks {many} task {expected[first][0]} (problem.sample_task("
    assert texts[0].startswith(start)
    assert "the loss at w_0 is NaN, since its data hold NaN in task.support" in texts[0]
    np.testing.assert_array_equal(task_of(texts[0], problem).support, sample(keys_of(1, first, 5)[expected[first][0]]).support)
    total = sum(map(bool, expected))
    assert f"{total} of 30 meta-steps were skipped" in texts[1] and f"the first was meta-step {first}" in texts[1]


def test_the_length_of_compiled_runs_does_not_matter(monkeypatch):
    texts = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(loop, "_SECONDS", seconds)
        with pytest.warns(ax.NotFiniteWarning) as told:
            train(ax.FiniteSum(squares, sample), seed=3)
        texts.append([str(warning.message) for warning in told])
    assert texts[0] == texts[1] and len(texts[0]) == 2


def test_nothing_is_said_of_a_run_that_is_finite():
    _, history = train(ax.FiniteSum(squares, lambda key: sample(key, 0.0)))
    assert not history["not_finite"].any() and not history["skipped"].any()


def test_the_advice_is_not_a_smaller_step_where_the_loss_has_no_gradient():
    problem = ax.FiniteSum(lambda w, b: jnp.linalg.norm(w) + squares(w, b), lambda key: sample(key, 0.0))
    with pytest.raises(Diverged) as end:
        train(problem, method=ax.MetaGradient(ax.Inner(2, 1e-6)), tasks_per_step=2)
    said = str(end.value)
    assert said.startswith("10 meta-steps in a row up to step 10 had a gradient that was not finite. In the last, 2 of 2 tasks")
    assert "the gradient of the loss at w_0, where the loss is finite, is NaN: the loss has no finite derivative there" in said
    assert "smaller" not in said
    np.testing.assert_array_equal(task_of(said, problem).target, sample(keys_of(0, 9, 2)[0], 0.0).target)


def test_a_path_that_diverges_gets_the_advice_of_smaller_steps():
    # The factor of a step is 1 - 2e6 / 3.
    steps = next(j for j in range(99) if (2e6 / 3 - 1) ** (2 * j) > 3.4e38)
    problem = ax.FiniteSum(squares, lambda key: ax.Task(jnp.ones(3), jnp.ones(3)))
    with pytest.raises(Diverged, match=rf"the loss at w_{steps} is infinite: use a smaller inner step size, .*Edge"):
        train(problem, method=ax.MetaGradient(ax.Inner(9, 1e6)), tasks_per_step=2)


def test_an_outer_step_that_leads_away_is_told_from_an_inner_one():
    problem = ax.FiniteSum(lambda w, c: jnp.sum(w**4), lambda key: sample(key, 0.0))
    with pytest.raises(Diverged) as end:
        train(problem, start=jnp.ones(3), method=ax.MetaGradient(ax.Inner(0)), optimizer=optax.sgd(1e4), steps=40)
    moved = int(re.search(r"(\d+) meta-steps brought the parameters there", str(end.value)).group(1))
    assert "the target loss at w_0 is infinite" in str(end.value) and "a smaller outer step size may help" in str(end.value)
    # w -> w - 4e4 w^3: the first meta-step whose loss overflows is the one after so many.
    w = 1.0
    for _ in range(moved):
        assert 3 * w**4 < 3.4e38
        w -= 4e4 * w**3
    assert 3 * w**4 > 3.4e38


def test_an_outer_optimiser_that_is_not_finite_is_named():
    broken = optax.chain(optax.sgd(0.1), optax.stateless(lambda g, _: jax.tree.map(lambda x: x / 0.0 * 0.0, g)))
    with pytest.raises(
        Diverged, match="the meta-gradient is finite, but the update that the outer optimiser makes of it is not"
    ):
        train(ax.FiniteSum(squares, lambda key: sample(key, 0.0)), optimizer=broken)
    known = ax.theory.Constants(1.0, 1.0, 0.0)

    def apart(key):
        # Only the tasks that AdaptiveOuter draws for itself are spoilt: none of the first meta-step's.
        own = jnp.stack([jax.random.key_data(k) for k in keys_of(0, 0, 4)])
        spoilt = ~jnp.any(jnp.all(jax.random.key_data(key) == own, axis=1))
        return jax.tree.map(lambda x: jnp.where(spoilt, jnp.nan, x), sample(key, 0.0))

    with pytest.warns(ax.NotFiniteWarning, match="outer optimiser makes of it is not: .*, and at what it measures itself"):
        train(ax.FiniteSum(squares, apart), optimizer=ax.outer.AdaptiveOuter(known), steps=1)


def test_parameters_that_are_not_finite_from_the_start():
    params = {"a": jnp.zeros(3), "b": jnp.array([0.0, jnp.inf, 0.0])}
    problem = ax.FiniteSum(lambda p, c: squares(p["a"] + p["b"], c), lambda key: sample(key, 0.0))
    with pytest.raises(Diverged, match=r"since the parameters hold infinite values in params\['b'\]: start from parameters"):
        train(problem, start=params)


def test_batches_of_the_host_are_named_by_their_entry():
    x = np.random.default_rng(0).normal(size=(12, 2, 4, 3)).astype(np.float32)
    x[5, 0, 2, 1], x[5, 1, 3], x[7, 1, 0] = np.nan, np.inf, np.nan
    batches = [ax.Task(support, target) for support, target in x]
    with pytest.warns(ax.NotFiniteWarning) as told:
        _, history = train(ax.FiniteSum(squares, sample), tasks=batches, steps=12)
    assert history["not_finite"].tolist() == [0] * 5 + [2, 0, 1] + [0] * 4
    text = str(told[0].message)
    assert text.startswith(
        "Meta-step 5 was skipped: 2 of 4 tasks were not finite; the first is task 2 (entry 2 of tasks=): the loss"
    )
    assert "2 of 12 meta-steps were skipped" in str(told[1].message)


def test_rows_of_a_pool_are_named():
    centres = jnp.arange(12.0).reshape(6, 2).at[4, 1].set(jnp.inf)
    pool = ax.Pool(ax.Task(jnp.zeros((6, 2)), centres))
    problem = ax.FiniteSum(squares, pool)
    drawn = [[int(pool.index(key)) for key in keys_of(0, k, 4)] for k in range(30)]
    first = next(k for k, rows in enumerate(drawn) if 4 in rows)
    with pytest.warns(ax.NotFiniteWarning) as told:
        train(problem, start=jnp.zeros(2), memory=ax.Memory(1.0))
    text = str(told[0].message)
    assert (
        f"Meta-step {first} was skipped" in text and f"task {drawn[first].index(4)} (row 4 of the pool, problem.sample" in text
    )
    assert "the target loss at w_2 is infinite, since its data hold infinite values in task.target" in text


def test_draws_of_a_resampling_problem_are_named_and_can_be_had_again():
    def draw(task, w, key, size):
        bad = jax.random.uniform(jax.random.fold_in(key, 5)) < 0.01
        return jnp.where(bad, jnp.nan, task + jax.random.normal(key, (size, 3)))

    problem = ax.Resampling(lambda w, x: jnp.mean(jnp.cos(w - x)), lambda key: jax.random.normal(key, (3,)), draw)
    with pytest.warns(ax.NotFiniteWarning, match="skipped") as told:
        state, _ = train(problem, seed=1)
    text = str(told[0].message)
    own = eval(re.search(r"drawing with (.*?\]\)\))", text).group(1), {"jax": jax, "np": np})
    task = task_of(text, problem)
    # The path depends on w only through the draws' place, so that the same draw is bad at any parameters.
    assert not METHOD(problem, state.params, task, own)[2].finite
    use, j = re.search(r"since the batch drawn for (the target|step|the product at w)[ _]?(\d*) holds NaN", text).groups()
    purpose = {"step": 0, "the product at w": 1, "the target": 2}[use]
    key = jax.random.fold_in(own, purpose)
    key = jax.random.fold_in(key, int(j)) if j else key
    assert np.isnan(draw(task, state.params, key, 20)).all()


def test_a_loss_that_is_not_finite_is_said_though_the_gradient_is():
    # Infinite, with a gradient of zero by the infinite part.
    problem = ax.FiniteSum(squares, sample, target_loss=lambda w, c: squares(w, c) + jnp.where(c[1] > 1.5, jnp.inf, 0.0))
    with pytest.warns(ax.NotFiniteWarning) as told:
        state, history = train(problem, method=ax.MetaGradient(ax.Inner(0)))
    assert not history["skipped"].any() and np.isfinite(state.params).all() and history["not_finite"].sum() > 1
    first = int(np.argmax(history["not_finite"] > 0))
    texts = [str(warning.message) for warning in told]
    assert texts[0].startswith(f"Meta-step {first} has a loss that is not finite: ")
    assert f"{np.sum(history['not_finite'] > 0)} of 30 meta-steps have a loss that is not finite" in texts[1]


def test_runs_of_before_are_read_and_go_on(tmp_path):
    options = {"out": tmp_path / "run", "tasks_per_step": 5}
    problem = ax.FiniteSum(squares, lambda key: sample(key, 0.0))
    train(problem, **options, steps=6)
    path = tmp_path / "run" / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line["not_finite"] == 0 for line in lines)
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "not_finite"}) + "\n" for line in lines))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    for entry in manifest.values():
        del entry["lines"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    _, history = train(problem, **options, steps=9, resume=True)
    assert np.isnan(history["not_finite"]).tolist() == [True] * 6 + [False] * 3
    assert np.isfinite(history["loss"]).all() and not history["skipped"].any()


def test_a_run_that_had_diverged_says_why_again(tmp_path):
    problem = ax.FiniteSum(squares, lambda key: sample(key, 1.0))
    options = {"out": tmp_path / "run", "max_skipped": 3}
    texts = []
    for resume in (False, True):
        with pytest.raises(Diverged) as end:
            train(problem, **options, resume=resume)
        texts.append(str(end.value))
    assert texts[0] == texts[1] and "4 of 4 tasks were not finite; the first is task 0" in texts[0]


def test_callbacks_say_what_is_not_finite_once():
    def held_out(key):
        return ax.Task(jnp.full(3, jnp.nan), jnp.ones(3))

    problem = ax.FiniteSum(squares, lambda key: sample(key, 0.0))
    options = {"steps": 4, "evaluate_every": 1, "validation": ax.FiniteSum(squares, held_out)}
    with pytest.warns(ax.NotFiniteWarning) as told:
        state, history = train(problem, **options)
    told = [warning for warning in told if warning.category is ax.NotFiniteWarning]
    texts = [str(warning.message) for warning in told]
    assert len(texts) == 2 and all(warning.filename == __file__ for warning in told)
    assert texts[0].startswith(
        "The evaluation of meta-step 1 is not finite. After 2 inner steps 200 of 200 tasks were not finite"
    )
    assert texts[1] == "None of the 4 evaluations on validation tasks was finite: the last state is returned."
    assert np.isnan(history["held_out"]).all() and int(state.step) == 4


def test_the_monitor_and_the_certificate_say_what_they_cannot_measure():
    # The monitor's tasks and the certificate's are apart from those of the meta-steps.
    own = jnp.stack([jax.random.key_data(k) for step in range(2) for k in keys_of(0, step, 4)])

    def apart(key):
        spoilt = ~jnp.any(jnp.all(jax.random.key_data(key) == own, axis=1))
        return jax.tree.map(lambda x: jnp.where(spoilt, jnp.nan, x), sample(key, 0.0))

    problem = ax.FiniteSum(lambda w, c: -jnp.mean(jnp.cos(w - c)), apart)
    with pytest.warns(ax.NotFiniteWarning) as told:
        _, history = train(problem, steps=2, monitor_every=1, certify=True)
    texts = [str(warning.message) for warning in told]
    assert len(texts) == 2 and not history["skipped"].any()
    assert "the stability monitor passed over tasks of its own. 16 of 16 tasks were not finite; the first is task 0" in texts[0]
    assert "At meta-step 1 no bound on the meta-gradient could be had (not shown: some meta-gradients (or their" in texts[1]
    assert np.isnan(history["q"]).all() and not np.isfinite(history["gradient_upper"]).any()
