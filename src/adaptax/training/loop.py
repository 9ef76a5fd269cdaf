"""The host loop around compiled runs of meta-steps: records, checkpoints, evaluates, stops when nothing is finite."""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from adaptax.batching import check_batch
from adaptax.errors import HostFailure, InputError, forget_failures, raise_failure
from adaptax.method import AbstractMethod
from adaptax.problem import AbstractProblem
from adaptax.training import devices as dev
from adaptax.training.best import Best
from adaptax.training.memory import Memory
from adaptax.training.run import Run
from adaptax.training.step import RECORDED, State, Step, check_count, make_step, run_chunk
from adaptax.training.watch import Watch

# Meta-steps in one compiled run at most, and about how long one may take before the host looks at it.
_CAPACITY = 512
_SECONDS = 0.25
# What separates the seed of what is measured during training from the training seed.
_SEED_OFFSET = 1_000_003
_DIVERGED = (
    "{count} meta-steps in a row up to step {step} had a gradient that was not finite: use a smaller inner step size, "
    "or a rule such as ax.stepsize.Edge() (--stepsize edge), or a smaller outer one."
)


class Diverged(RuntimeError):
    """Training stopped because too many meta-steps in a row had a gradient that was not finite."""


def train(
    problem: AbstractProblem,
    params: PyTree,
    method: AbstractMethod,
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 10_000,
    tasks_per_step: int = 25,
    seed: int = 0,
    tasks: Iterable[PyTree] | None = None,
    state: State | None = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    evaluate_every: int | None = None,
    validation: AbstractProblem | None = None,
    monitor_every: int | None = None,
    certify: bool = False,
    callback: Callable[[State, dict[str, np.ndarray]], Any] | None = None,
    max_skipped: int = 10,
    in_flight: int | None = None,
    memory: Memory | None = None,
    devices: Sequence[Any] | None = None,
    config: dict[str, Any] | None = None,
) -> tuple[State, dict[str, np.ndarray]]:
    r"""Meta-train: $w \leftarrow w - \beta\,\frac1B\sum_i\hat G_i$, `steps` times, in compiled runs of many meta-steps.

    A meta-step whose gradient is not finite changes nothing and is counted. Tasks are spread over all local devices;
    the result does not depend on their number beyond the order of a sum. (On a CPU, JAX shows one device; to use all
    cores, call `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before anything else.)

    Arguments:
        problem: the problem.
        params: parameters w_0 (`ax.Meta`, or plain ones, where step sizes are learned).
        method: the meta-gradient.
        optimizer: any optax transformation (default `optax.adam(1e-3)`); see `ax.make_step` for extra arguments.
        steps: the number of meta-steps K, counted from the beginning of the run, also when it is resumed.
        tasks_per_step: B, tasks a meta-step.
        seed: decides the whole run.
        tasks: task batches from the host, one for each meta-step, instead of `problem.sample_task`. When a run is
            resumed, the batches of the meta-steps already taken are drawn from it and dropped.
        state: a state to go on from, instead of `params` (which then only gives the structure).
        out: a run folder to write (default: nothing is written).
        resume: go on from the last checkpoint in `out`, if there is one.
        checkpoint_every: meta-steps between checkpoints in `out` (default: one at the end).
        evaluate_every: meta-steps between evaluations on 200 held-out tasks before and after N steps; their losses are
            in the history as `held_out` (NaN between evaluations) and in `evaluations.jsonl`.
        validation: the problem that gives these tasks (default: `problem`). Then the state of the best evaluation is kept,
            in `best/` of the run folder if there is one, and returned instead of the last: that of the highest accuracy or
            return after N steps if the problem has such a metric, otherwise of the lowest loss. A run goes on from its
            last state all the same.
        monitor_every: meta-steps between measurements of stability on 16 tasks apart: in the history (NaN between) and in
            `stability.jsonl` are `q`, $(1+\alpha\hat L)^{2N}$; `alpha_lambda`, $\alpha\hat\lambda$; `rising`, the share of
            tasks whose inner loss rises along the path. A `StabilityWarning` names the remedy when $\alpha\hat\lambda > 2$,
            or q >= 2 under `ax.stepsize.Guaranteed`.
        certify: with monitor_every, also measure `gradient_upper` each time, the 95 % bound on $\|\nabla\mathcal L\|$ from 200
            tasks that training has no part of (`ax.measure.stationarity`). It is that of each look by itself.
        callback: `callback(state, record)` after every compiled run, with the arrays of that run's meta-steps.
        max_skipped: stop after so many meta-steps in a row that were not finite.
        in_flight: how many tasks each device holds at a time (default: decided from the shapes).
        memory: `ax.Memory(rate)`: the optimiser gets remembered meta-gradients (default None: those of the batch alone).
        devices: to spread tasks over (default: all local devices).
        config: what `config.json` shall say (default: the arguments), compared when a run is resumed.

    Returns: the final `State` (with `validation` the best one), and a dict of NumPy arrays of length `steps` (less the step
    count of a `state` given):
    loss, grad_norm (of the batch's meta-gradient, also with memory), stepsize (NaN where not finite), skipped.

    Errors: `InputError` for bad arguments, before anything is computed or written; `Diverged` when training stopped
    because nothing was finite, `HostFailure` when an environment on the host failed, with the state saved if there is a
    folder.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp, optax
        >>> sample = lambda key: ax.Task(*[jax.random.normal(key, (3,))] * 2)
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), sample)
        >>> method = ax.MetaGradient(ax.Inner(2, 0.1))
        >>> state, history = ax.train(problem, jnp.ones(3), method, optimizer=optax.sgd(0.1), steps=20)
        >>> history["loss"].shape, int(state.step)
        ((20,), 20)

    Source: docs/theory.md, sections 2, 3 and 6.
    """
    for name, value, least in (("steps", steps, 1), ("max_skipped", max_skipped, 1), ("seed", seed, 0)):
        check_count(value, name, least)
    rare = {"checkpoint_every": checkpoint_every, "evaluate_every": evaluate_every, "monitor_every": monitor_every}
    for name, value in rare.items():
        if value is not None:
            check_count(value, name)
    if validation is not None and evaluate_every is None:
        raise InputError("validation= needs evaluate_every= to say when the state is judged.")
    if validation is not None and not isinstance(validation, AbstractProblem):
        raise InputError(f"validation= must be ax.FiniteSum or ax.Resampling, not {type(validation).__name__}.")
    if certify and monitor_every is None:
        raise InputError("certify=True needs monitor_every= to say when the gradient's bound is measured.")
    if out is None and (resume or checkpoint_every is not None):
        raise InputError("resume and checkpoint_every need a run folder: pass out=FOLDER.")
    if state is not None and not isinstance(state, State):
        raise InputError(f"state must be what ax.train or make_step(...).init returned, not {type(state).__name__}.")
    if callback is not None and not callable(callback):
        raise InputError(f"callback must be a function of (state, record), not {type(callback).__name__}.")
    if tasks is not None and not isinstance(tasks, Iterable):
        raise InputError(f"tasks= must be an iterable of task batches, not {type(tasks).__name__}.")
    run, found, described = None, False, config or {}
    optimizer = _default_optimizer() if optimizer is None else optimizer
    step = make_step(problem, method, optimizer, tasks_per_step, in_flight=in_flight, memory=memory)
    step = _on(step, dev.mesh_of(devices, tasks_per_step))
    if out is not None:
        run = Run(out)
        described = _describe(method, steps, tasks_per_step, seed, memory) if config is None else config
        found = run.check(described, resume)
    stream, ahead = None, None
    if tasks is not None:
        stream = iter(tasks)
        ahead = _next(stream, tasks_per_step, 0)
        stream = itertools.chain([ahead], stream)
    start = step.init(params, seed, ahead) if state is None else state
    first = int(start.step)
    watch = Watch(step, evaluate_every, monitor_every, certify, seed + _SEED_OFFSET, validation)
    record = _Record(first, watch.names())
    if run is not None and found:
        restored = run.restore(start)
        start = start if restored is None else restored
        record.load(run, int(start.step))
    elif run is not None:
        # Compiled, and refused if it cannot be, before anything is written.
        _try(step, dev.replicate(step.mesh, start), ahead)
        run.create(described)
    if stream is not None:
        stream = itertools.islice(stream, int(start.step) - first, None)

    if validation is not None:
        watch.best = Best(run, run.evaluations() if run is not None and found else ())
    state = dev.replicate(step.mesh, start)
    state = _loop(step, state, steps, stream, run, record, checkpoint_every, watch, callback, max_skipped)
    last = dev.collect(step.mesh, state)
    return (last if watch.best is None else dev.collect(step.mesh, watch.best.choose(last))), record.arrays()


