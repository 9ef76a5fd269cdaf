"""`adaptax video`: each mistake is refused in one sentence."""

import pytest

from adaptax.cli.families import AntGoal, CheetahDir, CheetahVel
from adaptax.errors import InputError


@pytest.mark.slow
def test_only_runs_on_bodies(run, finished, tmp_path):
    sentence = run("video", finished["matrix"], "--out", tmp_path / "video.gif").sentence
    assert (
        "shows the bodies of MuJoCo: give it a run on cheetah-dir, cheetah-vel, ant-dir, ant-vel or ant-goal" in sentence
        and "not on matrix" in sentence
    )
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
        config.check_goal(numbers)


def test_goals():
    CheetahDir().check_goal(())
    CheetahDir().check_goal((-1.0,))
    CheetahVel().check_goal((0.3,))
    AntGoal().check_goal((1.0, 2.0))
