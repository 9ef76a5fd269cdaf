"""The figures and the page of the navigation experiment, which are made from its CSV and its settings alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

import adaptax as ax
from adaptax.report.navigation import draw_paths, draw_returns
from adaptax.report.rows import distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row, read_rows
from adaptax.reproduce.navigation.settings import (
    ADAM_STEP,
    ALPHA,
    DIRECTIONS,
    EDGE,
    FIXED,
    FROM_RETURNS,
    GOAL_BOX,
    GOALS,
    GUARANTEED,
    LOADED,
    PAPER,
    PLAIN,
    PRETRAINED,
    REUSED,
    SMALL,
    STD,
    TESTED,
    TRUST,
    UNTRAINED,
    WIDTH,
    Setting,
    surrogate,
)
from adaptax.reproduce.page_text import capital, listed, network
from adaptax.reproduce.strategies import EXACT, FINITE_DIFFERENCE, FIRST_ORDER, GGS, STEIN
from adaptax.tasks.rl.navigation import LARGEST_STEP

_ESTIMATORS = (EXACT, FIRST_ORDER, FINITE_DIFFERENCE, GGS, STEIN, FROM_RETURNS)
_PAIRS = (
    "A seed's initial policy and goals are the same for all methods, and differences are paired by seed. A method is called "
    "better or worse where the interval of its difference leaves 0 out; the intervals are not corrected for the number of "
    "comparisons."
)


class Mean(NamedTuple):
    """A mean over seeds with half the width of its 95 % interval (Student)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}"


def mean_over_seeds(values: np.ndarray | list[float]) -> Mean:
    """The mean of at least two numbers, with its 95 % interval.

    Example:
        >>> print(mean_over_seeds([1.0, 2.0, 3.0]))
        2.00 ± 2.48
    """
    x = np.asarray(values, float)
    return Mean(float(x.mean()), float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))))


def seed_values(rows: list[Row], **wanted: object) -> np.ndarray:
    """The values of the rows with these entries, in the order of the seeds."""
    return np.array([row["value"] for row in sorted(pick(rows, **wanted), key=lambda row: row["seed"])], float)


def verdict(difference: Mean) -> str:
    """The verdict on a paired difference of returns: better and worse only where the interval leaves 0 out."""
    if not math.isfinite(difference.mean) or not math.isfinite(difference.half):
        return "not finite"
    if abs(difference.mean) <= difference.half:
        return "not told apart"
    return "better" if difference.mean > 0 else "worse"


def publish(out: Path, settings: Sequence[Setting] = (PAPER, SMALL)) -> None:
    """Draw the figures and write README.md from navigation.csv in a folder.

    Arguments:
        out: the folder.
        settings: those that the experiment was run with, the paper's size and the small one.
    """
    rows, (paper, small) = read_rows(out / "navigation.csv"), settings
    training = pick(rows, part="training")
    draw_returns(out, "returns", pick(training, setting=paper.name), "meta_step", "meta-steps")
    draw_paths(out, "paths", pick(rows, part="path"), GOALS)
    one_step = pick(training, setting=small.name, inner_steps=1, rule=FIXED)
    estimators = [row for row in one_step if row["method"] in _ESTIMATORS]
    draw_returns(out, "estimators", estimators, "env_steps", "environment steps")
    (out / "README.md").write_text(compose(rows, settings), encoding="utf-8")


def compose(rows: list[Row], settings: Sequence[Setting] = (PAPER, SMALL)) -> str:
    """The page, from the rows of the CSV and the settings of the runs."""
    paper_setting, small_setting = settings
    final, drawn = pick(rows, part="final"), pick(rows, part="path")
    paper, small = (pick(final, setting=setting.name) for setting in settings)
    seeds, steps = len(distinct(final, "seed")), max(row["meta_step"] for row in paper)
    parts = [
        "# Planar navigation",
        f"Written by `adaptax reproduce navigation --seeds {seeds} --steps {steps}` from [navigation.csv](navigation.csv).",
        _about(paper_setting),
        _about_loss(),
        f"Numbers are means over {seeds} seeds with 95 % intervals (Student). {_PAIRS}",
        _paper(paper, pick(rows, setting=paper_setting.name), steps, paper_setting),
        "![Return before and after adaptation along training](returns.png)",
        "Lines: mean over seeds; bands: from the smallest to the largest seed.",
        "![Trajectories before and after one step](paths.png)",
        f"The policy of seed {listed(map(str, distinct(drawn, 'seed')))}, with {len(distinct(drawn, 'trajectories'))} "
        f"trajectories for each of {len(distinct(drawn, 'goal'))} goals, which are chosen by hand.",
        _small(small, rows, small_setting),
    ]
    return "\n\n".join(parts) + "\n"


