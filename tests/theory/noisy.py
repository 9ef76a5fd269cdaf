"""The quantities that section 6 bounds, measured on random and on nearly extreme problems: ratios measured / bound."""

import itertools

import numpy as np
from theory.exact import column, gather, norm, tooth
from theory.instances import random_family, random_points

FEW = 4


def sampled(family, w, draw, curvature=1.0, target=1.0):
    """Ends w_N, exact products P along sampled paths, and E||G||² given the path; `draw` gives (xi, zeta) of step j."""
    w = np.array(np.broadcast_to(w, family.target[0].shape))
    eye = np.eye(family.dim)
    product = np.array(np.broadcast_to(eye, (*w.shape, family.dim)))
    square = product.copy()
    s_x, s_z = (family.noise[:, None, None, k] for k in (0, 1))
    for j in range(family.steps.max()):
        now = family.active(j)
        k, rate = len(now.steps), now.alpha[:, None, None]
        here = w[:k]
        factor = eye - rate[..., None] * now.hessian(now.target, here)
        noise = rate * s_z[:k] / np.sqrt(curvature) * np.cos(here)
        product[:k] = product[:k] @ factor
        square[:k] = factor @ square[:k] @ factor + noise[..., None] * square[:k] * noise[..., None, :]
        xi, zeta = (a[:k] for a in draw(j))
        w[:k] = here - rate * (now.gradient(now.target, here) + s_x[:k] * xi - s_z[:k] * zeta * np.sin(here))
    last = family.gradient(family.target, w)

    def form(v):
        return np.einsum("nma,nmab,nmb->nm", v, square, v)

    noise = form(np.broadcast_to(s_x, w.shape)) + form(s_z * np.sin(w))
    return w, np.einsum("nmab,nmb->nma", product, last), form(last) + noise / target


def enumerated(t, rng, *, contracted, two_sided=False):
    """Exact expectations over the 4^N paths of two-point noise, one sample for each step."""
    shapes = ((1, 3, 600), (2, 2, 450)) if contracted else ((1, 1, 700), (2, 1, 350))
    return gather([_enumerated(t, rng, contracted, two_sided, *shape) for shape in shapes])


def _enumerated(t, rng, contracted, two_sided, dim, tasks, n):
    most = FEW if not contracted else FEW - 1
    family = random_family(rng, n, dim, tasks, contracted=contracted, finite_sum=False, most=most, two_sided=two_sided)
    w, count = random_points(rng, family), 4**most
    code = np.tile(np.arange(count), n)[:, None, None]

    def draw(j):
        return tuple(2.0 * ((code >> (2 * j + bit)) & 1) - 1 for bit in (0, 1))

    D, T = 3, 2
    each = sampled(family.repeated(count), np.repeat(w, count, 0), draw, D, T)
    end, gradient, second = (a.reshape(n, count, *a.shape[1:]) for a in each)
    exact_end, _ = family.adapted(w)
    bias = gradient.mean(1) - family.meta_gradients(w)
    deviation = np.sqrt(np.mean(np.sum((end - exact_end[:, None]) ** 2, -1), 1))
    return _compared(t, family, w, deviation, norm(bias, axis=-1), second.mean(1), norm(bias.mean(1), axis=-1), D, T)


def _compared(t, family, w, deviation, bias, second, mean_bias, D, T, S=1):
    shape = deviation.shape
    size = norm(family.gradient(family.target, np.broadcast_to(w, (*shape, family.dim))), axis=-1)
    meta = norm(family.meta_gradients(w).mean(1), axis=-1).tolist()
    args = list(zip(family.paths(t), family.constants(t), strict=True))
    ratios = {
        "path_error": deviation / column([t.path_error(p, c, p.steps, S) for p, c in args], shape),
        "bias": bias / np.array([t.bias(p, c, size[k], S) for k, (p, c) in enumerate(args)]),
        "second_moment": second / np.array([t.second_moment(p, c, size[k], S, D, T) for k, (p, c) in enumerate(args)]),
    }
    if family.target[0].shape[1] > 1:
        ratios["mean_bias"] = mean_bias / [t.mean_bias(p, c, y, S) for (p, c), y in zip(args, meta, strict=True)]
    return ratios


