"""The figures and the page of the navigation experiment, from its CSV alone: every number and statement is computed here."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from adaptax.report.navigation import draw_paths, draw_returns
from adaptax.report.tables import markdown
from adaptax.reproduce.files import Row, distinct, pick, read_rows
from adaptax.reproduce.methods import EXACT, FINITE_DIFFERENCE, FIRST_ORDER, GGS, STEIN

EDGE, FIXED, GUARANTEED = "Edge", "α = 0.1", "Guaranteed"
FROM_RETURNS = "zeroth order, from returns alone"
PRETRAINED, UNTRAINED = "trained without adaptation", "untrained"
REUSED = "exact, the step's samples reused"
LOADED, PLAIN = "exact, LoadedDiCE", "exact, LVC, weighed and not standardised"
GOALS = ((0.4, 0.4), (-0.4, 0.3), (-0.2, -0.45), (0.45, -0.15))
_ESTIMATORS = (EXACT, FIRST_ORDER, FINITE_DIFFERENCE, GGS, STEIN, FROM_RETURNS, PRETRAINED)
_ABOUT = (
    "A policy moves a point from the origin to a goal that it is not told of; it adapts to the goal by policy-gradient steps "
    "on trajectories of its own ([theory](../../theory.md), section 10.3). Goals are uniform on [−0.5, 0.5]², both entries of "
    "an action are clipped to ±0.1, the reward is minus the distance to the goal. The return is undiscounted, and its mean is "
    "over 40 held-out goals, always the same. 20 goals a meta-step and 20 trajectories at every use; outer step: "
    "`TrustRegion(mean_kl)` with divergence at most 0.01, damping 1e-5 and 15 trials of 0.8, F on 2 of the 20 goals."
)
_SURROGATE = (
    "**The loss** is `LVC(0.95, baseline=LinearBaseline(), per_step=True, normalise=True, discount_weighting=False)`: "
    "generalised advantages with λ = 1 and a linear baseline, standardised, the mean over steps, no weight of time, as in "
    "published code, whose α = 0.1 is taken here. So the gradient is not that of the discounted return, and its scale is "
    "another at every batch; what else one may take is compared below. The activation is ReLU, weights are N(0, 2/(inputs + "
    "outputs)) at first, and the policy's standard deviation is 1."
)
_PAIRS = (
    "A seed's initial policy and goals are the same for all methods, and differences are paired by seed. One is called "
    "better or worse where its interval leaves 0 out; the intervals are not corrected for the number of comparisons."
)
_WIDTHS = (
    "GGS has 2 directions, both zeroth-order forms 10, all widths are 0.05; every direction draws episodes anew at its own "
    "parameters. Values of the loss are minus the mean return over steps and know nothing of standardised advantages, so the "
    "zeroth-order products have another scale than the gradients beside them. The last zeroth-order form takes its inner and "
    "outer gradients from returns too; its outer step is Adam (1e-3), since the trust region holds batches fixed. All policies "
    "are tested with policy-gradient steps."
)


_RULES = {
    FIXED: "N = 0 is the policy trained without adaptation. Policies are tested with the α they were trained with.",
    EDGE: "Edge's α is one over the curvature measured on the surrogate of 20 episodes.",
    GUARANTEED: "Guaranteed's is an eighth of Edge's, over N.",
}
_TESTED = (0, 1, 2, 3, 5)


class Mean(NamedTuple):
    """A mean over seeds with its 95 % interval of Student."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}"


def student(values: np.ndarray | list[float]) -> Mean:
    """The mean of at least two numbers, and half the width of its 95 % interval.

    Example:
        >>> print(student([1.0, 2.0, 3.0]))
        2.00 ± 2.48
    """
    x = np.asarray(values, float)
    return Mean(float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))))


def by_seed(rows: list[Row], **wanted: object) -> np.ndarray:
    """The values of these rows in the order of the seeds."""
    return np.array([row["value"] for row in sorted(pick(rows, **wanted), key=lambda row: row["seed"])], float)


def verdict(difference: Mean) -> str:
    """What a paired difference of returns shows: better and worse only where the interval leaves 0 out."""
    if not math.isfinite(difference.mean) or not math.isfinite(difference.half):
        return "not finite"
    if abs(difference.mean) <= difference.half:
        return "not told apart"
    return "better" if difference.mean > 0 else "worse"


