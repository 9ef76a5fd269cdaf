"""More checks as functions of a namespace t: limits, thresholds, numerics, the best theta and the planner's share."""

import functools
import math

import mpmath
import numpy as np
from scipy.optimize import minimize_scalar
from theory import exact, noisy, runs
from theory.signs import SIGNS
from theory.structure import constants, derivation, draw, equal, theorems

from adaptax.errors import InputError


def excess(t):
    """(1 + x)^n - 1 at any rate and any number of steps, for numbers and arrays."""
    rng = np.random.default_rng(1)
    rates = [*10 ** rng.uniform(-300, -1, 40), 1e-18, 0.5, 1.0]
    with mpmath.workdps(400):
        for k, rate in enumerate(rates):
            for steps in (0, 1, 2, 3, 10 ** (k % 7) + k):
                if steps * rate < 100:
                    truth = (1 + mpmath.mpf(rate)) ** steps - 1
                    equal(t.excess(rate, steps), float(truth), rel=1e-14)
    small = np.array([0.0, 1e-20, 0.3])
    assert np.allclose(t.excess(small, 5), [0, 5e-20, 1.3**5 - 1], rtol=1e-14, atol=0)
    assert np.array_equal(t.excess(small, 0), np.zeros(3))


def expansion(t):
    """Nothing is lost to rounding at tiny rates; without steps nothing expands."""
    with mpmath.workdps(60):
        for rate, steps in ((1e-17, 1), (3e-12, 10**6), (1e-9, 1000)):
            path, r = t.Expansion(rate / 2, 2.0, steps), 1 + mpmath.mpf(rate)
            equal(path.drift, float(r**steps - 1))
            equal(path.shift, float(r ** (2 * steps) - 1))
            equal(t.jacobian_lipschitz(path, 3.0), float(mpmath.mpf(3) / 2 * r ** (steps - 1) * (r**steps - 1)))
            deviation = mpmath.sqrt(mpmath.mpf(rate) / 2 * (r ** (2 * steps) - 1) / (2 * (2 + mpmath.mpf(rate))))
            equal(t.path_deviation(path, steps), float(deviation))
    none = t.Expansion(0.5, 1.0, 0)
    assert (none.p, none.q, none.before, none.margin) == (1, 1, 1, 1)
    assert t.smoothness_slope(none, 1.0) == t.jacobian_lipschitz(none, 1.0) == 0 and t.smoothness_floor(none, 1.0, 3.0) == 1
    assert t.flow_distance(none, 1.0) == 0


def thresholds(t):
    """q < 2 exactly below the largest alpha, and exactly up to the largest number of steps."""
    rng = np.random.default_rng(2)
    with mpmath.workdps(50):
        for N, L, gamma in zip([1, 2, 3, 64, 1000], 10 ** rng.uniform(-3, 3, 5), rng.uniform(0.01, 0.3, 5), strict=True):
            N, L, gamma = int(N), float(L), float(gamma)
            alpha = t.largest_alpha(L, N)
            equal(float((1 + mpmath.mpf(alpha) * L) ** (2 * N)), 2.0)
            assert t.largest_steps(alpha * (1 - 1e-9), L) == N and t.largest_steps(alpha * (1 + 1e-9), L) == N - 1
            fixed = 10 ** rng.uniform(-4, 0) / L
            most = t.largest_steps(fixed, L)
            assert t.Expansion(fixed, L, most).q < 2 <= t.Expansion(fixed, L, most + 1).q
            equal(t.guaranteed_alpha(L, N, gamma) * N * L, gamma)
            equal(t.guaranteed_alpha(L, N) * N * L, 0.125)
            assert t.Expansion(t.guaranteed_alpha(L, N, math.log(2) / 2), L, N).q < 2
    assert t.largest_alpha(1.0, 0) == math.inf and t.largest_steps(10.0, 1.0) == 0


