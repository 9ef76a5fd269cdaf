"""Slopes on logarithmic axes, with their intervals."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats


class Slope(NamedTuple):
    """A slope: the mean over seeds, and half the width of its 95 % interval (NaN for one seed)."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}"


def slope(x: np.ndarray, values: np.ndarray) -> Slope:
    """The slope of log values, shape (x, seeds), over log x.

    Example:
        >>> x = np.array([1.0, 2.0, 4.0])
        >>> print(slope(x, np.stack([3 / x, 5 / x], axis=1)))
        -1.00 ± 0.00
    """
    logs = np.log(x)
    found = [np.polyfit(logs, np.log(column), 1)[0] for column in values.T]
    half = stats.t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return Slope(float(np.mean(found)), float(half))
