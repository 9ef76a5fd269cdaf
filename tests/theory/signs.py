"""Checks of what takes lam and mu, as functions of a namespace t: against definitions, derivations, limits and instances."""

import math
import types

import mpmath
import numpy as np
from theory import exact, noisy, two_sided
from theory.derivation import derive, line, second
from theory.structure import DIGITS, TIGHT, computed, draw, equal

from adaptax.errors import InputError

RATES = (-1.0, -0.999999, -0.7, -1e-3, -1e-9, 0.0, 1e-17, 1e-6, 0.3, 1.0)


def powers(t):
    """Powers and geometric sums at rates of both signs, numbers and arrays, tiny results too."""
    with mpmath.workdps(400):
        for rate in RATES:
            for steps in (0, 1, 2, 3, 7, 100, 513):
                base = 1 + mpmath.mpf(rate)
                whole = sum(base**j for j in range(steps))
                equal(t.geometric(rate, steps), float(whole), rel=1e-14)
                tight = 2e-16 * (4 + 4 * math.log2(steps + 1) + 4 * steps * abs(rate))
                equal(t.power(rate, steps), float(base**steps), rel=tight)
                equal(t.excess(rate, steps), float(base**steps - 1), rel=1e-14)
    rates = np.array(RATES)
    for steps in (0, 5):
        assert np.allclose(t.geometric(rates, steps), [t.geometric(x, steps) for x in RATES], rtol=1e-15, atol=0)
        assert np.allclose(t.power(rates, steps), [t.power(x, steps) for x in RATES], rtol=1e-15, atol=0)
    assert np.array_equal(t.maximum(rates, 0.1), np.maximum(rates, 0.1)) and t.maximum(2.0, 3.0) == t.maximum(3.0, 2.0) == 3.0


# L, lam and mu as parts of L, and alpha L: negative, no and positive curvature below, and steps beyond 2 / (lam - mu).
CURVATURES = [
    (1.0, 1.0, 0.4), (0.7, 0.2, 0.5), (0.7, 0.0, 1.2), (0.8, -0.3, 1.3), (0.8, -0.3, 2.2), (0.9, 0.1, 2.6), (0.5, -0.5, 1.1),
    (0.0, 0.6, 0.7), (1.0, -1.0, 1.0),
]  # fmt: skip


def expansions(t):
    """r is the largest |1 - alpha h|, and all else follows from it."""
    L, rho, L_T, g, eta = 1.7, 0.6, 1.2, 0.8, 0.45
    with mpmath.workdps(DIGITS):
        for (upper, lower, rate), N in ((c, n) for c in CURVATURES for n in (0, 1, 2, 5, 40)):
            alpha, lam, mu = rate / L, upper * L, lower * L
            path = t.Expansion(alpha, L, N, lam, mu)
            a = mpmath.mpf(alpha)
            r = max(abs(1 + a * mu), abs(1 - a * lam))
            if r < 1e-15:
                assert abs(path.r) < 1e-15
                continue
            found = {n: getattr(path, n) for n in ("r", "p", "q", "before", "path_sum", "drift", "shift", "margin")}
            total, twice = (sum(r**j for j in range(n)) for n in (N, 2 * N))
            truth = (r, r**N, r ** (2 * N), r ** max(N - 1, 0), total, a * L * total, a * L * twice, 1 - a * L * twice)
            for name, value in zip(found, truth, strict=True):
                equal(found[name], float(value), rel=1e-13 * max(1, N))
            deviation = a * mpmath.sqrt(sum(r ** (2 * j) for j in range(N)))
            equal(float(t.path_deviation(path, N)), float(deviation), rel=1e-12)
            slope = a * rho * sum(r ** (N - 1) * r**j for j in range(N))
            equal(t.adapted_smoothness(path, rho, L_T, g), float(r ** (2 * N) * L_T + slope * g), rel=1e-12)
            frozen = adapted_with_frozen(a, r, N, rho, L_T, g, eta)
            equal(t.adapted_smoothness(path, rho, L_T, g, mixed=eta), float(frozen), rel=1e-12)
    arrays = t.Expansion(np.array([0.2, 0.9]), 2.0, 5, np.array([1.0, 2.0]), np.array([0.3, -0.1]))
    each = [t.Expansion(0.2, 2.0, 5, 1.0, 0.3), t.Expansion(0.9, 2.0, 5, 2.0, -0.1)]
    assert np.allclose(arrays.q, [p.q for p in each], rtol=1e-14, atol=0)
    # mu alone leaves lam at L, and lam alone leaves mu at L.
    assert t.Expansion(1.5, 1.0, 3, None, -0.9).r == 0.5 and t.Expansion(1.5, 1.0, 3, 0.2).r == 2.5
    for lam, mu in ((1.0, 1.0), (None, None), (1.0, None), (None, 1.0)):
        path, old = t.Expansion(0.3, 1.0, 6, lam, mu), t.Expansion(0.3, 1.0, 6)
        assert (path.p, path.q, path.path_sum, path.shift) == (old.p, old.q, old.path_sum, old.shift)
    # Where r = 0 the deviation after any step is alpha.
    assert np.allclose(t.path_deviation(t.Expansion(0.5, 2.0, 4, 2.0, -2.0), np.arange(4)), [0, 0.5, 0.5, 0.5], rtol=1e-15)
    c = t.Constants(L=2.0, rho=0.0, sigma=0.0, lam=1.5, mu=-0.5)
    assert c.path(0.1, 3) == t.Expansion(0.1, 2.0, 3, 1.5, -0.5)


