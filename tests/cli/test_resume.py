"""Runs that go on: killed at any moment, repeated, prolonged, or refused because they are others."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest


def newest(folder):
    manifest = folder / "manifest.json"
    return max(map(int, json.loads(manifest.read_text())), default=0) if manifest.is_file() else 0


def arrays(folder):
    """The checksums of the arrays of each checkpoint."""
    return {step: entry["sha256"] for step, entry in json.loads((folder / "manifest.json").read_text()).items()}


@pytest.mark.slow
@pytest.mark.mission
@pytest.mark.parametrize("options", ["--stepsize 0.01", "--stepsize edge --evaluate-every 100"])
def test_a_killed_run_goes_on_bit_for_bit(train, small, tmp_path, options):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = f"{small['matrix']} --steps 300 --checkpoint-every 30 {options}".split()
    program = "import sys; from adaptax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "train", "matrix", *arguments, "--out", str(killed)]
    # As many devices as this process has, and its compilation, for the order of sums.
    quick = str(jax.config.read("jax_disable_most_optimizations"))
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_DISABLE_MOST_OPTIMIZATIONS": quick}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while newest(killed) < 60 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stopped = newest(killed)
    assert 60 <= stopped < 300 and not (killed / "evaluation.json").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and f"going on from meta-step {stopped} of 300\n" in again.stderr
    assert train("matrix", *arguments, "--out", whole).code == 0
    names = [path.name for path in whole.iterdir() if path.is_file()]
    assert names and sorted(names) == sorted(path.name for path in killed.iterdir() if path.is_file())
    for name in names:
        if name != "manifest.json":
            assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    # The files of a checkpoint hold the time at which they were written; its arrays have a checksum of their own.
    assert arrays(killed) == arrays(whole)
    assert again.stdout == (whole / "evaluation.txt").read_text()
    assert len((whole / "history.jsonl").read_text().splitlines()) == 300


@pytest.mark.long
@pytest.mark.parametrize("task", ["sinusoid", "matrix"])
@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["again", "resume"])
def test_repeating_a_finished_run_changes_nothing(train, finished, contents, task, more):
    before = contents(finished[task])
    result = train(task, "--out", finished[task], *more)
    assert result.code == 0 and "is finished: nothing was changed" in result.out
    assert result.out.startswith((finished[task] / "evaluation.txt").read_text())
    assert contents(finished[task]) == before


def test_a_finished_run_goes_on_with_its_saved_options_alone(run, finished, contents):
    before = contents(finished["matrix"])
    result = run("train", "matrix", "--out", finished["matrix"], "--resume")
    assert result.code == 0 and "is finished" in result.out and contents(finished["matrix"]) == before


@pytest.mark.parametrize(
    "options, difference",
    [
        ("--seed 1", "--seed is 0 there and 1 here"),
        ("--steps 8", "--steps is 6 there and 8 here"),
        ("--stepsize edge", "--stepsize is '0.01' there and 'edge' here"),
        ("--inner-steps 3 --dim 6", "--dim is 5 there and 6 here; --inner-steps is 2 there and 3 here"),
        ("--seed 1 --resume", "--seed is 0 there and 1 here"),
        ("--steps 5 --resume", "--steps is 6 there and 5 here"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(train, finished, contents, options, difference):
    before = contents(finished["matrix"])
    sentence = train("matrix", "--out", finished["matrix"], *options.split()).sentence
    assert f"({difference}): use another output folder, or the same options." in sentence
    assert contents(finished["matrix"]) == before


def test_another_task_is_refused(run, train, finished, contents):
    before = contents(finished["matrix"])
    assert "task is 'matrix' there and 'sinusoid' here" in train("sinusoid", "--out", finished["matrix"]).sentence
    sentence = run("train", "sinusoid", "--out", finished["matrix"], "--resume").sentence
    assert "is for the task 'matrix', not sinusoid: use adaptax train matrix" in sentence
    assert contents(finished["matrix"]) == before


def test_resume_may_raise_the_steps(run, train, copied, tmp_path):
    folder, whole = copied("matrix"), tmp_path / "whole"
    result = run("train", "matrix", "--resume", "--steps", "9", "--out", folder)
    assert result.code == 0 and "going on from meta-step 6 of 9" in result.err
    assert train("matrix", "--steps", "9", "--out", whole).code == 0
    for name in ("history.jsonl", "evaluation.json", "config.json", "evaluation.txt"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_stopped_before_its_evaluation_is_evaluated(train, copied, finished):
    folder = copied("matrix")
    (folder / "evaluation.json").unlink()
    (folder / "evaluation.txt").unlink()
    assert train("matrix", "--out", folder).code == 0
    for name in ("history.jsonl", "evaluation.json", "evaluation.txt", "manifest.json"):
        assert (folder / name).read_bytes() == (finished["matrix"] / name).read_bytes()


def test_another_environment_is_told(train, copied):
    folder = copied("matrix")
    (folder / "evaluation.json").unlink()
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "python": "3.0"}))
    result = train("matrix", "--out", folder)
    assert result.code == 0 and "not bit for bit, for this run began with another environment (python was 3.0" in result.err


@pytest.mark.parametrize("number, code, word", [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "Terminated")])
def test_a_command_that_is_asked_to_stop_saves_and_goes_on(run, train, small, tmp_path, monkeypatch, number, code, word):
    from adaptax.cli.progress import Progress

    shown, before = Progress.__call__, signal.getsignal(signal.SIGTERM)

    def stopped(self, state, record):
        shown(self, state, record)
        if int(state.step) == 3:
            os.kill(os.getpid(), getattr(signal, number))

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "__call__", stopped)
        patched.setattr("adaptax.training.loop._SECONDS", 0.0)
        result = train("matrix", "--out", tmp_path / "run")
    assert result.code == code and f"{word}: the same command goes on from the last checkpoint.\n" in result.err
    assert signal.getsignal(signal.SIGTERM) == before and newest(tmp_path / "run") == 3
    again = train("matrix", "--out", tmp_path / "run")
    assert again.code == 0 and "going on from meta-step 3 of 6" in again.err
    assert train("matrix", "--out", tmp_path / "whole").code == 0
    for name in ("history.jsonl", "evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_that_is_in_use_is_refused_in_one_sentence(train, copied, contents):
    from adaptax.training.run import Run

    folder = copied("matrix")
    (folder / "evaluation.json").unlink()
    with Run(folder) as run:
        run.lock.take()
        before = contents(folder)
        for more in ((), ("--resume", "--steps", "9")):
            assert f"copy is in use by process {os.getpid()} of" in train("matrix", "--out", folder, *more).sentence
        assert contents(folder) == before
    assert train("matrix", "--out", folder).code == 0
