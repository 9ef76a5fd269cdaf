"""Every bound holds on at least a thousand random problems, with N from 1 to 64, and nearly with equality where it can."""

import functools
import math

import numpy as np
import pytest
from theory import exact, noisy, runs, two_sided
from theory.instances import random_family

from adaptax import theory
from adaptax.errors import InputError
from adaptax.tasks.cosine import Cosine

ROUNDING = 1e-6
rng = np.random.default_rng
GROUPS = {
    "geometry, resampling": lambda: exact.geometry(theory, rng(0), False),
    "geometry, finite-sum": lambda: exact.geometry(theory, rng(1), True),
    "control, resampling": lambda: exact.control(theory, rng(2), False),
    "control, finite-sum": lambda: exact.control(theory, rng(3), True),
    "flow": lambda: exact.flow(theory, rng(4)),
    "enumerated": lambda: noisy.enumerated(theory, rng(5), contracted=False),
    "enumerated, q < 2": lambda: noisy.enumerated(theory, rng(6), contracted=True),
    "drawn": lambda: noisy.drawn(theory, rng(7)),
    "drawn, q < 2": lambda: noisy.drawn(theory, rng(8), pairs=60, tasks=3),
    "outer step, resampling": lambda: noisy.outer_step(theory, rng(9), False),
    "outer step, finite-sum": lambda: noisy.outer_step(theory, rng(10), True),
    "geometry, two-sided, resampling": lambda: exact.geometry(theory, rng(20), False, True),
    "geometry, two-sided, finite-sum": lambda: exact.geometry(theory, rng(21), True, True),
    "control, two-sided, resampling": lambda: exact.control(theory, rng(22), False, True),
    "control, two-sided, finite-sum": lambda: exact.control(theory, rng(23), True, True),
    "enumerated, two-sided": lambda: noisy.enumerated(theory, rng(24), contracted=False, two_sided=True),
    "enumerated, two-sided, contracted": lambda: noisy.enumerated(theory, rng(25), contracted=True, two_sided=True),
    "rates of parameters": lambda: two_sided.rates_of_parameters(theory, rng(27)),
    "phi": lambda: noisy.phi(theory, rng(11)),
}
# The least ratio that is reached with the losses built for each bound.
REACHED = {
    "iterate_distance": 0.9999, "gradient_growth": 0.9999, "jacobian_norm": 0.9999, "jacobian_lipschitz": 0.9999,
    "target_gradient": 0.9999, "smoothness": 0.9999, "adaptation_shift": 0.9999, "mean_gradient": 0.998,
    "gradient_norm": 0.998, "task_spread": 0.998, "flow_distance": 0.986, "path_error": 0.9999, "bias": 0.998,
    "mean_bias": 0.92, "second_moment": 0.9999, "smoothness_variance": 0.9999, "step_mean": 0.9999,
    "step_second_moment": 0.9999, "outer_smoothness": 0.9999, "finite_sum": 0.995, "resampling": 0.999,
    "two-sided iterate_distance": 0.994, "two-sided jacobian_norm": 0.994, "two-sided jacobian_lipschitz": 0.993,
    "adapted_smoothness": 0.993, "frozen": 0.9999,
}  # fmt: skip


@functools.cache
def extremes():
    parts = (exact.sawtooth(theory), exact.parabolas(theory), noisy.extreme(theory), runs.extreme(theory))
    parts += (two_sided.teeth(theory), two_sided.frozen_quadratic(theory))
    return {name: ratios for part in parts for name, ratios in part.items()}


@pytest.mark.parametrize("group", GROUPS)
def test_bounds_hold(group):
    for name, ratios in GROUPS[group]().items():
        assert len(ratios) >= 1000, name
        assert ratios.max() <= 1 + ROUNDING, name
        assert np.isfinite(ratios).all()


@pytest.mark.parametrize("bound", REACHED)
def test_bounds_are_reached(bound):
    ratios = extremes()[bound]
    assert REACHED[bound] <= ratios.min() and ratios.max() <= 1 + ROUNDING


def test_every_extreme_is_judged():
    assert set(extremes()) == set(REACHED)


@pytest.mark.parametrize("theorem", [runs.finite_sum, runs.resampling])
def test_theorems_hold_of_short_runs(theorem):
    found = theorem(theory, rng(12))
    assert len(found["phi"]) >= 1000 and found["allowed"].max() <= 1
    assert np.median(found["phi"]) > 0.02 and found["phi"].max() > 0.3


