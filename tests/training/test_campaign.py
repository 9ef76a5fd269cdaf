"""A short campaign of injected faults: kills, errors of the system and damaged bytes, each run ending to the bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.mission
@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="faults need a C compiler on Linux")
def test_runs_survive_every_fault_and_nothing_is_left_behind(tmp_path):
    temporary, out = tmp_path / "temporary", tmp_path / "faults.json"
    temporary.mkdir()
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, ROOT / "benchmarks" / "faults.py", "--faults", "25", "--out", out]
    running = subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": paths}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = running.communicate()
    assert running.returncode == 0, said
    result = json.loads(out.read_text())
    assert result["faults"] >= 25 and result["runs"] == result["identical"] > 0
    assert sum(row["faults"] > 0 for row in result["rows"]) >= 8
    assert list(temporary.iterdir()) == []
    # All processes that it has started are in its session's group.
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)
