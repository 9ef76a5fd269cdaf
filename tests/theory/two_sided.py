"""Bounds by lam, mu and the adapted gradient: losses that reach them, step sizes of each parameter, and whole runs."""

from dataclasses import replace

import numpy as np
from theory.exact import SHAPES, gather, norm, spectral, tooth
from theory.instances import random_family, random_points
from theory.runs import _chosen, _masked, sampled

from adaptax.errors import InputError


def teeth(t, L_T=2.3, rho=3.0, start=2.0, last=1.4):
    """One-dimensional losses that reach the bounds with lam and mu: curvature -mu, m and lam along the path, and teeth.

    At node j the tooth rises in the direction in which the path passes, so that all parts of the derivative of P add up.
    """
    rows = [_teeth(t, h, alpha, N, L_T, rho, start, last) for h, alpha in ((-0.6, 0.2), (0.7, 0.3), (1.0, 1.8))
            for N in (1, 2, 3, 8, 12)]  # fmt: skip
    return gather(rows)


def _teeth(t, h, alpha, N, L_T, rho, start, last):
    f, width = 1 - alpha * h, 1e-5 * alpha * start
    signs = np.sign(f) ** np.arange(N)
    centres = -alpha * start * np.cumsum(np.concatenate([[0], f ** np.arange(N - 1)]))

    def slope(x):
        return start + h * x + np.sum(signs * rho * width**2 * tooth((x - centres) / width))

    def bend(x):
        z = (x - centres) / width
        return h + np.sum(signs * rho * width * np.clip(np.minimum(z + 1, 3 - z), 0, None))

    def adapted(x):
        product = 1.0
        for _ in range(N):
            product, x = product * (1 - alpha * bend(x)), x - alpha * slope(x)
        return x, product

    (end, product), (near, other) = adapted(0.0), adapted(width / 4)
    turn = -(np.sign(f) ** (N - 1))
    meta = product * last - other * (last + turn * L_T * (near - end))
    high = 2 * rho * width
    lam, mu = (abs(h) + high, -h + high) if abs(h) < 1 else (h + high, -h + high)
    path = t.Expansion(alpha, max(L_T, lam), N, lam, max(mu, -lam))
    apart = width / 4
    # The bound is taken at the first point, whose adapted gradient is `last`.
    return {
        "two-sided iterate_distance": np.array([abs(near - end) / (t.iterate_distance(path, N) * apart)]),
        "two-sided jacobian_norm": np.array([abs(product) / t.jacobian_norm(path)]),
        "two-sided jacobian_lipschitz": np.array([abs(product - other) / (t.jacobian_lipschitz(path, rho) * apart)]),
        "adapted_smoothness": np.array([abs(meta) / (t.adapted_smoothness(path, rho, L_T, last) * apart)]),
    }


def frozen_quadratic(t):
    """l_S = h w² / 2 + eta w theta with theta frozen, and a target curved along the longest axis of the path's map."""
    ratios = []
    for h, alpha, eta, N in ((0.7, 0.3, 0.5, 6), (-0.4, 0.2, 2.0, 3), (0.0, 0.1, 1.0, 9), (0.5, 0.1, 0.0, 4)):
        step = np.array([[1 - alpha * h, -alpha * eta], [0, 1]])
        whole = np.linalg.matrix_power(step, N)
        axis = np.linalg.svd(whole)[0][:, :1]
        path = t.Expansion(alpha, 2.0, N, abs(h), -h)
        bound = t.adapted_smoothness(path, 0.7, 1.7, 0.0, mixed=eta)
        ratios.append(spectral(1.7 * whole.T @ axis @ axis.T @ whole) / bound)
    return {"frozen": np.array(ratios)}


