"""Every bound derived anew, by the recursions and telescoping sums of the proofs: no closed form of the library is used.

The numbers may be sympy's symbols or mpmath's numbers; `m` is the module that computes with them.
"""

from math import comb, prod

import sympy

NAMES = (
    "alpha", "L", "rho", "sigma", "sigma_g", "sigma_H", "b", "gap", "theta", "C_beta", "K", "B", "S", "D", "T", "B_L", "D_L",
    "y", "g", "b_i",
)  # fmt: skip


def line(function):
    """Slope and value at 0 of an affine function."""
    return function(1) - function(0), function(0)


def positive_root():
    """The positive root of y² = c R y + a R, and the symbols a, c, R that it is a function of."""
    y, a, c, R = sympy.symbols("y a c R", positive=True)
    (root,) = [s for s in sympy.solve(y**2 - c * R * y - a * R, y) if s.subs({a: 1, c: 1, R: 1}) > 0]
    return (a, c, R), root


def largest_factor(v):
    """The largest |1 - alpha h| over curvatures h: in [-L, L], or in [-mu, lam] where those are known."""
    return 1 + v.alpha * v.L if not hasattr(v, "mu") else max(abs(1 + v.alpha * v.mu), abs(1 - v.alpha * v.lam))


def paths(N, v):
    """Bounds along two paths: distances, gradients, lengths (relative to the first gradient), a factor, P, P's difference."""
    distance, gradient, moved = [v.L * 0 + 1], [v.L * 0 + 1], [v.L * 0]
    factor = largest_factor(v)
    for _ in range(N):
        distance.append(distance[-1] * factor)
        moved.append(moved[-1] + v.alpha * gradient[-1])
        gradient.append(gradient[-1] * factor)
    difference = sum(prod([factor] * k) * v.alpha * v.rho * distance[k] * prod([factor] * (N - 1 - k)) for k in range(N))
    return distance, gradient, moved, factor, prod([factor] * N), difference


def derive(N, v, m):
    """All quantities by name, also those of the resampling case, where b = 0."""
    distance, gradient, moved, factor, product, difference = paths(N, v)

    def target(g, b):
        return g + v.L * moved[N] * (g + b)

    def smooth(g, b):
        return product * v.L * distance[N] + difference * target(g, b)

    # How far a product of N factors and one of 2N can be from the identity: by their expansion, or factor by factor.
    whole = sum(comb(2 * N, k) * (v.alpha * v.L) ** k for k in range(1, 2 * N + 1))
    binomials = sum(comb(N, k) * (v.alpha * v.L) ** k for k in range(1, N + 1))
    if hasattr(v, "mu"):
        binomials, whole = (sum(v.alpha * v.L * prod([factor] * k) for k in range(n)) for n in (N, 2 * N))

    def shift(g, b):
        return product * v.L * moved[N] * (g + b) + binomials * g

    def mean(y, b):
        s1, s0 = line(lambda g: shift(g + v.sigma, b))
        return (y + s0) / (1 - s1)

    def norms(y, b):
        return mean(y, b) + v.sigma

    def spread(y, b):
        return v.sigma + shift(norms(y, b), b)

    slope, floor = line(lambda g: smooth(g, v.b))
    rate = v.alpha * v.L
    out = {
        "jacobian_norm": product, "jacobian_lipschitz": difference, "target_gradient": target(v.g, v.b_i),
        "smoothness_slope": slope, "smoothness_floor": floor, "smoothness": smooth(v.g, v.b),
        "adaptation_shift": shift(v.g, v.b_i), "mean_gradient": mean(v.y, v.b), "gradient_norm": norms(v.y, v.b),
        "task_spread": spread(v.y, v.b), "task_noise": spread(0, v.b) * (1 - line(lambda g: shift(g, 0))[0]),
        "flow_distance": v.g * sum(
            v.alpha**2 * v.L / 2 * m.exp(rate * (j + 1)) * m.exp(rate * (N - 1 - j)) for j in range(N)
        ),
        "r": factor, "p": product, "q": product * gradient[N], "before": gradient[N - 1],
        "drift": v.L * moved[N], "shift": whole, "margin": 1 - whole,
    }  # fmt: skip
    out |= {f"iterate_distance_{j}": distance[j] for j in range(N + 1)}
    floor_0 = smooth(0, 0)
    x = slope**2 * v.sigma**2 / v.B_L / floor**2
    x_0 = slope**2 * (v.sigma**2 + v.sigma_g**2 / v.D_L) / v.B_L / floor_0**2
    out |= {"x": x, "x_resampling": x_0, "m2": second(x)}
    out |= sampling(N, v, m, lambda y: norms(y, 0))
    out |= finite_sum(v, m, line(lambda y: spread(y, v.b)), line(lambda y: smooth(norms(y, v.b), v.b)), floor, second(x))
    bias = line(lambda y: out["bias_of"](norms(y, 0)))
    moment = second_moment(out, v, line(lambda y: mean(y, 0)))
    bend = line(lambda y: smooth(norms(y, 0) + v.sigma_g / m.sqrt(v.D_L), 0))
    out |= resampling(v, bias, moment, bend, floor_0, x_0)
    return {name: value for name, value in out.items() if not callable(value)}


