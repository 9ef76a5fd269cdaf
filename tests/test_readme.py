"""The programs of README and of the pages run, and the documents have the figures of the saved results."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from helpers import MISSION

import adaptax as ax
from adaptax.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "configs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fences(text):
    """The blocks of a page: language and code."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def programs(text):
    """The Python blocks of a page."""
    return [code for language, code in fences(text) if language == "python"]


def commands(text):
    """The calls of `adaptax` in the blocks of commands and within lines, as lists of words."""
    shell = "\n".join(code for language, code in fences(text) if not language).replace("\\\n", " ").splitlines()
    found = [line.split("#")[0].strip() for line in shell + re.findall(r"`([^`\n]+)`", text)]
    return [line.split()[1:] for line in found if line.startswith("adaptax ")]


def test_the_first_program_runs_as_it_stands(capsys):
    (program,) = programs(README)
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    losses, adapted = names["curve"].mean["loss"], names["adapted"].losses
    assert str(losses) in capsys.readouterr().out
    assert losses[2] < losses[1] < losses[0] / 2 and adapted[-1] < adapted[0]
    assert not names["history"]["skipped"].any()
    assert len([line for line in program.splitlines() if line.strip()]) <= 17


# The programs of the guide run in the ordinary suite, those of the other pages in CI.
WITH_PROGRAMS = [page for page in PAGES if programs(page.read_text())][1:]
LONG = [page if page.stem == "guide" else pytest.param(page, marks=MISSION) for page in WITH_PROGRAMS]


@pytest.mark.parametrize("page", LONG, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    """Those that need a file begin with a line that says so; the names that they take from adaptax exist all the same."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for program in programs(page.read_text()):
        code = compile(program, page.name, "exec")
        if program.startswith("# Needs "):
            for name in set(re.findall(r"\bax((?:\.\w+)+)", program)):
                found = ax
                for part in name[1:].split("."):
                    found = getattr(found, part)
        else:
            exec(code, names)


def test_the_commands_of_the_pages_have_these_options(capsys):
    found = [words for page in PAGES for words in commands(page.read_text())]
    assert len(found) > 15
    for words in found:
        names = words[:2] if words[0] in ("train", "reproduce") else words[:1]
        assert main([*names, "--help"]) == 0, words
        told = capsys.readouterr().out
        options = [word for word in words if word.startswith("--")]
        assert [option for option in options if not re.search(rf"{option}\b", told)] == [], words


def test_the_links_of_a_page_lead_somewhere():
    def anchors(path):
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    broken = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            if "://" not in link and (not path.exists() or (anchor and anchor not in anchors(path))):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_readme_is_one_screen():
    assert 60 <= len(README.splitlines()) <= 90
    assert (ROOT / "docs" / "sinusoids.png").stat().st_size < 200_000


def test_the_files_that_the_theory_names_exist():
    sources = {path.name for path in (ROOT / "src").rglob("*.py")}
    text = (ROOT / "docs" / "theory.md").read_text() + (ROOT / "docs" / "architecture.md").read_text()
    assert {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", text)} - sources - {"test_imports.py"} == set()


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
