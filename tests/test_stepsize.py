"""Step sizes from measured curvature."""

from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import no_tasks, relative

import adaptax as ax
from adaptax.stepsize import Edge, Estimate, Guaranteed, measurement, resolve
from adaptax.stepsize.measurement import along_path, first_estimate, power_iteration

SPECTRUM = np.array([5.0, 2.0, 1.0, 0.3, -1.0])
W = jnp.array([0.3, -0.8, 1.1, 0.5, -0.2], jnp.float32)


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]


def hessian(scale=1.0, seed=0, spectrum=SPECTRUM):
    q = rotation(seed)
    return jnp.asarray(scale * q @ np.diag(spectrum) @ q.T, jnp.float32)


def quadratic(w, h):
    return 0.5 * w @ h @ w


PROBLEM = ax.FiniteSum(quadratic, no_tasks)


@eqx.filter_jit
def refresh(inner, estimate, problem, w, batch, cold=False):
    return measurement.refresh(inner, inner.stepsize, estimate, problem, w, batch, None, samples=ax.Samples(), cold=cold)


def tasks(*matrices):
    stacked = jnp.stack(matrices)
    return ax.Task(stacked, stacked)


@pytest.mark.parametrize("spectrum", [SPECTRUM, -SPECTRUM, 1e-6 * SPECTRUM, 1e6 * SPECTRUM])
def test_power_iteration_on_a_known_spectrum(x64, spectrum):
    q = rotation(1)
    matrix = jnp.asarray(q @ np.diag(spectrum) @ q.T)
    values = [float(power_iteration(lambda v: matrix @ v, jnp.ones(5), k)[0]) for k in (1, 2, 3, 5, 10, 30)]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(values))
    value, v = power_iteration(lambda v: matrix @ v, jnp.ones(5), 30)
    # The ratio of the two largest is 0.4: the error of the norm falls as 0.4^60.
    assert abs(value / np.max(np.abs(spectrum)) - 1) < 1e-10
    assert abs(jnp.linalg.norm(v) - 1) < 1e-12
    assert abs(v @ q[:, 0]) > 1 - 1e-10


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.8])
def test_edge_is_gamma_over_the_largest_eigenvalue(gamma):
    batch = tasks(hessian(1.0, 0), hessian(1.6, 1), hessian(0.5, 2))
    inner = resolve(ax.Inner(5, Edge(gamma)), PROBLEM, W, batch)
    assert isinstance(inner.stepsize, jax.Array)
    assert inner.stepsize.shape == ()
    assert abs(float(inner.stepsize) * 1.6 * SPECTRUM[0] / gamma - 1) < 0.01


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_guaranteed_is_gamma_over_n_l(steps):
    inner = resolve(ax.Inner(steps, Guaranteed()), PROBLEM, W, tasks(hessian()))
    assert abs(float(inner.stepsize) * steps * SPECTRUM[0] * 8 - 1) < 0.01


