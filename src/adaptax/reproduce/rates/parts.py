"""The measurements: convergence without noise, floors, cost against N, bias and second moment."""

import math
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptax as ax
from adaptax import theory
from adaptax.reproduce.files import Row
from adaptax.reproduce.rates.problems import (
    CASES,
    COSINE,
    FINITE,
    PURPOSES,
    QUADRATIC,
    RESAMPLING,
    SMOOTHNESS,
    Exact,
    Scales,
    constants_of,
    descend,
    pool_of,
    problem_of,
    simulate,
    starts,
)

GAMMA, C_BETA = 1 / 8, 2.0
GUARANTEED, FIXED, EDGE = "α = 1/(8NL)", "α = 1/(8L)", "α = 1/L (Edge)"
ADAPTIVE, CONSTANT = "adaptive β", "constant β"
EPSILON = 0.1
COST_SIZES = {FINITE: {"tasks_per_step": 16}, RESAMPLING: {"tasks_per_step": 16, "curvature": 4, "target": 64}}


def method(steps: int, alpha: float) -> ax.MetaGradient:
    """Exact products; samples as the draws of the experiment know them."""
    return ax.MetaGradient(ax.Inner(steps, alpha), samples=PURPOSES)


def adaptive(constants: theory.Constants, tasks: int = 8) -> ax.stepsize.AdaptiveOuter:
    """The theorems' outer step with known constants."""
    return ax.stepsize.AdaptiveOuter(constants, C_BETA, tasks, samples=SMOOTHNESS)


def without_noise(seeds: int, iterations: int, steps: int = 5) -> Iterator[Row]:
    r"""(a) Mean of $\varphi(\|\nabla\mathcal L\|)$ and least $\|\nabla\mathcal L\|^2$ over k < K, beside the bounds on them."""
    marks = np.unique(np.geomspace(1, iterations, 40).astype(int))
    for name in (COSINE, QUADRATIC):
        for case in CASES:
            pool = pool_of(name)
            c, exact = constants_of(pool, case), Exact(problem_of(pool, case), steps)
            alpha = theory.guaranteed_alpha(c.L, steps, GAMMA)
            w = starts(seeds)
            gaps = np.array([float(exact(start, jnp.asarray(alpha))[0]) - pool.lower_bound for start in w])
            norms = np.asarray(descend(exact, c, w, jnp.asarray(alpha), iterations)[1])
            for seed in range(seeds):
                known = theory.Constants(c.L, c.rho, c.sigma, c.sigma_g, c.sigma_H, c.b, gap=gaps[seed])
                for k in marks:
                    bound = _endless(case, known, alpha, steps, int(k))
                    phi = norms[seed, :k] ** 2 / (bound.a + bound.c * norms[seed, :k])
                    row = {"part": "noise-free", "problem": name, "case": case, "steps": steps, "seed": seed, "x": int(k)}
                    yield row | {"measure": "mean phi", "value": float(phi.mean()), "bound": bound.R}
                    yield row | {"measure": "mean square", "value": float((norms[seed, :k] ** 2).mean())}
                    least = float(norms[seed, :k].min() ** 2)
                    yield row | {"measure": "least square", "value": least, "bound": bound.gradient**2}


def _endless(case: str, c: theory.Constants, alpha: float, steps: int, iterations: int) -> theory.Bound:
    """The bound for batches without end."""
    sizes = {"iterations": iterations, "tasks_per_step": math.inf, "smoothness_tasks": math.inf, "C_beta": C_BETA}
    if case == FINITE:
        return theory.finite_sum(c, alpha, steps, **sizes)
    more = dict.fromkeys(("step_samples", "curvature_samples", "target_samples", "smoothness_samples"), math.inf)
    return theory.resampling(c, alpha, steps, **sizes, **more)


def floors(seeds: int, iterations: int, steps: int = 5) -> Iterator[Row]:
    r"""(b) The mean of $\|\nabla\mathcal L\|^2$ once training has settled, against B, S and T."""
    sizes = [2**k for k in range(7)]
    for name in (COSINE, QUADRATIC):
        for case, what in ((FINITE, "B"), (RESAMPLING, "B"), (RESAMPLING, "S"), (RESAMPLING, "T")):
            # Against S and T there is one task, so that samples alone are random.
            pool = pool_of(name) if what == "B" else pool_of(name, tasks=1)
            c, exact = constants_of(pool, case), Exact(problem_of(pool, case), steps)
            alpha = theory.guaranteed_alpha(c.L, steps, GAMMA)
            settled, _ = descend(exact, c, starts(seeds), jnp.asarray(alpha), 2000)
            outer = adaptive(c)
            for size in sizes:
                known = {"step": 64, "curvature": 64, "target": 64, "smoothness": 64} if what == "B" else {what: size}
                names = {"S": "step", "T": "target"}
                drawn = Scales.of(**{names.get(key, key): value for key, value in known.items()})
                problem = problem_of(pool, case, drawn)
                step = ax.make_step(problem, method(steps, alpha), outer, tasks_per_step=size if what == "B" else 1)
                runs = simulate(step, exact, settled, alpha, 2 * iterations)
                for seed, norms in enumerate(runs.gradient[:, iterations:]):
                    row = {"part": "floor", "problem": name, "case": case, "steps": steps, "seed": seed, "measure": what}
                    yield row | {"x": size, "value": float((norms**2).mean())}