def drawn(t, rng, n=1000, pairs=150, tasks=1):
    """Up to 64 steps of Gaussian noise, in antithetic pairs; four standard errors are subtracted from the measured values."""
    family = random_family(rng, n, 1, tasks, contracted=tasks > 1, finite_sum=False)
    w, S, D, T = random_points(rng, family), 2, 3, 2
    shape = (n, pairs, tasks, 1)

    def draw(j):
        k = len(family.active(j).steps)
        halves = (rng.standard_normal((k, *shape[1:])) / np.sqrt(S) for _ in range(2))
        return tuple(np.stack([a, -a], 1).reshape(-1, tasks, 1) for a in halves)

    each = sampled(family.repeated(2 * pairs), np.repeat(w, 2 * pairs, 0), draw, D, T)
    end, gradient, second = (a.reshape(n, 2, pairs, tasks) for a in each)
    exact_end, _ = family.adapted(w)
    # The mean over a pair has no noise of first order.
    off = gradient.mean(1) - family.meta_gradients(w)[:, None, :, 0]
    squares, second = ((end - exact_end[:, None, None, :, 0]) ** 2).mean(1), second.mean(1)

    def sure(a):
        return np.maximum(np.abs(a.mean(1)) - 4 * a.std(1) / np.sqrt(pairs), 0)

    return _compared(t, family, w, np.sqrt(sure(squares)), sure(off), sure(second), sure(off.mean(2)), D, T, S)


def outer_step(t, rng, finite_sum):
    """The lemma on the moments of the outer step: exact expectations over all batches of at most three tasks."""
    return gather([_outer_step(t, rng, finite_sum, *shape) for shape in ((1, 3, 400), (2, 4, 400), (3, 2, 300))])


def _outer_step(t, rng, finite_sum, dim, tasks, n):
    family = random_family(rng, n, dim, tasks, contracted=False, finite_sum=finite_sum)
    w = np.broadcast_to(random_points(rng, family), family.target[0].shape)
    gradients = family.gradient(family.target, w)
    exact = norm(gradients, axis=-1).mean(1)
    if not finite_sum:
        signs = np.array(list(itertools.product((-1, 1), repeat=2)))[:, :, None, None, None]
        s_x, s_z = (family.noise[:, k][:, None, None] for k in (0, 1))
        gradients = np.concatenate([gradients + s_x * xi - s_z * zeta * np.sin(w) for xi, zeta in signs], 1)
    sizes = norm(gradients, axis=-1)
    ratios = [
        _step_ratios(t, p, c, sizes[k], 1 + k % 2 if not finite_sum else 1 + k % 3, finite_sum, exact[k])
        for k, (p, c) in enumerate(zip(family.paths(t), family.constants(t), strict=True))
    ]
    return {name: np.array([r[name] for r in ratios]) for name in ratios[0]}


def _step_ratios(t, path, c, sizes, batch, finite_sum, exact):
    means = sizes
    for k in range(1, batch):
        means = (means[:, None] * k + sizes[None, :]).ravel() / (k + 1)
    floor = t.smoothness_floor(path, c.rho, c.b if finite_sum else 0.0)
    estimate = floor + t.smoothness_slope(path, c.rho) * means
    samples = {} if finite_sum else {"smoothness_samples": 1, "gap": False}
    x = t.smoothness_variance(path, c, batch, **samples)
    M = estimate.mean()
    return {
        "smoothness_variance": estimate.var() / (x * floor**2),
        "step_mean": np.mean((estimate - M) ** 2 / estimate) / M / x,
        "step_second_moment": (np.mean((M / estimate) ** 2) - 1) / (t.step_second_moment(x) - 1),
        "outer_smoothness": t.smoothness(path, c.rho, exact, c.b if finite_sum else 0.0) / M,
    }


