"""The two convergence theorems, end to end: many short runs on random problems against the theorems' bounds."""

import itertools
from dataclasses import replace

import numpy as np
from theory.exact import norm
from theory.instances import random_family, random_points

from adaptax.errors import InputError


def finite_sum(t, rng, n=2400, dim=1, tasks=3, iterations=10, seeds=4):
    """Ratios measured / bound of E phi and of E||grad||; problems to which the theorem does not apply are left out."""
    family = random_family(rng, n, dim, tasks, contracted=True, definite=True, finite_sum=True)
    B, B_L = rng.integers(1, 5, n), rng.integers(1, 4, n)
    w, gap, x = _starts(t, rng, family, B_L)
    C = (0.5 + rng.uniform(0.1, 2, n)) * (1 + 3 * x)
    theta = [None if k % 2 else theta for k, theta in enumerate(10 ** rng.uniform(-1, 2, n))]
    bounds = [
        _bound(t.finite_sum, c, a, s, iterations, C_beta=cb, theta=th, tasks_per_step=b, smoothness_tasks=bl)
        for c, a, s, cb, th, b, bl in _rows(family.constants(t, gap), family, C, theta, B, B_L)
    ]
    return _judged(t, rng, family, w, bounds, C, (B, B_L), iterations, seeds, finite=True)


def resampling(t, rng, n=1500, dim=1, tasks=3, iterations=10, seeds=4):
    """The same with Gaussian noise. The means of batches are drawn, whose variance is that of the noise over the batch size."""
    family = random_family(rng, n, dim, tasks, contracted=True, definite=True, finite_sum=False)
    # q h^N / (2 - q)² must be moderate for kappa > 0 with a few tasks.
    family = replace(family, alpha=family.alpha / 2)
    B, B_L = rng.integers(4, 9, n), rng.integers(1, 4, n)
    S, D, T, D_L = rng.integers(1, 20, (4, n))
    w, gap, x = _starts(t, rng, family, B_L, D_L)
    C = (1 + rng.uniform(0, 3, n)) * (1 + 3 * x)
    names = ("tasks_per_step", "smoothness_tasks", "step_samples", "curvature_samples", "target_samples", "smoothness_samples")
    bounds = [
        _bound(t.resampling, c, a, s, iterations, C_beta=cb, **dict(zip(names, sizes, strict=True)))
        for c, a, s, cb, *sizes in _rows(family.constants(t, gap), family, C, B, B_L, S, D, T, D_L)
    ]
    return _judged(t, rng, family, w, bounds, C, (B, B_L, S, D, T, D_L), iterations, seeds, finite=False)


def _rows(constants, family, *columns):
    lists = (np.asarray(c).tolist() if not isinstance(c, list) else c for c in (family.alpha, family.steps, *columns))
    return zip(constants, *lists, strict=True)


def _bound(theorem, c, alpha, steps, iterations, **sizes):
    try:
        return theorem(c, alpha, steps, iterations=iterations, **sizes)
    except InputError:
        return None


def _starts(t, rng, family, B_L, D_L=None):
    w = random_points(rng, family)
    gap = family.meta_loss(np.broadcast_to(w, family.target[0].shape)) - family.lower_bound
    samples = [np.inf] * len(B_L) if D_L is None else D_L.tolist()
    rows = zip(family.paths(t), family.constants(t), B_L.tolist(), samples, strict=True)
    return w, gap, np.array([t.smoothness_variance(p, c, b, d, gap=D_L is None) for p, c, b, d in rows])


def _judged(t, rng, family, w, bounds, C, sizes, iterations, seeds, *, finite):
    kept = np.array([b is not None for b in bounds])
    bounds, family, w, C = [b for b in bounds if b], family[kept], w[kept], C[kept]
    sizes = [np.repeat(s[kept], seeds) for s in sizes]
    rho, b = family.amplitude, family.b if finite else 0 * family.amplitude
    floor = np.array([t.smoothness_floor(p, c, g) for p, c, g in zip(family.paths(t), rho, b, strict=True)])
    slope = np.array([t.smoothness_slope(p, c) for p, c in zip(family.paths(t), rho, strict=True)])
    a, c, R, end = (np.repeat([getattr(x, n) for x in bounds], seeds) for n in ("a", "c", "R", "gradient"))
    big, w = family.repeated(seeds), np.repeat(w, seeds, 0)
    floor, slope, C = (np.repeat(x, seeds) for x in (floor, slope, C))
    sums = np.zeros((2, len(C)))
    for _ in range(iterations):
        each = big.meta_gradients(w)
        size = norm(each.mean(1), axis=-1)
        sums += np.stack([size**2 / (a + c * size), size]) / iterations
        step, measured = (_exact if finite else _noisy)(rng, big, w, each, *sizes)
        w = w - step[:, None] / (C * (floor + slope * measured))[:, None, None]
    means = sums.reshape(2, -1, seeds)
    sure = means.mean(2) - 4 * means.std(2, ddof=1) / np.sqrt(seeds)
    ratio = means.mean(2) / np.stack([R, end])[:, ::seeds]
    return {"phi": ratio[0], "gradient": ratio[1], "allowed": (sure / np.stack([R, end])[:, ::seeds]).max(0)}


