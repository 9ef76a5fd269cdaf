"""Figures of the navigation experiment, from the rows of its CSV."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adaptax.report.figures import COLOURS, DASHES, grid, legend, save
from adaptax.report.rows import Rows, distinct, pick


def draw_returns(folder: Path, name: str, rows: Rows, axis: str, label: str) -> None:
    """The return before adaptation and after one step along training: mean over seeds, and the range of the seeds.

    Arguments:
        folder, name: where NAME.png and NAME.svg go.
        rows: of the part "training", all of one setting.
        axis, label: the column of the CSV on the axis below, and what it is called.
    """
    methods = distinct(rows, "method")
    figure, axes = grid(1, 2, width=4.2, height=3.0, sharey=True)
    for adapted, ax in enumerate(axes[0]):
        for i, method in enumerate(methods):
            run = pick(rows, method=method, adapted=adapted)
            at = sorted({row["meta_step"] for row in run})
            x = [next(row[axis] for row in run if row["meta_step"] == step) for step in at]
            values = [[row["value"] for row in run if row["meta_step"] == step] for step in at]
            colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
            ax.plot(x, np.mean(values, axis=1), color=colour, linestyle=dash, linewidth=1.6, label=method)
            ax.fill_between(x, np.min(values, axis=1), np.max(values, axis=1), color=colour, alpha=0.13, linewidth=0)
        ax.set_title("after one step" if adapted else "before adaptation", fontsize=9)
        ax.set_xlabel(label, fontsize=9)
        if axis == "meta_step":
            ax.xaxis.get_major_locator().set_params(integer=True)
        else:
            ax.set_xscale("symlog", linthresh=min(row[axis] for row in rows if row[axis]))
    # A policy that runs away must not hide the others.
    values = np.array([row["value"] for row in rows])
    axes[0, 0].set_ylim(max(values.min(), 3 * np.median(values)), None)
    axes[0, 0].set_ylabel("return on held-out goals", fontsize=9)
    legend(figure, axes[0, 0], 4)
    save(figure, folder, name)


def draw_paths(folder: Path, name: str, rows: Rows, goals: Sequence[tuple[float, float]]) -> None:
    """Trajectories before and after one step, one line of axes for each method, one column for each goal."""
    methods = distinct(rows, "method")
    figure, axes = grid(len(methods), len(goals), width=2.2, height=2.2, sharex=True, sharey=True)
    for line, method in zip(axes, methods, strict=True):
        for goal, (ax, place) in enumerate(zip(line, goals, strict=True)):
            for adapted, (colour, label) in enumerate(((COLOURS[1], "before adaptation"), (COLOURS[5], "after one step"))):
                run = pick(rows, method=method, goal=goal, adapted=adapted)
                for i in sorted({row["trajectories"] for row in run}):
                    points = sorted((row["time"], row["x"], row["y"]) for row in run if row["trajectories"] == i)
                    _, x, y = zip(*points, strict=True)
                    ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.8, label=None if i else label)
            ax.plot(*place, "*", color=COLOURS[6], markersize=11, zorder=4, label="goal")
            ax.plot(0, 0, "o", color="black", markersize=4, zorder=4, label="start")
            ax.set_xlim(-1.3, 1.3)
            ax.set_ylim(-1.3, 1.3)
            ax.set_aspect("equal")
        line[0].set_ylabel(method, fontsize=9)
    legend(figure, axes[0, 0], 4)
    save(figure, folder, name)