def publish(out: Path) -> None:
    """Draw the figures and write README.md from navigation.csv in a folder."""
    rows = read_rows(out / "navigation.csv")
    final, training = pick(rows, part="final"), pick(rows, part="training")
    paper, small = pick(final, setting="paper"), pick(final, setting="small")
    seeds, steps = len(distinct(final, "seed")), max(row["meta_step"] for row in paper)
    draw_returns(out, "returns", pick(training, setting="paper"), "meta_step", "meta-steps")
    draw_paths(out, "paths", pick(rows, part="path"), GOALS)
    estimators = [row for row in pick(training, setting="small", inner_steps=1, rule=FIXED) if row["method"] in _ESTIMATORS]
    draw_returns(out, "estimators", estimators, "env_steps", "environment steps")
    parts = [
        "# Planar navigation",
        f"Written by `adaptax reproduce navigation --seeds {seeds} --steps {steps}` from [navigation.csv](navigation.csv).",
        _ABOUT,
        _SURROGATE,
        f"Numbers are means over {seeds} seeds with 95 % intervals (Student). {_PAIRS}",
        _paper(paper, pick(rows, setting="paper"), steps),
        "![Return before and after adaptation along training](returns.png)",
        "Lines: mean over seeds; bands: from the smallest to the largest seed.",
        "![Trajectories before and after one step](paths.png)",
        "Three trajectories for each of four goals, chosen by hand; seed 0.",
        _small(small, rows),
    ]
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _paper(final: list[Row], rows: list[Row], steps: int) -> str:
    methods, sizes, body = distinct(final, "method"), distinct(final, "trajectories"), []
    for method in methods:
        for size in sizes:
            run = pick(final, method=method, trajectories=size)
            cells = [str(student(by_seed(run, adapted=n))) for n in _TESTED]
            body.append([method, str(size), *cells, _against(final, method, EXACT, adapted=1, trajectories=size)])
    header = ["method", "trajectories", "before", "after 1 step", "after 2", "after 3", "after 5", "after 1, less exact's"]
    text = [
        "## The paper's setting",
        f"Horizon 100, network 2-100-100-2, N = 1, α = 0.1, {steps} meta-steps; every policy adapts with steps of 0.1.",
        markdown(header, body),
    ]
    for method in methods:
        run = pick(final, method=method, trajectories=sizes[0])
        gain = student(by_seed(run, adapted=1) - by_seed(run, adapted=0))
        more = student(by_seed(run, adapted=2) - by_seed(run, adapted=1))
        first, second = (f"{change} ({verdict(change)})" for change in (gain, more))
        text.append(f"- {_capital(method)}: one step changes the return by {first}, a second one by {second}.")
    run = pick(final, trajectories=sizes[0])
    for n in _TESTED[1:]:
        found = {m: verdict(_difference(run, m, EXACT, adapted=n)) for m in methods if m != EXACT}
        text.append(
            f"- Beside exact after {n} with {sizes[0]} trajectories: " + ", ".join(f"{m} {v}" for m, v in found.items()) + "."
        )
    text.append(_best(run, methods))
    seconds = {m: by_seed(pick(rows, part="seconds", method=m)) for m in methods if m != UNTRAINED}
    text.append(
        "Seconds for a run with its evaluations, median over seeds, on one core of a shared machine: "
        + ", ".join(f"{m} {np.median(s):.0f}" for m, s in seconds.items()) + "."
    )  # fmt: skip
    lists = [line for line in text if line.startswith("- ")]
    return "\n\n".join([*text[:3], "\n".join(lists), *text[3 + len(lists) :]])


def _best(rows: list[Row], methods: list[str]) -> str:
    """Each method with as many steps as suit it, of those that were tried."""
    best = {m: max(_TESTED, key=lambda n: by_seed(rows, method=m, adapted=n).mean()) for m in methods}
    values = {m: by_seed(rows, method=m, adapted=best[m]) for m in methods}
    told = [f"{m} after {best[m]}, {student(values[m])}" for m in methods]
    beside = [f"{m} {verdict(student(values[m] - values[EXACT]))}" for m in methods if m != EXACT]
    return (
        "With as many steps of those tried as suit each best, chosen on these same goals: "
        + "; ".join(told) + ". Beside exact's best: " + ", ".join(beside) + "."
    )  # fmt: skip


