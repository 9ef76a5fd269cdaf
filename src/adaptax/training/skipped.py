"""Meta-steps that are skipped: how many, and why, in one sentence."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from adaptax import _devices as dev
from adaptax._finite import Lost, tell
from adaptax.errors import NotFiniteWarning
from adaptax.training.step import State, Step

_OPTIMIZER = (
    "the meta-gradient is finite, but the update that the outer optimiser makes of it is not: look at the optimiser, its step "
    "size and its schedule"
)
_OVERFLOW = "the meta-gradient of each task is finite, but their sum is too large for its type: scale the loss down."


class Skipped:
    """Counts the meta-steps of a run that were not finite, and warns of the first one, and of all at the end.

    Arguments:
        step: the meta-step of the run.
    """

    def __init__(self, step: Step):
        self.step = step
        self.taken = self.skipped = self.bad = 0
        self.first: int | None = None
        # The warning of the first one, kept until it is clear that the run goes on and does not end there as `Diverged`.
        self.held: str | None = None

    def add(self, chunk: dict[str, np.ndarray], replay: Callable[[int], tuple[State, PyTree]]) -> None:
        """Count the meta-steps of one compiled run, and warn of the first one.

        Arguments:
            chunk: the records of its meta-steps.
            replay: the state after so many of its meta-steps, and the last one's tasks where they come from the host.
        """
        bad = chunk["skipped"] | (chunk["not_finite"] > 0)
        self.taken, self.bad = self.taken + len(bad), self.bad + int(bad.sum())
        self.skipped += int(chunk["skipped"].sum())
        if self.first is None and bad.any():
            k = int(np.argmax(bad))
            state, batch = replay(k + 1)
            self.first = int(state.step) - 1
            end = "was skipped" if chunk["skipped"][k] else "has a loss that is not finite"
            why = explain(self.step, state, {name: values[k] for name, values in chunk.items()}, batch)
            self.held = f"Meta-step {self.first} {end}: {why}"
        if self.held is not None and not chunk["skipped"][-1]:
            self._warn(self.held)
            self.held = None

    def end(self) -> None:
        """Warn of all of them, if the first was not the only one."""
        if self.held is not None:
            self._warn(self.held)
        if self.bad > 1:
            text = f"{self.skipped} of {self.taken} meta-steps were skipped, since their meta-gradient or update was not finite"
            if not self.skipped:
                text = f"{self.bad} of {self.taken} meta-steps have a loss that is not finite"
            self._warn(f'{text}; the first was meta-step {self.first} (history["not_finite"] counts the tasks of each).')

    def _warn(self, text: str) -> None:
        warnings.warn(text, NotFiniteWarning, stacklevel=5)


def explain(step: Step, state: State, record: dict[str, Any], batch: PyTree) -> str:
    """Why a meta-step was not finite.

    Arguments:
        step: the meta-step.
        state: the state after it; one that is skipped changes neither parameters nor the optimiser's state.
        record: its record.
        batch: its tasks, where they come from the host.
    """
    state, batch = dev.collect(step.mesh, (state, batch))
    number, index, count = int(state.step) - 1, int(record["first_not_finite"]), step.tasks_per_step
    if index >= count:
        own = type(step.optimizer).__module__.startswith("adaptax.")
        return (
            f"{_OPTIMIZER}{', and at what it measures itself' if own else ''}."
            if np.isfinite(record["grad_norm"])
            else _OVERFLOW
        )
    moved = number + 1 - int(state.skipped)
    outer = f"{moved} meta-steps brought the parameters there, so that a smaller outer step size may help"
    method = step.method.with_inner(state.inner).at(state.step - 1)
    lost = Lost(int(record["not_finite"]), count, index)
    return tell(
        lost, step.problem, state.inner, state.params, method.samples, jax.random.fold_in(state.key, number), batch=batch,
        moved=outer if moved > 0 and lost.number == count else "", method=method, rule=step.method.inner.stepsize,
    )  # fmt: skip