def phi(t, rng, n=1000):
    """The lemma from phi to the gradient, for random distributions on five points; the last one lies on one point."""
    a, c = (10 ** rng.uniform(-2, 2, (n, 1)) for _ in range(2))
    c[::10] = 0
    y, weights = 10 ** rng.uniform(-3, 3, (n, 5)), rng.dirichlet(np.ones(5), n)
    y[::7] = y[::7, :1]
    R, mean = np.sum(weights * y**2 / (a + c * y), 1), np.sum(weights * y, 1)
    rows = np.stack([a[:, 0], c[:, 0], R, mean], 1).tolist()
    return {
        "gradient_from_phi": np.array([m / t.gradient_from_phi(a, c, R) for a, c, R, m in rows]),
        "largest_R": np.array([t.gradient_from_phi(a, c, t.largest_R(a, c, m)) / m for a, c, _, m in rows]),
    }


def extreme(t, gamma=0.02, L=1.7, rho=3.0, start=2.0, sigma_g=2e-3):
    """One-dimensional losses with two-point noise and one sample for each step, nearly as bad as the bounds allow."""
    c = t.Constants(L=L, rho=rho, sigma=0.0, sigma_g=sigma_g, sigma_H=0.7)
    one, two = (t.Expansion(t.guaranteed_alpha(L, n, gamma), L, n) for n in (1, 2))
    signs = np.array(list(itertools.product((-1, 1), repeat=2)))
    # N = 1: the Hessian rises with slope rho through w_1. N = 2: it has a kink there, and the error of w_1 is symmetric.
    alpha, width = one.alpha, 2 * one.alpha * sigma_g
    ends = -alpha * (start + np.array([0.0, 1.0, -1.0]) * sigma_g)
    last = start - L * ends + rho * width**2 * tooth((ends + alpha * start) / width)
    single = (1 + alpha * L) * np.array([last[0], last[1:].mean()])
    alpha, width = two.alpha, 2 * two.alpha * sigma_g

    def odd(y):
        return np.sign(y) * width**2 * tooth(np.abs(y) / width - 1)

    def slope(x):
        return start - L * x + rho * (odd(x + alpha * start) - odd(alpha * start))

    def bend(x):
        return -L + rho * np.clip(2 * width - np.abs(np.abs(x + alpha * start) - 2 * width), 0, None)

    def meta(noise):
        first = -alpha * (start + noise[..., 0])
        return (1 + alpha * L) * (1 - alpha * bend(first)) * slope(first - alpha * (slope(first) + noise[..., 1]))

    double = np.array([meta(np.zeros(2)), meta(sigma_g * signs).mean()])
    bounds = [t.bias(one, c, start, 1), t.bias(two, c, start, 1)]
    totals = [t.mean_bias(one, c, single[0], 1), t.mean_bias(two, c, double[0], 1)]
    off = np.array([single[1] - single[0], double[1] - double[0]])
    return {"bias": np.abs(off) / bounds, "mean_bias": np.abs(off) / totals, **_parabola(t, two, c, L)}


def _parabola(t, path, c, L):
    """l = -L w² / 2 at its maximum, where the exact path stays; and two tasks with gradients 1 and 3, for the outer step."""
    signs, g = c.sigma_g * np.array([-1.0, 1.0]), 1 + path.alpha * L
    square = ((-path.alpha * (g * signs[:, None] + signs)) ** 2).mean()
    factor = np.mean([(g + path.alpha * s * c.sigma_H) ** 2 for s in (-1, 1)])
    steps = _step_ratios(t, path, t.Constants(L=L, rho=1e-3, sigma=1.0), np.array([1.0, 3.0]), 2, True, 2.0)
    return {
        "path_error": np.array([np.sqrt(square) / t.path_error(path, c, 2, 1)]),
        "second_moment": np.array([factor**2 * (c.sigma_g**2 + L**2 * square) / t.second_moment(path, c, 0.0, 1, 1, 1)]),
        **{name: np.array([value]) for name, value in steps.items()},
    }