@functools.cache
def _default_optimizer() -> optax.GradientTransformation:
    # One object, so that runs with the default share a compiled program.
    return optax.adam(1e-3)


def _on(step: Step, mesh) -> Step:
    return dataclasses.replace(step, mesh=mesh)


class _Record:
    """The history so far: columns, and by meta-step what is measured now and then."""

    def __init__(self, first: int, rare: Iterable[str]):
        self.first = first
        self.columns: dict[str, list] = {name: [] for name in RECORDED}
        self.rare: dict[str, dict[int, float | None]] = {name: {} for name in rare}

    def load(self, run: Run, done: int) -> None:
        self.columns = run.history()
        # The run may have begun with a state, which need not be given again.
        self.first = done - len(self.columns["loss"])
        for entry in run.evaluations():
            self.note(entry["step"], {"held_out": entry["loss"]})
        for entry in run.stability():
            self.note(entry["step"], {name: entry[name] for name in entry if name != "step"})

    def note(self, step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            self.rare.setdefault(name, {})[step] = value

    def add(self, chunk: dict[str, np.ndarray]) -> None:
        for name in RECORDED:
            self.columns[name].extend(chunk[name].tolist())

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays; what is not finite is NaN, as it is after a round trip through the folder."""
        columns = {name: np.asarray(values, np.float64) for name, values in self.columns.items()}
        history: dict[str, np.ndarray] = {n: np.where(np.isfinite(x), x, np.nan) for n, x in columns.items()}
        history["skipped"] = columns["skipped"].astype(bool)
        for name, values in self.rare.items():
            history[name] = np.full(len(history["loss"]), np.nan)
            for step, value in values.items():
                history[name][step - 1 - self.first] = np.nan if value is None else value
        return history


def _try(step: Step, state: State, batch: PyTree) -> None:
    """Trace and, where the program takes a count, compile one meta-step without taking it."""
    if batch is None:
        run_chunk(step, state, jnp.array(0), _CAPACITY, jnp.array(1))
    else:
        eqx.filter_eval_shape(step, state, batch)


def _loop(step, state, steps, stream, run, record, checkpoint_every, watch, callback, max_skipped):
    length, saved = 1, None if run is None else run.newest()

    def keep(state):
        nonlocal saved
        if run is not None and saved != int(state.step):
            run.save(state)
            saved = int(state.step)

    while (done := int(state.step)) < steps:
        if int(state.skipped) >= max_skipped:
            raise Diverged(_DIVERGED.format(count=max_skipped, step=done))
        stops = [done + length, steps]
        stops += [
            (done // every + 1) * every for every in (checkpoint_every, watch.evaluate_every, watch.monitor_every) if every
        ]
        began = time.perf_counter()
        forget_failures()
        if stream is None:
            new, chunk, taken = run_chunk(step, state, jnp.array(min(stops) - done), _CAPACITY, jnp.array(max_skipped))
        else:
            new, chunk, taken = _host_step(step, state, stream)
        taken = int(taken)
        try:
            raise_failure()
        except HostFailure:
            keep(state)
            raise
        state = new
        chunk = {name: np.asarray(values)[:taken] for name, values in chunk.items()}
        # Long enough to hide the host's work, short enough to be watched; results do not depend on it.
        if taken == length and time.perf_counter() - began < _SECONDS:
            length = min(2 * length, _CAPACITY)
        record.add(chunk)
        done += taken
        if run is not None:
            run.append(done - taken, chunk)
        try:
            watch(state, done, run, record)
        except HostFailure:
            keep(state)
            raise
        if checkpoint_every and done % checkpoint_every == 0:
            keep(state)
        if callback is not None:
            callback(state, chunk)
        diverged = int(state.skipped) >= max_skipped
        if diverged or done >= steps:
            keep(state)
        if diverged:
            raise Diverged(_DIVERGED.format(count=max_skipped, step=done))
    return state


def _host_step(step: Step, state: State, stream: Iterator[PyTree]):
    batch = _next(stream, step.tasks_per_step, int(state.step))
    state, info = step(state, batch)
    return state, {name: np.asarray(info[name])[None] for name in RECORDED}, 1


def _next(stream: Iterator[PyTree], tasks_per_step: int, done: int) -> PyTree:
    try:
        batch = next(stream)
    except StopIteration:
        raise InputError(f"tasks= ended after {done} batches: it must give one batch for every meta-step.") from None
    if (count := check_batch(batch, None)) != tasks_per_step:
        raise InputError(f"tasks= gave a batch of {count} tasks: make it tasks_per_step={tasks_per_step} tasks.")
    return batch


def _describe(method: AbstractMethod, steps: int, tasks_per_step: int, seed: int, memory: Memory | None) -> dict[str, Any]:
    """The arguments of a run in a form that can be compared with a saved one."""
    described = {"steps": int(steps), "tasks_per_step": int(tasks_per_step), "seed": int(seed), "method": _text(method)}
    return described if memory is None else {**described, "memory": _text(memory)}


def _text(value: Any) -> str:
    """A method and all its options in words that do not change from one process to another."""
    if isinstance(value, eqx.Module):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(f'{name}={_text(entry)}' for name, entry in fields)})"
    if eqx.is_array(value):
        return str(np.asarray(value).tolist())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)
