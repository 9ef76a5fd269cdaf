"""The README's program runs, and the tables of the documents are those of the saved results."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_first_program_runs_as_it_stands(capsys):
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program is not None
    names: dict = {}
    exec(compile(program.group(1), "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in printed] == ["after  0", "after  1", "after 10", "after 20"]
    losses = names["curve"].mean["loss"]
    assert losses[2] < losses[1] < losses[0]
    assert len(program.group(1).strip().splitlines()) <= 17


@pytest.mark.parametrize(
    "section", ["demo", "results", "strategies", "difference-widths", "memory-method", "ablations", "roofline", "gpu-images"]
)
def test_the_tables_are_those_of_the_saved_results(section, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    assert spec is not None and spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    document, write = readme.SECTIONS[section]
    text = (ROOT / document).read_text()
    assert readme.section(text, section) == write().strip()
    assert "|" in readme.section(text, section)