def _small(final: list[Row], rows: list[Row]) -> str:
    rates = pick(rows, part="stepsize", setting="small")
    parts = [
        "## A smaller setting for the other questions",
        "Horizon 25, network 2-32-32-2, the rest as above: what draws episodes for every direction would cost too much at the "
        f"paper's size. {max(row['meta_step'] for row in final)} meta-steps.",
        "### How many inner steps, and of what size",
    ]
    parts += [
        _how_many(final, rates),
        " ".join(text for rule, text in _RULES.items() if pick(final, rule=rule)),
        _as_trained(final),
        "### Samples of their own for the Hessian factors, or the step's",
    ]
    one = pick(final, inner_steps=1, rule=FIXED) + pick(final, inner_steps=0)
    reused = _difference(one, REUSED, EXACT, adapted=1)
    steps = {m: pick(one, method=m)[0]["env_steps"] for m in (EXACT, REUSED)}
    shared, own = (student(by_seed(one, method=m, adapted=1)) for m in (REUSED, EXACT))
    parts.append(
        f"With the step's samples reused (`independent_curvature=False`) the return after one step is {shared}, with samples "
        f"of their own {own}; difference {reused} ({verdict(reused)}). The run takes {steps[REUSED]:,} environment steps with "
        f"reuse and {steps[EXACT]:,} without."
    )
    body = []
    for method in (EXACT, LOADED, PLAIN):
        cells = [str(student(by_seed(one, method=method, adapted=k))) for k in (0, 1, 2, 3)]
        body.append([method, *cells, _against(one, method, EXACT, adapted=1)])
    header = ["loss", "before", "after 1", "after 2", "after 3", "after 1, less exact's"]
    parts += [
        "### Which loss",
        "Each policy is tested with steps of 0.1 on the loss it was trained with.",
        markdown(header, body),
    ]
    parts.append("### Estimators of the Hessian-vector product")
    body = []
    for method in (*_ESTIMATORS, UNTRAINED):
        if run := pick(one, method=method):
            cells = [str(student(by_seed(run, adapted=k))) for k in (0, 1)]
            body.append([method, f"{run[0]['env_steps']:,}", *cells, _against(one, method, EXACT, adapted=1)])
    parts += [
        markdown(["method", "environment steps", "before", "after 1 step", "after 1, less exact's"], body),
        "![Return against environment steps](estimators.png)",
        _WIDTHS,
    ]
    return "\n\n".join(parts)


def _how_many(final: list[Row], rates: list[Row]) -> str:
    """The table over N and rules."""
    body, rules = [], (FIXED, EDGE, GUARANTEED)
    rows = pick(final, method=EXACT) + pick(final, method=PRETRAINED)
    cases = dict.fromkeys((row["inner_steps"], row["rule"]) for row in rows)
    for n, rule in sorted(cases, key=lambda case: (rules.index(case[1]), case[0])):
        run = pick(rows, inner_steps=n, rule=rule)
        alpha = student(by_seed(pick(rates, method=run[0]["method"]), inner_steps=n, rule=rule))
        less = student(by_seed(run, adapted=n) - by_seed(final, method=EXACT, inner_steps=1, rule=FIXED, adapted=1))
        beside = "0" if (n, rule) == (1, FIXED) else f"{less} ({verdict(less)})"
        cells = [str(student(by_seed(run, adapted=k))) for k in _TESTED]
        body.append([str(n), rule, f"{alpha.mean:.3g}", *cells, beside])
    header = ["N", "rule", "α at the end", "before", "after 1", "after 2", "after 3", "after 5", "after N, less N = 1, α = 0.1"]
    return markdown(header, body)


def _as_trained(final: list[Row]) -> str:
    """The policy trained with N = n, after n steps, beside the one trained without adaptation, after as many."""
    found = []
    for n in sorted({row["inner_steps"] for row in pick(final, method=EXACT, rule=FIXED)}):
        trained = by_seed(final, method=EXACT, rule=FIXED, inner_steps=n, adapted=n)
        difference = student(trained - by_seed(final, method=PRETRAINED, adapted=n))
        found.append(f"N = {n}: {difference} ({verdict(difference)})")
    return "After N steps of 0.1, less the policy trained without adaptation after as many: " + "; ".join(found) + "."


def _difference(rows: list[Row], method: str, other: str, **wanted: object) -> Mean:
    return student(by_seed(rows, method=method, **wanted) - by_seed(rows, method=other, **wanted))


def _against(rows: list[Row], method: str, other: str, **wanted: object) -> str:
    if method == other:
        return "0"
    difference = _difference(rows, method, other, **wanted)
    return f"{difference} ({verdict(difference)})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
