"""The history of a run: columns with a number for each meta-step, and measurements by meta-step."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from adaptax.training.callbacks import columns_of
from adaptax.training.run import Run
from adaptax.training.step import RECORDED


class History:
    """The history of a run while it grows; `ax.train` returns it as a dict of arrays.

    Arguments:
        first: the number of meta-steps taken before the history begins.
        callbacks: the callbacks, whose columns are NaN where nothing was measured.
    """

    def __init__(self, first: int, callbacks: Iterable[Any]):
        self.first = first
        self.columns: dict[str, list] = {name: [] for name in RECORDED}
        names = [name for callback in callbacks for name in getattr(callback, "columns", None) or ()]
        self.measured: dict[str, dict[int, float | None]] = {name: {} for name in names}

    def load(self, run: Run, done: int, callbacks: Iterable[Any]) -> None:
        """Go on from what a run folder holds."""
        self.columns = run.history(done)
        # The run may have begun with a state, which need not be given again.
        self.first = done - len(self.columns["loss"])
        for callback in callbacks:
            for entry in run.series(callback.name):
                self.note(entry["step"], columns_of(callback, entry))

    def add(self, chunk: dict[str, np.ndarray]) -> None:
        """Append the records of some meta-steps."""
        for name in RECORDED:
            self.columns[name].extend(chunk[name].tolist())

    def note(self, step: int, values: dict[str, float | None]) -> None:
        """Note a measurement after `step` meta-steps."""
        for name, value in values.items():
            self.measured.setdefault(name, {})[step] = value

    def arrays(self) -> dict[str, np.ndarray]:
        """The history as arrays; numbers that are not finite are NaN, as they are after a round trip through the folder."""
        columns = {name: np.asarray(values, np.float64) for name, values in self.columns.items()}
        history: dict[str, np.ndarray] = {n: np.where(np.isfinite(x), x, np.nan) for n, x in columns.items()}
        history["skipped"] = columns["skipped"].astype(bool)
        for name, values in self.measured.items():
            history[name] = np.full(len(history["loss"]), np.nan)
            for step, value in values.items():
                if self.first < step <= self.first + len(history["loss"]):  # else its lines are lost
                    history[name][step - 1 - self.first] = np.nan if value is None else value
        return history