@pytest.mark.parametrize("case, most", [("finite-sum", 64), ("resampling", 16)])
def test_theorems_by_adapted_gradients_hold_of_short_runs(case, most):
    found = two_sided.convergence(theory, rng(13), case, n=1200, most=most, iterations=8)
    assert len(found["square"]) >= 1000 and found["allowed"].max() <= 1
    assert np.median(found["square"]) > 0.02 and found["square"].max() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("case", ["finite-sum", "resampling"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_theorems_by_adapted_gradients_hold_of_longer_runs(case, dim):
    found = two_sided.convergence(theory, rng(40 + dim), case, n=1500, dim=dim, tasks=5, iterations=40, seeds=8)
    assert len(found["square"]) >= 1000 and found["allowed"].max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("theorem", [runs.finite_sum, runs.resampling])
def test_theorems_hold_of_longer_runs(theorem, dim):
    found = theorem(theory, rng(dim), n=2400, dim=dim, tasks=5, iterations=30, seeds=8)
    assert len(found["phi"]) >= 1000 and found["allowed"].max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_of_many_more(seed):
    found = [exact.geometry(theory, rng(100 + seed), True), exact.control(theory, rng(200 + seed), True)]
    found += [noisy.enumerated(theory, rng(300 + seed), contracted=True), noisy.outer_step(theory, rng(400 + seed), False)]
    found += [noisy.drawn(theory, rng(500 + seed), pairs=1000, tasks=2), exact.flow(theory, rng(600 + seed), n=3000)]
    for name, ratios in ((name, r) for part in found for name, r in part.items()):
        assert ratios.max() <= 1 + ROUNDING, name


def test_families_are_cosine_problems_with_the_same_constants():
    family = random_family(rng(0), 12, 3, 4, contracted=True, definite=True)
    assert set(random_family(rng(0), 1000, 1, 1, contracted=False).steps) >= {1, 2, 3, 64}
    for k, (constants, path) in enumerate(zip(family.constants(theory), family.paths(theory), strict=True)):
        arrays = (*(a[k] for a in family.support), *(a[k] for a in family.target))
        problem = Cosine(family.matrix[k], float(family.amplitude[k]), *arrays, tuple(family.noise[k].tolist()))
        for name in ("L", "rho", "sigma", "b", "sigma_g", "sigma_H"):
            assert getattr(constants, name) == pytest.approx(getattr(problem.constants, name), rel=1e-9), name
        assert family.lower_bound[k] == pytest.approx(problem.lower_bound, rel=1e-10)
        assert path.q < 2


def test_meta_gradients_are_derivatives_of_the_meta_loss():
    family = random_family(rng(1), 30, 2, 3, contracted=False)
    w = rng(2).standard_normal((30, 1, 2))
    for k in range(2):
        step = 1e-5 * np.eye(2)[k]
        slope = (family.meta_loss(w + step) - family.meta_loss(w - step)) / 2e-5
        np.testing.assert_allclose(family.meta_gradients(w).mean(1)[:, k], slope, rtol=1e-5, atol=1e-6 * abs(slope).max())


def test_the_smoothness_grows_without_bound_and_the_rest_is_refused_at_q_2():
    path = theory.Expansion(0.5, 1.0, 2)
    assert theory.smoothness(path, 1.0, 1e9) > 1e9
    c = theory.Constants(L=1.0, rho=1.0, sigma=1.0, gap=1.0)
    for bound in (theory.mean_gradient, theory.gradient_norm, theory.task_spread):
        with pytest.raises(InputError, match="needs q < 2"):
            bound(path, c, 1.0)
    with pytest.raises(InputError, match="needs q < 2"):
        theory.mean_bias(path, c, 1.0, 1)


def test_hopeless_sizes_are_refused_whatever_theta_is():
    c = theory.Constants(L=1.0, rho=0.5, sigma=0.2, b=0.1, gap=1.0)
    sizes = {"iterations": 10, "tasks_per_step": 1, "smoothness_tasks": 1}
    for theta in (None, 1.0):
        with pytest.raises(InputError, match=r"kappa is -.*raise C_beta"):
            theory.finite_sum(c, 0.02, 5, C_beta=0.4, theta=theta, **sizes)
    for theta in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="theta="):
            theory.finite_sum(c, 0.02, 5, theta=theta, **sizes)
