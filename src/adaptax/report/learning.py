"""Learning curves with bands, from the rows of an experiment's CSV."""

from pathlib import Path

import numpy as np

from adaptax.report.figures import COLOURS, DASHES, grid, legend, save
from adaptax.report.rows import Rows, by_seed, distinct, pick

# The columns of the CSV for the axes below, and the names of these axes.
AXES = (("meta_step", "meta-steps"), ("calls", "oracle calls"), ("in_losses", "oracle calls, in evaluations of the loss"))
# Losses above this are not drawn.
_SHOWN = 1e6


def _median(losses: np.ndarray) -> np.ndarray:
    """The median over seeds, with losses that are not finite as the largest; NaN where it is not finite itself."""
    middle = np.median(np.where(np.isfinite(losses), losses, np.inf), axis=1)
    return np.where(np.isfinite(middle), middle, np.nan)


def draw_learning(folder: Path, name: str, rows: Rows, steps: int) -> None:
    """Held-out loss against meta-steps and against oracle calls, one line of axes for each setting.

    Arguments:
        folder, name: where NAME.png and NAME.svg go.
        rows: of the part "training".
        steps: N, for the label.
    """
    from matplotlib.ticker import NullFormatter

    settings = distinct(rows, "alpha", "outer_stepsize")
    methods = distinct(rows, "method")
    figure, axes = grid(len(settings), len(AXES), height=2.7, sharey="row")
    for row, (line, (alpha, outer)) in enumerate(zip(axes, settings, strict=True)):
        for ax, (axis, label) in zip(line, AXES, strict=True):
            for i, method in enumerate(methods):
                run = pick(rows, method=method, alpha=alpha, outer_stepsize=outer)
                x, losses = by_seed(run, axis)
                shown = slice(0, None) if axis == "meta_step" else slice(1, None)
                losses = losses[shown]
                # A band ends where a seed's loss is not finite, a line where the median's is not.
                losses = np.where(np.abs(losses) < _SHOWN, losses, np.nan)
                style = {"color": COLOURS[i], "linestyle": DASHES[i]}
                ax.fill_between(x[shown], losses.min(axis=1), losses.max(axis=1), color=COLOURS[i], alpha=0.13, linewidth=0)
                ax.plot(x[shown], _median(losses), linewidth=1.6, label=method, **style)
            ax.set_yscale("log")
            if axis != "meta_step":
                ax.set_xscale("log")
                ax.xaxis.set_minor_formatter(NullFormatter())
            if row == len(settings) - 1:
                ax.set_xlabel(label, fontsize=9)
            ax.set_title(f"α = {alpha:g}, outer step {outer:g}", fontsize=9)
        line[0].set_ylabel(f"held-out loss after {steps} steps", fontsize=9)
    legend(figure, axes[0, 0], 3)
    save(figure, folder, name)
