r"""(c) The cost of an accuracy: oracle calls until $\|\nabla\mathcal L\| \le \varepsilon$ for the first time, against N."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

import adaptax as ax
from adaptax import theory
from adaptax.report.rows import distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row
from adaptax.reproduce.page_text import capital, listed
from adaptax.reproduce.rates.fits import Slope, slope
from adaptax.reproduce.rates.problems import (
    ADAPTIVE,
    CASES,
    CONSTANT,
    COSINE,
    EDGE,
    FINITE,
    FIXED,
    GAMMA,
    GUARANTEED,
    TASKS,
    Exact,
    Scales,
    adaptive,
    constant,
    constants_of,
    method,
    pool_of,
    powers_of_two,
    problem_of,
    simulate,
    starts,
)

ITERATIONS = 3_000
PART, PLAN = "cost", "plan"
REACHED, NOT_REACHED, DIVERGED = "reached", "not reached", "diverged"
EPSILON = 0.1
# B, D, T and D_L; S falls as the first number over N, as the bound on the bias allows, or is the second throughout.
B, D, T, D_L = 16, 4, 64, 16
S_FALLING, S_CONSTANT = 64, 16
FALLING, UNCHANGED = f"S = {S_FALLING}/N", f"S = {S_CONSTANT}"
# The growth in N that the theorem predicts for the exponent of the cost.
_PREDICTED = {(GUARANTEED, ADAPTIVE): "at most 1", (FIXED, ADAPTIVE): "exponential"}
# The number of meta-steps hardly depends on N if the largest is at most this times the smallest.
_ALIKE = 1.2
# A run of at most so many meta-steps has the accuracy almost without training.
AT_ONCE = 2


def measure(seeds: int, iterations: int = ITERATIONS, largest: int = 64) -> Iterator[Row]:
    """The first passage of every seed for N = 1, 2, 4, ..., with all rules and both outer steps; and the planner's cost."""
    for case in CASES:
        pool = pool_of(COSINE)
        c, w = constants_of(pool, case), starts(seeds)
        outers = {ADAPTIVE: adaptive(c), CONSTANT: constant(c)}
        for steps in powers_of_two(largest):
            exact = Exact(problem_of(pool, case), steps)
            rules = {GUARANTEED: GAMMA / (steps * c.L), FIXED: GAMMA / c.L, EDGE: 1 / c.L}
            for label, S in _samples(case, steps):
                problem = problem_of(pool, case, Scales.of(S, D, T, D_L))
                for outer_name, outer in outers.items():
                    step = ax.make_step(problem, method(steps, 0.1), outer, tasks_per_step=B)
                    price = _price(case, steps, S, outer_name == ADAPTIVE)
                    for rule, alpha in rules.items():
                        if label == UNCHANGED and (rule, outer_name) != (GUARANTEED, ADAPTIVE):
                            continue
                        row = {"part": PART, "problem": COSINE, "case": case, "steps": steps, "alpha": alpha, "rule": rule}
                        row |= {"outer": outer_name, "samples": label}
                        for seed, norms in enumerate(simulate(step, exact, w, alpha, iterations).gradient):
                            yield row | {"seed": seed} | reached(norms, price)
        for steps in powers_of_two(largest):
            gap = float(Exact(problem_of(pool, case), steps)(w[0], jnp.asarray(GAMMA / (steps * c.L)))[0]) - pool.lower_bound
            known = theory.Constants(c.L, c.rho, c.sigma, c.sigma_g, c.sigma_H, c.b, gap=gap)
            plan = theory.plan(known, epsilon=EPSILON, steps=steps, case=case, gamma=GAMMA)
            yield {"part": PLAN, "case": case, "steps": steps, "x": plan.iterations, "value": float(plan.oracle_calls)}


def _samples(case: str, steps: int) -> list[tuple[str, float]]:
    """The choices of S, by name."""
    return [("", 1)] if case == FINITE else [(FALLING, S_FALLING / steps), (UNCHANGED, S_CONSTANT)]


def _price(case: str, steps: int, S: float, measured: bool) -> float:
    """Oracle calls of a meta-step: gradients and Hessian-vector products, and gradients for a smoothness that is measured."""
    if case == FINITE:
        return B * (2 * steps + 1) + TASKS * measured
    return B * (steps * max(S, 1.0) + T + steps * D) + TASKS * D_L * measured


def reached(norms: np.ndarray, price: float) -> Row:
    """The outcome of a run: the first meta-step with the accuracy and the oracle calls until then, where there is one."""
    below = np.flatnonzero(norms <= EPSILON)
    if not len(below):
        return {"measure": NOT_REACHED if np.all(np.isfinite(norms)) else DIVERGED}
    return {"measure": REACHED, "x": int(below[0]), "value": float(max(below[0], 1) * price)}


class _Line:
    """One line of the table: K for each N, None where not all seeds reached the accuracy; and the exponent of the cost."""

    def __init__(self, rows: list[Row]):
        self.case, self.rule, self.outer = (str(rows[0][column]) for column in ("case", "rule", "outer"))
        self.samples = str(rows[0].get("samples", ""))
        self.steps = distinct(rows, "steps")
        by_n = [pick(rows, steps=n) for n in self.steps]
        whole = [all(row["measure"] == REACHED for row in run) for run in by_n]
        self.k = [float(np.mean([r["x"] for r in run])) if ok else None for run, ok in zip(by_n, whole, strict=True)]
        self.exponent: Slope | None = None
        if all(whole):
            self.exponent = slope(np.array(self.steps, float), np.array([[max(r["value"], 1.0) for r in run] for run in by_n]))

    @property
    def name(self) -> str:
        return f"{self.case}, {self.samples}" if self.samples else self.case

    def is_a(self, rule: str, outer: str) -> bool:
        return (self.rule, self.outer) == (rule, outer)

    def known(self) -> dict[int, float]:
        """K by N, where all seeds reached the accuracy."""
        return {n: k for n, k in zip(self.steps, self.k, strict=True) if k is not None}


