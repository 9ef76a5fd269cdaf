"""Callbacks: what is measured at intervals during training. Evaluation, the best state and the certificate are defined here."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx

from adaptax import _devices as dev
from adaptax._checks import check_whole
from adaptax._keys import any_key
from adaptax._tree import first_line
from adaptax.errors import InputError, NotFiniteWarning
from adaptax.measure import stationarity
from adaptax.problem import AbstractProblem
from adaptax.training.evaluate import judge
from adaptax.training.run import Run
from adaptax.training.step import State, Step

# Held-out tasks of each evaluation and each certificate.
_HELD_OUT = 200
# Metrics of which more is better; a problem without one of them is judged by the loss after N steps.
_HIGHER_IS_BETTER = ("accuracy", "return")
_RESERVED = ("history", "config", "environment", "manifest", "best", "evaluation")


class Callback(ABC):
    """A measurement of the training state, for `ax.train(callbacks=[...])`.

    `ax.train` calls `measure(state)` after each meta-step that is `due`. The result, a dict of numbers by name, becomes one
    line of `NAME.jsonl` in the run folder, and its numbers are in the history as `NAME.key` (NaN between measurements). Any
    object with `name`, `due` and `measure` will do; this class adds `every`.

    Arguments:
        every: meta-steps between measurements, at least 1.

    Attributes: `name`, the name of the series, a Python identifier; `columns`, a dict from the names in the history to the
        keys of a measurement, for other names than `NAME.key`.

    Errors: `InputError` if `every` is not a positive whole number.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> class Size(ax.training.Callback):
        ...     name = "size"
        ...     def measure(self, state):
        ...         return {"norm": float(jnp.linalg.norm(state.params))}
        >>> sample = lambda key: ax.Task(*[jax.random.normal(key, (3,))] * 2)
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), sample)
        >>> method = ax.MetaGradient(ax.Inner(2, 0.1))
        >>> _, history = ax.train(problem, jnp.ones(3), method, steps=4, callbacks=[Size(every=2)])
        >>> jnp.isfinite(history["size.norm"]).tolist()
        [False, True, False, True]
    """

    name: str
    columns: Mapping[str, str] | None = None

    def __init__(self, every: int):
        self.every = check_whole(type(self).__name__, "every", every)

    def due(self, step: int) -> bool:
        """Whether to measure after so many meta-steps."""
        return step % self.every == 0

    @abstractmethod
    def measure(self, state: State) -> dict[str, Any]:
        """The measurement of a state: numbers by name."""

    def resume(self, entries: Iterable[dict[str, Any]]) -> None:
        """Take note of the measurements that a run made before it was resumed (nothing by default)."""
        return None


class Evaluation(Callback):
    """Every metric on held-out tasks before and after N steps; the loss after N steps is `held_out` in the history.

    Arguments:
        step: the meta-step of the run, which says the inner loop, the sample sizes and the devices.
        every: meta-steps between evaluations.
        problem: the problem whose tasks are held out.
        seed: decides the tasks.
    """

    name = "evaluations"
    columns: ClassVar = {"held_out": "loss"}

    def __init__(self, step: Step, every: int, problem: AbstractProblem, seed: int):
        super().__init__(every)
        check_draws_tasks(problem, "evaluate_every=", "give a problem that has some as validation=")
        self.step, self.problem, self.seed, self.told = step, problem, seed, False

    def measure(self, state: State) -> dict[str, Any]:
        step, mesh = self.step, self.step.mesh
        devices = None if mesh is None else list(mesh.devices.flat)
        inner, steps = state.inner, sorted({0, self.step.method.inner.steps})
        curve, why = judge(
            self.problem, state.params, inner, steps, _HELD_OUT, self.seed, step.method.samples, step.in_flight, devices,
            dev.shards(mesh),
        )  # fmt: skip
        if curve.not_finite.any() and not self.told:
            self.told = True
            text = f"The evaluation of meta-step {int(state.step)} is not finite. {why()}"
            warnings.warn(text, NotFiniteWarning, stacklevel=5)
        values: dict[str, Any] = {"not_finite": int(curve.not_finite[-1])}
        for name, means in curve.mean.items():
            values |= {name: float(means[-1]), f"{name}_before": float(means[0])}
        self.judged(state, values)
        return values

    def judged(self, state: State, entry: dict[str, Any]) -> None:
        """Take note of a state and its evaluation (nothing here)."""
        return None


class BestState(Evaluation):
    """`Evaluation` that keeps the state with the best score: in the run folder if there is one, otherwise in memory.

    The score is the accuracy or the return after N steps if the problem has such a metric, otherwise the loss.

    Arguments:
        step, every, problem, seed: as for `Evaluation`.
        run: the run folder, or None.
    """

    def __init__(self, step: Step, every: int, problem: AbstractProblem, seed: int, run: Run | None):
        super().__init__(step, every, problem, seed)
        self.run, self.best, self.state, self.count = run, -math.inf, None, 0

    def resume(self, entries: Iterable[dict[str, Any]]) -> None:
        scores = [score(entry) for entry in entries]
        self.best, self.count = max(scores, default=-math.inf), len(scores)

    def judged(self, state: State, entry: dict[str, Any]) -> None:
        self.count += 1
        # The first of equals stays.
        if (found := score(entry)) > self.best:
            self.best = found
            if self.run is None:
                self.state = state
            else:
                self.run.checkpoints.save_best(state)

    def choose(self, last: State) -> State:
        """The best state, or the last one if no evaluation was finite."""
        kept = self.state if self.run is None else self.run.checkpoints.load_best(last)
        if kept is None and self.count:
            text = f"None of the {self.count} evaluations on validation tasks was finite: the last state is returned."
            warnings.warn(text, NotFiniteWarning, stacklevel=3)
        return last if kept is None else dev.collect(self.step.mesh, kept)


class Certificate(Callback):
    r"""The 95 % bound on $\|\nabla\mathcal L\|$ from held-out tasks (`ax.measure.stationarity`), at each look by itself.

    Arguments:
        step: the meta-step of the run.
        every: meta-steps between measurements.
        seed: decides the tasks.
    """

    name = "certificate"
    columns: ClassVar = {"gradient_upper": "gradient_upper"}

    def __init__(self, step: Step, every: int, seed: int):
        super().__init__(every)
        check_draws_tasks(step.problem, "certify=", "leave it out")
        self.step, self.seed, self.told = step, seed, False

    def measure(self, state: State) -> dict[str, Any]:
        mesh, method = self.step.mesh, self.step.method.with_inner(state.inner)
        params = dev.collect(mesh, state.params)
        devices = None if mesh is None or dev.is_cut(params) else list(mesh.devices.flat)
        found = stationarity(self.step.problem, params, method, tasks=_HELD_OUT, seed=self.seed, devices=devices)
        if not math.isfinite(found.upper) and not self.told:
            self.told = True
            text = f"At meta-step {int(state.step)} no bound on the meta-gradient could be had ({found.verdict})."
            warnings.warn(text, NotFiniteWarning, stacklevel=5)
        return {"gradient_upper": found.upper}


def score(entry: dict[str, Any]) -> float:
    """The score of an evaluation, the higher the better; minus infinity if it is not finite."""
    name = next((name for name in _HIGHER_IS_BETTER if name in entry), None)
    value = entry.get("loss" if name is None else name)
    if value is None or not math.isfinite(value):
        return -math.inf
    return -value if name is None else value


def columns_of(callback: Any, entry: dict[str, Any]) -> dict[str, Any]:
    """The history's columns of one measurement."""
    columns = getattr(callback, "columns", None)
    if columns is None:
        return {f"{callback.name}.{key}": value for key, value in entry.items() if key != "step"}
    return {column: entry[key] for column, key in columns.items() if key in entry}