def limits(t):
    """The functions at N = 10^5 approach the limits as 1/N, from below."""
    v = draw(np.random.default_rng(3), 1)
    c = constants(t, v)
    for gamma in (1 / 8, 0.3):
        limit = t.limits(c, gamma) if gamma != 1 / 8 else t.limits(c)
        rows = []
        for N in (50_000, 100_000):
            path = t.Expansion(t.guaranteed_alpha(c.L, N, gamma), c.L, N)
            root, growth = math.sqrt(N), t.factor_growth(path, c, 1) ** N
            slope, floor = t.smoothness_slope(path, c.rho), t.smoothness_floor(path, c.rho, c.b)
            sums = root * t.bias_slope(path, c), N * t.bias_constant(path, c)
            rows.append([path.p, path.q, slope, floor, root * t.path_deviation(path, N), *sums, growth])
        names = ("p", "q", "C_L", "G", "m_N", "c_2", "c_3", "moment")
        for name, half, whole in zip(names, *rows, strict=True):
            equal(whole, getattr(limit, name), rel=1e-4)
            # The sum of m_j has an edge term of order N^(-3/2), since m_j behaves as a square root at 0.
            equal(2 * whole - half, getattr(limit, name), rel=3e-8)


def bounded(t):
    """Under the Guaranteed rule every constant is below its bound of section 5 for all N."""
    for seed, N in enumerate((1, 2, 5, 64, 1000)):
        v = draw(np.random.default_rng(seed), N)
        c, gamma = constants(t, v), (0.05, 1 / 8, math.log(2) / 2)[seed % 3]
        path = t.Expansion(t.guaranteed_alpha(c.L, N, gamma), c.L, N)
        p, last, scale = math.exp(gamma), float(t.path_deviation(path, N)), c.rho / c.L
        assert path.p <= p and path.q <= p**2 < 2 * (1 + 1e-12)
        assert t.smoothness_slope(path, c.rho) <= scale * p**2 * (p - 1)
        assert t.smoothness_floor(path, c.rho, 1.0) - path.q * c.L <= scale * p * (p - 1) ** 2
        assert np.all(np.diff(t.path_deviation(path, np.arange(N + 1))) > 0)
        assert last**2 <= gamma * (p**2 - 1) / (2 * N * c.L**2)
        assert t.bias_slope(path, c) <= gamma * scale * p**2 * c.sigma_g * last
        assert t.bias_constant(path, c) <= c.rho * (c.sigma_g * last) ** 2 * (p * (1 + gamma * p) / 2 + gamma * p)
        growth = math.exp(2 * gamma + (gamma * c.sigma_H / c.L) ** 2 / (N * 3))
        assert t.factor_growth(path, c, 3) ** N <= growth


def ratio(ledger):
    """R, or infinity where the theorem does not apply."""
    kappa = ledger.top - sum(ledger.losses.values())
    return (ledger.start + ledger.noise) / kappa if kappa > 0 else math.inf


def least(function):
    """The least value over theta: on a grid, then between the neighbours of the best."""
    grid = np.linspace(-8, 12, 81)
    best = float(grid[np.argmin([function(math.exp(z)) for z in grid])])
    return minimize_scalar(
        lambda z: function(math.exp(z)), bounds=(best - 0.25, best + 0.25), method="bounded", options={"xatol": 1e-9}
    ).fun


