"""How the processes of one command are found; tests/training/test_processes.py starts real ones."""

import dataclasses

import jax
import pytest

from adaptax.cli import devices, processes
from adaptax.cli.families.sinusoid import Sinusoid
from adaptax.cli.main import main
from adaptax.errors import InputError

LAUNCHERS = {
    "SLURM": {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_NTASKS": "{count}", "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    },
    "Open MPI": {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "{count}",
        "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_joined(monkeypatch):
    """No test of this file joins others; it records the arguments with which it would."""
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    monkeypatch.setattr(processes, "_own", [])
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    return asked


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_is_found_where_it_started_several(monkeypatch, nothing_is_joined, launcher):
    assert not processes.join(Sinusoid())
    for count in (1, 2):
        for name, value in LAUNCHERS[launcher].items():
            monkeypatch.setenv(name, value.format(count=count))
        assert processes._launched() == ((2, 1) if count > 1 else (1, None))
    assert not processes.join(Sinusoid(processes=1)) and nothing_is_joined == []
    monkeypatch.setattr(processes.sys, "stdout", processes.sys.stdout)
    assert processes.join(Sinusoid()) and nothing_is_joined == [{}]
    assert processes.joined() and processes.is_silent()
    processes.sys.stdout.close()


ALONE = {
    "train table": ["--data", "visits.csv", "--group", "patient", "--target", "score"], "demo": [],
    "adapt": ["run", "--support", "a", "--predict", "b"], "video": ["run"], "plan": ["--measure", "sinusoid"],
    "reproduce matrix": [],
}  # fmt: skip


@pytest.mark.parametrize("command", ALONE)
@pytest.mark.parametrize("launcher, number", [("SLURM", "SLURM_PROCID"), ("Open MPI", "OMPI_COMM_WORLD_RANK")])
def test_commands_that_take_one_process_say_so(monkeypatch, tmp_path, capsys, launcher, number, command):
    monkeypatch.chdir(tmp_path)
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value.format(count=2))
    assert main([*command.split(), *ALONE[command]]) == 2
    said = (
        f"adaptax {command} takes one process, and 2 were started: start one (srun --ntasks 1, mpirun -n 1), or take {number}"
    )
    assert capsys.readouterr().err == f"{said} out of their environment to run them apart.\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv(number)
    processes.refuse("adaptax demo")


GIVEN = Sinusoid(coordinator="10.0.0.1:9911", processes=2, process_id=0)


def test_options_name_the_processes(nothing_is_joined):
    assert processes.join(GIVEN) and not processes.is_silent()
    assert nothing_is_joined == [{"coordinator_address": "10.0.0.1:9911", "num_processes": 2, "process_id": 0}]


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"coordinator": None}, "--coordinator, --processes and --process-id belong together: give all three"),
        ({"process_id": None}, "belong together"),
        ({"process_id": 2}, "--process-id 2 must be from 0 to 1, one less than --processes: number the processes from 0"),
        ({"coordinator": "10.0.0.1"}, "--coordinator 10.0.0.1 must be HOST:PORT, with a port that is free"),
    ],
)
def test_what_does_not_go_together_is_refused(nothing_is_joined, changes, match):
    with pytest.raises(InputError, match=match):
        processes.join(dataclasses.replace(GIVEN, **changes))
    assert nothing_is_joined == []


def test_what_the_others_say_is_told_in_one_sentence(monkeypatch):
    def refuse(**given):
        raise RuntimeError("DEADLINE_EXCEEDED: no answer\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match=r"cannot be joined \(DEADLINE_EXCEEDED: no answer\): start all of them"):
        processes.join(GIVEN)
    assert not processes.joined()


def test_processes_on_one_machine_share_its_cores(monkeypatch):
    near = dataclasses.replace(GIVEN, coordinator="127.0.0.1:9911")
    assert [processes.sharing(command) for command in (Sinusoid(), GIVEN, near)] == [1, 1, 2]
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: asked.append(value))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", -1, raising=False)
    for cores, share in ((8, 4), (1, 1)):
        monkeypatch.setattr(devices, "cores", lambda cores=cores: cores)
        devices.use_all_cores(2)
        assert asked.pop() == share


# The cores that are free, those of the machine, processes, the number of this one, and the cores that it keeps to.
PARTS = [
    (range(8), 8, 2, 0, [0, 1, 2, 3]), (range(8), 8, 2, 1, [4, 5, 6, 7]), (range(7), 7, 3, 2, [4, 5]),
    (range(8), 8, 1, 0, None), (range(4), 8, 2, 1, None), (range(1), 1, 2, 1, None),
]  # fmt: skip


@pytest.mark.parametrize("free, whole, sharing, number, kept", PARTS)
def test_each_keeps_to_its_own_cores(monkeypatch, free, whole, sharing, number, kept):
    found = []
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: set(free), raising=False)
    monkeypatch.setattr(devices.os, "sched_setaffinity", lambda process, cores: found.append(list(cores)), raising=False)
    monkeypatch.setattr(devices.os, "cpu_count", lambda: whole)
    devices.keep_to_own_cores(sharing, number)
    assert found == ([] if kept is None else [kept])
