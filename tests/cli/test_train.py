"""Runs from the command line: what they print, what their folder holds, and files of options."""

import io
import json
import re

import numpy as np
import pytest

import adaptax as ax

FILES = {
    "checkpoints", "config.json", "environment.json", "evaluation.json", "evaluation.txt", "history.jsonl", "learner.npz",
    "manifest.json",
}  # fmt: skip


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["sinusoid", "matrix"])
def test_the_run_folder(finished, task):
    folder = finished[task]
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 2 and config["task"] == task and config["steps"] == 6 and config["inner_steps"] == 2
    # The options that were given stand at the top, all others below.
    assert config["defaults"]["seed"] == 0 and not set(config["defaults"]) & set(config)
    assert not {"out", "resume", "config"} & {*config, *config["defaults"]}
    assert json.loads((folder / "environment.json").read_text())["packages"].keys() >= {"adaptax", "jax"}
    assert [line["step"] for line in history(folder)] == list(range(6))
    assert all(line["loss"] > 0 and line["stepsize"] > 0 and not line["skipped"] for line in history(folder))
    assert sorted(json.loads((folder / "manifest.json").read_text())) == ["4", "6"]
    result = json.loads((folder / "evaluation.json").read_text())
    assert result["steps"] == [0, 1, 2, 3, 4] and result["tasks"] == 8 and result["step"] == 6
    loss = result["scores"]["loss"]
    assert all(low < mean < high for low, mean, high in zip(loss["low"], loss["mean"], loss["high"], strict=True))


def test_what_is_printed(train, tmp_path):
    result = train("matrix", "--out", tmp_path / "run")
    assert result.code == 0
    assert result.out == (tmp_path / "run" / "evaluation.txt").read_text()
    assert "matrix after 6 meta-steps with N = 2" in result.out and "inner step size 0.01 (as given)" in result.out
    assert [line.split()[0] for line in result.out.splitlines()[-5:]] == ["0", "1", "2", "3", "4"]
    last = result.err.splitlines()[-1]
    assert re.fullmatch(r"matrix: 6 of 6 meta-steps, loss [\d.]+, step size 0\.01, [\d,]+ tasks/s, 0:00 left", last)