def theta(t):
    """The chosen theta is the best one: for R, and for the planner's share."""
    rng = np.random.default_rng(4)
    for N in (1, 5, 40):
        v = draw(rng, N)
        c, path = constants(t, v), t.Expansion(v["alpha"], v["L"], N)
        sizes = {"iterations": v["K"], "tasks_per_step": v["B"] / 4, "smoothness_tasks": v["B_L"]}
        default = t.finite_sum(c, v["alpha"], N, **sizes)
        ledger = functools.partial(t.finite_sum_ledger, path, c, 2.0, sizes)
        equal(default.R, least(lambda theta, ledger=ledger: ratio(ledger(theta=theta))), rel=1e-9)
        best = ledger(epsilon=0.1).share(0.1)
        equal(best, least(lambda theta, ledger=ledger: ledger(theta=theta).share(0.1)), rel=1e-9)
    # Without noise of tasks, or without steps, the theorem has no theta.
    still = t.Constants(L=v["L"], rho=v["rho"], sigma=0.0, gap=v["gap"])
    silent = t.finite_sum(still, v["alpha"], N, **sizes)
    with mpmath.workdps(30):
        q = (1 + mpmath.mpf(v["alpha"]) * v["L"]) ** (2 * N)
        equal(silent.kappa, float(1 - (1 + ((q - 1) / (2 - q)) ** 2 / sizes["tasks_per_step"]) / 4))
    assert silent.noise == 0
    equal(silent.start, 2 * v["gap"] / v["K"] / silent.kappa)
    flat = t.finite_sum(constants(t, v), v["alpha"], 0, **sizes)
    equal(flat.kappa, 0.75)
    equal(flat.noise, v["sigma"] ** 2 / (4 * sizes["tasks_per_step"] * v["L"]) / 0.75)
    ledger = t.finite_sum_ledger(t.Expansion(v["alpha"], v["L"], 0), constants(t, v), 2.0, sizes, epsilon=0.1)
    assert ledger.losses["tasks_per_step"] == 0
    equal(ledger.noise / 0.75, flat.noise)
    assert t.finite_sum(t.Constants(L=1.0, rho=1.0, sigma=0.0, gap=0.0), 0.01, 2, **sizes).R == 0


def refusals(t):
    """Where no theta makes kappa positive, the refusal names kappa and not something else."""
    c = t.Constants(L=1.0, rho=0.5, sigma=0.2, b=0.1, gap=1.0)
    sizes = {"iterations": 10, "tasks_per_step": 1, "smoothness_tasks": 1}
    for theta, C_beta in ((None, 0.4), (1.0, 0.4), (None, 0.1)):
        said = refusal(t.finite_sum, c, 0.02, 5, C_beta=C_beta, theta=theta, **sizes)
        assert "kappa is -" in said and "raise C_beta" in said


def refusal(theorem, *args, **options):
    try:
        theorem(*args, **options)
    except InputError as error:
        return str(error)
    return ""


def share(t):
    """The share is 1 exactly for those sizes for which the theorem gives epsilon itself."""
    rng = np.random.default_rng(5)
    for N in (1, 6):
        v = draw(rng, N)
        c, path = constants(t, v), t.Expansion(v["alpha"], v["L"], N)
        sizes = {"tasks_per_step": v["B"], "smoothness_tasks": v["B_L"], "iterations": v["K"]}
        samples = {"step": "S", "curvature": "D", "target": "T", "smoothness": "D_L"}
        sizes |= {f"{name}_samples": v[short] for name, short in samples.items()}
        first, second = theorems(t, N, v)
        ledgers = (
            t.finite_sum_ledger(path, c, v["C_beta"], sizes, theta=v["theta"]),
            t.resampling_ledger(path, c, v["C_beta"], sizes),
        )
        for bound, ledger in zip((first, second), ledgers, strict=True):
            equal(ledger.share(bound.gradient), 1.0)
            equal(
                ledger.share(1e-3) - ledger.share(2e-3),
                (inverse(bound, 1e-3) - inverse(bound, 2e-3)) * bound.kappa / ledger.top,
            )
            m2 = ledger.m2
            equal(
                m2,
                1 + 3 * t.smoothness_variance(path, c, v["B_L"], *([v["D_L"]] if bound is second else []), gap=bound is first),
            )


def inverse(bound, epsilon):
    return bound.R * (bound.a + bound.c * epsilon) / epsilon**2


def phi(t):
    """From phi to the gradient and back, with c and without."""
    for a, c, epsilon in ((0.3, 0.0, 0.1), (2.0, 3.0, 0.7), (1.0, 100.0, 5.0)):
        R = epsilon**2 / (a + c * epsilon)
        equal(t.largest_R(a, c, epsilon), R)
        equal(t.gradient_from_phi(a, c, R), epsilon)
        assert epsilon <= c * R + math.sqrt(a * R)
        bound = t.Bound(a, c, 0.5, R / 4, 3 * R / 4)
        equal(bound.R, R)
        equal(bound.gradient, epsilon)


