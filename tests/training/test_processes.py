"""Several processes that train together: the same as one, refusals, run folders, and a process that dies."""

import json
import os
import signal
import socket
import time

import jax
import numpy as np
import process_cases as cases
import pytest
from helpers import MISSION

import adaptax as ax
from adaptax.cli.main import main

# Starting processes takes most of a minute: CI does it, beside the ordinary suite.
pytestmark = list(MISSION)
# Sums of two numbers do not depend on their order, so two devices give the same wherever they are.
EXACT = {"rtol": 1e-6, "atol": 1e-7}
SECONDS = 1200


@pytest.fixture
def port():
    return free_port()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes with one device each find and say, their folder, and what one process with two devices finds."""
    folder, devices = tmp_path_factory.mktemp("processes"), jax.devices()[:2]
    begun = {"evaluate_every": 4, "validation": cases.PROBLEM, "devices": devices}
    cases.train(cases.HALF, out=folder / "by one", **begun)
    programs = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    found, told = cases.run("in_two", 2, 1, free_port(), folder, SECONDS, programs)
    alone = {name: getattr(cases, name)(devices) for name in ("everything", "from_host", "resampling", "measured", "local")}
    alone["resumed"] = cases.train(**begun)[2]
    return found, told, alone, folder


def check(got, expected, name):
    for key, value in expected.items():
        np.testing.assert_allclose(got[f"{name}/{key}"], value, **EXACT, err_msg=key)


@pytest.mark.parametrize("name", ["everything", "from_host", "resampling", "measured", "local", "resumed"])
def test_two_processes_are_one_with_two_devices(two, name):
    found, _, alone, _ = two
    assert len(alone[name]) > 5
    for process in found:
        check(process, alone[name], name)


def test_one_process_goes_on_where_two_stopped_and_only_the_first_writes(two):
    *_, alone, folder = two
    assert not (folder / "unseen").exists()
    options = {"evaluate_every": 4, "validation": cases.PROBLEM, "devices": jax.devices()[:2]}
    got = cases.train(out=folder / "by two", resume=True, **options)[2]
    check({f"resumed/{key}": value for key, value in got.items()}, alone["resumed"], "resumed")
    names = lambda run: sorted(path.name for path in (folder / run).iterdir())  # noqa: E731
    assert names("by one") == names("by two")


def test_states_of_iterators_fit_as_many_processes(two):
    run = two[3] / "local"
    with pytest.raises(ax.InputError, match="saved in 2 processes with local_tasks=True, and their states fit no others"):
        cases.train(tasks=cases.Drawn(), tasks_per_step=4, local_tasks=True, out=run, resume=True, devices=jax.devices()[:2])


REFUSALS = {
    "devices": "InputError: devices= has no device of process 1, though all 2 processes take part: give at least one",
    "arguments": "InputError: Process 1 was started with another seed than process 0: start every process with the same",
    "problems": "InputError: Process 1 was started with another problem than process 0",
    "batches": "InputError: tasks= gave process 1 another batch than process 0: draw the same tasks in every process",
    "forms": "InputError: tasks= gave process 1 a batch of another form than process 0: let the tasks of all processes have",
    "shares": "InputError: local_tasks=True needs as many tasks for every device, and tasks_per_step=5 has no share for",
    "whole": "InputError: tasks= gave a batch of 5 tasks: make it 2, the share of this process of tasks_per_step=4.",
    "evaluation": "InputError: Process 1 was started with another params than process 0",
    "constants": "InputError: Process 1 was started with another seed than process 0",
    "folder": "InputError: by two holds this run already: pass resume=True, or another folder.",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_process_gives_the_same_refusal(two, name):
    first, second = two[1]
    assert first[name].startswith(REFUSALS[name]) and second[name] == first[name]


def test_a_failure_in_one_process_ends_all(two):
    first, second = two[1]
    assert first["callback"] == "HostFailure: Process 1 stopped (OSError: the disk is full)."
    assert second["callback"] == "OSError: the disk is full"


def test_all_processes_say_the_same_of_a_task_that_one_has_drawn(two):
    first, second = two[1]
    assert first["bad task"] == second["bad task"] and len(first["bad task"]) == 1
    assert "Meta-step 2 was skipped: 1 of 4 tasks was not finite, task 3" in first["bad task"][0]
    assert "NaN in task.support" in first["bad task"][0]


STOPPED = {"interrupted": "KeyboardInterrupt", "preempted": "Terminated"}


@pytest.mark.parametrize("name", STOPPED)
def test_a_signal_to_one_process_stops_all_at_the_same_meta_step(two, name):
    _, (first, second), _, folder = two
    sentence, step = first[name]
    assert 0 < step < 10**6 and second[name] == first[name]
    assert sentence.startswith(f"{STOPPED[name]}: Meta-step {step} of 1000000 is saved in {name}")
    assert newest_of(folder / name) == step


def test_a_process_may_evaluate_alone_on_its_own_devices(two):
    first, second = two[1]
    mean = ax.evaluate(cases.PROBLEM, np.array(cases.START, np.float32), ax.Inner(1, 0.1), [1], 4).mean
    assert first["alone"] == second["alone"]
    np.testing.assert_allclose(first["alone"], mean["loss"], **EXACT)


# docs/scale.md states it. Two processes with two devices each differed from one device by 7e-7.
TOLERANCE = 1e-5


def test_sinusoids_do_not_depend_on_processes_and_devices_beyond_rounding(tmp_path):
    shapes = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2)]
    found = {shape: cases.run("sinusoids", *shape, free_port(), tmp_path / str(shape), SECONDS)[0] for shape in shapes}
    one = found[1, 1][0]
    size = len(one["sinusoids/start"])
    moved = np.linalg.norm(one["sinusoids/params"][:size] - one["sinusoids/start"])
    assert moved > 0.1
    for shape, processes in found.items():
        for process in processes:
            far = np.linalg.norm(process["sinusoids/params"] - one["sinusoids/params"])
            print(shape, far / moved, process["sinusoids/mean"] / one["sinusoids/mean"] - 1)
            assert far <= TOLERANCE * moved, shape
            for name in ("loss", "mean", "low"):
                np.testing.assert_allclose(process[f"sinusoids/{name}"], one[f"sinusoids/{name}"], rtol=TOLERANCE)


TRAINING = ["--inner-steps", "1", "--tasks-per-step", "4", "--hidden", "8", "--evaluation-tasks", "4"]


def command(*arguments):
    """A process of the command line."""
    return cases.start(f"import sys; from adaptax.cli.main import main; sys.exit(main({list(map(str, arguments))}))")


def trained(out, *more):
    """A command that trains without end, and saves every 20 meta-steps."""
    return command("train", "sinusoid", "--out", out, *TRAINING, "--steps", 1_000_000, "--checkpoint-every", 20, *more)


def joined(port):
    """The options by which two processes find each other, for each of them."""
    return [("--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process-id", index) for index in range(2)]


def wait_for_a_checkpoint(out, running, after=0):
    until = time.monotonic() + SECONDS
    while newest_of(out) <= after and all(process.poll() is None for process in running):
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.parametrize("number, told, code, word", [("SIGTERM", 1, 143, "Terminated"), ("SIGINT", 0, 130, "Interrupted")])
def test_a_signal_to_one_command_ends_all_in_good_order(tmp_path, port, number, told, code, word):
    out = tmp_path / "run"
    running = [trained(out, *options) for options in joined(port)]
    try:
        wait_for_a_checkpoint(out, running)
        kept = [os.sched_getaffinity(process.pid) for process in running] if hasattr(os, "sched_getaffinity") else []
        os.kill(running[told].pid, getattr(signal, number))
        said = cases.finish(running, SECONDS)
    finally:
        cases.end(running)
    assert [process.returncode for process in running] == [code, code], said
    assert all(f"{word}: the same command goes on from the last checkpoint." in text for _, text in said), said
    assert newest_of(out) == len((out / "history.jsonl").read_text().splitlines())
    # Where no core is taken from this test, each process has kept to its own.
    if kept and 2 <= len(os.sched_getaffinity(0)) == os.cpu_count():
        assert not kept[0] & kept[1]


@pytest.mark.parametrize("name", ["evaluate", "measure"])
def test_two_processes_judge_a_run_as_one_does(tmp_path, port, capsys, name):
    out, options = tmp_path / "run", ["--format", "json", "--tasks", "21", "--seed", "5"]
    assert main(["train", "sinusoid", "--out", str(out), *TRAINING, "--steps", "3", "--processes", "1"]) == 0
    capsys.readouterr()
    assert main([name, str(out), *options]) == 0
    alone = json.loads(capsys.readouterr().out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # Process 1 sees no folder of process 0.
    places = (out, tmp_path / "unseen")
    running = [command(name, place, *options, *more) for place, more in zip(places, joined(port), strict=True)]
    (first, errors), (second, more) = cases.finish(running, SECONDS)
    assert [process.returncode for process in running] == [0, 0], (errors, more)
    assert second == "" and list(tmp_path.iterdir()) == [out]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    found = json.loads(first)
    assert alone["tasks"] == 21 and found.keys() == alone.keys()
    (numbers, texts), (expected, same) = (parts(x) for x in (found, alone))
    assert texts == same
    np.testing.assert_allclose(numbers, expected, rtol=1e-3 if name == "measure" else TOLERANCE)


def parts(tree):
    """The numbers of what a command prints, and the rest of it."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = [leaf for leaf in leaves if isinstance(leaf, float)]
    return numbers, [structure, *(leaf for leaf in leaves if not isinstance(leaf, float))]


