"""What is measured now and then during training."""

from typing import Any

from adaptax.measure import stationarity
from adaptax.problem import AbstractProblem
from adaptax.training import devices as dev
from adaptax.training.best import Best
from adaptax.training.evaluate import evaluate
from adaptax.training.monitor import NAMES as STABILITY
from adaptax.training.monitor import monitor, warn
from adaptax.training.run import Run
from adaptax.training.step import State, Step

# Held-out tasks of each measurement.
_HELD_OUT = 200


class Watch:
    """Held-out losses, stability, and whether the run is stationary, whenever they are due.

    Arguments:
        step: of the run.
        evaluate_every, monitor_every: meta-steps between measurements; None for never.
        certify: whether a bound on the meta-gradient goes with stability.
        seed: of tasks that training has no part of.
        validation: the problem whose tasks are held out (default: that of the run).
    """

    best: Best | None = None

    def __init__(
        self, step: Step, evaluate_every: int | None, monitor_every: int | None, certify: bool, seed: int,
        validation: AbstractProblem | None = None,
    ):  # fmt: skip
        self.step, self.evaluate_every, self.monitor_every = step, evaluate_every, monitor_every
        self.certify, self.seed, self.problem = certify, seed, step.problem if validation is None else validation

    def names(self) -> list[str]:
        """What the history has beside its columns."""
        names = ["held_out"] if self.evaluate_every else []
        names += STABILITY if self.monitor_every else ()
        return names + (["gradient_upper"] if self.certify else [])

    def __call__(self, state: State, done: int, run: Run | None, record: Any) -> None:
        """Measure what is due after `done` meta-steps, note it in the record, and append it to the run."""
        if self.evaluate_every and done % self.evaluate_every == 0:
            entry = self._evaluate(state)
            record.note(done, {"held_out": entry["loss"]})
            if self.best is not None:
                self.best.offer(entry, state)
            if run is not None:
                run.append_evaluation({"step": done, **entry})
        if self.monitor_every and done % self.monitor_every == 0:
            found = monitor(self.step, state)
            values = found._asdict()
            if self.certify:
                values["gradient_upper"] = self._bound(state)
            record.note(done, values)
            if run is not None:
                run.append_stability({"step": done, **values})
            warn(self.step, done, found)

    def _evaluate(self, state: State) -> dict[str, float]:
        step = self.step
        curve = evaluate(
            self.problem, state.params, state.inner, sorted({0, step.method.inner.steps}), _HELD_OUT, self.seed,
            samples=step.method.samples, in_flight=step.in_flight,
            devices=None if step.mesh is None else list(step.mesh.devices.flat),
        )  # fmt: skip
        values = {}
        for name, means in curve.mean.items():
            values |= {name: float(means[-1]), f"{name}_before": float(means[0])}
        return values

    def _bound(self, state: State) -> float:
        method = self.step.method.with_inner(state.inner)
        params = dev.collect(self.step.mesh, state.params)
        return stationarity(self.step.problem, params, method, tasks=_HELD_OUT, seed=self.seed).upper