def section(rows: list[Row], plans: list[Row]) -> str:
    """The section of the page."""
    keys = distinct(sorted(rows, key=lambda row: CASES.index(row["case"])), "case", "rule", "outer", "samples")
    names = ("case", "rule", "outer", "samples")
    lines = [_Line([row for row in rows if tuple(row.get(name) for name in names) == key]) for key in keys]
    body = []
    for line in lines:
        cells = ", ".join("–" if k is None else f"{k:.0f}" for k in line.k)
        rule = f"{line.rule}, {line.samples}" if line.samples else line.rule
        predicted = _PREDICTED.get((line.rule, line.outer), "nothing")
        body.append([line.case, rule, line.outer, cells, str(line.exponent or "–"), predicted])
    header = ["case", "inner step", "outer step", f"K at N = {', '.join(map(str, distinct(rows, 'steps')))}",
              "exponent of N in the cost", "predicted"]  # fmt: skip
    text = (
        f"## The cost of an accuracy\n\nOracle calls until ‖∇L(w_k)‖ ≤ {EPSILON:g} for the first time, with {B} tasks a "
        f"meta-step (resampling: D = {D}, T = {T}, D_L = {D_L}); – where not all seeds reached it. The constant outer step is "
        "1/(C_β q L) with the bound e^(2γ) on the q of the guaranteed rule.\n\n"
        f"![Cost against N](costs.png)\n\n{markdown(header, body)}\n\n"
    )
    sentences = [
        *_guaranteed([line for line in lines if line.is_a(GUARANTEED, ADAPTIVE)]),
        *_fixed([line for line in lines if line.is_a(FIXED, ADAPTIVE)]),
        *_outside([line for line in lines if line.is_a(FIXED, CONSTANT)]),
        *_at_once([line for line in lines if line.rule == EDGE]),
        _planned(plans),
    ]
    return text + " ".join(sentences)


def _guaranteed(lines: list[_Line]) -> Iterator[str]:
    """Growth in N under the guaranteed rule, whose exponent the theorem bounds by 1."""
    fitted = [line for line in lines if line.exponent is not None]
    if fitted:
        yield (
            f"Under {GUARANTEED} with the adaptive outer step the cost grows as N to the power "
            + "; ".join(f"{line.exponent} ({line.name})" for line in fitted)
            + "."
        )
        above = [line.name for line in fitted if line.exponent and line.exponent.mean - line.exponent.half > 1]
        yield f"Above the promised 1 is: {'; '.join(above)}." if above else "None is above the promised 1."
    for line in lines:
        if line.exponent is None:
            missing = [str(n) for n in line.steps if n not in line.known()]
            yield f"Not all seeds reach the accuracy under {GUARANTEED} ({line.name}) at N = {', '.join(missing)}."
    if ks := [k for line in lines for k in line.known().values()]:
        alike = max(ks) <= _ALIKE * min(ks)
        yield f"The number of meta-steps K lies between {min(ks):.0f} and {max(ks):.0f}" + (
            ": it hardly depends on N, and the price of a meta-step is what grows." if alike else "."
        )
    if any(line.samples == FALLING and max(line.steps) <= S_FALLING for line in lines):
        yield (
            f"With {FALLING}, which the bound on the bias allows, the samples of the steps are as many at every N, and the "
            "price grows by Hessian-vector products alone."
        )


def _fixed(lines: list[_Line]) -> Iterator[str]:
    """K with a fixed α and the adaptive outer step, which is predicted to grow exponentially."""
    told = []
    for line in lines:
        known = line.known()
        text = f"K is {', '.join(f'{k:.0f}' for k in known.values())} at N = {', '.join(map(str, known))}" if known else ""
        missing = [n for n in line.steps if n not in known]
        if missing:
            text += ("; " if text else "") + f"not all seeds reach the accuracy at N = {', '.join(map(str, missing))}"
        told.append(f"{text} ({line.name})")
    if told:
        yield (
            f"With {FIXED} the adaptive outer step divides by q = (1 + αL)^(2N), which grows exponentially in N. "
            + " ".join(f"{capital(text)}." for text in told)
        )


def _outside(lines: list[_Line]) -> Iterator[str]:
    """The constant outer step with a fixed α, which the theorem says nothing about."""
    whole = [line.name for line in lines if line.exponent is not None]
    if lines:
        found = f"reaches the accuracy at every N ({'; '.join(whole)})" if whole else "does not reach the accuracy at every N"
        yield f"The theorem says nothing about the constant outer step with {FIXED}, which {found}."


def _at_once(lines: list[_Line]) -> Iterator[str]:
    """The numbers of steps at which Edge has the accuracy before training."""
    found = sorted({n for line in lines for n, k in line.known().items() if k <= AT_ONCE})
    if found:
        yield (
            f"Under {EDGE} K is at most {AT_ONCE} at N = {listed(map(str, found))}: ‖∇L‖ is that short with hardly any "
            "training, so it is no measure of how good the parameters are, and a small K no merit."
        )


def _planned(plans: list[Row]) -> str:
    """The exponents of N in the planner's cost."""
    exponents = []
    for case in distinct(plans, "case"):
        run = pick(plans, case=case)
        found = slope(np.array([r["steps"] for r in run], float), np.array([[r["value"]] for r in run]))
        exponents.append(f"{found.mean:.2f} ({case})")
    return f"The planner's cost in the worst case grows with the exponents {listed(exponents)}, under {GUARANTEED}."