def adapted_with_frozen(a, r, N, rho, L_T, g, eta):
    """The bound with frozen parameters, by singular values of numbers with many digits."""

    def square(j):
        return mpmath.svd_r(mpmath.matrix([[r**j, a * eta * sum(r**i for i in range(j))], [0, 1]]), compute_uv=False)[0] ** 2

    return square(N) * L_T + a * rho * sum(r ** (N - 1 - j) * square(j) for j in range(N)) * g


def alphas(t):
    """The rule's step is the largest under its conditions, and keeps q below e^(2 gamma) at every N."""
    rng = np.random.default_rng(0)
    for k in range(60):
        lam, steps, gamma_plus, gamma = 10 ** rng.uniform(-2, 2), 1 + k * k, rng.uniform(0.1, 2), rng.uniform(0.01, 1)
        for mu in (0.0, lam * rng.uniform(0, 1), -lam * rng.uniform(0, 1)):
            alpha = t.two_sided_alpha(lam, mu, steps, gamma_plus=gamma_plus, gamma=gamma)
            limits = [gamma_plus / lam, gamma / (steps * mu) if mu > 0 else math.inf, 2 / (lam - min(mu, 0))]
            equal(alpha, min(limits if mu < 0 else limits[:2]))
            assert t.Expansion(alpha, lam, steps, lam, mu).q <= math.exp(2 * gamma if mu > 0 else 0) * (1 + 1e-12)
    equal(t.two_sided_alpha(4.0, 1.0, 10), 1 / 80)
    assert t.two_sided_alpha(4.0, 0.0, 10) == 0.25
    arrays = t.two_sided_alpha(np.array([4.0, 4.0, 4.0]), np.array([1.0, 0.0, -3.0]), 10, gamma_plus=2)
    assert np.allclose(arrays, [1 / 80, 0.5, 2 / 7], rtol=1e-15)


def derived(t):
    """Every bound of sections 4 to 6 that takes a path holds with lam and mu as derived, wherever it applies."""
    rng = np.random.default_rng(1)
    with mpmath.workdps(DIGITS):
        for N, lower in ((1, 0.3), (2, 0.0), (3, -0.5), (7, -0.2), (40, 0.6)):
            v = draw(rng, N)
            numbers = types.SimpleNamespace(**{name: mpmath.mpf(x) for name, x in v.items()})
            lam, mu = 0.8 * v["L"], lower * v["L"]
            numbers.lam, numbers.mu = mpmath.mpf(lam), mpmath.mpf(mu)
            values, found = derive(N, numbers, mpmath), computed(t, N, v, (lam, mu))
            assert len(found) > 30
            for name, value in found.items():
                assert abs(value - values[name]) <= 4 * TIGHT * abs(values[name]), (name, N)


