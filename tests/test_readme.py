"""README's program runs, and the documents have the figures of the saved results."""

import argparse
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


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "page", module)
    spec.loader.exec_module(module)
    return module


def test_the_documents_have_the_figures_of_the_saved_results(page):
    for path, text in page.documents().items():
        assert path.read_text() == text, f"{path.name} differs from the results: run python benchmarks/page.py"


def test_every_table_has_its_command_and_its_origin(page):
    sections = page.page().split("\n## ")[1:]
    assert len(sections) == sum((ROOT / "benchmarks" / "results" / f"{s.name}.json").exists() for s in page.SECTIONS)
    for section in sections:
        title, command = section.split("\n\n")[:2]
        assert re.fullmatch(r"`(make demo|python benchmarks/\w+\.py.*)`", command), title
        assert "| --- |" in section and ("Measured" in section or title == "Demo"), title


def test_a_measurement_says_its_command_and_no_path(page, monkeypatch):
    from machine import measurement

    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs="*", default=("a", "b"))
    monkeypatch.setattr(sys, "argv", ["/somewhere/peers.py"])
    told = measurement(parser, parser.parse_args(["--data", "/somewhere", "--case", "a", "--rounds", "3"]))
    assert told["command"] == "python benchmarks/peers.py --data FOLDER --case a"
    assert told["settings"] == {"rounds": 3, "case": ["a"]} and "somewhere" not in str(told)


def test_a_range_is_shown_from_three_rounds_on(page):
    from tables import spread

    assert spread([1.0, 3.0]) == "2 (2 rounds)"
    assert spread([1.0, 2.0, 4.0], "{:.1f} ×") == "2.0 × [1.0, 4.0]"


def test_readme_takes_its_figures_from_the_same_results(page):
    text = "before\n<!-- figures:begin -->\nold\n<!-- figures:end -->\nafter"
    new = page.with_figures(text)
    assert "old" not in new and new.startswith("before\n<!-- figures:begin -->\n| What you suffer")
    assert new.endswith("\n<!-- figures:end -->\nafter") and page.with_figures(new) == new