def test_the_seed_decides_the_run_and_without_out_nothing_is_written(train, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same, other = train("matrix"), train("matrix", "--seed", "1")
    assert same.code == 0 and other.code == 0 and list(tmp_path.iterdir()) == []
    assert same.out == (finished["matrix"] / "evaluation.txt").read_text() != other.out


def test_parameters_are_cut_over_devices(train, tmp_path):
    options = "matrix", "--dim", "40", "--seed", "3"
    assert train(*options, "--parameter-shards", "2", "--out", tmp_path / "run").code == 0
    # It is no property of the run, which is read again without.
    assert "parameter_shards" not in (tmp_path / "run" / "config.json").read_text()
    assert "nothing was changed" in train(*options, "--out", tmp_path / "run").out
    refused = train(*options, "--parameter-shards", "3").sentence
    assert refused == "--parameter-shards 3 must divide the number of devices, which is 2: take one of 1, 2."


def test_the_step_size_in_use(finished):
    result = json.loads((finished["sinusoid"] / "evaluation.json").read_text())
    # The last meta-step used the step sizes from before it moved them.
    assert result["stepsize_rule"] == "auto"
    assert result["stepsize"] == pytest.approx(history(finished["sinusoid"])[-1]["stepsize"], rel=0.2)
    assert json.loads((finished["matrix"] / "evaluation.json").read_text())["stepsize_rule"] == "number"


def test_a_finished_run_is_a_learner(finished):
    loaded = ax.load(finished["sinusoid"])
    saved = json.loads((finished["sinusoid"] / "evaluation.json").read_text())
    assert loaded.about["task"] == "sinusoid" and loaded.about["evaluation"] == saved
    curve = loaded.evaluate(ax.tasks.sinusoid(), saved["steps"], saved["tasks"], saved["seed"])
    np.testing.assert_allclose(curve.mean["loss"], saved["scores"]["loss"]["mean"], rtol=1e-5)


def test_a_run_that_was_finished_without_a_learner_gets_one(train, copied):
    folder = copied("matrix")
    written = (folder / "learner.npz").read_bytes()
    (folder / "learner.npz").unlink()
    with pytest.raises(ax.InputError, match=r"has no learner\.npz yet: give its adaptax train command again"):
        ax.load(folder)
    assert train("matrix", "--out", folder).code == 0
    with np.load(io.BytesIO(written)) as one, np.load(folder / "learner.npz") as two:
        assert one.files == two.files and all(np.array_equal(one[name], two[name]) for name in one.files)


@pytest.mark.slow
def test_reinforcement_learning(run, tmp_path):
    small = "--steps 2 --tasks-per-step 2 --trajectories 3 --horizon 5 --hidden 4 --evaluation-tasks 4"
    result = run("train", "navigation", *small.split(), "--out", tmp_path / "run")
    assert result.code == 0 and "return" in result.out and "environment steps/s" in result.err
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert saved["judged_on"] == "new goals, 3 episodes for each inner step" and saved["steps"] == [0, 1, 2, 3]
    again = run("evaluate", tmp_path / "run", "--format", "json", "--inner-steps", "1")
    assert json.loads(again.out)["scores"]["return"]["mean"] == saved["scores"]["return"]["mean"][:2]


@pytest.mark.slow
def test_guaranteed(train, tmp_path):
    for name, rule in (("one", "guaranteed"), ("two", "GUARANTEED:0.25"), ("same", "guaranteed:0.125")):
        assert train("matrix", "--stepsize", rule, "--out", tmp_path / name).code == 0
    one, two, same = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two", "same"))
    assert one == same and one["stepsize_rule"] == "guaranteed" and two["stepsize_rule"] == "guaranteed:0.25"
    assert two["stepsize"] == pytest.approx(2 * one["stepsize"], rel=0.05)


def test_divergence_is_told_and_stays(train, tmp_path):
    options = ("--stepsize", "1e30", "--steps", "40", "--out", tmp_path / "run")
    for _ in range(2):
        result = train("matrix", *options)
        assert result.code == 1 and not result.out
        assert "10 meta-steps in a row up to step 10 had a gradient that was not finite" in result.err.splitlines()[-1]
        assert "--stepsize edge" in result.err and "Traceback" not in result.err
    assert len(history(tmp_path / "run")) == 10 and not (tmp_path / "run" / "evaluation.json").exists()


def test_a_file_of_options_and_the_command_line(train, run, finished, tmp_path):
    saved = json.loads((finished["matrix"] / "config.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(saved))
    assert run("train", "matrix", "--config", tmp_path / "same.json", "--out", tmp_path / "same").code == 0
    assert (tmp_path / "same" / "config.json").read_bytes() == (finished["matrix"] / "config.json").read_bytes()
    assert (tmp_path / "same" / "history.jsonl").read_bytes() == (finished["matrix"] / "history.jsonl").read_bytes()
    text = f'steps = 3\nseed = 5\ninner-steps = 2\ntasks_per_step = 4\nstepsize = 0.01\nout = "{tmp_path / "toml"}"\n'
    (tmp_path / "some.toml").write_text(text)
    more = ("--dim", "5", "--evaluation-tasks", "8", "--steps", "2")
    assert run("train", "matrix", "--config", tmp_path / "some.toml", *more).code == 0
    config = json.loads((tmp_path / "toml" / "config.json").read_text())
    assert config["seed"] == 5 and config["steps"] == 2 and config["stepsize"] == "0.01"
    assert config["defaults"]["learning_rate"] == 1e-2


def test_evaluations_during_training(train, tmp_path):
    assert train("matrix", "--evaluate-every", "3", "--out", tmp_path / "run").code == 0
    entries = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 6] and all(entry["loss"] < entry["loss_before"] for entry in entries)


def test_without_inner_steps(train):
    result = train("matrix", "--inner-steps", "0")
    assert result.code == 0 and [line.split()[0] for line in result.out.splitlines()[-1:]] == ["0"]


def test_progress_on_a_terminal(train, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    result = train("matrix")
    assert result.code == 0 and "matrix" in result.out
    assert "6/6" in result.err and re.search(r"loss [\d.]+, step size 0\.01, [\d,]+ tasks/s, 0:00 left", result.err)


def test_curvature_strategies(train, run, finished, tmp_path):
    exact = (finished["matrix"] / "evaluation.txt").read_text()
    for name in ("first-order", "zeroth-order"):
        result = train("matrix", "--curvature", name, "--out", tmp_path / name)
        assert result.code == 0 and result.out != exact
        assert json.loads((tmp_path / name / "config.json").read_text())["curvature"] == name
    # The estimator belongs to the run: it is refused to go on with another.
    again = train("matrix", "--curvature", "ggs", "--out", tmp_path / "first-order")
    assert "--curvature is 'first-order' there and 'ggs' here" in again.sentence
    assert "curvature" in train("matrix", "--curvature", "second-order").sentence
