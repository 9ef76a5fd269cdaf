"""Faults one by one: the disk, the memory, the clock, and functions of the user's own; nothing that was saved is lost."""

import builtins
import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.errors import CheckpointError
from adaptax.training import checkpoints, exhausted, loop
from adaptax.training.checkpoints import DamagedCheckpoint
from adaptax.training.run import Run


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """The host looks after every meta-step."""
    monkeypatch.setattr(loop, "_SECONDS", 0.0)


@pytest.fixture
def whole(tiny):
    return tiny.train(tiny.edge, evaluate_every=6)


@pytest.fixture
def options(tiny, tmp_path):
    return {"method": tiny.edge, "out": tmp_path / "run", "checkpoint_every": 4, "evaluate_every": 6}


def goes_on(tiny, options, whole, step):
    """Whether a run goes on from a meta-step, and ends as one that nothing has disturbed."""
    assert Run(options["out"]).newest() == step
    state, history = tiny.train(**options, resume=True)
    assert tiny.same(state, whole[0]) and tiny.same_history(history, whole[1])
    return True


@contextlib.contextmanager
def refusing(monkeypatch, code, name, mode):
    """While it is entered, the system refuses to open files of a name for reading, "r", or for writing and appending, "wa"."""
    real = builtins.open

    def refused(path, how="r", *args, **options):
        if name in str(path) and how[0] in mode:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, how, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", refused)
        yield


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("name", ["manifest.json", "history.jsonl", "evaluations.jsonl"])
def test_a_file_that_cannot_be_written_stops_the_run_and_loses_nothing(tiny, options, whole, monkeypatch, name, code):
    def begin(state, record):
        if int(state.step) == 5:
            stack.enter_context(refusing(monkeypatch, code, name, "wa"))

    with (
        contextlib.ExitStack() as stack,
        pytest.raises(CheckpointError, match=rf"cannot be written \({os.strerror(code)}\), and "),
    ):
        tiny.train(**options, callback=begin)
    assert goes_on(tiny, options, whole, 4)


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: disk")])
def test_a_checkpoint_that_cannot_be_written_stops_the_run(tiny, options, whole, monkeypatch, kind):
    write = checkpoints._write_arrays

    def full(manager, step, arrays):
        write(manager, step, arrays)
        if step == 8:
            shutil.rmtree(options["out"] / "checkpoints" / "8" / "default")
            raise kind

    monkeypatch.setattr(checkpoints, "_write_arrays", full)
    with pytest.raises(CheckpointError, match=r"checkpoints/8 cannot be written \(.*make room"):
        tiny.train(**options)
    monkeypatch.setattr(checkpoints, "_write_arrays", write)
    assert goes_on(tiny, options, whole, 4)


def test_a_folder_that_vanishes_is_said_and_not_made_anew(tiny, options):
    def vanish(state, record):
        if int(state.step) == 5:
            shutil.rmtree(options["out"])

    with pytest.raises(CheckpointError, match=r"run/history\.jsonl cannot be written \(No such file or directory\)"):
        tiny.train(**options, callback=vanish)
    assert not options["out"].exists()
    with pytest.raises(CheckpointError, match=r"run/checkpoints/3 cannot be written \(the folder is gone\)"):
        Run(options["out"]).save(tiny.train(tiny.edge, steps=3)[0])


@pytest.mark.parametrize("name", ["history.jsonl", "manifest.json", "checkpoints"])
def test_a_file_that_cannot_be_read_stops_the_run_and_loses_nothing(tiny, options, whole, monkeypatch, name):
    tiny.train(**{**options, "steps": 8})

    def read_bytes(path):
        with open(path, "rb") as file:
            return file.read()

    with refusing(monkeypatch, errno.EIO, name, "r"), monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.read_bytes", read_bytes)
        with pytest.raises(CheckpointError, match=r"cannot be (read|written).* \(Input/output error\)"):
            tiny.train(**options, resume=True)
    assert goes_on(tiny, options, whole, 8)


@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_failing_callback_loses_no_step(tiny, options, whole, step):
    def fail(state, record):
        if int(state.step) == step:
            raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        tiny.train(**options, callback=fail)
    assert goes_on(tiny, options, whole, step)


class Fails(ax.training.Callback):
    name = "mine"
    failing = True

    def measure(self, state):
        if self.failing and int(state.step) == 6:
            raise ArithmeticError("mine")
        return {"norm": float(jnp.linalg.norm(state.params))}


