"""Configurations from files and run folders, and the step sizes that text stands for."""

import dataclasses
import json
from pathlib import Path

import pytest

import adaptax as ax
from adaptax.cli import settings
from adaptax.cli.build import parse_stepsize
from adaptax.cli.configs import Images, Matrix, Sinusoid
from adaptax.errors import InputError


@pytest.mark.parametrize("config", [Sinusoid(hidden=(3,), evaluate_every=4), Matrix(sigma=0.5), Images(distort=False)])
def test_what_is_saved_comes_back(config):
    saved = json.loads(json.dumps(settings.describe(config)))
    back = settings.from_saved(saved, "run")
    assert type(back) is type(config) and back == config
    assert settings.describe(back) == settings.describe(config)


def test_how_a_run_is_started_is_not_saved():
    plain = settings.describe(Sinusoid())
    assert settings.describe(Sinusoid(out=Path("x"), config=Path("y"), resume=True)) == plain
    names = {field.name for field in dataclasses.fields(Sinusoid)} - {"out", "config", "resume"}
    assert set(plain) == names | {"task"}


@pytest.mark.parametrize(
    "text, same",
    [("0.10", "1e-1"), ("edge", "EDGE:1.0"), ("edge:1.5", " Edge:1.50"), ("guaranteed", "guaranteed:0.125")],
)
def test_one_spelling_for_each_step_size(text, same):
    assert settings.canonical_stepsize(text) == settings.canonical_stepsize(same)
    assert settings.canonical_stepsize(settings.canonical_stepsize(text)) == settings.canonical_stepsize(text)


def test_what_step_sizes_stand_for():
    assert parse_stepsize("0.25") == 0.25
    assert parse_stepsize("edge") == ax.stepsize.Edge() and parse_stepsize("edge:1.5") == ax.stepsize.Edge(1.5)
    assert parse_stepsize("guaranteed") == ax.stepsize.Guaranteed()
    assert parse_stepsize("guaranteed:0.25") == ax.stepsize.Guaranteed(0.25)


def test_files_may_write_options_either_way(tmp_path):
    (tmp_path / "x.toml").write_text('inner-steps = 3\ntasks_per_step = 2\nstepsize = 0.5\nhidden = [1, 2]\nout = "o"\n')
    config = settings.overlay(Sinusoid(), settings.read_file(tmp_path / "x.toml"), "x.toml")
    assert config == Sinusoid(inner_steps=3, tasks_per_step=2, stepsize="0.5", hidden=(1, 2), out=Path("o"))


def test_a_whole_number_is_a_number_and_null_is_the_default():
    config = settings.overlay(Matrix(evaluate_every=3), {"learning_rate": 1, "evaluate_every": None}, "x")
    assert config.learning_rate == 1.0 and isinstance(config.learning_rate, float) and config.evaluate_every is None


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "edge:0", "guaranteed:nan", "", "edge:", "1:2", "sharp"])
def test_step_sizes_that_cannot_be(text):
    with pytest.raises(InputError, match="--stepsize") as caught:
        settings.canonical_stepsize(text)
    assert str(caught.value).endswith(".")