@pytest.mark.parametrize("victim", [0, 1])
def test_where_a_process_dies_the_others_stop_and_the_run_goes_on(tmp_path, port, victim):
    out = tmp_path / "run"
    running = [trained(out, *options) for options in joined(port)]
    try:
        wait_for_a_checkpoint(out, running)
        assert [process.poll() for process in running] == [None, None]
        os.kill(running[victim].pid, signal.SIGKILL)
        died = time.monotonic()
        said = running[1 - victim].communicate(timeout=SECONDS)[1]
        # At once where the connection closes with the process; in the heartbeat's time where only that tells.
        assert time.monotonic() - died < 110
    finally:
        cases.end(running)
    assert running[1 - victim].returncode != 0
    assert "Another process of this run has ended or cannot be reached" in said, said
    newest = newest_of(out)
    again = trained(out)
    try:
        wait_for_a_checkpoint(out, [again], newest)
        again.kill()
        said = again.communicate()[1]
    finally:
        cases.end([again])
    assert f"going on from meta-step {newest} of 1000000" in said, said
    assert newest_of(out) > newest


def newest_of(out):
    """The newest checkpoint of a run folder; 0 before the first."""
    path = out / "manifest.json"
    return max(map(int, json.loads(path.read_text())), default=0) if path.is_file() else 0
