"""`adaptax evaluate`: the same bytes each time, without times and paths, and nothing is changed."""

import json

import jax.numpy as jnp
import optax
import pytest

import adaptax as ax
from adaptax.report import tables


@pytest.mark.parametrize("task", ["sinusoid", "matrix"])
def test_twice_the_same(run, finished, task, contents):
    folder = finished[task]
    before = contents(folder)
    first, second = (run("evaluate", folder, "--format", "json") for _ in range(2))
    assert first.code == 0 and not first.err and first.out == second.out
    result = json.loads(first.out)
    assert result == json.loads((folder / "evaluation.json").read_text())
    assert str(folder) not in first.out and "/" not in first.out
    assert set(result) == {
        "task", "step", "skipped", "inner_steps", "stepsize", "stepsize_rule", "tasks", "seed", "judged_on", "left_out",
        "steps", "scores",
    }  # fmt: skip
    table = run("evaluate", folder)
    assert table.code == 0 and table.out == (folder / "evaluation.txt").read_text()
    assert contents(folder) == before


@pytest.mark.filterwarnings("always::adaptax.errors.NotFiniteWarning")
def test_tasks_that_are_not_finite_are_counted(train, run, tmp_path):
    trained = train("matrix", "--stepsize", "1e30", "--out", tmp_path / "run")
    texts = [line for line in trained.err.splitlines() if "not finite" in line and not line.startswith("matrix:")]
    assert "Meta-step 0 was skipped: 4 of 4 tasks" in texts[0] and "6 of 6 meta-steps were skipped" in texts[1]
    # Before the first step the loss is finite: its gradient takes w beyond what single precision can square twice.
    assert texts[2].startswith("After 1 inner steps 8 of 8 tasks were not finite") and "--stepsize edge" in texts[2]
    result = run("evaluate", tmp_path / "run", "--format", "json")
    assert result.err.startswith("After 1 inner steps 8 of 8 tasks were not finite")
    values = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert values["not_finite"] == [0, 8, 8, 8, 8] and values["skipped"] == 6
    assert values["scores"]["loss"]["mean"][1:] == [None] * 4 and values["scores"]["loss"]["mean"][0] > 0
    assert "\n6 meta-steps were skipped" in trained.out and "up to 8 of 8 tasks, from 1 inner steps on" in trained.out


def test_other_tasks_and_steps(run, finished):
    saved = json.loads((finished["matrix"] / "evaluation.json").read_text())
    result = json.loads(run("evaluate", finished["matrix"], "--format", "json", "--tasks", "9", "--inner-steps", "1").out)
    assert result["steps"] == [0, 1] and result["tasks"] == 9
    other = json.loads(run("evaluate", finished["matrix"], "--format", "json", "--seed", "2").out)
    assert other["seed"] == 2 and other["scores"] != saved["scores"] and other["stepsize"] == saved["stepsize"]


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--tasks 1", "--tasks 1 must be a whole number of at least 2"),
        ("--inner-steps -1", "--inner-steps -1 must be a whole number of at least 0"),
        ("--steps 3", "adaptax evaluate has no option --steps: did you mean --inner-steps?"),
        ("--seed -1", "--seed -1 must be a whole number from 0"),
    ],
)
def test_bad_options(run, finished, options, sentence):
    assert sentence in run("evaluate", finished["matrix"], *options.split()).sentence


def test_folders_that_hold_no_run(run, copied, tmp_path):
    (tmp_path / "file").write_text("text")
    for name in ("absent", "file", "."):
        assert "There is no run in" in run("evaluate", tmp_path / name).sentence
    folder = copied("matrix")
    for text in ("{", "[]", '{"task": "chess"}', '{"task": 3}'):
        (folder / "config.json").write_text(text)
        assert "config.json" in (sentence := run("evaluate", folder).sentence) or "not written by adaptax" in sentence
    (folder / "config.json").write_text('{"task": "matrix", "steps": "many"}')
    assert "--steps must be followed by a whole number" in run("evaluate", folder).sentence


def test_a_run_without_a_checkpoint(run, copied):
    folder = copied("matrix")
    (folder / "manifest.json").unlink()
    assert "has no whole checkpoint yet: let the run reach its first one" in run("evaluate", folder).sentence


def test_runs_made_from_python_are_left_to_python(run, train, tmp_path, contents):
    pool = ax.Pool([ax.Task(jnp.ones(2), jnp.ones(2))])
    problem = ax.FiniteSum(lambda w, c: jnp.sum((w - c) ** 2), pool)
    folder = tmp_path / "run"
    method = ax.MetaGradient(ax.Inner(1, 0.1))
    ax.train(problem, jnp.zeros(2), method, optimizer=optax.sgd(0.1), steps=2, tasks_per_step=2, out=folder)
    before = contents(folder)
    for refused in (run("evaluate", folder), train("matrix", "--out", folder), train("matrix", "--out", folder, "--resume")):
        assert "was not written by adaptax train: use ax.evaluate or ax.train on it from Python" in refused.sentence
    assert contents(folder) == before


def test_numbers_that_are_not_finite_are_said_to_be():
    scores = {"mean": [1.0, None, 2.0], "low": [0.5, None, None], "high": [1.5, None, None]}
    assert [tables.interval(scores, i) for i in range(3)] == ["1 [0.5, 1.5]", "not finite", "not finite"]
