"""The state that does best on validation tasks: which it is, that it is kept, and that a run goes on from its last one."""

import math

import jax.numpy as jnp
import pytest

import adaptax as ax
from adaptax.training.callbacks import score
from adaptax.training.run import Run


class Stop(BaseException):
    """An interruption."""


@pytest.fixture
def validation(tiny):
    """Tasks that the initial parameters solve: training leads away from them."""
    return ax.FiniteSum(tiny.loss, ax.Pool([ax.Task(tiny.start, tiny.start)]))


def test_the_best_state_is_returned_and_the_run_goes_on_from_the_last(tiny, validation, tmp_path):
    options = {"validation": validation, "evaluate_every": 4}
    early, _ = tiny.train(steps=4)
    best, history = tiny.train(**options)
    assert int(best.step) == 4 and tiny.same(best, early)
    held_out = history["held_out"][[3, 7, 11]]
    assert held_out[0] < held_out[1] < held_out[2]
    kept = {**options, "out": tmp_path / "run", "checkpoint_every": 6}
    assert tiny.same(tiny.train(**kept)[0], early)
    run = Run(tmp_path / "run")
    assert run.newest() == 12 and int(run.checkpoints.load_best(early).step) == 4
    # Without a validation problem the last state is returned, and it is that of an undisturbed run.
    assert tiny.same(run.checkpoints.load(early), tiny.train()[0])


def test_an_interrupted_run_keeps_the_same(tiny, validation, tmp_path):
    options = {"validation": validation, "evaluate_every": 4, "out": tmp_path / "run", "checkpoint_every": 3}

    def stop(state, record):
        if int(state.step) >= 4:
            raise Stop

    with pytest.raises(Stop):
        tiny.train(**options, callback=stop)
    # The checkpoint of step 3 is gone on from, so that the evaluation at 4 comes once more.
    assert Run(tmp_path / "run").newest() == 3
    best, history = tiny.train(**options, resume=True)
    assert int(best.step) == 4 and tiny.same(best, tiny.train(steps=4)[0])
    tiny.same_history(history, tiny.train(validation=validation, evaluate_every=4)[1])


def test_without_an_evaluation_it_is_the_last(tiny, validation, tmp_path):
    last, _ = tiny.train(steps=3)
    assert tiny.same(tiny.train(steps=3, validation=validation, evaluate_every=5, out=tmp_path / "run")[0], last)


def test_what_is_best():
    low, high = {"loss": 1.0, "accuracy": 0.9}, {"loss": 0.5, "accuracy": 0.8}
    assert score(low) > score(high) and score({"loss": 0.5}) > score({"loss": 1.0})
    assert score({"loss": 1.0, "return": -3.0}) > score({"loss": 0.0, "return": -4.0})
    assert score({"loss": None}) == score({"loss": math.nan}) == -math.inf


def test_a_run_killed_while_it_keeps_the_best_has_the_one_before(tiny, tmp_path):
    run, states = Run(tmp_path / "run"), [tiny.train(steps=steps)[0] for steps in (4, 8)]
    run.create({})
    run.checkpoints.save_best(states[0])
    before = (run.folder / "best.json").read_text()
    run.checkpoints.save_best(states[1])
    # As if the process had ended just before best.json was written.
    (run.folder / "best.json").write_text(before)
    assert tiny.same(run.checkpoints.load_best(states[1]), states[0])
    run.checkpoints.save_best(states[1])
    assert tiny.same(run.checkpoints.load_best(states[0]), states[1])


def test_damage_is_told(tiny, validation, tmp_path):
    state, _ = tiny.train(validation=validation, evaluate_every=4, out=tmp_path / "run")
    run = Run(tmp_path / "run")
    path = run.folder / "best.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(ax.InputError, match=r"damaged: delete its best\.json to use the newest"):
        run.checkpoints.load_best(state)
    path.write_text("{")
    with pytest.raises(ax.InputError, match="cannot be read: delete it"):
        run.checkpoints.load_best(state)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"validation": jnp.ones(3), "evaluate_every": 4},
            "validation= must be ax.FiniteSum, ax.Resampling or",
        ),
        ({"evaluate_every": None}, "validation= needs evaluate_every="),
    ],
)
def test_refusals(tiny, validation, options, message):
    with pytest.raises(ax.InputError, match=message):
        tiny.train(**{"validation": validation, **options})
