"""(f) The cost of an accuracy under the two-sided rule, with the outer step by adapted gradients."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from adaptax import theory
from adaptax.report.rows import distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row
from adaptax.reproduce.page_text import listed
from adaptax.reproduce.rates.cost_of_accuracy import AT_ONCE, REACHED, reached
from adaptax.reproduce.rates.fits import Slope, slope
from adaptax.reproduce.rates.problems import (
    C_BETA,
    CONVEX,
    COSINE,
    FINITE,
    GAMMA,
    GUARANTEED,
    TASKS,
    constants_of,
    pool_of,
    powers_of_two,
    starts,
)
from adaptax.tasks.cosine import Cosine

ITERATIONS = 1_000
PART, LOSS = "two-sided cost", "meta-loss"
B = 16
TWO_SIDED = f"α = min(1/λ, 1/({1 / GAMMA:g}Nμ))"
FLOW = "α = 1/(λN)"
BEFORE, AFTER = "β by gradients before adaptation", "β by adapted gradients"
# The lines of the table: the rule for α, and the gradients that the outer step is measured by.
LINES = ((GUARANTEED, BEFORE), (TWO_SIDED, AFTER), (TWO_SIDED, BEFORE), (FLOW, AFTER))


class _At(NamedTuple):
    """At w, for all tasks: meta-gradients, the norms of target gradients before and after adaptation, and the meta-loss."""

    gradients: Array
    before: Array
    after: Array
    value: Array


def measure(seeds: int, iterations: int = ITERATIONS, largest: int = 64) -> Iterator[Row]:
    """The first passage of every seed for N = 1, 2, 4, ... in the finite-sum case, and the meta-loss there."""
    for name in (COSINE, CONVEX):
        pool = pool_of(name)
        c, w = constants_of(pool, FINITE), starts(seeds)
        for steps in powers_of_two(largest):
            lam, mu = c.lam or 0.0, c.mu or 0.0
            alphas = {GUARANTEED: theory.guaranteed_alpha(c.L, steps, GAMMA), FLOW: 1 / (lam * steps),
                      TWO_SIDED: theory.two_sided_alpha(lam, mu, steps, gamma=GAMMA)}  # fmt: skip
            for rule, outer in LINES:
                norms, values = simulate(pool, c, w, alphas[rule], steps, outer == AFTER, iterations)
                price = B * (2 * steps + 1) + TASKS * (steps + 1 if outer == AFTER else 1)
                row = {"part": PART, "problem": name, "steps": steps, "rule": rule, "outer": outer, "alpha": alphas[rule]}
                for seed, (run, loss) in enumerate(zip(norms, values, strict=True)):
                    found = reached(run, price)
                    yield row | {"seed": seed} | found
                    if found["measure"] == REACHED:
                        yield row | {"seed": seed, "measure": LOSS, "value": float(loss[found["x"]])}


def simulate(
    pool: Cosine, c: theory.Constants, w: Array, alpha: float, steps: int, adapted: bool, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""$\|\nabla\mathcal L\|$ and $\mathcal L$ before each meta-step, shape (seeds, iterations), from each row of w."""
    if adapted:
        path = c.path(alpha, steps)
        floor, slope = theory.adapted_smoothness(path, c.rho, c.L, 0.0), theory.jacobian_lipschitz(path, c.rho)
    else:
        path = theory.Expansion(alpha, c.L, steps)
        floor, slope = theory.smoothness_floor(path, c.rho, c.b), theory.smoothness_slope(path, c.rho)
    numbers = jnp.asarray([alpha, floor, slope, float(adapted)])
    norms, values = _simulate(pool.finite_sum, w, numbers, jnp.arange(len(w)), steps, iterations)
    return np.asarray(norms), np.asarray(values)


@eqx.filter_jit
def _simulate(problem: Any, w: Array, numbers: Array, seeds: Array, steps: int, iterations: int) -> Any:
    alpha, floor, slope, adapted = numbers

    def one(w, seed):
        def take(w, k):
            at = look(problem, w, alpha, steps)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), k))
            chosen, apart = (jax.random.randint(key, (size,), 0, TASKS) for key, size in zip(keys, (B, TASKS), strict=True))
            measured = jnp.mean(jnp.where(adapted > 0, at.after, at.before)[apart])
            step = jnp.mean(at.gradients[chosen], 0) / (C_BETA * (floor + slope * measured))
            return w - step, (jnp.linalg.norm(at.gradients.mean(0)), at.value)

        return jax.lax.scan(take, w, jnp.arange(iterations))[1]

    return jax.vmap(one)(w, seeds)


def look(problem: Any, w: Array, alpha: Array, steps: int) -> _At:
    """What a meta-step needs to know at w."""

    def task_at(task):
        def adapt(w):
            return jax.lax.scan(lambda w, _: (w - alpha * jax.grad(problem.loss)(w, task.support), None), w, None, steps)[0]

        end, pull = jax.vjp(adapt, w)
        value, last = jax.value_and_grad(problem.target_loss)(end, task.target)
        before = jnp.linalg.norm(jax.grad(problem.target_loss)(w, task.target))
        return pull(last)[0], before, jnp.linalg.norm(last), value

    gradients, before, after, values = jax.vmap(task_at)(problem.sample_task.tasks)
    return _At(gradients, before, after, values.mean())


