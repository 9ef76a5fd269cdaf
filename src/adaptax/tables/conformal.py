"""Intervals of predictions that are calibrated on groups which the model has not seen."""

import math

import numpy as np

from adaptax.errors import InputError


def width(scores: np.ndarray, there: np.ndarray, place: np.ndarray, groups: int, coverage: float) -> float:
    r"""The scaled half-width of intervals that cover a row of a new group with probability `coverage`.

    A new group is like one drawn from those of the calibration. Each of the G groups has the weight 1/(G + 1), which its rows
    share, and the rest of the weight lies at infinity; the half-width is the quantile of the scores' weighted distribution.

    Arguments:
        scores: $|y - \hat y|/s$ of rows, shape (tasks, queries).
        there: which rows there are, of the same shape.
        place: the group of each task, shape (tasks,).
        groups: G.
        coverage: the probability, between 0 and 1.

    Errors: `InputError` if the groups are too few for the coverage.

    Source: Dunn, Wasserman, Ramdas (2022), Distribution-free prediction sets for two-layer hierarchical models, JASA.
    """
    if groups < (least := least_groups(coverage)):
        text = f"Intervals of coverage {coverage:g} need at least {least} groups of two rows or more, and there are {groups}"
        raise InputError(f"{text}: ask for less coverage, or train on more groups.")
    rows = np.bincount(place, there.sum(1), groups)
    weight = np.where(there, 1 / np.maximum(rows[place], 1)[:, None], 0).ravel() / (groups + 1)
    order = np.argsort(scores.ravel(), kind="stable")
    total = np.cumsum(weight[order])
    return float(scores.ravel()[order][min(np.searchsorted(total, coverage - 1e-9), len(total) - 1)])


def least_groups(coverage: float) -> int:
    """The fewest groups that can calibrate intervals of this coverage."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)