def chebyshev(t):
    """The error that the mean may have is the spread over tasks divided by sqrt(eta M)."""
    path, c = t.Expansion(0.02, 1.0, 4), t.Constants(L=1.0, rho=0.0, sigma=0.8, b=0.3)
    for norm, count, eta in ((2.0, 50, 0.1), (5.0, 7, 0.3)):
        off = t.task_spread(path, c, norm) / math.sqrt(eta * count)
        equal(t.certified_gradient(path, c, norm - off, count, confidence=1 - eta), norm)
    assert t.certified_gradient(path, c, 1.0, 50) == t.certified_gradient(path, c, 1.0, 50, 0.95)
    # Where (q - 1) t is 1 or more, the bound is infinite.
    edge = (path.shift / path.margin) ** 2
    for count, known in ((0.999 * edge, False), (1.001 * edge, True)):
        assert math.isfinite(t.certified_gradient(path, c, 1.0, count, confidence=1e-12)) == known
    for confidence in (0.0, 1.0, 1.3):
        assert "confidence" in refusal(t.certified_gradient, path, c, 1.0, 50, confidence)


def defaults(t):
    """By default C_beta is 2, and smoothness is that of the resampling case."""
    v = draw(np.random.default_rng(6), 3)
    c, path = constants(t, v), t.Expansion(v["alpha"], v["L"], 3)
    sizes = {"iterations": 1e3, "tasks_per_step": 1e3, "smoothness_tasks": 1e3}
    samples = dict.fromkeys(("step_samples", "curvature_samples", "target_samples", "smoothness_samples"), 1e3)
    args = c, v["alpha"], 3
    assert t.finite_sum(*args, **sizes) == t.finite_sum(*args, C_beta=2.0, **sizes)
    assert t.resampling(*args, **sizes, **samples) == t.resampling(*args, C_beta=2.0, **sizes, **samples)
    assert t.smoothness(path, 1.0, 2.0) == t.smoothness(path, 1.0, 2.0, 0.0) != t.smoothness(path, 1.0, 2.0, 1.0)
    assert t.smoothness_floor(path, 1.0) == t.smoothness_floor(path, 1.0, 0.0)
    assert t.adaptation_shift(path, 1.0) == t.adaptation_shift(path, 1.0, 0.0)
    dataclass = t.Constants(L=1.0, rho=0.0, sigma=0.0)
    assert (dataclass.sigma_g, dataclass.sigma_H, dataclass.b, dataclass.gap) == (0, 0, 0, None)
    unknown = t.Constants(L=1.0, rho=0.0, sigma=0.5)
    assert t.finite_sum_ledger(t.Expansion(0.01, 1.0, 1), unknown, 2.0, sizes).start == 0
    assert t.resampling_ledger(t.Expansion(0.01, 1.0, 1), unknown, 2.0, sizes | samples).start == 0


def measured(t):
    """Bounds hold for random problems and are reached by those built for it."""
    rng = np.random.default_rng(7)
    for part in (exact.geometry(t, rng, True), exact.control(t, rng, True), noisy.enumerated(t, rng, contracted=True)):
        assert all(ratios.max() <= 1 + 1e-6 for ratios in part.values())
    for part in (exact.sawtooth(t), exact.parabolas(t), noisy.extreme(t), runs.extreme(t)):
        assert all(ratios.min() > 0.92 and ratios.max() <= 1 + 1e-6 for ratios in part.values())


CHECKS = SIGNS | {
    f.__name__: f
    for f in (
        derivation,
        excess,
        expansion,
        thresholds,
        limits,
        bounded,
        theta,
        refusals,
        share,
        phi,
        chebyshev,
        defaults,
        measured,
    )
}