def test_a_measurement_that_fails_is_made_when_the_run_goes_on(tiny, options):
    callback = Fails(every=3)
    with pytest.raises(ArithmeticError):
        tiny.train(**options, callbacks=[callback])
    # The state before has all its measurements.
    assert Run(options["out"]).newest() == 5
    callback.failing = False
    history = tiny.train(**options, callbacks=[callback], resume=True)[1]
    assert np.isfinite(history["mine.norm"]).nonzero()[0].tolist() == [2, 5, 8, 11]


def test_tasks_that_fail_lose_no_step(tiny, tmp_path):
    batches, options = tiny.batches(12), {"out": tmp_path / "run", "checkpoint_every": 4}
    expected = tiny.train(tasks=batches)

    def source():
        yield from batches[:7]
        raise ArithmeticError("mine")

    with pytest.raises(ArithmeticError, match="mine"):
        tiny.train(**options, tasks=source())
    assert Run(options["out"]).newest() == 7
    state, history = tiny.train(**options, tasks=batches, resume=True)
    assert tiny.same(state, expected[0]) and tiny.same_history(history, expected[1])


def test_a_failure_while_a_failure_is_saved_hides_neither(tiny, options, whole, monkeypatch):
    def fail(state, record):
        if int(state.step) == 7:
            stack.enter_context(refusing(monkeypatch, errno.ENOSPC, "manifest.json", "w"))
            raise ArithmeticError("mine")

    with contextlib.ExitStack() as stack, pytest.raises(ArithmeticError, match="mine") as told:
        tiny.train(**options, callback=fail)
    assert "could not be saved either" in told.value.__notes__[0] and "No space left on device" in told.value.__notes__[0]
    assert goes_on(tiny, options, whole, 4)


