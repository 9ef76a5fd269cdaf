"""Videos of MuJoCo's bodies, refused in one sentence where nothing can be drawn."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

import adaptax as ax
from adaptax.tasks import rl

pytest.importorskip("mujoco")
DRAWING = """
import jax, jax.numpy as jnp, sys
import adaptax as ax
rl = ax.tasks.rl
first, second = (rl.GaussianPolicy(lambda o, a=a: jnp.full((len(o), 6), a), 6, std=0.01) for a in (0.0, 1.0))
try:
    environment = rl.cheetah(horizon=2, physics="mujoco").draw.environment
    policies = {"before": first, "after": second}
    print(rl.video(environment, jnp.array(1.0), policies, sys.argv[1], jax.random.key(0), size=(64, 48)))
except ax.InputError as error:
    print(error)
"""


def problem_and_policy():
    problem = rl.cheetah(horizon=2, physics="mujoco")
    return problem, rl.GaussianPolicy(ax.models.mlp((17, 4, 6), key=jax.random.key(0)), 6)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"environment": rl.Navigation()}, "draws the bodies of MuJoCo, not Navigation: give it problem.draw.environment"),
        ({"policies": {}}, "nothing to show: give policies by name"),
        ({"policies": [3]}, "nothing to show: give policies by name"),
        ({"policies": {"it": 3}}, r"policies\['it'\] has no sample.*such as GaussianPolicy"),
        ({"path": "video.png"}, "'video.png': give a file whose name ends in .gif"),
        ({"path": "absent/video.gif"}, "no folder absent: make it first"),
        ({"size": (0, 48)}, r"video\(size=0\) must be a whole number from 1 to 640"),
        ({"size": (64, 481)}, r"video\(size=481\) must be a whole number from 1 to 480"),
        ({"size": 64}, r"size=64\) must be a width and a height in pixels"),
    ],
)
def test_mistakes(change, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem, policy = problem_and_policy()
    given = {"environment": problem.draw.environment, "policies": {"it": policy}, "path": "video.gif", **change}
    with pytest.raises(ax.InputError, match=match):
        rl.video(**given, task=jnp.array(1.0), key=jax.random.key(0))
    assert not list(tmp_path.iterdir())


def draw(path, gl):
    """Draw in another process, because MuJoCo looks for its graphics library when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")} | gl
    command = [sys.executable, "-c", DRAWING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_video(tmp_path):
    said = draw(tmp_path / "video.gif", {"MUJOCO_GL": "egl"})
    if "MUJOCO_GL=egl" in said:
        assert said.count("\n") == 0 and not (tmp_path / "video.gif").exists()
        pytest.skip(said)
    assert said.startswith("{'before': ") and "'after': " in said
    with Image.open(tmp_path / "video.gif") as recording:
        assert recording.n_frames == 3 and recording.size == (128, 70) and recording.info["duration"] == 50
        first = recording.convert("RGB")
        # Both episodes begin alike and are drawn alike; then the torques differ.
        assert len(first.getcolors(10_000)) > 10
        assert first.crop((0, 22, 64, 70)).tobytes() == first.crop((64, 22, 128, 70)).tobytes()
        recording.seek(2)
        last = recording.convert("RGB")
        assert last.crop((0, 22, 64, 70)).tobytes() != last.crop((64, 22, 128, 70)).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["video.gif"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MuJoCo reads MUJOCO_GL on Linux alone")
@pytest.mark.parametrize("gl, match", [({}, "cannot draw with MUJOCO_GL unset ("), ({"MUJOCO_GL": "x"}, "MUJOCO_GL=x (")])
def test_nothing_to_draw_with(tmp_path, gl, match):
    said = draw(tmp_path / "video.gif", gl)
    assert match in said and "egl" in said and said.count("\n") == 0
    assert not (tmp_path / "video.gif").exists()
