"""Checks of the theory's functions against their independent derivation and against definitions: functions of a namespace.

They take the functions under test as t, so that mutated ones can be checked too.
"""

import functools
import types

import mpmath
import numpy as np
import sympy
from theory.derivation import NAMES, derive, positive_root

TIGHT = 1e-12
DIGITS = 40


def draw(rng, N):
    """Random numbers by name, for which both theorems hold."""
    low = {"L": 0.3, "rho": 0.2, "sigma": 0.1, "sigma_g": 0.1, "sigma_H": 0.2, "b": 0.1, "gap": 0.5, "theta": 0.5}
    v = {name: rng.uniform(x, 5 * x) for name, x in low.items()}
    v["alpha"] = rng.uniform(0.02, 0.15) / (N * v["L"])
    v |= {name: rng.uniform(0.1, 2) for name in ("y", "g", "b_i")}
    sizes = {"K": (10, 1000), "B": (40, 90), "S": (5, 50), "D": (1, 9), "T": (1, 9), "B_L": (1, 9), "D_L": (1, 9)}
    v |= {name: float(rng.integers(*ends)) for name, ends in sizes.items()}
    # m_2 is at most C_beta, and not near 1.
    return v | {"C_beta": rng.uniform(3, 6)}


@functools.cache
def expected():
    """(N, numbers, derived values): symbols for N = 1, 2, 3, forty digits for larger N."""
    cases, rng = [], np.random.default_rng(0)
    (a, c, R), root = positive_root()
    end = sympy.lambdify((a, c, R), root, "mpmath")
    with mpmath.workdps(DIGITS):
        for N in (1, 2, 3):
            symbols = types.SimpleNamespace(**{name: sympy.Symbol(name, positive=True) for name in NAMES})
            derived = derive(N, symbols, sympy)
            evaluate = sympy.lambdify([vars(symbols)[n] for n in NAMES], list(derived.values()), "mpmath", cse=True)
            for _ in range(3):
                v = draw(rng, N)
                cases.append((N, v, dict(zip(derived, evaluate(*(mpmath.mpf(v[n]) for n in NAMES)), strict=True))))
        for N in (4, 7, 64):
            v = draw(rng, N)
            numbers = types.SimpleNamespace(**{name: mpmath.mpf(v[name]) for name in NAMES})
            cases.append((N, v, derive(N, numbers, mpmath)))
        for _, _, values in cases:
            for name in ("finite_sum", "resampling"):
                values[f"{name}_R"] = values[f"{name}_start"] + values[f"{name}_noise"]
                values[f"{name}_gradient"] = end(*(values[f"{name}_{part}"] for part in ("a", "c", "R")))
    return [(N, v, {name: float(value) for name, value in values.items()}) for N, v, values in cases]


def constants(t, v):
    return t.Constants(**{name: v[name] for name in ("L", "rho", "sigma", "sigma_g", "sigma_H", "b", "gap")})


def theorems(t, N, v):
    c, args = constants(t, v), (v["alpha"], N)
    sizes = {"iterations": v["K"], "tasks_per_step": v["B"], "smoothness_tasks": v["B_L"], "C_beta": v["C_beta"]}
    samples = {
        f"{name}_samples": v[k] for name, k in (("step", "S"), ("curvature", "D"), ("target", "T"), ("smoothness", "D_L"))
    }
    return t.finite_sum(c, *args, theta=v["theta"], **sizes), t.resampling(c, *args, **sizes, **samples)


def computed(t, N, v, curvature=()):
    """The library's values for the same numbers; the two theorems' only without lam and mu, of which they know nothing."""
    path, c, rho = t.Expansion(v["alpha"], v["L"], N, *curvature), constants(t, v), v["rho"]
    x = t.smoothness_variance(path, c, v["B_L"])
    out = {
        "jacobian_norm": t.jacobian_norm(path), "jacobian_lipschitz": t.jacobian_lipschitz(path, rho),
        "target_gradient": t.target_gradient(path, v["g"], v["b_i"]), "smoothness_slope": t.smoothness_slope(path, rho),
        "smoothness_floor": t.smoothness_floor(path, rho, v["b"]), "smoothness": t.smoothness(path, rho, v["g"], v["b"]),
        "adaptation_shift": t.adaptation_shift(path, v["g"], v["b_i"]), "mean_gradient": t.mean_gradient(path, c, v["y"]),
        "gradient_norm": t.gradient_norm(path, c, v["y"]), "task_spread": t.task_spread(path, c, v["y"]),
        "task_noise": t.task_noise(path, c), "flow_distance": t.flow_distance(path, v["g"]), "x": x,
        "x_resampling": t.smoothness_variance(path, c, v["B_L"], v["D_L"], gap=False), "m2": t.step_second_moment(x),
        "path_error": t.path_error(path, c, N, v["S"]), "bias_slope": t.bias_slope(path, c),
        "bias_constant": t.bias_constant(path, c), "bias": t.bias(path, c, v["g"], v["S"]),
        "mean_bias": t.mean_bias(path, c, v["y"], v["S"]), "factor_growth": t.factor_growth(path, c, v["D"]),
        "second_moment": t.second_moment(path, c, v["g"], v["S"], v["D"], v["T"]),
        "bias_square": t.bias_square(path, c, v["S"]), "moment_constant": t.moment_constant(path, c, v["S"], v["D"], v["T"]),
    }  # fmt: skip
    out |= {name: getattr(path, name) for name in ("r", "p", "q", "before", "margin", "drift", "shift")}
    for j, deviation in enumerate(t.path_deviation(path, np.arange(N + 1))):
        out |= {f"iterate_distance_{j}": t.iterate_distance(path, j), f"path_deviation_{j}": deviation}
    for name, bound in zip(("finite_sum", "resampling"), theorems(t, N, v), strict=True) if not curvature else ():
        out |= {f"{name}_{part}": getattr(bound, part) for part in ("a", "c", "kappa", "start", "noise", "R", "gradient")}
    return out


def equal(value, other, rel=TIGHT):
    assert abs(value - other) <= rel * abs(other), (value, other)


def derivation(t):
    """Every quantity equals its derivation."""
    for N, v, values in expected():
        found = computed(t, N, v)
        assert set(found) == set(values) - {"strayed", "grown"}
        for name, value in found.items():
            assert abs(value - values[name]) <= TIGHT * abs(values[name]), (name, N)