def _about(setting: Setting) -> str:
    """The paragraph about the task, the batches and the outer step."""
    return (
        "A policy moves a point from the origin to a goal that it is not told of; it adapts to the goal by policy-gradient "
        f"steps on trajectories of its own ([theory](../../theory.md), section 10.3). Goals are uniform on [−{GOAL_BOX:g}, "
        f"{GOAL_BOX:g}]², both entries of an action are clipped to ±{LARGEST_STEP:g}, the reward is minus the distance to the "
        f"goal. The return is undiscounted, and its mean is over {setting.goals} held-out goals, always the same. A meta-step "
        f"takes {setting.tasks} goals, with {setting.trajectories} trajectories at every use. The outer step is "
        f"`TrustRegion(mean_kl)` with divergence at most {TRUST['radius']:g}, damping {TRUST['damping']:.0e} and "
        f"{TRUST['backtracks']} trials, each {TRUST['shrink']:g} times as long as the last; F is formed on {setting.fisher} of "
        "the goals."
    )


def _about_loss() -> str:
    """The paragraph about the surrogate and the policy, from the surrogate that the runs take."""
    loss = surrogate()
    call = (
        f"{type(loss).__name__}({loss.discount:g}, baseline={type(loss.baseline).__name__}(), per_step={loss.per_step}, "
        f"normalise={loss.normalise}, discount_weighting={loss.discount_weighting})"
    )
    words = [f"generalised advantages with λ = {loss.gae_lambda:g} and a linear baseline"]
    words += ["standardised"] * loss.normalise + ["the mean over steps"] * loss.per_step
    text = f"**The loss** is `{call}`: {', '.join(words)}."
    if loss.normalise and not loss.discount_weighting:
        text += (
            f" Standardised advantages without discount weighting are those of published code, whose α = {ALPHA:g} is taken "
            "here. With them the gradient is not that of the discounted return, and its scale changes from batch to batch; "
            "other losses are compared below."
        )
    return (
        f"{text} The activation is ReLU, initial weights are N(0, 2/(inputs + outputs)), and the policy's initial standard "
        f"deviation is {STD:g}."
    )


def _paper(final: list[Row], rows: list[Row], steps: int, setting: Setting) -> str:
    """The section about the paper's setting."""
    methods, sizes, body = distinct(final, "method"), distinct(final, "trajectories"), []
    for method in methods:
        for size in sizes:
            run = pick(final, method=method, trajectories=size)
            cells = [str(mean_over_seeds(seed_values(run, adapted=n))) for n in TESTED]
            body.append([method, str(size), *cells, _against(final, method, EXACT, adapted=1, trajectories=size)])
    header = ["method", "trajectories", *_after(TESTED), "after 1, minus exact's"]
    inner_steps = pick(final, method=EXACT)[0]["inner_steps"]
    changes, beside = [], []
    for method in methods:
        run = pick(final, method=method, trajectories=sizes[0])
        gain = mean_over_seeds(seed_values(run, adapted=1) - seed_values(run, adapted=0))
        more = mean_over_seeds(seed_values(run, adapted=2) - seed_values(run, adapted=1))
        first, second = (f"{change} ({verdict(change)})" for change in (gain, more))
        changes.append(f"- {capital(method)}: one step changes the return by {first}, a second one by {second}.")
    run = pick(final, trajectories=sizes[0])
    for n in TESTED[1:]:
        found = [f"{m} {verdict(_difference(run, m, EXACT, adapted=n))}" for m in methods if m != EXACT]
        beside.append(f"- Beside exact after {n} with {sizes[0]} trajectories: {', '.join(found)}.")
    seconds = {m: seed_values(pick(rows, part="seconds", method=m)) for m in methods if m != UNTRAINED}
    parts = [
        "## The paper's setting",
        f"Horizon {setting.horizon}, network {network(setting.network)}, N = {inner_steps}, α = {ALPHA:g}, {steps} meta-steps; "
        f"every policy adapts with steps of {ALPHA:g}.",
        markdown(header, body),
        "\n".join(changes + beside),
        _best(run, methods),
        "Seconds for a run with its evaluations, median over seeds: "
        + ", ".join(f"{m} {np.median(s):.0f}" for m, s in seconds.items())
        + ".",
    ]
    return "\n\n".join(parts)


