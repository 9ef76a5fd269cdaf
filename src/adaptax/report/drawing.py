"""The picture of `adaptax demo`: tasks before and after adaptation.

It is drawn without a display. Matplotlib takes a second to import, so it is imported when something is drawn.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_TRUTH, _BEFORE, _AFTER = "#9a9a9a", "#e69f00", "#0072b2"


@dataclass(frozen=True)
class Curves:
    """The curves of one task, for one initialisation.

    Arguments:
        x: the inputs at which the curves are drawn, shape (n,).
        truth, before, after: values of the sinusoid, of the initial network and of the adapted one, shape (n,).
        support: the points (x, y) that the network adapts on, shape (shots, 2).
    """

    x: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray
    support: np.ndarray


def draw_adaptation(path: str | os.PathLike, rows: Mapping[str, Sequence[Curves]], inner_steps: int) -> None:
    """Draw tasks before and after adaptation: one column for each task, one row for each initialisation.

    Arguments:
        path: the PNG to write.
        rows: the tasks by the name of the initialisation, the same ones in the same order for each.
        inner_steps: N, the number of steps from `before` to `after`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(3.6 * columns, 2.3 * len(rows) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, sharex=True, sharey="col", squeeze=False)
    steps = f"{inner_steps} gradient step" + ("s" if inner_steps != 1 else "")
    for line, (name, tasks) in zip(axes, rows.items(), strict=True):
        for column, (ax, task) in enumerate(zip(line, tasks, strict=True)):
            ax.plot(task.x, task.truth, color=_TRUTH, linewidth=5, alpha=0.45, solid_capstyle="round", label="the sinusoid")
            ax.plot(task.x, task.before, color=_BEFORE, linewidth=1.6, linestyle=(0, (4, 2)), label="before adaptation")
            ax.plot(task.x, task.after, color=_AFTER, linewidth=2, label=f"after {steps}")
            ax.plot(*task.support.T, "o", color="black", markersize=4.5, zorder=3, label="the points it adapts on")
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8)
            error = np.mean((task.after - task.truth) ** 2)
            ax.text(0.99, 0.97, f"mean squared error {error:.2f}", transform=ax.transAxes, ha="right", va="top", fontsize=8)
            # Room above the curves for the text.
            reach = 1.25 * max(np.abs(task.truth).max(), 1.0)
            ax.set_ylim(-reach, 1.35 * reach)
            if line[0] is axes[0, 0]:
                ax.set_title(f"held-out sinusoid {column + 1}", fontsize=10)
        line[0].set_ylabel(name, fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