def costs(seeds: int, iterations: int, largest: int = 64) -> Iterator[Row]:
    r"""(c) Oracle calls until $\|\nabla\mathcal L(w_k)\| \le \varepsilon$ for the first time, against N.

    Resampling: S falls as 64/N, as the bound on the bias allows, or is 16 throughout.
    """
    for case in CASES:
        pool = pool_of(COSINE)
        c = constants_of(pool, case)
        w = starts(seeds)
        outers = {ADAPTIVE: adaptive(c), CONSTANT: optax.sgd(1 / (C_BETA * math.exp(2 * GAMMA) * c.L))}
        for steps in (2**k for k in range(int(math.log2(largest)) + 1)):
            exact = Exact(problem_of(pool, case), steps)
            rules = {GUARANTEED: GAMMA / (steps * c.L), FIXED: GAMMA / c.L, EDGE: 1 / c.L}
            for label, S in {FINITE: [("", 1)], RESAMPLING: [("S = 64/N", 64 / steps), ("S = 16", 16)]}[case]:
                scales = Scales.of(S, COST_SIZES[case].get("curvature", 1), COST_SIZES[case].get("target", 1), 16)
                problem, B = problem_of(pool, case, scales), COST_SIZES[case]["tasks_per_step"]
                for outer_name, outer in outers.items():
                    step = ax.make_step(problem, method(steps, 0.1), outer, tasks_per_step=B)
                    for rule, alpha in rules.items():
                        if label == "S = 16" and (rule, outer_name) != (GUARANTEED, ADAPTIVE):
                            continue
                        runs = simulate(step, exact, w, alpha, iterations)
                        price = _price(case, steps, B, S, outer_name == ADAPTIVE)
                        for seed in range(seeds):
                            row = {
                                "part": "cost",
                                "problem": COSINE,
                                "case": case,
                                "steps": steps,
                                "seed": seed,
                                "alpha": alpha,
                            }
                            row |= {"rule": rule, "outer": outer_name, "samples": label}
                            yield row | _reached(runs.gradient[seed], price)
        for steps in (2**k for k in range(int(math.log2(largest)) + 1)):
            gap = float(Exact(problem_of(pool, case), steps)(w[0], jnp.asarray(GAMMA / (steps * c.L)))[0]) - pool.lower_bound
            known = theory.Constants(c.L, c.rho, c.sigma, c.sigma_g, c.sigma_H, c.b, gap=gap)
            plan = theory.plan(known, epsilon=EPSILON, steps=steps, case=case, gamma=GAMMA)
            yield {"part": "plan", "case": case, "steps": steps, "x": plan.iterations, "value": float(plan.oracle_calls)}


def _price(case: str, steps: int, B: int, S: float, measured: bool) -> float:
    """Oracle calls of a meta-step: gradients and Hessian-vector products, also for the smoothness where it is measured."""
    if case == FINITE:
        return B * (2 * steps + 1) + 8 * measured
    sizes = COST_SIZES[case]
    return B * (steps * max(S, 1.0) + sizes["target"] + steps * sizes["curvature"]) + 8 * 16 * measured


def _reached(norms: np.ndarray, price: float) -> Row:
    below = np.flatnonzero(norms <= EPSILON)
    lost = not np.all(np.isfinite(norms))
    if not len(below):
        return {"measure": "diverged" if lost else "not reached"}
    return {"measure": "reached", "x": int(below[0]), "value": float(max(below[0], 1) * price)}


def moments(draws: int) -> Iterator[Row]:
    r"""(d) $\|E\hat G_i - \nabla\mathcal L_i\|$ and $E\|\hat G_i\|^2$ of one task, beside their bounds, over N, S and D.

    Each draw is made with the noise of the steps, with its opposite, and with none, all with the same samples of Hessians and
    last gradient. The last has the mean $\nabla\mathcal L_i$: the mean of the first two less the last has the bias for its
    mean, and little variance.
    """
    grid = [(n, 4.0, 4.0) for n in (1, 2, 4, 8, 16, 32)]
    grid += [(8, s, 4.0) for s in (1.0, 16.0, 64.0)] + [(8, 4.0, d) for d in (1.0, 16.0)]
    pool = pool_of(COSINE, tasks=1, noise=(1.0, 1.0))
    c, w = constants_of(pool, RESAMPLING), starts(1, key=1)[0]
    task = jax.tree.map(lambda leaf: leaf[0], pool.tasks.target)
    gradient = float(jnp.linalg.norm(jax.grad(pool.finite_sum.loss)(w, task)))
    for steps, S, D in grid:
        alpha = theory.guaranteed_alpha(c.L, steps, GAMMA)
        path = theory.Expansion(alpha, c.L, steps)
        bias, error, square, square_error = map(
            float, _moments(method(steps, alpha), pool, w, task, Scales.of(S, D, 4.0), draws)
        )
        row = {"part": "moments", "problem": COSINE, "case": RESAMPLING, "steps": steps, "S": S, "D": D, "alpha": alpha}
        yield row | {"measure": "bias", "value": bias, "error": error, "bound": theory.bias(path, c, gradient, S)}
        bound = theory.second_moment(path, c, gradient, S, D, 4.0)
        yield row | {"measure": "second moment", "value": square, "error": square_error, "bound": bound}


@eqx.filter_jit
def _moments(method, pool, w, task, scales, draws):
    variants = [scales._replace(step=factor * scales.step) for factor in (1.0, -1.0, 0.0)]

    def one(key):
        plus, minus, none = (method.one_task(problem_of(pool, RESAMPLING, v), w, task, key)[1] for v in variants)
        return (plus + minus) / 2 - none, jnp.sum(plus**2)

    # In groups, for memory.
    keys = jax.random.split(jax.random.key(0), (16, draws // 16))
    difference, squares = jax.lax.map(jax.vmap(one), keys)
    difference, squares = difference.reshape(-1, w.shape[0]), squares.ravel()
    mean, count = difference.mean(0), squares.shape[0]
    error = jnp.sqrt(jnp.sum(difference.var(0)) / count)
    return jnp.linalg.norm(mean), error, squares.mean(), squares.std() / jnp.sqrt(count)
