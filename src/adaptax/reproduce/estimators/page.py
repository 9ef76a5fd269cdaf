"""The figures and the page of the estimators' experiment, which are made from its CSV alone."""

import math
from pathlib import Path

import numpy as np

from adaptax.report.estimators import draw_directions, draw_radii
from adaptax.report.rows import distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row, read_rows
from adaptax.reproduce.estimators.losses import QUADRATIC, SMOOTH, TANH
from adaptax.reproduce.page_text import listed
from adaptax.reproduce.strategies import EXACT, FINITE_DIFFERENCE, FIRST_ORDER, GGS, STEIN, UNCORRECTED

NAME = "hessian-estimators"
# A measured number agrees with the predicted one up to this number of standard errors.
_NEAR = 4.0
# The number of directions at which estimators are compared, if it was measured.
_COMPARED = 10
# Truncation is compared with its leading term from this radius on, where rounding plays no part, and up to this error.
_TRUNCATION, _SMALL = 1e-3, 1e-2
_ABOUT_LOSSES = {True: "a quadratic with known eigenvalues", False: "small networks that fit one sinusoid, where v is the "
                 "target's gradient"}  # fmt: skip
# The oracle that a strategy calls, and when to take it.
_USE = {
    EXACT: ("second derivatives", "the default, wherever the loss can be differentiated twice"),
    FIRST_ORDER: ("gradients", "when the curvature terms are small (α times the largest curvature times N well below 1)"),
    FINITE_DIFFERENCE: ("gradients", "when only gradients are available; it draws no random directions"),
    GGS: (
        "gradients",
        "when only gradients are available and a product of the smoothed loss is wanted; its noise is the price",
    ),
    UNCORRECTED: ("values", ""),
    STEIN: ("values", "when only values are available, with many more directions than parameters"),
}


def publish(out: Path) -> None:
    """Draw the figures and write README.md from hessian-estimators.csv in a folder."""
    rows = read_rows(out / f"{NAME}.csv")
    directions = pick(rows, part="directions", measure="rms")
    draw_directions(out, "directions", directions, {loss: _floor(rows, loss) for loss in distinct(directions, "loss")})
    draw_radii(out, "radius", pick(rows, part="radius", measure="width error"))
    (out / "README.md").write_text(compose(rows), encoding="utf-8")


