"""Errors of Hessian-vector products over the number of directions and over the radius, from the rows of a CSV."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adaptax.report.figures import COLOURS, DASHES, grid, legend, save
from adaptax.report.rows import Rows, distinct, pick

_MARKERS = "osD^vPX"
_NUMBERS = ("samples", "value", "error", "predicted")


def draw_directions(folder: Path, name: str, rows: Rows, floors: Mapping[str, float]) -> None:
    """Root mean square error over Q: measured marks with two standard errors, predicted lines.

    Arguments:
        folder, name: where NAME.png and NAME.svg go.
        rows: of the part "directions" and the measure "rms".
        floors: by loss, the error that the uncorrected zeroth-order form tends to.
    """
    losses, estimators = distinct(rows, "loss"), distinct(rows, "estimator")
    figure, axes = grid(1, len(losses), width=4.6, height=3.6)
    largest = max(row["samples"] for row in rows)
    for ax, loss in zip(axes[0], losses, strict=True):
        low, high = [1.0], [1.0]
        for i, estimator in enumerate(estimators):
            run = pick(rows, loss=loss, estimator=estimator)
            q, value, error, predicted = (np.array([row[k] for row in run], float) for k in _NUMBERS)
            style = {"color": COLOURS[i], "linestyle": DASHES[i]}
            if len(run) == 1:
                # Estimators without directions are lines, which may lie far below.
                ax.plot([1, largest], [value[0]] * 2, linewidth=1.3, label=estimator, **style)
                if value[0] < 1e-3:
                    text = f"{estimator}: {value[0]:.0e}, below"
                    ax.text(0.02, 0.02, text, transform=ax.transAxes, fontsize=8, color=COLOURS[i])
                continue
            low, high = [*low, *value], [*high, *value]
            ax.plot(q, predicted, linewidth=1.1, **style)
            hollow = {"markerfacecolor": "white", "markersize": 8} if estimator == "GGS" else {"markersize": 4}
            marks = {"color": COLOURS[i], "marker": _MARKERS[i], "linestyle": "none", "elinewidth": 1, **hollow}
            ax.errorbar(q, value, 2 * error, capsize=2, label=f"{estimator} (line: predicted)", **marks)
        ax.axhline(floors[loss], color="#888888", linewidth=2.5, alpha=0.45, zorder=1, label="½ |tr H| ‖v‖")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(min(low) / 3, max(high) * 2)
        ax.set_xlabel("directions Q", fontsize=9)
        ax.set_title(loss, fontsize=10)
    axes[0, 0].set_ylabel("relative error of Hv (root mean square)", fontsize=9)
    legend(figure, axes[0, 0], 2)
    save(figure, folder, name)


def draw_radii(folder: Path, name: str, rows: Rows) -> None:
    r"""The error that the radius $\delta$ makes in a product, apart from the noise of its directions.

    Arguments:
        folder, name: where NAME.png and NAME.svg go.
        rows: of the part "radius" and the measure "width error".
    """
    losses, estimators = distinct(rows, "loss"), distinct(rows, "estimator")
    figure, axes = grid(1, len(losses), width=3.7, height=3.3, sharey=True)
    for ax, loss in zip(axes[0], losses, strict=True):
        for i, estimator in enumerate(estimators):
            run = pick(rows, loss=loss, estimator=estimator)
            delta, value = (np.array([row[k] for row in run], float) for k in ("delta", "value"))
            colour = COLOURS[i + 1]
            ax.plot(
                delta, value, color=colour, linestyle=DASHES[i + 1], marker=_MARKERS[i + 1], markersize=3.2, label=estimator
            )
            if "predicted" in run[0] and run[-1]["predicted"] > 0:
                # Predictions are drawn only where truncation exceeds rounding.
                predicted = np.array([row["predicted"] for row in run], float)
                seen = predicted > value.min() / 3
                ax.plot(delta[seen], predicted[seen], color=colour, linewidth=3.5, alpha=0.35, label=f"{estimator}, predicted")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(1e-14, 1e3)
        ax.set_xlabel("radius δ", fontsize=9)
        ax.set_title(loss, fontsize=10)
    axes[0, 0].set_ylabel("error that δ makes, relative to Hv", fontsize=9)
    legend(figure, axes[0, 1 if len(losses) > 1 else 0], 3)
    save(figure, folder, name)
