r"""(b) The floor: the mean of $\|\nabla\mathcal L\|^2$ once training has settled, against B, S and T."""

from collections.abc import Iterator

import jax.numpy as jnp

import adaptax as ax
from adaptax import theory
from adaptax.report.rows import by_seed, distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row
from adaptax.reproduce.rates.fits import slope
from adaptax.reproduce.rates.problems import (
    COSINE,
    FINITE,
    GAMMA,
    QUADRATIC,
    RESAMPLING,
    Exact,
    Scales,
    adaptive,
    constants_of,
    descend,
    method,
    pool_of,
    problem_of,
    simulate,
    starts,
)

ITERATIONS, STEPS = 2_500, 5
PART = "floor"
SIZES = tuple(2**k for k in range(7))
# The size of all samples where B varies, and the steps without noise by which a run comes near the minimum first.
SAMPLES, _SETTLING = 64, 2000
_PREDICTED = -1


def measure(seeds: int, iterations: int = ITERATIONS) -> Iterator[Row]:
    r"""The mean of $\|\nabla\mathcal L\|^2$ over the second half of a run that begins near the minimum."""
    for name in (COSINE, QUADRATIC):
        for case, what in ((FINITE, "B"), (RESAMPLING, "B"), (RESAMPLING, "S"), (RESAMPLING, "T")):
            # Against S and T there is one task, so that samples alone are random.
            pool = pool_of(name) if what == "B" else pool_of(name, tasks=1)
            c, exact = constants_of(pool, case), Exact(problem_of(pool, case), STEPS)
            alpha = theory.guaranteed_alpha(c.L, STEPS, GAMMA)
            settled, _ = descend(exact, c, starts(seeds), jnp.asarray(alpha), _SETTLING)
            outer = adaptive(c)
            for size in SIZES:
                scales = Scales.of(SAMPLES, SAMPLES, SAMPLES, SAMPLES) if what == "B" else _only(what, size)
                problem = problem_of(pool, case, scales)
                step = ax.make_step(problem, method(STEPS, alpha), outer, tasks_per_step=size if what == "B" else 1)
                runs = simulate(step, exact, settled, alpha, 2 * iterations)
                for seed, norms in enumerate(runs.gradient[:, iterations:]):
                    row = {"part": PART, "problem": name, "case": case, "steps": STEPS, "seed": seed, "measure": what}
                    yield row | {"x": size, "value": float((norms**2).mean())}


def _only(what: str, size: int) -> Scales:
    """The scales at which S or T alone is finite."""
    return Scales.of(step=size) if what == "S" else Scales.of(target=size)


def section(rows: list[Row]) -> str:
    """The section of the page."""
    body, slopes = [], []
    for problem in distinct(rows, "problem"):
        for case, size in distinct(rows, "case", "measure"):
            slopes.append(slope(*by_seed(pick(rows, problem=problem, case=case, measure=size), "x")))
            body.append([problem, case, size, str(slopes[-1]), "−1"])
    off = max(abs(one.mean - _PREDICTED) for one in slopes)
    inside = sum(abs(one.mean - _PREDICTED) <= one.half for one in slopes)
    return (
        "## The floor\n\nThe mean of ‖∇L‖² once training has settled, from tasks and samples that are drawn. Against B, "
        f"S = D = T = D_L = {SAMPLES}; against S and T there is one task, and the other sizes are infinite.\n\n"
        f"![Floors](floors.png)\n\n{markdown(['problem', 'case', 'against', 'slope', 'predicted'], body)}\n\n"
        f"The slopes differ from −1 by at most {off:.2g}; {inside} of {len(slopes)} intervals contain −1."
    )
