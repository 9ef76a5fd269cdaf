"""Stability along the inner paths: what is measured, what is warned of, and what a run keeps of it."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax import _devices as dev
from adaptax.training import stability
from adaptax.training.callbacks import columns_of
from adaptax.training.history import History
from adaptax.training.stability import StabilityMonitor, StabilityWarning, measure_stability

EIGENVALUES = jnp.array([4.0, 1.0, -5.0])
W = jnp.array([1.0, -1.0, 0.0])


def loss(w, centre):
    return 0.5 * jnp.sum(EIGENVALUES * (w - centre) ** 2)


def sample(key):
    # Nothing moves along the last coordinate, whose curvature is negative.
    centre = jax.random.normal(key, (3,)) * jnp.array([1.0, 1.0, 0.0])
    return ax.Task(centre, centre)


PROBLEM = ax.FiniteSum(loss, sample)


def train(inner, **options):
    return ax.train(PROBLEM, W, ax.MetaGradient(inner), optimizer=optax.sgd(0.0), steps=4, tasks_per_step=2, **options)


@pytest.mark.parametrize("alpha, rising", [(0.1, 0.0), (0.6, 1.0)])
def test_what_is_measured_on_a_quadratic(alpha, rising):
    step = ax.make_step(PROBLEM, ax.MetaGradient(ax.Inner(3, alpha)), optax.sgd(0.1), 2)
    found = measure_stability(step, step.init(W))
    assert abs(found.alpha_lambda / (4 * alpha) - 1) < 1e-5
    assert abs(found.q / (1 + 5 * alpha) ** 6 - 1) < 1e-4
    assert abs(found.alpha_mu / (3 * 5 * alpha) - 1) < 1e-4
    # Along the first coordinate steps overshoot, and the loss grows with whatever lies there.
    assert abs(found.rising - rising) < 0.2


def test_tasks_spread_over_devices_give_the_same(monkeypatch):
    # Fifteen tasks on two devices: the last place is filled up.
    monkeypatch.setattr(stability, "_TASKS", 15)
    one = ax.make_step(PROBLEM, ax.MetaGradient(ax.Inner(3, 0.1)), optax.sgd(0.1), 2)
    two = dataclasses.replace(one, mesh=dev.mesh_of(jax.devices(), 2))
    found = measure_stability(two, two.init(W))
    np.testing.assert_allclose(found, measure_stability(one, one.init(W)), rtol=1e-5)


@pytest.mark.parametrize("lowest, alpha, r", [(-0.5, 0.1, 1.05), (-0.5, 0.6, 1.4), (0.8, 0.1, 0.92)])
def test_only_negative_curvature_and_overshooting_expand(lowest, alpha, r):
    problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum(jnp.array([4.0, 1.0, lowest]) * (w - c) ** 2), sample)
    step = ax.make_step(problem, ax.MetaGradient(ax.Inner(3, alpha)), optax.sgd(0.1), 2)
    found = measure_stability(step, step.init(W))
    assert found.q == pytest.approx(r**6, rel=1e-4) and found.alpha_mu == pytest.approx(-3 * alpha * lowest, rel=1e-4)


def test_series_of_former_runs_have_no_alpha_mu():
    monitor = StabilityMonitor(ax.make_step(PROBLEM, ax.MetaGradient(ax.Inner(2, 0.1)), optax.sgd(0.1), 2), 1)
    history = History(0, [monitor])
    history.add({name: np.zeros(1) for name in history.columns})
    history.note(1, columns_of(monitor, {"step": 1, "q": 2.0, "alpha_lambda": 0.4, "rising": 0.0}))
    assert np.isnan(history.arrays()["alpha_mu"]).all() and history.arrays()["q"] == [2.0]


def test_rates_of_their_own_and_inner_optimisers():
    several = ax.make_step(PROBLEM, ax.MetaGradient(ax.Inner(2, [0.1, 0.2])), optax.sgd(0.1), 2)
    assert abs(measure_stability(several, several.init(W)).alpha_lambda - 0.8) < 1e-5
    momentum = ax.Inner(2, optimizer=optax.sgd(0.1, momentum=0.9))
    found = measure_stability(step := ax.make_step(PROBLEM, ax.MetaGradient(momentum), optax.sgd(0.1), 2), step.init(W))
    assert np.isnan([found.q, found.alpha_lambda, found.alpha_mu]).all() and found.rising < 0.5


@pytest.mark.parametrize(
    "inner, sentence",
    [
        (ax.Inner(2, 0.6), r"At meta-step 4 the inner step size is 2.4/lambda.*0\.83 times as large.*use ax\.stepsize\.Edge"),
        pytest.param(
            ax.Inner(2, ax.stepsize.Edge(3.0)), r"beyond 2/lambda steps overshoot.*lower gamma= of Edge", marks=pytest.mark.slow
        ),
        (
            ax.Inner(2, ax.stepsize.Guaranteed(0.5)),
            r"q = max\(1 \+ alpha mu,.*\)\^\(2N\) is 2\.4\d.*lower gamma= of Guaranteed",
        ),
    ],
)
def test_a_warning_names_the_remedy(inner, sentence):
    with pytest.warns(StabilityWarning, match=sentence):
        train(inner, monitor_every=4)


@pytest.mark.parametrize("inner", [ax.Inner(2, 0.3), ax.Inner(2, ax.stepsize.Guaranteed())])
def test_nothing_is_said_of_steps_that_are_stable(inner):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, history = train(inner, monitor_every=2)
    for name in ("q", "alpha_lambda", "alpha_mu", "rising"):
        assert np.isfinite(history[name]).tolist() == [False, True, False, True]


@pytest.mark.slow
def test_a_run_keeps_it_and_goes_on_as_if_never_stopped(tmp_path):
    inner, options = ax.Inner(2, 0.1), {"monitor_every": 2}
    whole = train(inner, out=tmp_path / "whole", **options)[1]
    lines = (tmp_path / "whole" / "stability.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]

    class Stop(BaseException):
        pass

    def stop(state, record):
        if int(state.step) == 2:
            raise Stop

    with pytest.raises(Stop):
        train(inner, out=tmp_path / "cut", checkpoint_every=2, callback=stop, **options)
    again = train(inner, out=tmp_path / "cut", checkpoint_every=2, resume=True, **options)[1]
    assert (tmp_path / "cut" / "stability.jsonl").read_text() == (tmp_path / "whole" / "stability.jsonl").read_text()
    assert set(again) == set(whole)
    for name in ("q", "rising"):
        np.testing.assert_array_equal(again[name], whole[name])


def test_certificates_on_request():
    _, history = train(ax.Inner(2, 0.1), monitor_every=4, certify=True)
    # The mean centre is 0: the gradient of the meta-loss is R^2 A R^2 W.
    shrunk = np.asarray((1 - 0.1 * EIGENVALUES) ** 4 * EIGENVALUES * W)
    assert np.linalg.norm(shrunk) < history["gradient_upper"][3] < np.linalg.norm(shrunk) + 1


def test_certify_needs_to_know_when():
    with pytest.raises(ax.InputError, match=r"needs monitor_every="):
        train(ax.Inner(2, 0.1), certify=True)