def test_curvature_is_measured_along_the_path():
    # l = w^4 / 12 has curvature w^2: largest at w_0 from outside; with a bump at 0, largest where the path ends.
    rising = ax.FiniteSum(lambda w, _: jnp.sum(0.5 * w**2 - 3 * jnp.exp(-(w**2))), no_tasks)
    task = ax.Task(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    start = float(resolve(ax.Inner(1, Edge()), rising, jnp.array([3.0]), task).stepsize)
    along = float(resolve(ax.Inner(20, Edge()), rising, jnp.array([3.0]), task).stepsize)
    assert abs(start - 1) < 0.05
    # At 0 the curvature is 1 + 6; the largest |l''| on [0, 3] is there.
    assert abs(along * 7 - 1) < 0.25


def test_estimates_rise_at_once_and_fall_slowly():
    rule = Edge(decay=0.9)
    direction = jnp.array([1.0, 0.0])
    estimate = rule.update(Estimate(jnp.array(2.0), direction), jnp.array(8.0), -direction)
    assert float(estimate.curvature) == 8.0
    assert float(estimate.direction[0]) == -1
    for expected in (7.2, 6.48):
        estimate = rule.update(estimate, jnp.array(1.0), direction)
        assert abs(float(estimate.curvature) - expected) < 1e-5
    assert abs(float(rule.update(estimate, jnp.array(6.4), direction).curvature) - 6.4) < 1e-5


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_measurement_that_is_not_finite_changes_nothing(bad):
    estimate = Estimate(jnp.array(2.0), jnp.array([1.0, 0.0]))
    kept = Edge().update(estimate, jnp.array(bad), jnp.array([0.0, 1.0]))
    assert relative(kept, estimate) == 0


def test_a_loss_that_breaks_down_on_the_path_leaves_a_usable_estimate():
    # Not a number below w = 1, which the first step reaches.
    breaking = ax.FiniteSum(lambda w, h: quadratic(w, h) + jnp.sum(jnp.sqrt(w - 1)), no_tasks)
    inner, w = ax.Inner(4, Edge()), jnp.array([1.5, 1.6, 1.7, 1.8, 2.0])
    good, broken = hessian(), 20 * hessian()
    cold = refresh(inner, first_estimate(w), breaking, w, tasks(broken), True)
    assert bool(jnp.isfinite(cold.curvature) & (cold.curvature > 90))
    assert bool(jnp.all(jnp.isfinite(cold.direction)))
    # Later refreshes end where the path does, in the ruins: the direction must survive that.
    warm = refresh(inner, cold, breaking, w, tasks(broken))
    assert float(warm.curvature) > 90
    assert bool(jnp.all(jnp.isfinite(warm.direction)))
    # Broken from w_0 on: nothing was measured, so nothing changes.
    bad = refresh(inner, cold, breaking, 0 * w, tasks(good))
    assert float(bad.curvature) == float(cold.curvature) > 90
    assert bool(jnp.all(jnp.isfinite(bad.direction)))
    # Broken on one of the tasks: the others count.
    mixed = ax.FiniteSum(lambda w, h: quadratic(w, h) + jnp.sqrt(1 - h[0, 0] / 50), no_tasks)
    poisoned = jnp.full((5, 5), 100.0)
    measured = refresh(inner, first_estimate(w), mixed, w, tasks(good, poisoned), True)
    assert float(measured.curvature) > 4.9


def test_refresh_starts_where_it_ended():
    # One product a point is enough once the direction is known.
    inner = ax.Inner(1, Edge(iterations=1))
    estimate = first_estimate(W)
    values = []
    for _ in range(12):
        estimate = refresh(inner, estimate, PROBLEM, W, tasks(hessian()))
        values.append(float(estimate.curvature))
    assert values[0] < 0.98 * SPECTRUM[0]
    assert values[-1] == pytest.approx(SPECTRUM[0], rel=0.01)


def test_the_walk_uses_the_rules_own_step_size():
    walked = []

    def loss(w, rest, j):
        jax.debug.callback(lambda w: walked.append(float(w[0])), w)
        return 2.0 * jnp.sum(w**2)

    rule = Edge(0.5)
    estimate = Estimate(jnp.array(0.0), jnp.array([1.0]))
    along_path(loss, jnp.array([1.0]), None, rule, 3, estimate, 0)
    jax.effects_barrier()
    # alpha = 0.5 / 4: each step multiplies w by 1/2.
    assert {round(w, 4) for w in walked} >= {1.0, 0.5, 0.25}


def test_unresolved_rules_are_estimated_where_they_are_used():
    one = ax.Task(hessian(1.6, 3), hessian(0.1, 4))
    method = ax.MetaGradient(ax.Inner(3, Edge()))
    expected = 1 / (1.6 * SPECTRUM[0])
    assert float(ax.adapt(PROBLEM, W, one, method.inner).info.stepsize) == pytest.approx(expected, rel=0.01)
    value, grad, info = method(PROBLEM, W, one)
    assert float(info.stepsize) == pytest.approx(expected, rel=0.01)
    # The step size counts as a constant: the gradient is that of the same number given by hand.
    fixed = ax.MetaGradient(ax.Inner(3, info.stepsize))(PROBLEM, W, one)
    assert relative((value, grad), fixed[:2]) < 1e-6
    adapted = jax.grad(lambda h: jnp.sum(ax.adapt(PROBLEM, W, ax.Task(h), ax.Inner(3, Edge())).params))(one.support)
    constant = jax.grad(lambda h: jnp.sum(ax.adapt(PROBLEM, W, ax.Task(h), ax.Inner(3, info.stepsize)).params))
    assert relative(adapted, constant(one.support)) < 1e-5


def test_a_batch_measures_the_first_tasks_of_its_rule():
    scales = [1.0, 1.5, 4.0]
    batch = tasks(*(hessian(s, k) for k, s in enumerate(scales)))
    for count, top in ((1, 1.0), (2, 1.5), (4, 4.0)):
        info = ax.MetaGradient(ax.Inner(3, Edge(tasks=count))).batch(PROBLEM, W, batch)[2]
        np.testing.assert_allclose(info.stepsize, np.full(3, 1 / (top * SPECTRUM[0])), rtol=0.01)


def test_a_resolved_step_size_does_not_depend_on_later_steps():
    inner = resolve(ax.Inner(4, Guaranteed()), PROBLEM, W, tasks(hessian()))
    longer = ax.Inner(16, inner.stepsize)
    assert float(longer.stepsize) == float(inner.stepsize)
    assert resolve(inner, PROBLEM, W, tasks(hessian(9.0))) is inner
    assert float(resolve(ax.Inner(16, Guaranteed()), PROBLEM, W, tasks(hessian())).stepsize) < float(inner.stepsize) / 3


def test_only_what_adapts_is_measured():
    diagonal = jnp.diag(jnp.array([7.0, 2.0]))
    problem = ax.FiniteSum(lambda w, h: 0.5 * (7 * w["a"] ** 2 + 2 * w["b"] ** 2) + 0 * h.sum(), no_tasks)
    params = {"a": jnp.array(1.0), "b": jnp.array(1.0)}
    inner = resolve(ax.Inner(2, Edge(), adapt={"a": False, "b": True}), problem, params, tasks(diagonal))
    assert float(inner.stepsize) == pytest.approx(0.5, rel=0.01)


def test_negative_and_zero_curvature():
    concave = resolve(ax.Inner(3, Edge()), PROBLEM, W, tasks(hessian(spectrum=-SPECTRUM)))
    assert float(concave.stepsize) == pytest.approx(1 / SPECTRUM[0], rel=0.01)
    linear = ax.FiniteSum(lambda w, h: jnp.sum(w * h[0]), no_tasks)
    assert float(resolve(ax.Inner(3, Edge(0.7)), linear, W, tasks(hessian())).stepsize) == pytest.approx(0.7)
    assert float(resolve(ax.Inner(4, Guaranteed()), linear, W, tasks(hessian())).stepsize) == pytest.approx(1 / 32)


def test_noisy_losses():
    def draw(task, params, key, size):
        return task * (1 + 0.1 * jax.random.normal(key, (size, 1, 1)))

    problem = ax.Resampling(lambda w, h: quadratic(w, h.mean(0)), no_tasks, draw)
    batch, keys = jnp.stack([hessian(1.0, 0), hessian(2.0, 1)]), jax.random.split(jax.random.key(0), 2)
    inner = resolve(ax.Inner(5, Edge()), problem, W, batch, keys, samples=ax.Samples(step=25))
    # The largest of a few samples whose spread is 2 %.
    assert 0.9 < float(inner.stepsize) * 10 < 1.02
    again = resolve(ax.Inner(5, Edge()), problem, W, batch, keys, samples=ax.Samples(step=25))
    assert float(again.stepsize) == float(inner.stepsize)
    info = ax.MetaGradient(ax.Inner(5, Edge())).batch(problem, W, batch, keys)[2]
    assert 0.85 < float(info.stepsize[0]) * 10 < 1.05


def test_half_precision_parameters():
    inner = resolve(ax.Inner(3, Edge()), PROBLEM, W.astype(jnp.bfloat16), tasks(hessian().astype(jnp.bfloat16)))
    assert float(inner.stepsize) == pytest.approx(1 / SPECTRUM[0], rel=0.03)