def rated(family, w, rates):
    """Meta-gradients and adapted target gradients where each parameter has a step size of its own: rates (n, d)."""
    w = np.array(np.broadcast_to(w, family.target[0].shape))
    path = []
    for j in range(family.steps.max()):
        now = family.active(j)
        path.append(w[: len(now.steps)].copy())
        w[: len(now.steps)] -= rates[: len(now.steps), None] * now.gradient(now.support, path[-1])
    last = v = family.gradient(family.target, w)
    for j, here in reversed(list(enumerate(path))):
        now, k = family.active(j), len(here)
        product = np.einsum("nmab,nmb->nma", now.hessian(now.support, here), rates[:k, None] * v[:k])
        v = np.concatenate([v[:k] - product, v[k:]])
    return v, last


def rates_of_parameters(t, rng):
    """The change of meta-gradients in the norm of A, for diagonal step sizes A; and with parameters that do not adapt."""
    return gather([_rates(t, rng, *shape) for shape in (*SHAPES[2:], (2, 1, 600), (4, 3, 200))])


def _rates(t, rng, dim, tasks, n):
    family = random_family(rng, n, dim, tasks, contracted=False, two_sided=True, most=16)
    w = random_points(rng, family)
    step = rng.standard_normal(w.shape)
    u = w + step / norm(step, axis=-1, keepdims=True) * (10 ** rng.uniform(-3, 1, n))[:, None, None]
    c, eye = family.amplitude, np.eye(dim)
    # Each parameter has its own rate; the common factor of the family keeps expansion in bounds.
    rates = family.alpha[:, None] * rng.uniform(0.2, 1, (n, dim))
    root = np.sqrt(rates)
    inner = root[:, :, None] * family.matrix * root[:, None]
    lam = np.linalg.eigvalsh(inner + (c[:, None] * rates)[..., None] * eye)[:, -1]
    mu = -np.linalg.eigvalsh(inner - (c[:, None] * rates)[..., None] * eye)[:, 0]
    lam = np.maximum(lam, 0)
    meta, elsewhere, last = rated(family, w, rates)[0], *rated(family, u, rates)
    sizes, gaps = norm(root[:, None] * last, axis=-1), norm((w - u) / root[:, None], axis=-1)
    rho = c * rates.max(1) ** 1.5
    L = np.maximum(lam, np.abs(mu))
    columns = (L, family.steps, lam, np.maximum(mu, -lam), rho)
    bounds = [t.adapted_smoothness(t.Expansion(1.0, *row[:4]), row[4], row[0], sizes[k])
              for k, row in enumerate(zip(*(a.tolist() for a in columns), strict=True))]  # fmt: skip
    out = {"rates": norm(root[:, None] * (meta - elsewhere), axis=-1) / (np.array(bounds) * gaps)}
    # The first half of the parameters adapts.
    few = dim // 2
    adapts = np.arange(dim) < few
    rates = family.alpha[:, None] * adapts
    part = family.matrix[:, :few, :few]
    lam, mu = np.linalg.eigvalsh(part)[:, -1] + c, c - np.linalg.eigvalsh(part)[:, 0]
    lam, mixed = np.maximum(lam, 0), spectral(family.matrix[:, few:, :few])
    meta, elsewhere, last = rated(family, w, rates)[0], *rated(family, u, rates)
    sizes, gaps = norm(last[..., :few], axis=-1), norm(w - u, axis=-1)
    columns = (family.alpha, family.L, family.steps, lam, np.maximum(mu, -lam), c, mixed)
    bounds = [t.adapted_smoothness(t.Expansion(*row[:5]), row[5], row[1], sizes[k], mixed=row[6])
              for k, row in enumerate(zip(*(a.tolist() for a in columns), strict=True))]  # fmt: skip
    return out | {"frozen": norm(meta - elsewhere, axis=-1) / (np.array(bounds) * gaps)}


