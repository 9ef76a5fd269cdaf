"""Colours, axes, legends and file formats that the figures of the experiments share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes separate lines that lie on one another.
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (4, 1, 1, 1)), "-", (0, (6, 2, 2, 2)), (0, (3, 2)))


def grid(rows: int, columns: int, width: float = 3.7, height: float = 2.9, **options: Any) -> tuple[Any, Any]:
    """A figure without a display, and its axes as an array of shape (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(which="both", labelsize=8)
        ax.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def legend(figure: Any, ax: Any, columns: int) -> None:
    """One legend below all axes, with the entries of the axes `ax`."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5, handlelength=3)


def save(figure: Any, folder: Path, name: str) -> Sequence[Path]:
    """Write NAME.png and NAME.svg; the SVG keeps text as text and holds no date, so that equal figures are equal files."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify": True}):
        figure.savefig(folder / f"{name}.png", dpi=120)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return folder / f"{name}.png", folder / f"{name}.svg"
