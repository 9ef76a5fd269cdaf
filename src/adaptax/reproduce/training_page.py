"""The figures and the page of a training experiment, from its CSV alone: every number and statement is computed here."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptax.report.learning import by_seed, draw_learning
from adaptax.report.tables import markdown
from adaptax.reproduce.files import Row, distinct, pick, read_rows
from adaptax.reproduce.methods import CALLS, EXACT, FIRST_ORDER, GGS, IN_LOSSES, UNCORRECTED, calls_in_words, priced, strategies
from adaptax.reproduce.training import Experiment

# A method is taken to do as exact does if the ratio of the losses is within this of 1, to two standard errors over seeds, and
# to differ if it is farther off by three.
_BARELY = 0.01


class Outcome(NamedTuple):
    """One method at one setting: losses at the end by seed, their ratio to exact's seed by seed, calls to reach a level."""

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
        """How far the ratio is from 1."""
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
        """The losses at the end: median and range of those that are finite, and how many are not."""
        finite = self.final[np.isfinite(self.final)]
        if not len(finite):
            return "not finite"
        text = f"{np.median(finite):.4g} [{np.min(finite):.4g}, {np.max(finite):.4g}]"
        return text if self.finite else f"{text}; {len(self.final) - len(finite)} of {len(self.final)} not finite"


def publish(out: Path, name: str, what: Experiment, title: str, about: str) -> None:
    """Draw NAME.png and NAME.svg and write README.md from NAME.csv in a folder.

    Arguments:
        out, name: the folder, and what its CSV is called.
        what: the experiment, for its constants.
        title, about: the page's first lines.
    """
    rows = read_rows(out / f"{name}.csv")
    training = pick(rows, part="training")
    draw_learning(out, name, training, what.inner_steps)
    seeds, steps = len(distinct(training, "seed")), max(row["meta_step"] for row in training)
    parts = [
        f"# {title}",
        f"Written by `adaptax reproduce {name} --seeds {seeds} --steps {steps}` from [{name}.csv]({name}.csv).",
        about,
        f"![Held-out loss against meta-steps and oracle calls]({name}.png)",
        f"Lines: median over {seeds} seeds; bands: from the smallest to the largest seed. A seed's initial parameters and "
        f"tasks are the same for all methods. The loss is that of {what.held_out} held-out tasks after {what.inner_steps} "
        "inner steps, the same tasks always.",
        _prices(what),
        "All methods have the same outer step size, not each its best one. Where the Hessian is positive definite, the factors "
        "I − αH shorten the gradient, so that a method that leaves them out moves farther in a step; with Adam outside the "
        "length plays hardly any part.",
    ]
    if errors := pick(rows, part="gradient error"):
        parts.append(_gradient_errors(errors, what))
    for alpha, outer in dict.fromkeys((row["alpha"], row["outer_stepsize"]) for row in training):
        parts.append(_setting(pick(training, alpha=alpha, outer_stepsize=outer), alpha, outer, what))
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _prices(what: Experiment) -> str:
    rows = []
    for name, strategy in strategies(what.samples, what.delta).items():
        cost = what.method(strategy, 1.0).cost()
        rows.append([name, calls_in_words(cost), str(priced(cost, CALLS)), str(priced(cost, IN_LOSSES))])
    loss, gradient, product = IN_LOSSES
    return (
        "## What a meta-gradient costs\n\n"
        "*Oracle calls* count a loss, a gradient and a Hessian-vector product as one call each, as the theory does. *In "
        f"evaluations of the loss*, a gradient is taken for {gradient // loss} and a Hessian-vector product for "
        f"{product // gradient} gradients, about what differentiation takes. Per task and meta-step (Q = {what.samples}, "
        f"δ = {what.delta:g}):\n\n" + markdown(["method", "calls", "oracle calls", "in evaluations of the loss"], rows)
    )


def outcomes(rows: list[Row]) -> tuple[list[Outcome], float]:
    """What became of each method at one setting, and the level that is to be reached: exact's median at half time."""
    runs = {method: by_seed(pick(rows, method=method), "calls") for method in distinct(rows, "method")}
    exact = runs[EXACT][1]
    exact_losses = np.where(np.isfinite(exact), exact, np.inf)
    # Exact may not learn at all.
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
    found, level = outcomes(rows)
    starts = by_seed(pick(rows, method=EXACT))[1][0]
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
            "figures at this setting say what becomes of a step size that is too large, not which method is better."
        )
    if not known:
        sentences.append("Exact is not below its first loss half-way: there is no level to compare calls by.")
    if same := [one for one in others if one.same]:
        spread = max(abs(one.ratio - 1) for one in same)
        sentences.append(f"As exact, within {100 * spread:.1g} %: {', '.join(one.method for one in same)}.")
    if unclear := [one for one in others if not one.same and not one.differs]:
        names = ", ".join(f"{one.method} ({one.words()})" for one in unclear)
        sentences.append(f"Too scattered over seeds to tell from exact by three standard errors: {names}.")
    for one in (one for one in others if one.differs):
        if not one.finite:
            continue
        side = "above" if one.ratio > 1 else "below"
        sentences.append(f"{_capital(one.method)} ends {_percent(one.ratio)} {side} exact in the mean over seeds.")
    for one in others:
        if one.finite and (worse := int(np.sum(one.final >= starts))):
            sentences.append(f"{_capital(one.method)}: {worse} of {len(one.final)} seeds end no lower than they began.")
    reached = [one for one in found if one.reached is not None]
    if reached:
        first = min(reached, key=lambda one: one.reached or 0)
        sentences.append(
            f"The level that exact has half-way, {level:.3g}, is reached with the fewest oracle calls by {first.method} "
            f"({first.reached:,})."
        )
    shown = f"{alpha:g}" + (" (the paper's)" if alpha == what.settings[0].alpha else "")
    head = f"## α = {shown}, outer step {outer:g}"
    return f"{head}\n\n{markdown(header, table)}\n\n{' '.join(sentences)}"


def _gradient_errors(rows: list[Row], what: Experiment) -> str:
    alphas, methods = distinct(rows, "alpha"), distinct(rows, "method")
    cells: dict[tuple[str, float], tuple[float, float | None]] = {}
    for row in rows:
        runs = pick(rows, method=row["method"], alpha=row["alpha"])
        predicted = [r["predicted"] for r in runs if "predicted" in r]
        value = float(np.median([r["value"] for r in runs]))
        cells[row["method"], row["alpha"]] = value, float(np.median(predicted)) if predicted else None
    body = []
    for method in methods:
        line = [method]
        for alpha in alphas:
            value, predicted = cells[method, alpha]
            line.append(f"{value:.2g}" + ("" if predicted is None else f" ({predicted:.2g})"))
        body.append(line)
    sentences = [
        "Relative errors of the meta-gradients against exact ones at the initial parameters, scaled to their mean square "
        "norm: median over tasks, then over seeds. In brackets, the root mean square error that section 7 of the theory "
        "gives to first order in α, with the Hessian at w_0 in all factors: the bias of the product N times, its noise in N "
        "independent factors.",
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
        + ". The first order in α overestimates what N factors do where they shrink, the Hessian changes along the path, and "
        "the prediction for random directions is a root mean square, of an error with heavy tails, set beside a median."
    )
    header = ["method", *(f"α = {alpha:g}" for alpha in alphas)]
    return f"## Errors of the meta-gradients at w_0\n\n{markdown(header, body)}\n\n{' '.join(sentences)}"


def _percent(ratio: float) -> str:
    return f"a factor {ratio:.3g}" if ratio > 2 else f"{100 * abs(ratio - 1):.2g} %"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
