"""The figures and the page of a meta-training experiment, which are made from its CSV and its settings alone."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptax.report.learning import draw_learning
from adaptax.report.rows import by_seed, distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row, read_rows
from adaptax.reproduce.meta_training import ADAM, GRADIENT_DESCENT, Experiment
from adaptax.reproduce.page_text import capital
from adaptax.reproduce.strategies import (
    CALLS,
    EXACT,
    FIRST_ORDER,
    GGS,
    IN_LOSSES,
    UNCORRECTED,
    calls_in_words,
    priced,
    strategies,
)

# A method ends as exact does if the ratio of the losses is within this of 1, up to two standard errors over seeds. It differs
# if the ratio is farther from 1 than three standard errors.
_BARELY = 0.01
_OUTER_STEP = {
    GRADIENT_DESCENT.name: "Where the eigenvalues of αH lie between 0 and 2, the factors I − αH shorten the gradient, so that "
    "a method which leaves them out takes longer steps.",
    ADAM.name: "Adam divides each entry of the gradient by its usual size, so that the length of the gradient plays hardly any "
    "part.",
}


class Outcome(NamedTuple):
    """The outcome of one method at one setting.

    Arguments:
        method: its name.
        final: the loss at the end of each seed.
        ratio: the loss at the end over that of exact, seed by seed: the geometric mean.
        error: the standard error of the logarithm of the ratio.
        reached: oracle calls until the level is reached, or None.
    """

    method: str
    final: np.ndarray
    ratio: float
    error: float
    reached: int | None

    @property
    def finite(self) -> bool:
        return bool(np.all(np.isfinite(self.final)))

    @property
    def far(self) -> float:
        """The distance of the ratio from 1, as a logarithm."""
        return abs(math.log(self.ratio)) if self.finite and self.ratio > 0 else math.inf

    @property
    def same(self) -> bool:
        return self.far + 2 * self.error <= math.log1p(_BARELY)

    @property
    def differs(self) -> bool:
        return not self.finite or (self.far > 3 * self.error and not self.same)

    def words(self) -> str:
        """The ratio to exact with its standard error."""
        if not math.isfinite(self.error):
            return "not to be had"
        percent = 100 * self.error
        return f"{self.ratio:.3g} (± {percent:.0f} %)" if percent >= 10 else f"{self.ratio:.3g} (± {percent:.2g} %)"

    def end(self) -> str:
        """The median and the range of the finite losses at the end, and how many losses are not finite."""
        finite = self.final[np.isfinite(self.final)]
        if not len(finite):
            return "not finite"
        text = f"{np.median(finite):.4g} [{np.min(finite):.4g}, {np.max(finite):.4g}]"
        return text if self.finite else f"{text}; {len(self.final) - len(finite)} of {len(self.final)} not finite"


def publish(out: Path, name: str, what: Experiment) -> None:
    """Draw NAME.png and NAME.svg and write README.md from NAME.csv in a folder.

    Arguments:
        out, name: the folder, and the name of its CSV.
        what: the experiment, for its settings.
    """
    rows = read_rows(out / f"{name}.csv")
    draw_learning(out, name, pick(rows, part="training"), what.inner_steps)
    (out / "README.md").write_text(compose(rows, name, what), encoding="utf-8")


def compose(rows: list[Row], name: str, what: Experiment) -> str:
    """The page, from the rows of the CSV and the arguments of `publish`."""
    training = pick(rows, part="training")
    seeds, steps = len(distinct(training, "seed")), max(row["meta_step"] for row in training)
    parts = [
        f"# {what.title}",
        f"Written by `adaptax reproduce {name} --seeds {seeds} --steps {steps}` from [{name}.csv]({name}.csv).",
        f"{what.about} Inner steps: N = {what.inner_steps}; tasks a meta-step: {what.tasks_per_step}; outer optimiser: "
        f"{what.optimizer.name}.",
        f"![Held-out loss against meta-steps and oracle calls]({name}.png)",
        f"Lines: median over {seeds} seeds; bands: from the smallest to the largest seed. A seed's initial parameters "
        f"and tasks are the same for all methods. The loss is the mean over {what.held_out} held-out tasks after "
        f"N = {what.inner_steps} inner steps, the same tasks always.",
        _prices(what),
        f"All methods share one outer step size, which is not tuned for each. {_OUTER_STEP[what.optimizer.name]}",
    ]
    if errors := pick(rows, part="gradient error"):
        parts.append(_gradient_errors(errors))
    for alpha, outer in distinct(training, "alpha", "outer_stepsize"):
        parts.append(_setting(pick(training, alpha=alpha, outer_stepsize=outer), alpha, outer, what))
    return "\n\n".join(parts) + "\n"


def _prices(what: Experiment) -> str:
    """The section about the price of a meta-gradient."""
    rows = []
    for name, strategy in strategies(what.samples, what.delta).items():
        cost = what.method(strategy, 1.0).cost()
        rows.append([name, calls_in_words(cost), str(priced(cost, CALLS)), str(priced(cost, IN_LOSSES))])
    loss, gradient, product = IN_LOSSES
    return (
        "## What a meta-gradient costs\n\n"
        "*Oracle calls* count a loss, a gradient and a Hessian-vector product as one call each, as the theory does. *In "
        f"evaluations of the loss*, a gradient counts as {gradient // loss} losses and a Hessian-vector product as "
        f"{product // gradient} gradients, about what differentiation takes. Per task and meta-step (Q = {what.samples}, "
        f"δ = {what.delta:g}):\n\n" + markdown(["method", "calls", "oracle calls", "in evaluations of the loss"], rows)
    )


def outcomes(rows: list[Row]) -> tuple[list[Outcome], float]:
    """The outcome of each method at one setting, and the level that is to be reached: exact's median half-way.

    The level is minus infinity where exact does not get below its first loss.
    """
    runs = {method: by_seed(pick(rows, method=method), "calls") for method in distinct(rows, "method")}
    exact = runs[EXACT][1]
    exact_losses = np.where(np.isfinite(exact), exact, np.inf)
    level = float(np.median(exact_losses[len(exact) // 2]))
    level = level if level < np.median(exact_losses[0]) else -math.inf
    result = []
    for method, (calls, losses) in runs.items():
        pairs = np.isfinite(losses[-1]) & np.isfinite(exact[-1])
        logs = np.log(losses[-1][pairs] / exact[-1][pairs])
        ratio = float(np.exp(np.mean(logs))) if len(logs) else math.nan
        error = float(np.std(logs, ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.inf
        below = np.flatnonzero(np.median(losses, axis=1) <= level)
        reached = int(calls[below[0]]) if len(below) else None
        result.append(Outcome(method, losses[-1], ratio, error, reached))
    return result, level


def _setting(rows: list[Row], alpha: float, outer: float, what: Experiment) -> str:
    """The section about one pair of step sizes."""
    found, level = outcomes(rows)
    starts = by_seed(pick(rows, method=EXACT), "calls")[1][0]
    table = []
    for one in found:
        ratio = "1" if one.method == EXACT else one.words()
        table.append([one.method, one.end(), ratio, "not reached" if one.reached is None else f"{one.reached:,}"])
    known = math.isfinite(level)
    header = ["method", "held-out loss at the end: median [range]", "ratio to exact, same seed", f"calls until {level:.3g}"]
    if not known:
        header, table = header[:-1], [line[:-1] for line in table]
    sentences = [f"Before training the loss is {np.median(starts):.4g} (median over seeds)."]
    others = [one for one in found if one.method != EXACT]
    if lost := int(np.sum(~np.isfinite(starts))):
        sentences.append(
            f"For {lost} of {len(starts)} seeds it is not finite: the inner steps diverge at the initial parameters. The "
            "figures at this setting show what becomes of a step size that is too large, not which method is better."
        )
    if not known:
        sentences.append("Half-way, exact is not below its first loss: there is no level to compare calls by.")
    if same := [one for one in others if one.same]:
        spread = max(abs(one.ratio - 1) for one in same)
        sentences.append(f"These end as exact does, within {100 * spread:.1g} %: {', '.join(one.method for one in same)}.")
    if unclear := [one for one in others if not one.same and not one.differs]:
        names = ", ".join(f"{one.method} ({one.words()})" for one in unclear)
        sentences.append(f"The seeds scatter too much to tell these from exact by three standard errors: {names}.")
    for one in others:
        if one.differs and one.finite:
            side = "above" if one.ratio > 1 else "below"
            sentences.append(f"{capital(one.method)} ends {_percent(one.ratio)} {side} exact in the mean over seeds.")
    for one in others:
        if one.finite and (worse := int(np.sum(one.final >= starts))):
            sentences.append(f"{capital(one.method)}: {worse} of {len(one.final)} seeds end no lower than they began.")
    reached = [one for one in found if one.reached is not None]
    if reached:
        first = min(reached, key=lambda one: one.reached or 0)
        sentences.append(
            f"The level that exact has half-way, {level:.3g}, is reached with the fewest oracle calls by {first.method} "
            f"({first.reached:,})."
        )
    published = any((sizes.alpha, sizes.outer) == (alpha, outer) for sizes in what.settings if sizes.published)
    whose = " (the paper's)" if published else ""
    head = f"## α = {alpha:g}{whose}, outer step {outer:g}"
    return f"{head}\n\n{markdown(header, table)}\n\n{' '.join(sentences)}"


def _gradient_errors(rows: list[Row]) -> str:
    """The section about the errors of the meta-gradients."""
    alphas, methods = distinct(rows, "alpha"), distinct(rows, "method")
    cells: dict[tuple[str, float], tuple[float, float | None]] = {}
    for method, alpha in distinct(rows, "method", "alpha"):
        runs = pick(rows, method=method, alpha=alpha)
        predicted = [r["predicted"] for r in runs if "predicted" in r]
        value = float(np.median([r["value"] for r in runs]))
        cells[method, alpha] = value, float(np.median(predicted)) if predicted else None
    body = []
    for method in methods:
        line = [method]
        for alpha in alphas:
            value, predicted = cells[method, alpha]
            line.append(f"{value:.2g}" + ("" if predicted is None else f" ({predicted:.2g})"))
        body.append(line)
    sentences = [
        "Relative errors of the meta-gradients against exact ones at the initial parameters, which are rescaled so that their "
        "squared norm has its mean: median over tasks, then over seeds. In brackets, the root mean square error that section 7 "
        "of the theory gives to first order in α, with the Hessian at w_0 in all factors: the bias of the product N times, its "
        "noise in N independent factors.",
    ]
    alpha = alphas[0]
    ggs, first, uncorrected = (cells[m, alpha][0] for m in (GGS, FIRST_ORDER, UNCORRECTED))
    if ggs < first < uncorrected:
        sentences.append(
            f"At α = {alpha:g} GGS errs by {ggs:.2g}, leaving the Hessian out by {first:.2g}, and the uncorrected zeroth-order "
            f"form by {uncorrected:.2g}: it is worse than using no Hessian at all."
        )
    ratios = [(m, cells[m, alpha][0] / p) for m in methods if (p := cells[m, alpha][1])]
    sentences.append(
        f"Measured over predicted at α = {alpha:g}: "
        + ", ".join(f"{m} {ratio:.2f}" for m, ratio in ratios)
        + ". The prediction leaves out higher orders in α and the change of the Hessian along the path. For random directions "
        "it is a root mean square, which lies above the median that is measured where large errors are rare."
    )
    header = ["method", *(f"α = {alpha:g}" for alpha in alphas)]
    return f"## Errors of the meta-gradients at w_0\n\n{markdown(header, body)}\n\n{' '.join(sentences)}"


def _percent(ratio: float) -> str:
    """The distance of a ratio from 1 in words: in per cent below 2, as a factor from there on.

    Example:
        >>> _percent(1.0082), _percent(1.996), _percent(70.3)
        ('0.82 %', '100 %', 'a factor 70.3')
    """
    percent = 100 * abs(ratio - 1)
    if ratio > 2:
        return f"a factor {ratio:.3g}"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