def theorem(t):
    """The theorem by adapted gradients, derived from the descent as an affine function of the squared gradient."""
    rng = np.random.default_rng(2)
    for k, lower in enumerate((0.4, 0.0, -0.3, 1.0)):
        N = (1, 3, 8, 2)[k]
        v = draw(rng, N)
        curvature = {"lam": 0.9 * v["L"], "mu": lower * v["L"] * 0.9}
        A, spread, of_norms = rng.uniform(0.3, 1, 3)
        c = t.Constants(**{n: v[n] for n in ("L", "rho", "sigma", "sigma_g", "sigma_H", "gap")}, **curvature)
        numbers = types.SimpleNamespace(**{name: mpmath.mpf(x) for name, x in (v | curvature).items()})
        with mpmath.workdps(DIGITS):
            truth = _derived_theorem(N, numbers, *map(mpmath.mpf, (A, spread, of_norms)))
        sizes = {"iterations": v["K"], "tasks_per_step": v["B"], "smoothness_tasks": v["B_L"]}
        samples = {
            "step_samples": v["S"],
            "curvature_samples": v["D"],
            "target_samples": v["T"],
            "smoothness_samples": v["D_L"],
        }
        known = {"adapted_gradient": A, "spread": spread, "norm_spread": of_norms, "C_beta": v["C_beta"] * 9}
        for case, given in (("finite-sum", {}), ("resampling", samples)):
            bound = t.adapted_convergence(c, v["alpha"], N, case=case, **sizes, **given, **known)
            assert (bound.a, bound.c) == (1, 0)
            for part, value in zip(("kappa", "start", "noise"), truth[case], strict=True):
                equal(getattr(bound, part), float(value))
        path = c.path(v["alpha"], N)
        plain = {"adapted_gradient": A} | sizes
        whole = t.adapted_convergence(c, v["alpha"], N, spread=path.p * A, norm_spread=A, C_beta=2.0, **plain)
        equal(t.adapted_convergence(c, v["alpha"], N, **plain).R, whole.R, rel=1e-15)
        infinite = t.adapted_convergence(c, v["alpha"], N, case="resampling", C_beta=9.0, **plain)
        equal(infinite.R, t.adapted_convergence(c, v["alpha"], N, case="resampling", C_beta=9.0, **plain,
                                                **dict.fromkeys(samples, math.inf)).R, rel=1e-15)  # fmt: skip
    refused(t)


def refused(t):
    """What is missing is named: tasks for the smoothness, a larger C_beta, and a path that leaves nothing."""
    c = t.Constants(L=1.0, rho=1.0, sigma=0.0, gap=1.0, mu=0.0)
    sizes = {"adapted_gradient": 1.0, "iterations": 10, "tasks_per_step": 5, "smoothness_tasks": 2}
    flat = t.Constants(L=1.0, rho=1.0, sigma=0.0, gap=1.0, mu=-1.0)
    for options, words in (
        ({}, "raise smoothness_tasks from 2"), ({"norm_spread": 0.0, "C_beta": 0.4}, "raise C_beta from 0.4"),
        ({"case": "resampling"}, "raise C_beta or smoothness_tasks"), ({"case": "online"}, "finite-sum"),
        ({"adapted_gradient": -1.0}, "adapted_gradient=-1"), ({"spread": -1.0}, "spread=-1"),
        ({"norm_spread": -1.0}, "norm_spread=-1"), ({"iterations": 0}, "iterations=0"),
    ):  # fmt: skip
        assert words in said(t.adapted_convergence, c, 1.0, 10, **sizes | options), words
    assert "take fewer steps" in said(t.adapted_convergence, flat, 1.0, 10, **sizes)
    assert "floor=" in said(t.adapted_convergence, c, 1.0, 10, floor=0.99, **sizes)
    # A larger floor is that of a larger L, where L has no other part.
    larger = t.adapted_convergence(t.Constants(L=30.0, rho=1.0, sigma=0.0, gap=1.0, lam=1.0, mu=0.0), 1.0, 10, **sizes)
    assert larger == t.adapted_convergence(c, 1.0, 10, floor=30.0, **sizes)
    # Just enough tasks: kappa is positive from there on.
    x = t.jacobian_lipschitz(c.path(1.0, 10), 1.0) ** 2
    enough = {**sizes, "smoothness_tasks": math.ceil(x * 1.001)}
    assert t.adapted_convergence(c, 1.0, 10, C_beta=2.0, **enough).kappa < 1e-2
    assert "kappa" in said(
        t.adapted_convergence, c, 1.0, 10, C_beta=2.0, **enough | {"smoothness_tasks": math.floor(x * 0.999)}
    )