class _Line:
    """One line of the table: K for each N where all seeds reached the accuracy, the cost's exponent, adaptation, meta-loss."""

    def __init__(self, rows: list[Row]):
        self.problem, self.rule, self.outer = (str(rows[0][column]) for column in ("problem", "rule", "outer"))
        self.steps = distinct(rows, "steps")
        runs = [[row for row in pick(rows, steps=n) if row["measure"] != LOSS] for n in self.steps]
        whole = [all(row["measure"] == REACHED for row in run) for run in runs]
        self.k = [float(np.mean([r["x"] for r in run])) if ok else None for run, ok in zip(runs, whole, strict=True)]
        self.alphas = [run[0]["alpha"] for run in runs]
        self.adaptation = self.alphas[-1] * self.steps[-1]
        values = [row["value"] for row in pick(rows, steps=self.steps[-1], measure=LOSS)]
        self.loss = float(np.mean(values)) if whole[-1] else None
        # A run that has the accuracy before training has no cost to speak of.
        self.exponent: Slope | None = None
        if all(k is not None and k > AT_ONCE for k in self.k):
            self.exponent = slope(np.array(self.steps, float), np.array([[r["value"] for r in run] for run in runs]))

    def cells(self) -> list[str]:
        """The line in the table."""
        ks = ", ".join("–" if k is None else f"{k:.0f}" for k in self.k)
        loss = "–" if self.loss is None else f"{self.loss:.2f}"
        ends = f"{self.alphas[0]:.3g}, {self.alphas[-1]:.2g}"
        return [self.problem, self.rule, self.outer, ends, f"{self.adaptation:.3g}", ks, str(self.exponent or "–"), loss]


def section(rows: list[Row]) -> str:
    """The section of the page."""
    steps = distinct(rows, "steps")
    keys = distinct(rows, "problem", "rule", "outer")
    lines = [_Line(pick(rows, problem=problem, rule=rule, outer=outer)) for problem, rule, outer in keys]
    last = steps[-1]
    header = ["problem", "inner step", "outer step", f"α at N = {steps[0]}, {last}", f"αN at N = {last}",
              f"K at N = {', '.join(map(str, steps))}", "exponent of N in the cost", f"meta-loss then, N = {last}"]  # fmt: skip
    known = []
    for name in distinct(rows, "problem"):
        c = pool_of(name).constants
        # A convex problem's mu is 0 up to rounding, of either sign.
        known.append(f"the {name} problem has λ = {c.lam:.3g}, μ = {round(c.mu or 0.0, 9) + 0.0:.3g}")
    return (
        "## The cost under the two-sided rule\n\nThe same question, finite-sum, for inner steps that know the curvature of "
        f"both signs, −μ to λ ([theory](../../theory.md), section 6.1): {listed(known)}. The outer step is 1/(C_β L̂), L̂ by "
        f"gradients before adaptation (section 6) or by adapted ones, on {TASKS} tasks of its own, whose adaptation is paid "
        f"for.\n\n{markdown(header, [line.cells() for line in lines])}\n\n" + " ".join(_told(lines))
    )


def _told(lines: list[_Line]) -> Iterator[str]:
    """What the lines show."""
    by = {(line.problem, line.rule, line.outer): line for line in lines}
    for problem in distinct([{"problem": line.problem} for line in lines], "problem"):
        old, new, flow = (by[problem, rule, outer] for rule, outer in ((GUARANTEED, BEFORE), (TWO_SIDED, AFTER), (FLOW, AFTER)))
        yield (
            f"On the {problem} problem the two-sided rule adapts {new.adaptation / old.adaptation:.3g} times as far as "
            f"{GUARANTEED} at N = {new.steps[-1]}."
        )
        if new.loss is not None and old.loss is not None:
            yield f"The meta-loss where the accuracy is reached there is {new.loss:.2f} against {old.loss:.2f}."
        if new.exponent and old.exponent:
            yield f"The exponent of the cost is {new.exponent} against {old.exponent}."
        if at_once := [str(n) for n, k in zip(new.steps, new.k, strict=True) if k is not None and k <= AT_ONCE]:
            yield (
                f"At N = {listed(at_once)} its K is at most {AT_ONCE}, with hardly any training, because P contracts: there K "
                "says nothing, and the meta-loss does."
            )
        if flow.exponent:
            yield f"At the same total adaptation for every N, αN = 1/λ, the exponent is {flow.exponent} (predicted: at most 1)."
    lost = [line.problem for line in lines if (line.rule, line.outer) == (TWO_SIDED, BEFORE) and None in line.k]
    if lost:
        yield (
            "With α of the two-sided rule the outer step by gradients before adaptation does not reach the accuracy at every N "
            f"({'; '.join(lost)}): its L̂ has (1 + αL)^(2N), whatever the sign of the curvature."
        )
