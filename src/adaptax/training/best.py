"""The state that scores best on validation tasks."""

import math
from collections.abc import Iterable
from typing import Any

from adaptax.training.run import Run
from adaptax.training.step import State

# Metrics of which more is better; without one of them the loss after N steps decides.
_HIGH = ("accuracy", "return")


class Best:
    """The best state so far: in the run folder if there is one, otherwise in memory.

    Arguments:
        run: the run, or None.
        entries: what has been evaluated so far, when a run goes on.
    """

    def __init__(self, run: Run | None, entries: Iterable[dict[str, Any]]):
        self.run = run
        self.score = max(map(score, entries), default=-math.inf)
        self.state: State | None = None

    def offer(self, entry: dict[str, Any], state: State) -> None:
        """Keep the state if its evaluation beats all before; the first of equals stays."""
        if (found := score(entry)) > self.score:
            self.score = found
            if self.run is None:
                self.state = state
            else:
                self.run.save_best(state)

    def choose(self, last: State) -> State:
        """The best state, or the last one if none was kept."""
        kept = self.state if self.run is None else self.run.load_best(last)
        return last if kept is None else kept


def score(entry: dict[str, Any]) -> float:
    """How good an evaluation is: the more the better; worse than any if it is not finite."""
    name = next((name for name in _HIGH if name in entry), None)
    value = entry["loss"] if name is None else entry[name]
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if name is None else value