def check_callbacks(callbacks: Any) -> list[Any]:
    """The callbacks as a list; refuse objects without the interface, and two series of one name."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise InputError(f"callbacks= must be a list of callbacks, not {type(callbacks).__name__}.")
    names: set[str] = set()
    for callback in callbacks:
        name = getattr(callback, "name", None)
        whole = callable(getattr(callback, "due", None)) and callable(getattr(callback, "measure", None))
        if not whole or not isinstance(name, str):
            kind = type(callback).__name__
            raise InputError(
                f"A callback needs name, due(step) and measure(state), which {kind} has not: see ax.training.Callback."
            )
        if not name.isidentifier() or name in _RESERVED:
            raise InputError(f"The callback name {name!r} cannot name a series: use an identifier that is not taken.")
        if name in names:
            raise InputError(f"Two callbacks are named {name!r}: give each a name of its own.")
        names.add(name)
    return list(callbacks)


def check_measurement(callback: Any, entry: Any) -> dict[str, Any]:
    """A measurement as plain numbers by name."""
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) and key != "step" for key in entry):
        text = f"measure(state) of the callback {callback.name!r} must return numbers by name"
        raise InputError(f"{text}, such as {{'norm': 1.0}}, not {type(entry).__name__}.")
    try:
        return {key: None if value is None else float(value) for key, value in entry.items()}
    except (TypeError, ValueError) as error:
        text = f"measure(state) of the callback {callback.name!r} returned something that is no number"
        raise InputError(f"{text} ({first_line(error)}): return numbers by name.") from error


def check_draws_tasks(problem: AbstractProblem, option: str, remedy: str) -> None:
    """Refuse a measurement on tasks of its own where the problem's `sample_task` cannot draw any."""
    try:
        eqx.filter_eval_shape(problem.sample_task, any_key())
    except Exception as error:
        text = f"{option} measures on tasks that sample_task(key) draws, which fails ({first_line(error)})"
        raise InputError(f"{text}: {remedy}, or leave {option} out.") from error