def said(function, *args, **options):
    try:
        function(*args, **options)
    except InputError as error:
        return str(error)
    return ""


def _derived_theorem(N, v, A, spread, of_norms):
    """kappa and the two parts of R, finite-sum and resampling."""
    out = derive(N, v, mpmath)
    floor, slope, C = out["q"] * v.L, out["jacobian_lipschitz"], v.C_beta * 9

    def conclude(kept, M):
        loss, rest = line(kept)
        return -loss, C * M * v.gap / v.K / -loss, M / floor * rest / -loss

    x = (slope * of_norms) ** 2 / v.B_L / floor**2
    finite = conclude(lambda y2: -y2 + second(x) / (2 * C) * (y2 + spread**2 / v.B), floor + slope * A)
    strayed, drawn = v.L * out["path_error"], v.L * out["path_error"] + v.sigma_g / mpmath.sqrt(v.D_L)
    x = (slope * (of_norms + drawn)) ** 2 / v.B_L / floor**2
    growth = out["factor_growth"] ** N * (v.sigma_g**2 / v.T + (A + strayed) ** 2)
    # The bias as a function of the unadapted gradient g has p g where the adapted one stands.
    slope_of_bias, rest_of_bias = out["bias_slope"] / mpmath.sqrt(v.S) / out["p"], out["bias_constant"] / v.S
    off = rest_of_bias + slope_of_bias * A
    kept = conclude(
        lambda y2: (-y2 + (1 + x) * off**2) / 2 + second(x) / (2 * C * v.B) * growth, floor + slope * (A + strayed + drawn)
    )
    return {"finite-sum": finite, "resampling": kept}


def long_paths(t):
    """At fixed alpha N the constants tend to their limits as 1/N."""
    for mu in (None, 0.7, 0.0, -0.8):
        c = t.Constants(L=1.3, rho=0.6, sigma=0.0, mu=mu)
        for time in (0.5, 2.0):
            limit = t.adapted_limits(c, time)
            half, whole = (
                [path.q, t.jacobian_lipschitz(path, c.rho)]
                for n in (50_000, 100_000) for path in [c.path(time / n, n)]
            )  # fmt: skip
            for a, b, end in zip(half, whole, (limit.q, limit.slope), strict=True):
                equal(b, end, rel=2e-4)
                equal(2 * b - a, end, rel=3e-8)
    assert t.adapted_limits(t.Constants(L=1.0, rho=0.5, sigma=0.0, mu=-0.1), 1e9).slope < 1e-9
    assert "time=0" in said(t.adapted_limits, c, 0)


def instances(t):
    """Bounds hold for random problems of two-sided curvature and are reached by those built for it."""
    rng = np.random.default_rng(3)
    for part in (exact.geometry(t, rng, True, True), noisy.enumerated(t, rng, contracted=True, two_sided=True)):
        assert all(ratios.max() <= 1 + 1e-6 for ratios in part.values())
    for part in (two_sided.teeth(t), two_sided.frozen_quadratic(t)):
        assert all(ratios.min() > 0.99 and ratios.max() <= 1 + 1e-6 for ratios in part.values())


SIGNS = {f.__name__: f for f in (powers, expansions, alphas, derived, theorem, long_paths, instances)}
