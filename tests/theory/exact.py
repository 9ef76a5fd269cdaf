"""The quantities that sections 4 and 5 bound, measured on random problems: the ratio measured / bound for each bound.

Every function takes the theory's functions as a namespace t, so that a mutated theory can be measured too.
"""

import types

import numpy as np
from scipy.integrate import solve_ivp
from theory.instances import random_family, random_points

SHAPES = ((1, 1, 300), (1, 3, 250), (2, 8, 250), (3, 2, 200), (6, 2, 60))
norm = np.linalg.norm


def spectral(matrices):
    return norm(matrices, 2, axis=(-2, -1))


def gather(parts):
    return {name: np.concatenate([np.ravel(part[name]) for part in parts]) for name in parts[0]}


def column(values, shape):
    """One number for each problem, repeated for all its tasks."""
    return np.broadcast_to(np.asarray(values)[:, None], shape)


def geometry(t, rng, finite_sum, two_sided=False):
    """Bounds that hold for any q, for near and far points: distances, products, targets, smoothness, shifts."""
    return gather([_geometry(t, rng, finite_sum, two_sided, *shape) for shape in SHAPES])


def _geometry(t, rng, finite_sum, two_sided, dim, tasks, n):
    family = random_family(rng, n, dim, tasks, contracted=False, finite_sum=finite_sum, two_sided=two_sided)
    w = random_points(rng, family)
    step = rng.standard_normal(w.shape)
    u = w + step / norm(step, axis=-1, keepdims=True) * (10 ** rng.uniform(-3, 1, n))[:, None, None]
    shape, paths, rho = (n, tasks), family.paths(t), family.amplitude.tolist()
    apart = column(norm(w - u, axis=-1)[:, 0], shape)
    (w_end, w_product), (u_end, u_product) = family.adapted(w), family.adapted(u)
    there = np.broadcast_to(w, w_end.shape)
    support, target = family.gradient(family.support, there), family.gradient(family.target, there)
    size, gaps = norm(target, axis=-1), norm(support - target, axis=-1)
    end, spread = column([t.iterate_distance(p, p.steps) for p in paths], shape), family.b.tolist()
    meta, elsewhere = family.meta_gradients(w), family.meta_gradients(u)
    lipschitz = column([t.jacobian_lipschitz(p, c) for p, c in zip(paths, rho, strict=True)], shape)
    mean = size.mean(1).tolist()
    smooth = [t.smoothness(p, c, g, b) for p, c, g, b in zip(paths, rho, mean, spread, strict=True)]

    adapted = norm(family.gradient(family.target, u_end), axis=-1)
    L = family.L.tolist()

    def by_adapted(gradients):
        return np.array([t.adapted_smoothness(p, *row) for p, *row in zip(paths, rho, L, gradients, strict=True)])

    def rows(bound):
        return np.array([bound(p, size[k], gaps[k]) for k, p in enumerate(paths)])

    return {
        "iterate_distance": norm(w_end - u_end, axis=-1) / (end * apart),
        "gradient_growth": norm(family.gradient(family.support, w_end), axis=-1) / (end * norm(support, axis=-1)),
        "jacobian_norm": spectral(w_product) / column([t.jacobian_norm(p) for p in paths], shape),
        "jacobian_lipschitz": spectral(w_product - u_product) / (lipschitz * apart),
        "target_gradient": norm(family.gradient(family.target, w_end), axis=-1) / rows(t.target_gradient),
        "smoothness": norm((meta - elsewhere).mean(1), axis=-1) / (np.array(smooth) * apart[:, 0]),
        "adaptation_shift": norm(meta - target, axis=-1) / rows(t.adaptation_shift),
        "adapted_smoothness": norm(meta - elsewhere, axis=-1) / (by_adapted(adapted) * apart),
        "adapted_smoothness of all tasks": norm((meta - elsewhere).mean(1), axis=-1)
        / (by_adapted(adapted.mean(1)) * apart[:, 0]),
    }


def control(t, rng, finite_sum, two_sided=False):
    """Bounds by the meta-gradient, which need q < 2, or alpha L S_2N < 1."""
    return gather([_control(t, rng, finite_sum, two_sided, *shape) for shape in SHAPES])


def _control(t, rng, finite_sum, two_sided, dim, tasks, n):
    family = random_family(rng, n, dim, tasks, contracted=True, finite_sum=finite_sum, two_sided=two_sided)
    w = np.broadcast_to(random_points(rng, family), family.target[0].shape)
    meta, gradients = family.meta_gradients(w), family.gradient(family.target, w)
    total = norm(meta.mean(1), axis=-1)
    args = list(zip(family.paths(t), family.constants(t), total.tolist(), strict=True))
    return {
        "mean_gradient": norm(gradients.mean(1), axis=-1) / [t.mean_gradient(*a) for a in args],
        "gradient_norm": norm(gradients, axis=-1).mean(1) / [t.gradient_norm(*a) for a in args],
        "task_spread": np.sqrt(np.mean(np.sum((meta - meta.mean(1, keepdims=True)) ** 2, -1), 1))
        / [t.task_spread(*a) for a in args],
    }