def compose(rows: list[Row]) -> str:
    """The page, from the rows of the CSV."""
    directions, radius = pick(rows, part="directions"), pick(rows, part="radius")
    losses, repeats = distinct(directions, "loss"), max(row["repeats"] for row in directions)
    seed = pick(rows, part="run", measure="seed")[0]["value"]
    kinds = listed(_ABOUT_LOSSES[kind] for kind in dict.fromkeys(loss == QUADRATIC for loss in distinct(radius, "loss")))
    parts = [
        "# Estimators of Hessian-vector products",
        f"Written by `adaptax reproduce {NAME} --repeats {repeats} --seed {seed}` from [{NAME}.csv]({NAME}.csv).",
        f"Each estimator of Hv ([theory](../../theory.md), section 7) beside the exact product, in double precision: on "
        f"{kinds}. ‖v‖ = 1. Every number is over {repeats} independent products; errors are relative to ‖Hv‖.",
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
    return "\n\n".join(parts) + "\n"


def _constants(rows: list[Row]) -> str:
    """The table of the losses' constants."""
    header = {"d": "d", "trace": "tr H", "frobenius": "‖H‖_F", "norm": "‖H‖", "product": "‖Hv‖"}
    body = []
    for loss in distinct(rows, "loss"):
        found = {row["measure"]: row["value"] for row in pick(rows, loss=loss)}
        body.append([loss, *(f"{found[key]:.4g}" for key in header)])
    return markdown(["loss", *header.values()], body)


def _over_samples(rows: list[Row], loss: str) -> str:
    """The section about one loss: errors, variances and biases beside the predicted ones."""
    floor, rows = _floor(rows, loss), pick(rows, part="directions", loss=loss)
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
    text = [f"### {loss}", markdown(header, body), _levels_off(rows, floor, q)]
    if slopes:
        text.append(
            "Slopes of the root mean square error in Q: " + "; ".join(f"{e} {s:.3f}" for e, s in slopes) + " (predicted: −1/2)."
        )
    worst, estimator, row = max(away, key=lambda entry: entry[0])
    far = sum(entry[0] > _NEAR for entry in away)
    which = "All" if not far else f"All but {far}" if far < len(away) else "None"
    text.append(
        f"{which} of the {len(away)} variances and biases, at every Q, are within {_NEAR:g} standard errors of the predicted "
        f"values; the farthest off is {estimator}'s {row['measure']} at Q = {row['samples']}, by {worst:.1f}. The predictions "
        + ("are those of the quadratic." if loss == QUADRATIC else "are those of the quadratic with the Hessian at w.")
    )
    return "\n\n".join(text)


def _floor(rows: list[Row], loss: str) -> float:
    """The relative error that the uncorrected form tends to: half the trace."""
    constants = {row["measure"]: row["value"] for row in pick(rows, part="loss", loss=loss)}
    return abs(constants["trace"]) / 2 / constants["product"]


def _levels_off(rows: list[Row], floor: float, q: int) -> str:
    """The error of the uncorrected form at the largest Q, beside the error that its bias leaves and those of the others."""
    row = pick(rows, estimator=UNCORRECTED, samples=q, measure="rms")[0]
    others = [r for r in pick(rows, samples=q, measure="rms") if r["estimator"] != UNCORRECTED and r["error"] > 0]
    lower = [r["estimator"] for r in others if r["value"] < row["value"]]
    text = (
        f"The bias of the uncorrected zeroth-order form is ½|tr H|‖v‖/‖Hv‖ = {floor:.3g}, however large Q is. With Q = {q} "
        f"this form errs by {row['value']:.3g} ± {row['error']:.1g}, {row['value'] / floor:.3f} times that. "
    )
    text += f"These err by less at this Q: {'; '.join(lower)}." if lower else "No other one errs by less at this Q."
    if floor > 1:
        text += f" Leaving the Hessian out errs by 1, which the bias exceeds by a factor {floor:.2g}."
    return text


def _over_radii(rows: list[Row]) -> str:
    """The section about δ: least errors, the slopes at both ends beside the predicted powers, and the default δ."""
    body, away = [], []
    for loss in distinct(rows, "loss"):
        for estimator in distinct(rows, "estimator"):
            run = pick(rows, loss=loss, estimator=estimator, measure="width error")
            default = pick(rows, loss=loss, estimator=estimator, measure="default")[0]["value"]
            best = min(run, key=lambda row: row["value"])
            ends = (
                [row for row in run if row["delta"] <= best["delta"] / 30],
                [row for row in run if row["delta"] >= best["delta"] * 9 and row["value"] < 0.1],
            )
            slopes = [_slope(end, "delta") if len(end) > 2 else None for end in ends]
            if loss in SMOOTH:
                pairs = zip(slopes, _powers(estimator), strict=True)
                away += [abs(slope - power) for slope, power in pairs if slope is not None]
            cells = ["–" if slope is None else f"{slope:.2f}" for slope in slopes]
            body.append([loss, estimator, f"{best['value']:.1e}", f"{best['delta']:.1e}", *cells, f"{default:.1e}"])
    text = (
        "The error that δ makes, apart from the noise of the directions: against the same estimator on the quadratic model of "
        f"the loss, with the same directions (Q = {rows[0]['samples']}), relative to ‖Hv‖. Predicted are, for small δ, "
        "rounding errors that grow as 1/δ for differences of gradients and as 1/δ² for those of values; and, for large δ, "
        "truncation that grows as δ for the one-sided GGS and as δ² for the symmetric differences. A quadratic has no "
        "truncation, and where the loss has kinks no power is predicted."
    )
    if away:
        text += (
            f" On the smooth losses the {len(away)} slopes in the table differ from these powers by at most {max(away):.2f}."
        )
    header = ["loss", "estimator", "least error", "at δ", "slope, small δ", "slope, large δ", "error at the default δ"]
    lines = [text, markdown(header, body)]
    checked = [row for row in pick(rows, loss=TANH) if row.get("predicted", 0) > 0 and row["value"] < _SMALL]
    checked = [row for row in checked if row["delta"] >= _TRUNCATION]
    if checked:
        ratios = [row["value"] / row["predicted"] for row in checked]
        lines.append(
            f"The finite difference's truncation on the {TANH} over its leading term δ²/6 · ‖∂²(∇²l)v‖, for δ from "
            f"{checked[0]['delta']:.0e} to {checked[-1]['delta']:.0e}: {min(ratios):.3f} to {max(ratios):.3f}."
        )
    return "\n\n".join(lines)


def _powers(estimator: str) -> tuple[int, int]:
    """The predicted powers of δ: of rounding errors, and of truncation."""
    return -2 if estimator in (UNCORRECTED, STEIN) else -1, 1 if estimator == GGS else 2


def _which(rows: list[Row]) -> str:
    """The table that says when to take which estimator."""
    losses = distinct(rows, "loss")
    stochastic = {row["samples"] for row in rows if row["measure"] == "variance"}
    q = _COMPARED if _COMPARED in stochastic else min(stochastic)
    body = []
    for name, (oracle, when) in _USE.items():
        run = pick(rows, estimator=name, measure="rms")
        if not run:
            body.append([name, oracle, "1 Hessian-vector product", *("0" for _ in losses), when])
            continue
        at = [r for r in run if r["samples"] == q] or run
        calls = at[0]["calls"]
        unit = "losses" if oracle == "values" else "gradients"
        errors = [f"{pick(at, loss=loss)[0]['value']:.2g}" for loss in losses]
        when = _when_uncorrected(rows) if name == UNCORRECTED else when
        body.append([name, oracle, f"{calls} {unit}" if calls else "none", *errors, when])
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
            f"\n\nAn error above 1 is larger than that of leaving the Hessian out. With Q = {q} that holds for "
            f"{'; '.join(worse)}. In a meta-gradient the error counts α times, and unbiased noise averages out over tasks and "
            "meta-steps; a bias does not."
        )
    return text


def _when_uncorrected(rows: list[Row]) -> str:
    """When to take the uncorrected form: never, if Stein's errs by less on every loss at the largest Q."""
    q = max(row["samples"] for row in rows)
    errors = []
    for loss in distinct(rows, "loss"):
        own, stein = (pick(rows, estimator=e, measure="rms", samples=q, loss=loss)[0]["value"] for e in (UNCORRECTED, STEIN))
        errors.append((own, stein))
    told = listed(f"{own:.3g} against {stein:.3g}" for own, stein in errors)
    if all(stein < own for own, stein in errors):
        return f"never: its bias stays, and at Q = {q} it errs by more than Stein's form ({told})"
    return f"its bias stays, though at Q = {q} it does not err by more than Stein's form on every loss ({told})"


def _ratio(row: Row) -> str:
    return f"{row['value'] / row['predicted']:.3f} ± {row['error'] / row['predicted']:.3f}"


def _slope(rows: list[Row], column: str) -> float:
    """The least-squares slope of log value against the log of a column."""
    pairs = [(math.log(row[column]), math.log(row["value"])) for row in rows if row["value"] > 0]
    if len(pairs) < 2:
        return math.nan
    x, y = np.array(pairs).T
    return float(np.polyfit(x, y, 1)[0])
