"""The figures and the page of the estimators' experiment, from its CSV alone: every number and statement is computed here."""

import math
from pathlib import Path

import numpy as np

from adaptax.report.estimators import draw_directions, draw_radii
from adaptax.report.tables import markdown
from adaptax.reproduce.files import Row, distinct, pick, read_rows
from adaptax.reproduce.methods import FIRST_ORDER, NEEDS, UNCORRECTED

# How many standard errors a measured number may be from the predicted one.
_NEAR = 4.0


def publish(out: Path, name: str) -> None:
    """Draw the figures and write README.md from NAME.csv in a folder."""
    rows = read_rows(out / f"{name}.csv")
    directions, radius = pick(rows, part="directions"), pick(rows, part="radius")
    losses, repeats = distinct(directions, "loss"), max(row["repeats"] for row in directions)
    draw_directions(out, "directions", pick(directions, measure="rms"), {loss: _floor(rows, loss) for loss in losses})
    draw_radii(out, "radius", pick(radius, measure="width error"))
    parts = [
        "# Estimators of Hessian-vector products",
        f"Written by `adaptax reproduce {name} --repeats {repeats}` from [{name}.csv]({name}.csv).",
        "Each estimator of Hv ([theory](../../theory.md), section 7) beside the exact product, in double precision: on a "
        "quadratic with known eigenvalues, and on small networks that fit one sinusoid, where v is the target's gradient. "
        f"‖v‖ = 1. Every number is over {repeats} independent products; errors are relative to ‖Hv‖.",
        _constants(pick(rows, part="loss")),
        "## Over the number of directions",
        "![Relative error over Q](directions.png)",
        *(_over_samples(rows, loss) for loss in losses),
        "## Over the radius",
        "![Error over the radius](radius.png)",
        _over_radii(radius),
        "## Which estimator when",
        _which(directions),
    ]
    (out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _constants(rows: list[Row]) -> str:
    header = {"d": "d", "trace": "tr H", "frobenius": "‖H‖_F", "norm": "‖H‖", "product": "‖Hv‖"}
    body = []
    for loss in distinct(rows, "loss"):
        found = {row["measure"]: row["value"] for row in pick(rows, loss=loss)}
        body.append([loss, *(f"{found[key]:.4g}" for key in header)])
    return markdown(["loss", *header.values()], body)


def _over_samples(rows: list[Row], loss: str) -> str:
    every, rows = rows, pick(rows, part="directions", loss=loss)
    estimators = [e for e in distinct(rows, "estimator") if pick(rows, estimator=e, measure="variance")]
    q = max(row["samples"] for row in rows)
    body, away, slopes = [], [], []
    for estimator in estimators:
        run = pick(rows, estimator=estimator)
        last = {row["measure"]: row for row in pick(run, samples=q)}
        rms, variance, along, beyond = (last[m] for m in ("rms", "variance", "bias along v", "bias beyond prediction"))
        body.append([
            estimator, f"{rms['value']:.3g} ± {rms['error']:.1g}", f"{rms['predicted']:.3g}", _ratio(variance),
            f"{along['value']:.3g} ± {along['error']:.1g} ({along['predicted']:.3g})",
            f"{beyond['value']:.2f} (1 ± {beyond['error']:.2f})",
        ])  # fmt: skip
        measured = [row for row in run if row["measure"] != "rms"]
        away += [(abs(row["value"] - row["predicted"]) / row["error"], estimator, row) for row in measured]
        if estimator != UNCORRECTED and len(points := pick(run, measure="rms")) > 1:
            slopes.append((estimator, _slope(points, "samples")))
    header = [f"at Q = {q}", "relative error", "predicted", "variance, measured / predicted", "bias along v (predicted)",
              "squared bias beyond the predicted one / noise"]  # fmt: skip
    text = [f"### {loss}", markdown(header, body), _levels_off(rows, _floor(every, loss), q)]
    if slopes:
        text.append(
            "Slopes of the root mean square error in Q: " + "; ".join(f"{e} {s:.3f}" for e, s in slopes) + " (−1/2 is due)."
        )
    worst, estimator, row = max(away, key=lambda entry: entry[0])
    verdict = f"All {len(away)} variances and biases" if worst <= _NEAR else f"Not all of the {len(away)} variances and biases"
    text.append(
        f"{verdict}, at every Q, are within {_NEAR:g} standard errors of the predicted values; farthest off is "
        f"{estimator}'s {row['measure']} at Q = {row['samples']}, by {worst:.1f}. The predictions are those of the "
        + ("quadratic." if loss == "quadratic" else "quadratic with the Hessian at w.")
    )
    return "\n\n".join(text)


def _floor(rows: list[Row], loss: str) -> float:
    """The relative error that the uncorrected form tends to: half the trace."""
    constants = {row["measure"]: row["value"] for row in pick(rows, part="loss", loss=loss)}
    return abs(constants["trace"]) / 2 / constants["product"]


def _levels_off(rows: list[Row], floor: float, q: int) -> str:
    """Whether it has."""
    row = pick(rows, estimator=UNCORRECTED, samples=q, measure="rms")[0]
    others = [r for r in pick(rows, samples=q, measure="rms") if r["estimator"] != UNCORRECTED and r["error"] > 0]
    lower = [r["estimator"] for r in others if r["value"] < row["value"]]
    text = (
        f"½|tr H|‖v‖/‖Hv‖ = {floor:.3g}. With Q = {q} the uncorrected zeroth-order form errs by {row['value']:.3g} ± "
        f"{row['error']:.1g}, {row['value'] / floor:.3f} times that"
    )
    if lower:
        text += f"; less by then: {', '.join(f'{e}' for e in lower)}"
    if floor > 1:
        text += f". Leaving the Hessian out errs by 1: however large Q is, this form is {floor:.2g} times worse"
    return text + "."


def _over_radii(rows: list[Row]) -> str:
    body = []
    for loss in distinct(rows, "loss"):
        for estimator in distinct(rows, "estimator"):
            run = pick(rows, loss=loss, estimator=estimator, measure="width error")
            default = pick(rows, loss=loss, estimator=estimator, measure="default")[0]["value"]
            best = min(run, key=lambda row: row["value"])
            rounding = [row for row in run if row["delta"] <= best["delta"] / 30]
            truncation = [row for row in run if row["delta"] >= best["delta"] * 9 and row["value"] < 0.1]
            ends = [f"{_slope(end, 'delta'):.2f}" if len(end) > 2 else "–" for end in (rounding, truncation)]
            body.append([loss, estimator, f"{best['value']:.1e}", f"{best['delta']:.1e}", *ends, f"{default:.1e}"])
    text = (
        "The error that δ makes, apart from the noise of the directions: against the same estimator on the quadratic model of "
        "the loss, with the same directions (Q = "
        f"{rows[0]['samples']}), relative to ‖Hv‖. On the left end rounding errors grow as 1/δ for differences of gradients "
        "and as 1/δ² for those of values. On the right end truncation grows as δ for the plain one-sided GGS and as δ² for the "
        "symmetric differences; a quadratic has none, and where the loss has kinks no such power is due."
    )
    header = [
        "loss",
        "estimator",
        "least error",
        "at δ",
        "slope, rounding end",
        "slope, truncation end",
        "error at the default δ",
    ]
    lines = [text, markdown(header, body)]
    checked = [row for row in rows if row.get("predicted", 0) > 0 and row["loss"] == "tanh network" and row["value"] < 0.01]
    checked = [row for row in checked if row["delta"] >= 1e-3]
    if checked:
        ratios = [row["value"] / row["predicted"] for row in checked]
        lines.append(
            "The finite difference's truncation on the tanh network over its leading term δ²/6 · ‖∂²(∇²l)v‖, for δ from "
            f"{checked[0]['delta']:.0e} to {checked[-1]['delta']:.0e}: {min(ratios):.3f} to {max(ratios):.3f}."
        )
    return "\n\n".join(lines)


def _which(rows: list[Row]) -> str:
    losses = distinct(rows, "loss")
    stochastic = {row["samples"] for row in rows if row["measure"] == "variance"}
    q = 10 if 10 in stochastic else min(stochastic)
    body = []
    for name, needs in NEEDS.items():
        run = pick(rows, estimator=name, measure="rms")
        if not run:
            body.append([name, needs.oracle, "1 Hessian-vector product", *("0" for _ in losses), needs.when])
            continue
        at = [r for r in run if r["samples"] == q] or run
        calls = at[0]["calls"]
        unit = "losses" if needs.oracle == "values" else "gradients"
        errors = [f"{pick(at, loss=loss)[0]['value']:.2g}" for loss in losses]
        body.append([name, needs.oracle, f"{calls} {unit}" if calls else "none", *errors, needs.when])
    header = ["estimator", "needs", f"calls a product (Q = {q})", *(f"relative error, {loss}" for loss in losses), "when"]
    worse = []
    for loss in losses:
        for name in distinct(rows, "estimator"):
            at = pick(rows, estimator=name, measure="rms", samples=q, loss=loss)
            if name != FIRST_ORDER and at and at[0]["value"] > 1:
                worse.append(f"{name} on the {loss}")
    text = markdown(header, body)
    if worse:
        text += (
            f"\n\nAn error above 1 is larger than that of leaving the Hessian out. With Q = {q} that is so for "
            f"{', '.join(worse)}. In a meta-gradient the error counts α times, and unbiased noise averages out over tasks and "
            "meta-steps; a bias does not."
        )
    return text


def _ratio(row: Row) -> str:
    return f"{row['value'] / row['predicted']:.3f} ± {row['error'] / row['predicted']:.3f}"


def _slope(rows: list[Row], column: str) -> float:
    """The least-squares slope of log value against the log of a column."""
    pairs = [(math.log(row[column]), math.log(row["value"])) for row in rows if row["value"] > 0]
    if len(pairs) < 2:
        return math.nan
    x, y = np.array(pairs).T
    return float(np.polyfit(x, y, 1)[0])