def flow(t, rng, n=1000):
    """The distance to gradient flow, which is integrated to about twelve digits."""
    family = random_family(rng, n, 1, 1, contracted=False, finite_sum=False)
    w = random_points(rng, family)
    end, _ = family.adapted(w)
    # Time is rescaled so that every flow takes one unit of it.
    rate = (family.alpha * family.steps)[:, None, None]

    def slope(_, y):
        return (-rate * family.gradient(family.target, y.reshape(w.shape))).ravel()

    exact = solve_ivp(slope, (0, 1), w.ravel(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    gradient = np.abs(family.gradient(family.target, w)).ravel().tolist()
    bounds = [t.flow_distance(p, g) for p, g in zip(family.paths(t), gradient, strict=True)]
    return {"flow_distance": np.abs(end.ravel() - exact) / bounds}


def tooth(z):
    """The integral from the left of a tent that rises from -1 to 1 with slope 1 and falls to 0 at 3."""
    rising, falling = (np.clip(z, -1, 1) + 1) ** 2 / 2, 2 - (3 - np.clip(z, 1, 3)) ** 2 / 2
    return rising + falling


def sawtooth(t, gamma=0.3, L=1.7, rho=3.0, b=0.4):
    """The losses of section 4 which show that its constants cannot be improved: l'' = -L except for teeth on the path."""
    family = types.SimpleNamespace(N=np.array([1, 2, 3, 5, 8, 16, 64]))
    alpha = gamma / (family.N * L)
    start, target = 2.0, 2.0 - b
    nodes = np.arange(family.N.max())
    # Without teeth l'(x) is start - L x, and the path from 0 has these points.
    centres = -((1 + alpha * L)[:, None] ** nodes - 1) * start / L
    width = 1e-4 * alpha * start
    high = rho * width[:, None] ** 2
    used = nodes < family.N[:, None]

    def slope(x):
        return start - L * x + np.sum(used * high * tooth((x[:, None] - centres) / width[:, None]), 1)

    def bend(x):
        z = (x[:, None] - centres) / width[:, None]
        tent = np.clip(np.minimum(z + 1, 3 - z), 0, None)
        return -L + np.sum(used * rho * width[:, None] * tent, 1)

    def adapted(x):
        product = np.ones_like(x)
        for j in range(family.N.max()):
            now = j < family.N
            product, x = np.where(now, product * (1 - alpha * bend(x)), product), np.where(now, x - alpha * slope(x), x)
        return x, product

    w, u = np.zeros(len(alpha)), width / 4
    paths = [t.Expansion(a, L, n) for a, n in zip(alpha.tolist(), family.N.tolist(), strict=True)]
    (w_end, w_product), (u_end, u_product) = adapted(w), adapted(u)
    # The slope of the target loss is that of the support loss minus b, and target = l_T'(w).
    meta = w_product * (slope(w_end) - b), u_product * (slope(u_end) - b)
    apart = np.abs(w - u)

    def each(bound, *args):
        return np.array([bound(p, *args) for p in paths])

    return {
        "iterate_distance": np.abs(w_end - u_end) / (each(lambda p: t.iterate_distance(p, p.steps)) * apart),
        "gradient_growth": slope(w_end) / (each(lambda p: t.iterate_distance(p, p.steps)) * start),
        "jacobian_norm": w_product / each(t.jacobian_norm),
        "jacobian_lipschitz": np.abs(w_product - u_product) / (each(t.jacobian_lipschitz, rho) * apart),
        "target_gradient": (slope(w_end) - b) / each(t.target_gradient, target, b),
        "smoothness": np.abs(meta[0] - meta[1]) / (each(t.smoothness, rho, target, b) * apart),
        "adaptation_shift": (meta[0] - target) / each(t.adaptation_shift, target, b),
    }


def parabolas(t, gamma=0.02, L=1.7):
    """Quadratics for the bounds by the meta-gradient, which are attained as q -> 1, and the flow's, as gamma/N -> 0."""
    steps = np.array([1, 2, 8, 64])
    paths = [t.Expansion(t.guaranteed_alpha(L, n, gamma), L, n) for n in steps.tolist()]
    alone = t.Constants(L=L, rho=0.0, sigma=0.0)
    spread = t.Constants(L=L, rho=0.0, sigma=0.8)
    shrunk = [(1 - p.alpha * L) ** (2 * p.steps) for p in paths]
    # Two tasks whose gradients at w are 0.8 and -0.8: the meta-gradients are q times those where l'' = -L.
    grown = [(1 + p.alpha * L) ** p.steps for p in paths]
    flowed = [np.exp(p.alpha * p.steps * L) for p in paths]
    return {
        "mean_gradient": np.array([1 / t.mean_gradient(p, alone, s) for p, s in zip(paths, shrunk, strict=True)]),
        "gradient_norm": np.array([1 / t.gradient_norm(p, alone, s) for p, s in zip(paths, shrunk, strict=True)]),
        "task_spread": np.array([0.8 * r**2 / t.task_spread(p, spread, 0.0) for p, r in zip(paths, grown, strict=True)]),
        "flow_distance": np.array(
            [(f - r) / L / t.flow_distance(p, 1.0) for p, f, r in zip(paths, flowed, grown, strict=True)]
        ),
    }
