"""Figures of the rates experiment, from the rows of its CSV."""

import math
from pathlib import Path

import numpy as np

from adaptax.report.figures import COLOURS, DASHES, grid, legend, save
from adaptax.report.rows import Rows, by_seed, distinct, pick

_OUTCOMES = {"converged": "#009e73", "stalled": "#e69f00", "diverged": "#d55e00"}


def draw_noise_free(folder: Path, name: str, rows: Rows) -> None:
    """The mean of φ(‖∇L‖) and the least ‖∇L‖² over k < K, beside their bounds."""
    problems = distinct(rows, "problem", "case")
    figure, axes = grid(2, len(problems), width=3.0, height=2.5, sharex=True)
    titles = {"mean phi": "mean of φ(‖∇L‖)", "least square": "least ‖∇L‖²"}
    for column, (problem, case) in enumerate(problems):
        for line, (measure, title) in enumerate(titles.items()):
            ax, run = axes[line, column], pick(rows, problem=problem, case=case, measure=measure)
            for i, (entry, label) in enumerate((("value", "measured"), ("bound", "bound"))):
                x, values = by_seed(run, "x", entry)
                values = np.maximum(values, 1e-32)
                ax.plot(x, np.median(values, axis=1), color=COLOURS[i], linestyle=DASHES[i], linewidth=1.6, label=label)
                ax.fill_between(x, values.min(axis=1), values.max(axis=1), color=COLOURS[i], alpha=0.15, linewidth=0)
            ax.set_xscale("log")
            ax.set_yscale("log")
            if line == 0:
                ax.set_title(f"{problem}, {case}", fontsize=9)
            else:
                ax.set_xlabel("K", fontsize=9)
            if column == 0:
                ax.set_ylabel(title, fontsize=9)
    legend(figure, axes[0, 0], 2)
    save(figure, folder, name)


def draw_floors(folder: Path, name: str, rows: Rows) -> None:
    """The floor of ‖∇L‖² against the sizes of batches; grey lines have the slope −1."""
    problems = distinct(rows, "problem")
    lines = distinct(rows, "case", "measure")
    figure, axes = grid(1, len(problems), width=4.0, height=2.9)
    for ax, problem in zip(axes[0], problems, strict=True):
        for i, (case, size) in enumerate(lines):
            x, values = by_seed(pick(rows, problem=problem, case=case, measure=size), "x")
            ax.plot(x, values.mean(axis=1), color=COLOURS[i], linestyle=DASHES[i], marker=".", label=f"{case}, against {size}")
            ax.fill_between(x, values.min(axis=1), values.max(axis=1), color=COLOURS[i], alpha=0.15, linewidth=0)
            ax.plot(x, values.mean() / np.mean(1 / x) / x, color="#b0b0b0", linewidth=0.8, zorder=0)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_title(problem, fontsize=9)
        ax.set_xlabel("size of the batch (grey: slope −1)", fontsize=9)
    axes[0, 0].set_ylabel("mean ‖∇L‖² after training has settled", fontsize=9)
    legend(figure, axes[0, 0], 2)
    save(figure, folder, name)


def draw_costs(folder: Path, name: str, rows: Rows) -> None:
    """Oracle calls until the accuracy is reached, against N; a line ends where not all seeds reach it."""
    panels = distinct(rows, "case", "outer")
    figure, axes = grid(1, len(panels), width=3.1, height=2.9, sharey=True)
    labels = distinct(rows, "rule", "samples")
    for ax, (case, outer) in zip(axes[0], panels, strict=True):
        for i, (rule, samples) in enumerate(labels):
            run = pick(rows, case=case, outer=outer, rule=rule, samples=samples)
            x = sorted({row["steps"] for row in run})
            values = np.array([_cost([row for row in run if row["steps"] == n]) for n in x])
            if len(x):
                label = f"{rule}{', ' + samples if samples else ''}"
                ax.plot(x, values, color=COLOURS[i % 7], linestyle=DASHES[i % 7], marker=".", label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_title(f"{case}, {outer}", fontsize=9)
        ax.set_xlabel("N", fontsize=9)
    axes[0, 0].set_ylabel("oracle calls (mean over seeds)", fontsize=9)
    handles = dict(pair[::-1] for ax in axes[0] for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save(figure, folder, name)


def _cost(rows: Rows) -> float:
    """The mean over seeds; NaN, which is not drawn, where a seed did not reach the accuracy."""
    return math.nan if any(row["measure"] != "reached" for row in rows) else float(np.mean([row["value"] for row in rows]))


def draw_moments(folder: Path, name: str, rows: Rows, steps: int, S: float, D: float) -> None:
    """Bias against N and S, and second moment against N, beside the bounds.

    Arguments:
        folder, name: where NAME.png and NAME.svg go.
        rows: of the part "moments".
        steps, S, D: the numbers of steps and samples that are held where another one varies.
    """
    figure, axes = grid(1, 3, width=3.2, height=2.6)
    bias, second = pick(rows, measure="bias", D=D), pick(rows, measure="second moment", D=D)
    panels = (
        (f"bias, S = {S:g}", "N", "steps", pick(bias, S=S)),
        (f"bias, N = {steps}", "S", "S", sorted(pick(bias, steps=steps), key=lambda row: row["S"])),
        (f"second moment, S = {S:g}", "N", "steps", pick(second, S=S)),
    )
    for ax, (title, label, column, run) in zip(axes[0], panels, strict=True):
        x = [row[column] for row in run]
        ax.errorbar(
            x, [row["value"] for row in run], [2 * row["error"] for row in run], color=COLOURS[0], marker=".", label="measured"
        )
        ax.plot(x, [row["bound"] for row in run], color=COLOURS[1], linestyle=DASHES[1], marker=".", label="bound")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel(label, fontsize=9)
    legend(figure, axes[0, 0], 2)
    save(figure, folder, name)


def draw_maps(folder: Path, name: str, rows: Rows) -> None:
    """The outcomes of training over (N, α), and the largest α of the theorem."""
    panels = distinct(rows, "problem", "outer")
    figure, axes = grid(1, len(panels), width=3.4, height=2.9, sharey=False)
    for ax, (problem, outer) in zip(axes[0], panels, strict=True):
        run = pick(rows, problem=problem, outer=outer)
        for outcome, colour in _OUTCOMES.items():
            points = [(row["steps"], row["alpha"]) for row in run if row["measure"] == outcome]
            if points:
                ax.plot(*zip(*points, strict=True), "s", color=colour, markersize=6, label=outcome)
        curve = sorted({(row["steps"], row["curve"]) for row in run})
        ax.plot(*zip(*curve, strict=True), color="black", linewidth=1.4, label="α = (2^(1/2N) − 1)/L")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_title(f"{problem}, {outer}", fontsize=9)
        ax.set_xlabel("N", fontsize=9)
    axes[0, 0].set_ylabel("α", fontsize=9)
    handles = dict(pair[::-1] for ax in axes[0] for pair in zip(*ax.get_legend_handles_labels(), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    save(figure, folder, name)
