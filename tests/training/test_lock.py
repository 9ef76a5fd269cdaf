"""One process trains in a run folder at a time; a lock ends with its process."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers import Stop, stop_at

import adaptax as ax
from adaptax.training import lock
from adaptax.training.lock import Lock
from adaptax.training.run import Run

HOLDS = """
import sys, time
from pathlib import Path
from adaptax.training.lock import Lock
Lock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def held(tmp_path):
    """A run folder of three meta-steps, and a process that holds its lock."""
    folder = tmp_path / "run"

    def start():
        process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        started.append(process)
        return process

    started = []
    yield folder, start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != lock.FILE}


def test_a_second_process_is_told_who_is_there_and_harms_nothing(tiny, held):
    folder, start = held
    tiny.train(out=folder, steps=3)
    before, process = files(folder), start()
    pattern = rf"run is in use by process {process.pid} of \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC: wait until it ends"
    with pytest.raises(ax.InputError, match=pattern):
        tiny.train(out=folder, steps=6, resume=True)
    assert files(folder) == before
    # Readers need no lock.
    assert Run(folder).newest() == 3 and len(Run(folder).history(3)["loss"]) == 3
    # A lock goes with its process, also if that is killed, and its file then holds nothing.
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / lock.FILE).is_file()
    assert int(tiny.train(out=folder, steps=6, resume=True)[0].step) == 6
    assert not (folder / lock.FILE).exists()


def test_a_folder_in_which_a_run_is_being_begun_is_in_use(tiny, held):
    folder, start = held
    folder.mkdir()
    start()
    with pytest.raises(ax.InputError, match="run is in use by process"):
        tiny.train(out=folder, steps=3)
    assert files(folder) == {}


def test_a_folder_that_became_a_run_meanwhile_is_left_alone(tiny, tmp_path):
    run = Run(tmp_path / "run")
    assert not run.check({"steps": 3}, resume=False)
    tiny.train(out=tmp_path / "run", steps=3)
    before = files(run.folder)
    with run, pytest.raises(ax.InputError, match="has become a run folder meanwhile"):
        run.create({"steps": 3})
    assert files(run.folder) == before


def test_another_training_of_this_process_is_refused_too(tiny, tmp_path):
    raised = []

    def second(state, record):
        def train():
            try:
                tiny.train(out=tmp_path / "run", resume=True)
            except ax.InputError as error:
                raised.append(str(error))

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()

    tiny.train(out=tmp_path / "run", callback=second)
    assert raised and all(f"in use by process {os.getpid()} of " in sentence for sentence in raised)


def test_a_lock_is_given_back_whatever_happens(tiny, tmp_path):
    with pytest.raises(Stop):
        tiny.train(out=tmp_path / "run", callback=stop_at(1))
    assert not (tmp_path / "run" / lock.FILE).exists()
    assert int(tiny.train(out=tmp_path / "run", resume=True)[0].step) == 12


def test_a_file_taken_away_by_its_holder_is_made_anew(tmp_path, monkeypatch):
    first, second, take = Lock(tmp_path), Lock(tmp_path), lock._lock
    first.take()
    calls = []

    def released(number):
        if not calls:
            first.release()
        calls.append(number)
        take(number)

    monkeypatch.setattr(lock, "_lock", released)
    second.take()
    assert len(calls) == 2 and (tmp_path / lock.FILE).is_file()
    with pytest.raises(ax.InputError, match="in use"):
        Lock(tmp_path).take()
    second.release()


def test_a_file_system_without_locks_is_said(tiny, tmp_path, monkeypatch):
    def none(number):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", none)
    with pytest.warns(UserWarning, match="run lies on a file system without locks: let no other process train there"):
        tiny.train(out=tmp_path / "run", steps=3)
    assert Run(tmp_path / "run").newest() == 3


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_computed(tiny, tmp_path, monkeypatch, code):
    tiny.train(out=tmp_path / "run", steps=3)
    before = files(tmp_path / "run")

    def refused(path, *more, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(lock.os, "open", refused)
        with pytest.raises(ax.InputError, match=r"run cannot be written \(.*\): make it writable, or choose another output"):
            tiny.train(out=tmp_path / "run", steps=6, resume=True)
    assert files(tmp_path / "run") == before
