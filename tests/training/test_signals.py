"""SIGINT and SIGTERM: the meta-steps in flight are finished and saved, and the run goes on bit for bit."""

import os
import signal
import threading

import pytest
from helpers import Stop
from jax.experimental import multihost_utils

import adaptax as ax
from adaptax import _processes as processes
from adaptax._signals import Stopping, leave, terminable
from adaptax.errors import Terminated
from adaptax.training import checkpoints, loop
from adaptax.training.run import Run

RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Every test begins with the handlers that a program has, and leaves them as it found them."""
    monkeypatch.setattr(loop, "_SECONDS", 0.0)  # the host looks after every meta-step
    before = {number: signal.getsignal(number) for number in RAISED}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    after = {number: signal.getsignal(number) for number in RAISED}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def send(number, step, times=1):
    """A callback of training that sends this process a signal at a meta-step."""

    def callback(state, record):
        if int(state.step) == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return callback


@pytest.mark.parametrize("number", RAISED)
@pytest.mark.parametrize("step", [1, 12])
def test_a_run_that_is_asked_to_stop_is_saved_and_goes_on(tiny, tmp_path, number, step):
    whole = tiny.train(tiny.edge)
    with pytest.raises(RAISED[number], match=rf"Meta-step {step} of 12 is saved in run: resume=True goes on from there\."):
        tiny.train(tiny.edge, out=tmp_path / "run", callback=send(number, step))
    assert Run(tmp_path / "run").newest() == step
    seen = []
    state, history = tiny.train(tiny.edge, out=tmp_path / "run", resume=True, callback=lambda s, _: seen.append(int(s.step)))
    assert seen[:1] == ([2] if step == 1 else [])
    assert tiny.same(state, whole[0]) and tiny.same_history(history, whole[1])


@pytest.mark.parametrize("number", RAISED)
def test_a_second_signal_leaves_at_once_and_harms_nothing(tiny, tmp_path, number, monkeypatch):
    whole, options = tiny.train(tiny.edge), {"out": tmp_path / "run", "checkpoint_every": 4}
    with pytest.raises(RAISED[number]):
        tiny.train(tiny.edge, **options, callback=send(number, 6, times=2))
    assert Run(tmp_path / "run").newest() == 4
    # Also while the state is being saved.
    write = checkpoints._write_arrays

    def interrupted(manager, step, arrays):
        write(manager, step, arrays)
        if step == 8:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "_write_arrays", interrupted)
        with pytest.raises(RAISED[number]):
            tiny.train(tiny.edge, **options, resume=True)
    assert Run(tmp_path / "run").newest() == 4
    state, history = tiny.train(tiny.edge, **options, resume=True)
    assert tiny.same(state, whole[0]) and tiny.same_history(history, whole[1])


def test_without_a_folder_a_signal_acts_at_once(tiny):
    with pytest.raises(KeyboardInterrupt):
        tiny.train(callback=send(signal.SIGINT, 1))


def test_signals_that_a_program_handles_or_ignores_are_left_to_it(tiny, tmp_path):
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tiny.train(out=tmp_path / "one", callback=send(signal.SIGTERM, 2))
    tiny.train(out=tmp_path / "two", callback=send(signal.SIGINT, 2))
    assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert [Run(tmp_path / name).newest() for name in ("one", "two")] == [12, 12]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_notice_that_jax_has_told_of_is_followed_and_sigterm_is_left_to_it(tiny, tmp_path, monkeypatch):
    looks, handlers = iter([False, False, False, True]), set()
    monkeypatch.setattr(processes, "preempted", lambda: next(looks))
    callback = lambda state, record: handlers.add(signal.getsignal(signal.SIGTERM))  # noqa: E731
    with pytest.raises(Terminated, match=r"Meta-step 3 of 12 is saved in run"):
        tiny.train(tiny.edge, out=tmp_path / "run", callback=callback)
    assert handlers == {signal.SIG_DFL} and Run(tmp_path / "run").newest() == 3
    looks = iter([True, False])  # a notice from before training
    with pytest.raises(Terminated, match=r"Meta-step 4 of 12 is saved in run"):
        tiny.train(tiny.edge, out=tmp_path / "run", resume=True)


def test_the_checkpoint_writer_does_not_ask_jax(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or False)
    tiny.train(out=tmp_path / "run", checkpoint_every=4)
    assert asked == [] and Run(tmp_path / "run").newest() == 12


def test_another_thread_trains_without_handlers(tiny, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(tiny.train(out=tmp_path / "run")))
    thread.start()
    thread.join()
    assert int(found[0][0].step) == 12


def test_handlers_are_put_back_whatever_happens(tiny, tmp_path):
    for error in (Stop, ValueError):

        def fail(state, record, error=error):
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, leave)
            raise error

        with pytest.raises(error):
            tiny.train(out=tmp_path / error.__name__, callback=fail)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with Stopping() as stopping:
        assert stopping.asked is None


def test_a_command_ends_in_good_order():
    with pytest.raises(Terminated) as told, terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert told.value.code == 143
    assert isinstance(told.value, SystemExit) and ax.errors.Terminated is Terminated
