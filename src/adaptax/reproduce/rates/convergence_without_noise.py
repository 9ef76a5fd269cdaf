r"""(a) Convergence without noise: the mean of $\varphi(\|\nabla\mathcal L\|)$ against K, beside the theorem's bound."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from adaptax import theory
from adaptax.report.rows import by_seed, distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row
from adaptax.reproduce.page_text import listed
from adaptax.reproduce.rates.fits import slope
from adaptax.reproduce.rates.problems import (
    C_BETA,
    CASES,
    COSINE,
    FINITE,
    GAMMA,
    QUADRATIC,
    Exact,
    constants_of,
    descend,
    pool_of,
    problem_of,
    starts,
)

ITERATIONS, STEPS = 10_000, 5
PART, MEAN, LEAST = "noise-free", "mean phi", "least square"
# Squares of gradients below the first number are rounding errors; above the second, a run has not come near its minimum.
_ROUNDED, _NEAR = 1e-25, 1e-3
# A slope in K is taken for -1 if it is at most the first number away; a fit is taken for straight from this R² on.
_ONE, _STRAIGHT = 0.05, 0.99


def measure(seeds: int, iterations: int = ITERATIONS) -> Iterator[Row]:
    r"""The mean of $\varphi(\|\nabla\mathcal L\|)$ and the least $\|\nabla\mathcal L\|^2$ over k < K, beside their bounds."""
    marks = np.unique(np.geomspace(1, iterations, 40).astype(int))
    for name in (COSINE, QUADRATIC):
        for case in CASES:
            pool = pool_of(name)
            c, exact = constants_of(pool, case), Exact(problem_of(pool, case), STEPS)
            alpha = theory.guaranteed_alpha(c.L, STEPS, GAMMA)
            w = starts(seeds)
            gaps = np.array([float(exact(start, jnp.asarray(alpha))[0]) - pool.lower_bound for start in w])
            norms = np.asarray(descend(exact, c, w, jnp.asarray(alpha), iterations)[1])
            for seed in range(seeds):
                known = theory.Constants(c.L, c.rho, c.sigma, c.sigma_g, c.sigma_H, c.b, gap=gaps[seed])
                for k in marks:
                    bound = _endless(case, known, alpha, int(k))
                    phi = norms[seed, :k] ** 2 / (bound.a + bound.c * norms[seed, :k])
                    row = {"part": PART, "problem": name, "case": case, "steps": STEPS, "seed": seed, "x": int(k)}
                    yield row | {"measure": MEAN, "value": float(phi.mean()), "bound": bound.R}
                    yield row | {"measure": "mean square", "value": float((norms[seed, :k] ** 2).mean())}
                    least = float(norms[seed, :k].min() ** 2)
                    yield row | {"measure": LEAST, "value": least, "bound": bound.gradient**2}


def _endless(case: str, c: theory.Constants, alpha: float, iterations: int) -> theory.Bound:
    """The theorem's bound for batches without end."""
    sizes = {"iterations": iterations, "tasks_per_step": math.inf, "smoothness_tasks": math.inf, "C_beta": C_BETA}
    if case == FINITE:
        return theory.finite_sum(c, alpha, STEPS, **sizes)
    more = dict.fromkeys(("step_samples", "curvature_samples", "target_samples", "smoothness_samples"), math.inf)
    return theory.resampling(c, alpha, STEPS, **sizes, **more)


def section(rows: list[Row]) -> str:
    """The section of the page."""
    body, ratios, slopes, factors = [], {MEAN: [], LEAST: []}, [], []
    for problem, case in distinct(rows, "problem", "case"):
        run = pick(rows, problem=problem, case=case)
        found = {measure: by_seed(pick(run, measure=measure), "x") for measure in ratios}
        bounds = {measure: by_seed(pick(run, measure=measure), "x", "bound")[1] for measure in ratios}
        for measure, (_, values) in found.items():
            ratios[measure].append(values / bounds[measure])
        x, values = found[MEAN]
        late, bound, ratio = x >= x.max() / 30, bounds[MEAN], values / bounds[MEAN]
        slopes.append(slope(x[late], values[late]))
        factors.append(_factor(*found[LEAST]))
        body.append([
            problem, case, f"{np.median(values[-1]):.3g} / {np.median(bound[-1]):.3g}", str(slopes[-1]),
            str(slope(x[late], bound[late])), f"{np.median(ratio):.2f}, {ratio.max():.2f}",
            f"{np.median(found[LEAST][1][-1]):.1g}",
        ])  # fmt: skip
    header = [
        "problem", "case", "mean φ / bound at the last K", "slope in K", "slope of the bound", "ratio: median, largest",
        "least ‖∇L‖²",
    ]  # fmt: skip
    names = {MEAN: "the mean of φ", LEAST: "the least ‖∇L‖²"}
    sentences = [_holds(names[measure], np.concatenate(ratio, axis=None)) for measure, ratio in ratios.items()]
    if all(abs(one.mean + 1) <= _ONE for one in slopes):
        sentences.append(
            "A slope of −1 of the mean is no evidence by itself, since the mean of any summable sequence has it; the constant "
            "is."
        )
    if None not in factors:
        told = listed(f"{factor:.3f}" for factor in factors)
        sentences.append(
            f"The least ‖∇L‖² falls geometrically, by the factors {told} a meta-step in the order of the table, as in gradient "
            "descent near a minimum at which the loss is strongly convex. The bound, of order 1/K, knows of no such minimum."
        )
    return (
        "## Without noise\n\nAll tasks in every meta-step, exact smoothness. The theorem promises that the mean over k < K of "
        "φ(‖∇L‖), φ(y) = y²/(a + cy), is at most R = C_βΔ/(κK), with Δ from a lower bound of the meta-loss.\n\n"
        f"![Convergence without noise](noise-free.png)\n\n{markdown(header, body)}\n\n" + " ".join(sentences)
    )


def _holds(name: str, ratios: np.ndarray) -> str:
    """A sentence that says whether all ratios of measured numbers to their bounds are at most 1."""
    above = int(np.sum(~(ratios <= 1)))
    if not above:
        return f"The bound on {name} holds everywhere; the largest ratio of measured to bound is {ratios.max():.2f}."
    return f"The bound on {name} is exceeded at {above} of {ratios.size} points, by a factor of up to {ratios.max():.3g}."


def _factor(x: np.ndarray, values: np.ndarray) -> float | None:
    """The factor by which the median over seeds falls in a meta-step near the minimum, or None if the fall is not geometric."""
    middle = np.median(values, axis=1)
    near = (middle < _NEAR) & (middle > _ROUNDED)
    if np.sum(near) < 4:
        return None
    k, logs = x[near], np.log(middle[near])
    rate, level = np.polyfit(k, logs, 1)
    straight = 1 - np.var(logs - rate * k - level) / np.var(logs)
    return float(np.exp(rate)) if rate < 0 and straight >= _STRAIGHT else None