def second(x):
    """E M²/L² = 1 + 2 E(L - M)²/(ML) + E(L - M)²/L², each expectation at most x."""
    return 1 + x + x + x


def sampling(N, v, m, norms):
    """The path's error by its recursion, the bias by the proof's three terms, the second moment factor by factor."""
    _, gradient, _, factor, product, _ = paths(N, v)
    variance, shift, unit = [v.L * 0], [v.L * 0], v.sigma_g**2 / v.S
    for _ in range(N):
        shift.append(factor * shift[-1] + v.alpha * v.rho * variance[-1] * unit / 2)
        variance.append(factor**2 * variance[-1] + v.alpha**2)
    deviation = [m.sqrt(value) for value in variance]
    error = v.sigma_g / m.sqrt(v.S)
    apart = sum(prod([factor] * (N - 1)) * v.alpha * v.rho * deviation[k] * error for k in range(N))
    last = v.L * shift[N] + v.rho * variance[N] * unit / 2

    def bias(g):
        return product * last + apart * gradient[N] * g + apart * v.L * deviation[N] * error

    growth = factor**2 + v.alpha**2 * v.sigma_H**2 / v.D

    def moment(square):
        value = v.sigma_g**2 / v.T + square
        for _ in range(N):
            value = growth * value
        return value

    drift = v.L * deviation[N] * error
    c_2, c_3 = line(bias)
    return {f"path_deviation_{j}": deviation[j] for j in range(N + 1)} | {
        "path_error": deviation[N] * error, "bias_slope": c_2 * m.sqrt(v.S), "bias_constant": c_3 * v.S, "bias": bias(v.g),
        "bias_of": bias, "mean_bias": bias(norms(v.y)), "factor_growth": growth,
        "second_moment": moment((gradient[N] * v.g + drift) ** 2), "moment_of": moment, "strayed": drift, "grown": gradient[N],
    }  # fmt: skip


def second_moment(out, v, mean):
    """E||G||² as a function of ||grad||², by (a + b)² <= 2a² + 2b² twice."""
    u_1, u_0 = mean
    grown, drift = out["grown"], out["strayed"]

    def norms(y2):
        return 2 * u_1**2 * y2 + 2 * u_0**2 + v.sigma**2

    return lambda y2: out["moment_of"](2 * grown**2 * norms(y2) + 2 * drift**2)


def conclude(v, kept, bend, floor, prefix):
    """The theorem's quantities, from the descent times C_beta M as an affine function of ||grad||²."""
    loss, rest = line(kept)
    c, a = bend
    start, noise = v.C_beta * v.gap / v.K / -loss, rest / floor / -loss
    return {f"{prefix}_a": a, f"{prefix}_c": c, f"{prefix}_kappa": -loss, f"{prefix}_start": start, f"{prefix}_noise": noise}


def finite_sum(v, m, spread, bend, floor, m2):
    s_1, s_0 = spread

    def moment(y2):
        return y2 + ((1 + v.theta) * s_1**2 * y2 + (1 + 1 / v.theta) * s_0**2) / v.B

    return conclude(v, lambda y2: -y2 + m2 / (2 * v.C_beta) * moment(y2), bend, floor, "finite_sum")


def resampling(v, bias, moment, bend, floor, x):
    e_1, e_0 = bias

    def error(y2):
        return 2 * e_1**2 * y2 + 2 * e_0**2

    def kept(y2):
        return (-y2 + (1 + x) * error(y2)) / 2 + second(x) / (2 * v.C_beta * v.B) * moment(y2)

    known = {"bias_square": error(0), "moment_constant": moment(0)}
    return known | conclude(v, kept, bend, floor, "resampling")
