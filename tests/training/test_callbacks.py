"""Callbacks of a user's own, and what is refused before training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax


class Size(ax.training.Callback):
    """How large the parameters are: a new periodic measurement is one class."""

    name = "size"

    def measure(self, state):
        return {"norm": float(jnp.linalg.norm(state.params)), "steps": int(state.step)}


class Bare:
    """The interface without the base class."""

    name = "bare"

    def due(self, step):
        return step in (1, 5)

    def measure(self, state):
        return {"first": np.float32(state.params[0])}


def test_measurements_are_in_the_history_and_in_the_folder(tiny, tmp_path):
    options = {"callbacks": [Size(4), Bare()], "out": tmp_path / "run"}
    state, history = tiny.train(**options)
    assert np.flatnonzero(np.isfinite(history["size.norm"])).tolist() == [3, 7, 11]
    assert np.flatnonzero(np.isfinite(history["bare.first"])).tolist() == [0, 4]
    assert history["size.norm"][11] == pytest.approx(float(jnp.linalg.norm(state.params)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "size.jsonl").read_text().splitlines()]
    assert [(line["step"], line["steps"]) for line in lines] == [(4, 4), (8, 8), (12, 12)]


def test_a_stopped_run_takes_back_and_repeats_what_was_measured(tiny, tmp_path):
    whole = tiny.train(callbacks=[Size(3)])[1]

    class Stop(BaseException):
        pass

    def stop(state, record):
        if int(state.step) >= 10:
            raise Stop

    options = {"callbacks": [Size(3)], "out": tmp_path / "run", "checkpoint_every": 4}
    with pytest.raises(Stop):
        tiny.train(**options, callback=stop)
    again = tiny.train(**options, resume=True)[1]
    assert tiny.same_history(again, whole)
    lines = (tmp_path / "run" / "size.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12]


def named(name):
    callback = Size(2)
    callback.name = name
    return callback


class Silent(Size):
    def measure(self, state):
        return 3.0


class Wordy(Size):
    def measure(self, state):
        return {"mood": "good"}


@pytest.mark.parametrize(
    "callbacks, match",
    [
        (Size(2), "must be a list of callbacks, not Size"),
        ([lambda state: {}], "needs name, due.step. and measure.state., which function has not"),
        ([named("history")], "'history' cannot name a series"),
        ([named("../up")], "cannot name a series: use an identifier"),
        ([Size(2), Size(3)], "Two callbacks are named 'size'"),
    ],
)
def test_callbacks_are_checked_before_training(tiny, tmp_path, callbacks, match):
    traces = tiny.traces
    with pytest.raises(ax.InputError, match=match):
        tiny.train(callbacks=callbacks, out=tmp_path / "run")
    assert tiny.traces == traces and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "callback, match",
    [(Silent(2), "must return numbers by name.*not float"), (Wordy(2), "returned something that is no number")],
)
def test_a_measurement_that_is_no_number_is_refused(tiny, callback, match):
    with pytest.raises(ax.InputError, match=match):
        tiny.train(callbacks=[callback], steps=2)


def test_every_is_a_positive_whole_number():
    assert Size(np.int64(3)).due(6) and not Size(np.int64(3)).due(7)
    for every in (0, True, 1.5, None):
        with pytest.raises(ax.InputError, match=r"Size\(every=.*whole number of at least 1"):
            Size(every)


def unusable(key):
    raise RuntimeError("tasks come from the host")


@pytest.mark.parametrize(
    "options, match",
    [
        (
            {"evaluate_every": 2},
            "evaluate_every= measures on tasks that sample_task.*come from the host.*validation=",
        ),
        ({"monitor_every": 2}, "monitor_every= measures on tasks that sample_task.key. draws"),
    ],
)
def test_host_tasks_with_measurements_need_a_sampler(tiny, tmp_path, options, match):
    problem = ax.FiniteSum(tiny.loss, unusable)
    traces = tiny.traces
    with pytest.raises(ax.InputError, match=match):
        tiny.train(problem=problem, tasks=tiny.batches(12), out=tmp_path / "run", **options)
    assert tiny.traces == traces and not (tmp_path / "run").exists()
    # Held-out tasks of another problem are welcome.
    if "evaluate_every" in options:
        history = tiny.train(problem=problem, tasks=tiny.batches(4), steps=4, validation=tiny.problem, **options)[1]
        assert np.isfinite(history["held_out"]).sum() == 2


def test_a_sampler_that_returns_no_task_is_named_too(tiny):
    problem = ax.FiniteSum(tiny.loss, lambda key: key.nothing)
    with pytest.raises(ax.InputError, match=r"monitor_every=.*sample_task.*nothing"):
        tiny.train(problem=problem, tasks=tiny.batches(2), steps=2, monitor_every=1)


@pytest.mark.parametrize("rule", [ax.stepsize.Edge, ax.stepsize.Guaranteed])
def test_numbers_of_numpy_are_taken_and_booleans_are_not(tiny, rule):
    made = rule(tasks=np.int64(2), every=np.int32(4), iterations=np.uint8(3), decay=np.float32(0.5), gamma=np.float64(0.25))
    assert (made.tasks, made.every, made.iterations, made.decay) == (2, 4, 3, 0.5)
    assert all(type(x) is int for x in (made.tasks, made.every, made.iterations))
    for name in ("tasks", "every", "iterations"):
        for value in (True, np.bool_(True), 2.0):
            with pytest.raises(ax.InputError, match=rf"{name}=.*whole number"):
                rule(**{name: value})
    with pytest.raises(ax.InputError, match="gamma=True"):
        rule(True)
    inner = ax.Inner(np.int16(3), np.float32(0.1), proximal=np.float64(0.0))
    state, _ = tiny.train(
        ax.MetaGradient(inner), steps=np.int64(2), tasks_per_step=np.int32(3), seed=np.uint8(1), in_flight=np.int8(2)
    )
    assert int(state.step) == 2


def test_evaluation_holds_no_more_tasks_than_are_in_flight(tiny):
    """The memory of the compiled evaluation does not grow with the number of tasks."""
    from adaptax.training.evaluate import _evaluate

    def sample(key):
        points = jax.random.normal(key, (2, 4096, 3))
        return ax.Task(points[0], points[1])

    problem = ax.FiniteSum(lambda w, x: jnp.mean((x - w) ** 2), sample)

    def temporaries(count):
        given = (problem, jnp.zeros(3), ax.Inner(1, 0.1), None, jax.random.key(1), count, (0, 1), ax.Samples(), 2, None)
        return _evaluate.lower(*given).compile().compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(64) < 2 * temporaries(8)