def test_no_memory_names_what_takes_less(tiny, options, whole, monkeypatch):
    run_chunk, failing = loop.run_chunk, [True]

    def exhausted_at(step, state, *more):
        if failing and int(state.step) == 6:
            # What a device says: a petabyte.
            jnp.zeros(2**48, jnp.float32).block_until_ready()
        return run_chunk(step, state, *more)

    monkeypatch.setattr(loop, "run_chunk", exhausted_at)
    with pytest.raises(MemoryError, match=r"too little memory \(.*\): .*in_flight=1.*store=.*microbatches=.*tasks_per_step="):
        tiny.train(**options)
    failing.clear()
    assert goes_on(tiny, options, whole, 6)
    with pytest.raises(jax.errors.JaxRuntimeError), exhausted.explained():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_clock_that_jumps_back_changes_nothing(tiny, options, whole, monkeypatch):
    real, jump = time.time, [0.0]

    def jumps(state, record):
        jump[0] -= 86400.0
        if int(state.step) == 9 and not seen:
            seen.append(True)
            raise ArithmeticError("mine")

    seen = []
    monkeypatch.setattr(time, "time", lambda: real() + jump[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    with pytest.raises(ArithmeticError):
        tiny.train(**options, callback=jumps)
    state, history = tiny.train(**options, resume=True, callback=jumps)
    assert tiny.same(state, whole[0]) and tiny.same_history(history, whole[1])
    assert Run(options["out"]).newest() == 12


def test_a_checkpoint_without_its_manifest_is_kept(tiny, options, whole):
    tiny.train(**options)
    manifest = options["out"] / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    with pytest.raises(CheckpointError, match=r"has checkpoints and no manifest\.json.*nothing was changed"):
        tiny.train(**options, resume=True)
    assert sorted(path.name for path in (options["out"] / "checkpoints").iterdir()) == ["12", "8"]
    manifest.write_text(text)
    assert goes_on(tiny, options, whole, 12)


@pytest.mark.parametrize("name", ["manifest.json", "best.json"])
@pytest.mark.parametrize(
    "text", ["[]", "7", '{"a": 1}', '{"12": {}}', '{"12": {"sha256": 3}}', "\udcff", "[" * 9000, '{"step": "x"}']
)
def test_a_damaged_list_of_checkpoints_is_refused_and_nothing_is_lost(tiny, options, name, text):
    options |= {"validation": tiny.problem}
    tiny.train(**options)
    path = options["out"] / name
    kept = path.read_bytes()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ax.InputError, match=rf"run has a {name} that cannot be read: "):
        tiny.train(**options, resume=True)
    path.write_bytes(kept)
    assert int(tiny.train(**options, resume=True)[0].step) in (6, 12)


def lines(options, name="history.jsonl"):
    return (options["out"] / name).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("bad", [b"\xff\xfe\n", b"[]\n", b'{"step": 2, "loss": "x"}\n', b'{"step": true}\n', b"", b'{"step"\n'])
def test_a_damaged_line_of_the_history_is_a_gap_and_said(tiny, options, whole, bad):
    tiny.train(**{**options, "steps": 8})
    path = options["out"] / "history.jsonl"
    kept = lines(options)
    path.write_bytes(b"".join([*kept[:2], bad, *kept[3:]]))
    with pytest.warns(
        DamagedCheckpoint, match=r"run has history\.jsonl with other contents than were saved: the state does not"
    ):
        state, history = tiny.train(**options, resume=True)
    assert tiny.same(state, whole[0])
    assert np.isnan(history["loss"]).nonzero()[0].tolist() == [2] and not history["skipped"].any()
    np.testing.assert_array_equal(np.delete(history["loss"], 2), np.delete(whole[1]["loss"], 2))


def test_a_number_of_the_history_that_changed_is_said(tiny, options):
    tiny.train(**{**options, "steps": 8})
    for name in ("history.jsonl", "evaluations.jsonl"):
        path = options["out"] / name
        kept = path.read_bytes()
        digit = next(i for i in range(kept.index(b"loss"), len(kept)) if kept[i : i + 1] in b"2345678")
        path.write_bytes(kept[:digit] + bytes([kept[digit] ^ 1]) + kept[digit + 1 :])
        with pytest.warns(DamagedCheckpoint, match=rf"run has {name} with other contents"):
            tiny.train(**{**options, "steps": 8}, resume=True)
        path.write_bytes(kept)
    (options["out"] / "evaluations.jsonl").unlink()
    with pytest.warns(DamagedCheckpoint, match=r"run has evaluations\.jsonl with other contents"):
        tiny.train(**{**options, "steps": 8}, resume=True)


def test_the_checksum_of_the_history_is_that_of_the_whole_file_also_after_resuming(tiny, options):
    with pytest.raises(ArithmeticError):
        tiny.train(**options, callbacks=[Fails(every=3)])  # leaves lines beyond the checkpoint
    tiny.train(**options, resume=True)
    manifest = json.loads((options["out"] / "manifest.json").read_text())
    assert len(manifest) == 2
    for step, entry in manifest.items():
        read = {"history.jsonl": lines(options)[: int(step)]}
        for name in ("evaluations.jsonl", "mine.jsonl"):  # of which the second is not appended to any more
            read[name] = [line for line in lines(options, name) if json.loads(line)["step"] <= int(step)]
        assert entry["lines"] == {name: hashlib.sha256(b"".join(part)).hexdigest() for name, part in read.items()}


def test_a_line_that_changes_during_training_is_said_when_the_run_goes_on(tiny, options):
    def change(state, record):
        path = options["out"] / "history.jsonl"
        if int(state.step) == 9:  # after two checkpoints
            path.write_bytes(path.read_bytes().replace(b'{"step": 2,', b'{"step": 3,'))

    tiny.train(**options, callback=change)
    with pytest.warns(DamagedCheckpoint, match=r"run has history\.jsonl with other contents than were saved"):
        tiny.train(**options, resume=True)


def test_a_history_that_is_gone_or_cut_short_is_said(tiny, options, whole):
    tiny.train(**{**options, "steps": 8})
    path = options["out"] / "history.jsonl"
    path.write_bytes(b"".join(lines(options)[:5]))
    with pytest.warns(DamagedCheckpoint):
        state, history = tiny.train(**options, resume=True)
    assert tiny.same(state, whole[0]) and np.isnan(history["loss"]).nonzero()[0].tolist() == [5, 6, 7]
    path.unlink()
    with pytest.warns(DamagedCheckpoint):
        state, history = tiny.train(**options, resume=True)
    assert tiny.same(state, whole[0]) and len(history["loss"]) == 0


def test_lines_beyond_the_checkpoint_are_no_damage(tiny, options, whole):
    with pytest.raises(ArithmeticError):
        tiny.train(**options, callbacks=[Fails(every=3)])
    run = Run(options["out"])
    assert run.newest() == 5 and len(lines(options)) == 6
    assert [json.loads(line)["step"] for line in lines(options, "mine.jsonl")] == [3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert goes_on(tiny, options, whole, 5)
