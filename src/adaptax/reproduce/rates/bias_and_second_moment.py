r"""(d) Bias and second moment: $\|E\hat G_i - \nabla\mathcal L_i\|$ and $E\|\hat G_i\|^2$ of one task, beside their bounds."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adaptax import theory
from adaptax.report.rows import pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row
from adaptax.reproduce.rates.fits import slope
from adaptax.reproduce.rates.problems import (
    COSINE,
    GAMMA,
    RESAMPLING,
    Scales,
    constants_of,
    method,
    pool_of,
    problem_of,
    starts,
)

# Draws are made in groups, for memory.
DRAWS, GROUPS = 4_000, 16
PART, BIAS, SECOND = "moments", "bias", "second moment"
NOISE, T = (1.0, 1.0), 4.0
# N, S and D take the first values where another one varies, and the second ones where they vary themselves.
AT_STEPS, AT_S, AT_D = 8, 4.0, 4.0
STEPS, S_VARIED, D_VARIED = (1, 2, 4, 8, 16, 32), (1.0, 16.0, 64.0), (1.0, 16.0)
# The fit over N begins here, since the bound's power holds from two steps on.
_FIRST = 2
# A measured power of S is taken for -1 if it is at most this far away.
_ONE = 0.1


def measure(draws: int = DRAWS * GROUPS) -> Iterator[Row]:
    r"""Bias and second moment over N, S and D.

    Each draw is made with the noise of the steps, with its opposite, and with none, all with the same samples of Hessians and
    last gradient. The last has the mean $\nabla\mathcal L_i$, so that the mean of the first two minus the last has the bias for
    its mean, and little variance.
    """
    grid = [(n, AT_S, AT_D) for n in STEPS]
    grid += [(AT_STEPS, s, AT_D) for s in S_VARIED] + [(AT_STEPS, AT_S, d) for d in D_VARIED]
    pool = pool_of(COSINE, tasks=1, noise=NOISE)
    c, w = constants_of(pool, RESAMPLING), starts(1, key=1)[0]
    task = jax.tree.map(lambda leaf: leaf[0], pool.tasks.target)
    gradient = float(jnp.linalg.norm(jax.grad(pool.finite_sum.loss)(w, task)))
    for steps, S, D in grid:
        alpha = theory.guaranteed_alpha(c.L, steps, GAMMA)
        path = theory.Expansion(alpha, c.L, steps)
        found = _moments(method(steps, alpha), pool, w, task, Scales.of(S, D, T), draws)
        bias, error, square, square_error = map(float, found)
        row = {"part": PART, "problem": COSINE, "case": RESAMPLING, "steps": steps, "S": S, "D": D, "alpha": alpha}
        yield row | {"measure": BIAS, "value": bias, "error": error, "bound": theory.bias(path, c, gradient, S)}
        bound = theory.second_moment(path, c, gradient, S, D, T)
        yield row | {"measure": SECOND, "value": square, "error": square_error, "bound": bound}


@eqx.filter_jit
def _moments(method, pool, w, task, scales, draws):
    """The norm of the mean difference and the mean square, each with its standard error."""
    variants = [scales._replace(step=factor * scales.step) for factor in (1.0, -1.0, 0.0)]

    def one(key):
        plus, minus, none = (method.one_task(problem_of(pool, RESAMPLING, v), w, task, key)[1] for v in variants)
        return (plus + minus) / 2 - none, jnp.sum(plus**2)

    keys = jax.random.split(jax.random.key(0), (GROUPS, draws // GROUPS))
    difference, squares = jax.lax.map(jax.vmap(one), keys)
    difference, squares = difference.reshape(-1, w.shape[0]), squares.ravel()
    mean, count = difference.mean(0), squares.shape[0]
    error = jnp.sqrt(jnp.sum(difference.var(0)) / count)
    return jnp.linalg.norm(mean), error, squares.mean(), squares.std() / jnp.sqrt(count)


def section(rows: list[Row]) -> str:
    """The section of the page."""
    body = []
    for row in rows:
        ratio = f"{row['value'] / row['bound']:.3g}" if row["bound"] > 0 else "–"
        number = f"{row['value']:.3g} ± {1.96 * row['error']:.1g}"
        body.append([row["measure"], *(f"{row[k]:g}" for k in ("steps", "S", "D")), number, f"{row['bound']:.3g}", ratio])
    sentences = [_holds(pick(rows, measure=name), name) for name in (BIAS, SECOND)]
    bias = pick(rows, measure=BIAS, D=AT_D)
    by_s = sorted(pick(bias, steps=AT_STEPS), key=lambda row: row["S"])
    by_n = [row for row in pick(bias, S=AT_S) if row["steps"] >= _FIRST]
    in_s, in_n = _powers(by_s, "S"), _powers(by_n, "steps")
    sentences.append(
        f"The bias goes with S to the power {in_s[0]:.2f} and with N (from {_FIRST} on) to the power {in_n[0]:.2f}; the bound "
        f"goes with the powers {in_s[1]:.2f} and {in_n[1]:.2f}."
    )
    if abs(in_s[0] + 1) <= _ONE < in_s[1] - in_s[0]:
        sentences.append(
            "The bound cannot fall as fast as this bias without a further assumption. Where third derivatives are bounded, as "
            "they are here, the first-order effect of the path's noise on the Hessians has a mean of order 1/S, and the term "
            "in 1/√S falls away."
        )
    return (
        f"## Bias and second moment\n\nThe bias and the second moment of one sampled meta-gradient at one w, with T = {T:g} "
        f"and noise s_x = {NOISE[0]:g}, s_z = {NOISE[1]:g}.\n\n![Bias and second moment](moments.png)\n\n"
        f"{markdown(['measure', 'N', 'S', 'D', 'measured', 'bound', 'ratio'], body)}\n\n" + " ".join(sentences)
    )


def _holds(rows: list[Row], name: str) -> str:
    """A sentence that says whether a bound holds, up to the errors of the measured numbers."""
    above = [row for row in rows if not row["value"] - 1.96 * row["error"] <= row["bound"]]
    if above:
        return f"The bound on the {name} is exceeded in {len(above)} of {len(rows)} rows."
    ratios = [row["value"] / row["bound"] for row in rows if row["bound"] > 0]
    return f"The bound on the {name} holds; what is measured is {min(ratios):.2g} to {max(ratios):.2g} of it."


def _powers(rows: list[Row], column: str) -> tuple[float, float]:
    """The slopes of the measured numbers and of the bounds over a column."""
    x = np.array([float(row[column]) for row in rows])
    value, bound = (slope(x, np.array([[row[entry]] for row in rows])).mean for entry in ("value", "bound"))
    return value, bound