def _masked(values, sizes):
    """The mean of the first `sizes` values along axis 1."""
    used = (np.arange(values.shape[1]) < sizes[:, None]).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
    return np.sum(used * values, 1) / sizes.reshape(-1, *[1] * (values.ndim - 2))


def _chosen(rng, big, count):
    return rng.integers(0, big.target[0].shape[1], (len(big.alpha), count))


def _exact(rng, big, w, each, B, B_L):
    tasks = _chosen(rng, big, B.max())
    sizes = norm(big.gradient(big.target, np.broadcast_to(w, each.shape)), axis=-1)
    measured = np.take_along_axis(sizes, _chosen(rng, big, B_L.max()), 1)
    return _masked(np.take_along_axis(each, tasks[..., None], 1), B), _masked(measured, B_L)


def _noisy(rng, big, w, each, B, B_L, S, D, T, D_L):
    v, _ = sampled(rng, big, w, B, S, T, D)
    apart = big.chosen(_chosen(rng, big, B_L.max()))
    at = np.broadcast_to(w, apart.target[0].shape)
    return v, _masked(norm(_last(rng, apart, at, D_L), axis=-1), B_L)


def sampled(rng, big, w, B, S, T, D=None):
    """On B tasks: the mean of sampled meta-gradients (None without D), and of the norms of their last gradients."""
    some = big.chosen(_chosen(rng, big, B.max()))
    path = [np.array(np.broadcast_to(w, some.target[0].shape))]
    for j in range(some.steps.max()):
        now, here = some.active(j), path[-1].copy()
        k = len(now.steps)
        here[:k] -= now.alpha[:, None, None] * _last(rng, now, here[:k], S[:k])
        path.append(here)
    v = _last(rng, some, path[-1], T)
    size = norm(v, axis=-1)
    for j in reversed(range(some.steps.max() if D is not None else 0)):
        now, s_z = some.active(j), some.noise[:, 1][:, None, None]
        k = len(now.steps)
        here, zeta = path[j][:k], _normal(rng, (k, v.shape[1], 1), D[:k])
        product = v[:k] @ now.matrix - (now.amplitude[:, None, None] * np.cos(here + now.target[0])) * v[:k]
        v[:k] -= now.alpha[:, None, None] * (product - s_z[:k] * zeta * np.cos(here) * v[:k])
    return _masked(v, B), _masked(size, B)


def _normal(rng, shape, size):
    return rng.standard_normal(shape) / np.sqrt(size)[:, None, None]


def _last(rng, some, w, size):
    """Gradients at w on so many samples."""
    s_x, s_z = (some.noise[:, k][:, None, None] for k in (0, 1))
    xi, zeta = _normal(rng, w.shape, size), _normal(rng, (*w.shape[:2], 1), size)
    return some.gradient(some.target, w) + s_x * xi - s_z * zeta * np.sin(w)


def extreme(t, L=1.3):
    """Parabolas, for which both theorems are attained: without noise, as K grows; with different tasks, in the long run."""
    ratios = {"finite_sum": [], "resampling": []}
    for C_beta, steps, iterations in itertools.product((1.0, 2.0, 4.0), (1, 8), (400,)):
        alpha = t.guaranteed_alpha(L, steps, 1e-4)
        for sigma, tasks in ((0.0, 1), (0.5, 2), (0.5, 7)):
            ratios["finite_sum"].append(_parabola(t.finite_sum, t, L, alpha, steps, C_beta, sigma, iterations, tasks, {}))
        samples = dict.fromkeys(("step_samples", "curvature_samples", "target_samples", "smoothness_samples"), 1)
        if C_beta == 1.0:
            ratios["resampling"].append(_parabola(t.resampling, t, L, alpha, steps, C_beta, 0.0, iterations, 10_000, samples))
    return {name: np.array(values) for name, values in ratios.items()}


def _parabola(theorem, t, L, alpha, steps, C_beta, sigma, iterations, B, samples, start=1.0):
    """l_i = L w² / 2 + o_i w with o_i = sigma or -sigma: E w_k² obeys a recursion. The ratio for E phi."""
    shrink = (1 - alpha * L) ** (2 * steps)
    gap = shrink * L * start**2 / 2
    c = t.Constants(L=L, rho=0.0, sigma=sigma, gap=gap)
    bound = theorem(c, alpha, steps, iterations=iterations, tasks_per_step=B, smoothness_tasks=1, C_beta=C_beta, **samples)
    beta, square, total = 1 / (C_beta * (1 + alpha * L) ** (2 * steps) * L), start**2, 0.0
    for _ in range(iterations):
        total += (shrink * L) ** 2 * square / bound.a / iterations
        square = (1 - beta * shrink * L) ** 2 * square + (beta * shrink * sigma) ** 2 / B
    return total / bound.R
