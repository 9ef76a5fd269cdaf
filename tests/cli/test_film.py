"""`adaptax film`: what it refuses, in one sentence."""

import pytest

from adaptax.cli.configs import CheetahDir
from adaptax.cli.environment_configs import AntGoal
from adaptax.cli.film import _goal
from adaptax.errors import InputError


@pytest.mark.slow
def test_only_runs_on_bodies(run, finished, tmp_path):
    sentence = run("film", finished["matrix"], "--out", tmp_path / "film.gif").sentence
    assert "draws the bodies of MuJoCo: give it a run on cheetah-dir" in sentence and "not on matrix" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config, numbers, match",
    [
        (CheetahDir(), (2.0,), "--goal 2 must be a direction: -1 or 1"),
        (CheetahDir(), (1.0, 1.0), "--goal 1 1 must be one finite number for cheetah-dir"),
        (AntGoal(), (1.0,), "--goal 1 must be two finite numbers for ant-goal"),
        (AntGoal(), (1.0, float("nan")), "--goal 1 nan must be two finite numbers"),
    ],
)
def test_goals_that_cannot_be(config, numbers, match):
    with pytest.raises(InputError, match=match):
        _goal(config, numbers)


def test_goals():
    assert _goal(CheetahDir(), ()) is None and _goal(CheetahDir(), (-1.0,)).shape == ()
    assert _goal(AntGoal(), (1.0, 2.0)).tolist() == [1.0, 2.0]
