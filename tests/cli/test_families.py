"""Task families: one more is one file; the method is made in one place; the limits are those of the network."""

import dataclasses
import json
from typing import ClassVar

import jax
import pytest

import adaptax as ax
from adaptax.cli.building import Built, initial_key, method_of, optimizer_of
from adaptax.cli.families import FAMILIES, AntGoal, CheetahDir, Images, Matrix, Navigation, Sinusoid
from adaptax.cli.options import Count, Positive
from adaptax.cli.training import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Training):
    """Points near a centre that gradient steps must find."""

    task: ClassVar[str] = "points"

    inner_steps: Count = 2
    stepsize: str = "0.1"
    dim: Count = 3
    """Coordinates of a point."""
    spread: Positive = 1.0
    """Standard deviation of the centres."""

    def build(self):
        def sample_task(key):
            centre = self.spread * jax.random.normal(key, (self.dim,))
            return ax.Task(centre, centre)

        problem = ax.FiniteSum(lambda w, centre: ((w - centre) ** 2).sum(), sample_task)
        params = jax.random.normal(initial_key(self.seed), (self.dim,))
        return Built(problem, params, method_of(self), optimizer_of(self), problem, "new points")


@pytest.mark.long
def test_a_new_family_is_one_class(run, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "points", Points)
    page = run("train", "points", "--help")
    assert page.code == 0 and "--spread FLOAT" in page.out and "Coordinates of a point. (default: 3)" in page.out
    assert "points" in run("train", "--help").out
    assert "no option --spred: did you mean --spread?" in run("train", "points", "--spred", "1").sentence
    assert "--spread 0.0 must be a finite number above 0" in run("train", "points", "--spread", "0").sentence
    options = ["--steps", "3", "--tasks-per-step", "2", "--evaluation-tasks", "4", "--dim", "2"]
    trained = run("train", "points", *options, "--out", tmp_path / "run")
    assert trained.code == 0 and "4 held-out tasks (seed 1): new points" in trained.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    given = {"task": "points", "steps": 3, "tasks_per_step": 2, "evaluation_tasks": 4, "dim": 2}
    assert {name: value for name, value in config.items() if name not in ("format", "defaults")} == given
    assert config["defaults"]["spread"] == 1.0
    assert run("evaluate", tmp_path / "run").out == trained.out
    measured = run("measure", tmp_path / "run", "--tasks", "8")
    assert measured.code == 0 and "outer Adam" in measured.out and "no finite rho" not in measured.out
    assert "give sinusoid, matrix, points, or the folder of a run" in run("plan", "--measure", "nothing").sentence


CONFIGS = [
    Sinusoid(), Matrix(), Navigation(), Images(), Images(method="pretrain", stepsize="0.1"),
    Images(method="prototypical", inner_steps=0),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.task}-{getattr(config, 'method', '')}".rstrip("-"))
def test_the_method_is_made_once(monkeypatch, config, zips):
    """A family that made it again from parts would drop what an option has set."""
    if isinstance(config, Images):
        config = dataclasses.replace(config, data=zips[0])
    made, make = [], ax.MetaGradient

    def recorded(*arguments, **named):
        made.append(make(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(ax, "MetaGradient", recorded)
    method = dataclasses.replace(config, curvature="first-order").build().method
    assert len(made) == 1 and method is made[0] and isinstance(method.curvature, ax.curvature.FirstOrder)


def test_options_of_the_method():
    options = {"curvature": "first-order", "optimizer": "adam", "trajectories": 7, "independent_curvature": True}
    method = dataclasses.replace(Navigation(), **options).build().method
    assert isinstance(method.curvature, ax.curvature.FirstOrder) and method.samples == ax.Samples(7, 7, 7)
    assert method.independent_curvature and method.inner.steps == 1 and isinstance(method.inner.stepsize, ax.stepsize.Auto)
    assert not Navigation().build().method.independent_curvature


@pytest.mark.long
def test_the_proximal_step_takes_all_its_epochs_at_the_scheduled_step_size():
    config = Navigation(trajectories=2, tasks_per_step=1, horizon=3, hidden=(2,), steps=40, epochs=3, stepsize="0.1")
    built = config.build()
    assert built.optimizer is dataclasses.replace(config, seed=1).build().optimizer
    assert built.optimizer is not dataclasses.replace(config, clip_ratio=0.2).build().optimizer
    step = built.step(config.tasks_per_step)
    state, info = step(step.init(built.params))
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jax.numpy.int32]
    assert counts and all(int(count) == 3 for count in counts) and not info["skipped"]
    # The step size rises over a twentieth of 3 x 40 steps, from a seventh of the largest one.
    moved = jax.tree.map(lambda a, b: jax.numpy.max(jax.numpy.abs(a - b)), state.params, built.params)
    assert max(map(float, jax.tree.leaves(moved))) == pytest.approx(config.learning_rate * 6 / 7, rel=0.1)


def jumps(network, x):
    """Whether an operation of the network has a derivative that jumps."""
    program = str(jax.make_jaxpr(network)(x))
    return any(name in program for name in (" max[", " max ", "relu", "custom_jvp"))


def test_kinks_are_said_of_networks_that_have_them():
    for config, x in ((Sinusoid(), jax.numpy.ones((2, 1))), (Sinusoid(hidden=()), jax.numpy.ones((2, 1)))):
        assert bool(config.kinks()) == jumps(config.build().params, x)
    assert Sinusoid().kinks() == "relu units" and Sinusoid(hidden=()).kinks() is None
    policy = Navigation().build().params.mean
    assert bool(Navigation().kinks()) == jumps(policy, jax.numpy.ones((2, 2)))
    # The policies of bodies have tanh units, whose derivatives of every order are bounded.
    assert CheetahDir.activation == AntGoal.activation == "tanh" and CheetahDir().kinks() is None
    assert Navigation().kinks() == "relu units" and Navigation(hidden=()).kinks() is None


def test_limits_are_computed_from_the_options():
    def limits(config):
        return list(config.limits())

    local = "measured at one w and on its inner paths: lower estimates of suprema over all w"
    assert limits(Matrix(stepsize="0.01", optimizer="sgd")) == [local]
    assert limits(Matrix(stepsize="edge"))[1] == "no convergence theorem covers the edge step size or outer Adam"
    assert limits(Sinusoid(stepsize="guaranteed", optimizer="sgd"))[1:] == [
        "the network has relu units, so no finite rho: its measured value grows as the radius of the difference falls"
    ]
    assert "leaky relu units and max pools" in limits(Images(model="resnet12"))[1]
    assert "the network has relu units and max pools" in limits(Images())[1]
