"""Options in files: what a run keeps, runs of former versions, and files that a user gives."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from adaptax.cli import saved
from adaptax.cli.families import FAMILIES, CheetahDir, Images, Matrix, Navigation, Sinusoid
from adaptax.errors import InputError

FORMER = {path.stem: path for path in (Path(__file__).parent / "saved").glob("*.json")}


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "config",
    [
        Sinusoid(hidden=(3,), evaluate_every=4),
        Sinusoid(hidden=()),
        Matrix(sigma=0.5, stepsize="0.010"),
        Images(distort=False, validation="-x", size=28),
        Navigation(evaluation_steps=None, sparse=True, normalise=False, learning_rate=1e-05),
    ],
)
def test_what_is_saved_comes_back(config):
    kept = json.loads(json.dumps(saved.describe(config)))
    back = saved.from_saved(kept, "run")
    assert type(back) is type(config)
    assert back == dataclasses.replace(config, stepsize=back.stepsize) and (
        back.stepsize in ("auto", "edge") or float(back.stepsize)
    )
    assert saved.describe(back) == kept


def test_only_what_differs_stands_at_the_top():
    assert saved.describe(Matrix(dim=5, stepsize="AUTO:1.0")) == {
        "format": 2,
        "task": "matrix",
        "steps": 2000,
        "dim": 5,
        "defaults": {n: v for n, v in saved.options_of(Matrix()).items() if n not in ("steps", "dim")},
    }


def test_how_a_run_is_started_is_not_saved():
    plain = saved.describe(Sinusoid())
    assert saved.describe(Sinusoid(out=Path("x"), config=Path("y"), resume=True)) == plain
    assert not {"out", "config", "resume"} & {*plain, *plain["defaults"]}
    assert "cache" not in saved.describe(Images(cache=Path("x")))["defaults"]


def test_runs_of_the_first_format_are_read_as_they_were():
    # At first the outer step size was constant, without clipping.
    outer: Any = {"schedule": "constant", "clip": 0.0, "warm_up": 0}
    cheetah = saved.from_saved(read(FORMER["cheetah-dir"]), "run")
    # The option was called trace; the defaults were others.
    then: Any = outer | {"stepsize": "0.5", "optimizer": "trust-region", "learning_rate": 1e-3, "independent_curvature": True}
    assert cheetah == CheetahDir(seed=3, steps=50, tasks_per_step=20, gae_lambda=0.8, radius=0.01, **then)
    images = saved.from_saved(read(FORMER["images"]), "run")
    # Before there was a choice, the whole network adapted.
    expected = Images(
        adapt="everything", stepsize="edge", seed=3, evaluate_every=100, validation="Latin", data=images.data, **outer
    )
    assert images == expected and images.data == Path("/data/images_background_small1.zip")
    assert saved.from_saved(read(FORMER["images"]) | {"adapt": "head"}, "run").adapt == "head"


def test_a_run_of_the_first_format_goes_on(run, small, copied, finished):
    folder, former = copied("matrix"), FORMER["matrix"].read_text()
    (folder / "config.json").write_text(former)
    again = run("train", "matrix", *small["matrix"].split(), "--out", folder)
    assert again.code == 0 and "is finished" in again.out
    assert run("train", "matrix", "--resume", "--steps", "8", "--out", folder).code == 0
    # Its file stays as it was written, save for the number of meta-steps.
    assert read(folder / "config.json") == json.loads(former) | {"steps": 8}
    assert len((folder / "history.jsonl").read_text().splitlines()) == 8
    sentence = run("train", "matrix", "--resume", "--dim", "6", "--out", folder).sentence
    assert "(--dim is 5 there and 6 here): use another output folder, or the same options." in sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changed(Matrix):
    """A later version: an option more, and another default."""

    dim: int = 30
    extra: bool = True


def test_an_old_run_keeps_its_values_where_options_or_defaults_change(monkeypatch):
    kept, former = saved.describe(Matrix(seed=3)), read(FORMER["matrix"])
    monkeypatch.setitem(FAMILIES, "matrix", Changed)
    assert saved.from_saved(kept, "run") == Changed(seed=3, dim=20)
    assert saved.from_saved(former, "run").dim == 5
    # With the same values it is the same run, whether they are now defaults or not.
    assert saved.differences(kept, Changed(seed=3, dim=20), "run") == []
    assert saved.differences(kept, Changed(seed=3), "run") == ["--dim is 20 there and 30 here"]
    assert saved.differences(kept, Changed(seed=3, dim=20, extra=False), "run") == ["--extra is True there and False here"]
    monkeypatch.setattr(Changed, "before", {"extra": False})
    assert saved.from_saved(kept, "run") == Changed(seed=3, dim=20, extra=False)
    assert saved.from_saved(saved.describe(Changed()), "run") == Changed()


@pytest.mark.parametrize(
    "kept, sentence",
    [
        ({"task": "chess"}, "run was not written by adaptax train: use ax.evaluate or ax.train on it from Python."),
        ({"steps": 3}, "run was not written by adaptax train"),
        ({"task": ["matrix"]}, "run was not written by adaptax train"),
        ({"task": "matrix", "defaults": 3}, "run sets 'defaults', which is no option: take it out."),
        ({"task": "matrix", "format": 3}, "run was written by a later version of adaptax: update adaptax to read it."),
        ({"task": "matrix", "quux": 3}, "run: adaptax train matrix has no option --quux: see adaptax train matrix --help."),
    ],
)
def test_files_that_hold_no_run_of_the_command_line(kept, sentence):
    with pytest.raises(InputError) as caught:
        saved.from_saved(kept, "run")
    assert str(caught.value).startswith(sentence)


def test_files_may_write_options_either_way(tmp_path):
    (tmp_path / "x.toml").write_text('inner-steps = 3\ntasks_per_step = 2\nstepsize = 0.5\nhidden = [1, 2]\nout = "o"\n')
    config = saved.overlay(Sinusoid(), saved.read_file(tmp_path / "x.toml"), "x.toml")
    assert config == Sinusoid(inner_steps=3, tasks_per_step=2, stepsize="0.5", hidden=(1, 2), out=Path("o"))


def test_a_whole_number_is_a_number_and_null_is_none():
    config = saved.overlay(Matrix(evaluate_every=3), {"learning_rate": 1, "evaluate_every": None, "out": None}, "x")
    assert config.learning_rate == 1.0 and isinstance(config.learning_rate, float)
    assert config.evaluate_every is None and config.out is None
    images = saved.overlay(Images(split="a", data=Path("x")), {"split": None, "data": None}, "x")
    assert images.split is None and images.data is None


@pytest.mark.parametrize("value", [3, "yes", None, [True]])
def test_flags_are_true_or_false(value):
    with pytest.raises(InputError, match="x: --flips must be true or false"):
        saved.overlay(Images(), {"flips": value}, "x")