def convergence(t, rng, case, n=1100, dim=1, tasks=3, iterations=10, seeds=4, most=64):
    """Runs with the outer step by adapted gradients: mean square of the meta-gradient over its bound."""
    finite = case == "finite-sum"
    family = random_family(
        rng, n, dim, tasks, contracted=False, definite=True, finite_sum=finite, two_sided=True, highest=1.0, most=most
    )
    sizes = [rng.integers(1, 6, n) for _ in range(2)]
    sizes += [] if finite else [rng.integers(1, 20, n) for _ in range(4)]
    w = random_points(rng, family)
    at = np.broadcast_to(w, family.target[0].shape)
    gap, paths = family.meta_loss(at) - family.lower_bound, family.paths(t)
    slope = np.array([t.jacobian_lipschitz(p, c) for p, c in zip(paths, family.amplitude.tolist(), strict=True)])
    q = np.array([p.q for p in paths])
    # A larger L than the least keeps the spread of the outer step small.
    large = np.maximum(family.L, 2 * slope * norm(family.gradient(family.target, family.adapted(at)[0]), axis=-1).max(1) / q)
    C = 0.5 + rng.uniform(0.2, 2, n) if finite else 4 + rng.uniform(0, 2, n)
    known = [replace(c, L=float(x)) for c, x in zip(family.constants(t, gap), large, strict=True)]
    own = np.zeros(n)
    if not finite:
        own = np.array([x * t.path_error(p, c, p.steps, s)
                        for x, p, c, s in zip(large.tolist(), paths, known, sizes[2].tolist(), strict=True)])  # fmt: skip
    return _run(t, rng, family, w, known, (q * large, slope, own, C), sizes, iterations, seeds, case)


def _run(t, rng, family, w, known, outer, sizes, iterations, seeds, case):
    finite, big, w = case == "finite-sum", family.repeated(seeds), np.repeat(w, seeds, 0)
    floor, slope, own, C = (np.repeat(a, seeds) for a in outer)
    wide = [np.repeat(a, seeds) for a in sizes]
    seen, total = np.zeros((3, len(C))), np.zeros(len(C))
    for _ in range(iterations):
        end, product = big.adapted(w)
        last = big.gradient(big.target, end)
        each, size = np.einsum("nmab,nmb->nma", product, last), norm(last, axis=-1)
        mean = each.mean(1)
        spread = np.sqrt(np.mean(np.sum((each - mean[:, None]) ** 2, -1), 1))
        seen = np.maximum(seen, [np.sqrt(np.mean(size**2, 1)), spread, size.std(1)])
        total += np.sum(mean**2, -1) / iterations
        if finite:
            step = _masked(np.take_along_axis(each, _chosen(rng, big, wide[0].max())[..., None], 1), wide[0])
            measured = _masked(np.take_along_axis(size, _chosen(rng, big, wide[1].max()), 1), wide[1])
        else:
            B, B_L, S, D, T, D_L = wide
            step, (_, measured) = sampled(rng, big, w, B, S, T, D)[0], sampled(rng, big, w, B_L, S, D_L)
        w = w - step[:, None] / (C * (floor + slope * (own + measured)))[:, None, None]
    seen, means = seen.reshape(3, -1, seeds).max(2).T.tolist(), total.reshape(-1, seeds)
    names = ("tasks_per_step", "smoothness_tasks", "step_samples", "curvature_samples", "target_samples", "smoothness_samples")
    ratios, allowed = [], []
    sure = means.mean(1) - 4 * means.std(1, ddof=1) / np.sqrt(seeds)
    for k, (A, spread, of_norms) in enumerate(seen):
        try:
            bound = t.adapted_convergence(
                known[k], float(family.alpha[k]), int(family.steps[k]), adapted_gradient=A, spread=spread,
                norm_spread=of_norms, iterations=iterations, C_beta=float(outer[3][k]), case=case,
                **{name: int(a[k]) for name, a in zip(names, sizes, strict=False)},
            )  # fmt: skip
        except InputError:
            continue
        ratios.append(means[k].mean() / bound.R)
        allowed.append(sure[k] / bound.R)
    return {"square": np.array(ratios), "allowed": np.array(allowed)}