def _best(rows: list[Row], methods: list[str]) -> str:
    """Each method with its best number of steps among those tested."""
    best = {m: max(TESTED, key=lambda n: seed_values(rows, method=m, adapted=n).mean()) for m in methods}
    values = {m: seed_values(rows, method=m, adapted=best[m]) for m in methods}
    told = [f"{m} after {best[m]}, {mean_over_seeds(values[m])}" for m in methods]
    beside = [f"{m} {verdict(mean_over_seeds(values[m] - values[EXACT]))}" for m in methods if m != EXACT]
    return (
        "Each method with its best number of steps among those tested, chosen on these same goals: "
        + "; ".join(told) + ". Beside exact's best: " + ", ".join(beside) + "."
    )  # fmt: skip


def _small(final: list[Row], rows: list[Row], setting: Setting) -> str:
    """The sections about the small setting."""
    one = pick(final, inner_steps=1, rule=FIXED) + pick(final, inner_steps=0)
    steps = {m: pick(one, method=m)[0]["env_steps"] for m in distinct(one, "method")}
    dearest = max(steps, key=lambda m: steps[m])
    parts = [
        "## A smaller setting for the other questions",
        f"Horizon {setting.horizon}, network {network(setting.network)}, the rest as above, "
        f"{max(row['meta_step'] for row in final)} meta-steps. The setting is smaller because estimators that draw episodes "
        f"for every direction are expensive: {dearest} takes {steps[dearest] / steps[EXACT]:.3g} times the environment steps "
        "of exact.",
        "### How many inner steps, and of what size",
        _how_many(final, pick(rows, part="stepsize", setting=setting.name)),
        " ".join(text for rule, text in _rules(setting).items() if pick(final, rule=rule)),
        _as_trained(final),
        "### Samples of their own for the Hessian factors, or the step's",
    ]
    reused = _difference(one, REUSED, EXACT, adapted=1)
    shared, own = (mean_over_seeds(seed_values(one, method=m, adapted=1)) for m in (REUSED, EXACT))
    parts.append(
        f"With the step's samples reused (`independent_curvature=False`) the return after one step is {shared}, with samples "
        f"of their own {own}; the difference is {reused} ({verdict(reused)}). The run takes {steps[REUSED]:,} environment "
        f"steps with reuse and {steps[EXACT]:,} without."
    )
    body = []
    for method in (EXACT, LOADED, PLAIN):
        cells = [str(mean_over_seeds(seed_values(one, method=method, adapted=k))) for k in TESTED[:4]]
        body.append([method, *cells, _against(one, method, EXACT, adapted=1)])
    header = ["loss", *_after(TESTED[:4]), "after 1, minus exact's"]
    parts += [
        "### Which loss",
        f"Each policy is tested with steps of {ALPHA:g} on the loss it was trained with.",
        markdown(header, body),
    ]
    parts.append("### Estimators of the Hessian-vector product")
    body = []
    for method in (*_ESTIMATORS, PRETRAINED, UNTRAINED):
        if run := pick(one, method=method):
            cells = [str(mean_over_seeds(seed_values(run, adapted=k))) for k in TESTED[:2]]
            body.append([method, f"{run[0]['env_steps']:,}", *cells, _against(one, method, EXACT, adapted=1)])
    parts += [
        markdown(["method", "environment steps", *_after(TESTED[:2]), "after 1, minus exact's"], body),
        "![Return against environment steps](estimators.png)",
        f"GGS has {DIRECTIONS} directions, both zeroth-order forms have {setting.values}, and all widths are {WIDTH:g}; every "
        "direction draws episodes anew at its own parameters. Values of the loss are minus the mean return over steps, without "
        "standardised advantages, so the zeroth-order products have another scale than the gradients beside them. The last "
        "zeroth-order form takes its inner and outer gradients from returns too; its outer step is Adam "
        f"({ADAM_STEP:g}), since the trust region holds batches fixed. All policies are tested with policy-gradient steps.",
    ]
    return "\n\n".join(parts)


def _rules(setting: Setting) -> dict[str, str]:
    """Sentences about the rules of the inner step size."""
    edge, guaranteed = ax.stepsize.Edge(), ax.stepsize.Guaranteed()
    return {
        FIXED: "N = 0 is the policy trained without adaptation. Policies are tested with the α they were trained with.",
        EDGE: f"Edge takes α = {edge.gamma:g}/λ, with λ the largest curvature that is measured on the surrogates of "
        f"{setting.trajectories} episodes a task.",
        GUARANTEED: f"Guaranteed takes α = {guaranteed.gamma:g}/(Nλ).",
    }


def _how_many(final: list[Row], rates: list[Row]) -> str:
    """The table over N and rules."""
    body, rules = [], (FIXED, EDGE, GUARANTEED)
    rows = pick(final, method=EXACT) + pick(final, method=PRETRAINED)
    for n, rule in sorted(distinct(rows, "inner_steps", "rule"), key=lambda case: (rules.index(case[1]), case[0])):
        run = pick(rows, inner_steps=n, rule=rule)
        alpha = mean_over_seeds(seed_values(pick(rates, method=run[0]["method"]), inner_steps=n, rule=rule))
        reference = seed_values(final, method=EXACT, inner_steps=1, rule=FIXED, adapted=1)
        difference = mean_over_seeds(seed_values(run, adapted=n) - reference)
        beside = "0" if (n, rule) == (1, FIXED) else f"{difference} ({verdict(difference)})"
        cells = [str(mean_over_seeds(seed_values(run, adapted=k))) for k in TESTED]
        body.append([str(n), rule, f"{alpha.mean:.3g}", *cells, beside])
    return markdown(["N", "rule", "α at the end", *_after(TESTED), f"after N, minus N = 1, {FIXED}"], body)


def _as_trained(final: list[Row]) -> str:
    """Policies trained with N = n, after n steps, beside the one trained without adaptation, after as many."""
    found = []
    for n in sorted({row["inner_steps"] for row in pick(final, method=EXACT, rule=FIXED)}):
        trained = seed_values(final, method=EXACT, rule=FIXED, inner_steps=n, adapted=n)
        difference = mean_over_seeds(trained - seed_values(final, method=PRETRAINED, adapted=n))
        found.append(f"N = {n}: {difference} ({verdict(difference)})")
    return (
        f"The return after N steps of {ALPHA:g}, minus that of the policy trained without adaptation after as many steps: "
        + "; ".join(found)
        + "."
    )


def _after(steps: Sequence[int]) -> list[str]:
    """Headings for returns after these numbers of steps."""
    return ["before" if n == 0 else f"after {n} step{'s' if n > 1 else ''}" for n in steps]


def _difference(rows: list[Row], method: str, other: str, **wanted: Any) -> Mean:
    return mean_over_seeds(seed_values(rows, method=method, **wanted) - seed_values(rows, method=other, **wanted))


def _against(rows: list[Row], method: str, other: str, **wanted: Any) -> str:
    """A paired difference with its verdict, for a cell of a table."""
    if method == other:
        return "0"
    difference = _difference(rows, method, other, **wanted)
    return f"{difference} ({verdict(difference)})"
