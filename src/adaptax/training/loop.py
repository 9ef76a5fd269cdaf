"""The host loop around compiled runs of meta-steps: it records, measures, saves, and stops when nothing is finite."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from adaptax import _devices as dev
from adaptax import _processes as processes
from adaptax._checks import check_whole
from adaptax._signals import Stopping, told
from adaptax.errors import CheckpointError, InputError, forget_failures
from adaptax.methods.base import AbstractMethod
from adaptax.problem import AbstractProblem
from adaptax.sequential import on_one_device
from adaptax.training.callbacks import BestState, Certificate, Evaluation, check_callbacks, check_measurement, columns_of
from adaptax.training.chunk import run_chunk
from adaptax.training.exhausted import explained
from adaptax.training.history import History
from adaptax.training.memory import Memory
from adaptax.training.older import older, with_direction
from adaptax.training.outer_defaults import default_optimizer
from adaptax.training.resuming import check_resumable, describe_run
from adaptax.training.run import Run
from adaptax.training.shared_run import check_same, open_run
from adaptax.training.skipped import Skipped, explain
from adaptax.training.stability import StabilityMonitor
from adaptax.training.step import State, Step, make_step
from adaptax.training.stream import Stream, picked

# Meta-steps in one compiled run at most, and about how long one may take before the host looks at it.
_CAPACITY = 512
_SECONDS = 0.25
# Separates the seed of the tasks that are measured on during training from the training seed.
_SEED_OFFSET = 1_000_003
_DIVERGED = "{count} meta-steps in a row up to step {step} had a gradient that was not finite. In the last, {why}"
_STOPPED = "Meta-step {step} of {steps} is saved in {name}: resume=True goes on from there."


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
    local_tasks: bool = False,
    state: State | None = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    evaluate_every: int | None = None,
    validation: AbstractProblem | None = None,
    monitor_every: int | None = None,
    certify: bool = False,
    callbacks: Sequence[Any] = (),
    callback: Callable[[State, dict[str, np.ndarray]], Any] | None = None,
    max_skipped: int = 10,
    in_flight: int | None = None,
    memory: Memory | None = None,
    devices: Sequence[Any] | None = None,
    parameter_shards: int = 1,
    config: dict[str, Any] | None = None,
) -> tuple[State, dict[str, np.ndarray]]:
    r"""Meta-train: $w \leftarrow w - \beta\,\frac1B\sum_i\hat G_i$, `steps` times, in compiled runs of many meta-steps.

    A meta-step whose gradient is not finite changes nothing and is counted; a `NotFiniteWarning` says why the first one was not
    (which task, by index and key, and where), and at the end how many there were. Tasks are spread over all devices, those of
    other processes that `jax.distributed` has joined included (docs/scale.md); the result does not depend on their number
    beyond the order of a sum. (On a CPU, JAX shows one device; to use all
    cores, call `jax.config.update("jax_num_cpu_devices", os.cpu_count())` before anything else.)

    Main arguments:
        problem: the problem.
        params: parameters w_0 (`ax.Meta`, or plain ones, where step sizes are learned).
        method: the meta-gradient.
        optimizer: any optax transformation (default: Adam behind a meta-gradient clipped to norm 1, whose step size rises to
            0.01 and falls to zero as a cosine over `steps`); see `ax.make_step` for extra arguments.
        steps: the number of meta-steps K, counted from the beginning of the run, also when it is resumed.
        tasks_per_step: B, tasks a meta-step.
        seed: decides the whole run.

    Where tasks come from:
        tasks: task batches from the host, one for each meta-step, instead of `problem.sample_task`; each is one pytree of
            stacked tasks, or a list of tasks. A thread draws them ahead of time, never more than the run needs. An iterator
            with `get_state` and `set_state`, as grain has, is saved with each checkpoint, and a resumed run goes on from
            there at once; from another one the batches of the meta-steps already taken are drawn and dropped.
        local_tasks: whether `tasks` gives, in each of several processes, only the tasks of its own devices (docs/scale.md). By
            default it gives the same whole batches in all.
        state: a state to go on from, instead of `params` (which then only gives the structure).

    What is kept:
        out: a run folder to write (default: nothing is written).
        resume: go on from the last checkpoint in `out`, if there is one. The problem, the method and the optimiser must be
            those of the run, as far as they can be compared (a warning names what cannot be); `steps` may be raised.
        checkpoint_every: meta-steps between checkpoints in `out` (default: one at the end).
        config: a dict for `config.json` (default: a description of the arguments), compared when a run is resumed.

    What is measured during training:
        evaluate_every: meta-steps between evaluations on 200 held-out tasks before and after N steps; their losses are
            in the history as `held_out` (NaN between evaluations) and in `evaluations.jsonl`.
        validation: the problem that gives these tasks (default: `problem`). Then the state of the best evaluation is kept,
            in `best/` of the run folder if there is one, and returned instead of the last: that of the highest accuracy or
            return after N steps if the problem has such a metric, otherwise of the lowest loss. A run goes on from its
            last state all the same.
        monitor_every: meta-steps between measurements of stability on 16 tasks apart: in the history (NaN between) and in
            `stability.jsonl` are `q`, $\max(1+\alpha\hat\mu, \alpha\hat\lambda-1)^{2N}$; `alpha_lambda`, $\alpha\hat\lambda$;
            `alpha_mu`, $N\alpha\hat\mu$; `rising`, the share of tasks whose inner loss rises along the path. A
            `StabilityWarning` names the remedy when $\alpha\hat\lambda > 2$, or q >= 2 under `ax.stepsize.Guaranteed`.
        certify: with monitor_every, also measure `gradient_upper` each time, the 95 % bound on $\|\nabla\mathcal L\|$ from 200
            tasks that training has no part of (`ax.measure.stationarity`). It is the bound of each look by itself.
        callbacks: further measurements, each with a name, `due(step)` and `measure(state)`: see `ax.training.Callback`.
        callback: `callback(state, record)`, called after every compiled run with the arrays of that run's meta-steps, to show
            progress.

    How it runs:
        max_skipped: stop after so many meta-steps in a row that were not finite.
        in_flight: how many tasks each device holds at a time (default: by what one task holds).
        memory: `ax.Memory(rate)`: the optimiser gets remembered meta-gradients (default None: those of the batch alone).
        devices: the devices to spread tasks over (default: all of all processes). Each process must have one of them.
        parameter_shards: K, how many devices hold one copy of the parameters together, for networks that do not fit into one
            device (default 1: each has a copy). Arrays of as many entries as 1,024 are cut along their longest axis that K
            divides, those of the optimiser's state included. The result is that of K = 1 up to rounding, and a run may be
            resumed with another K. States that callbacks get, and the one that is returned, stay cut (docs/scale.md).

    Returns: the final `State` (with `validation` the best one), and a dict of NumPy arrays of length `steps` (less the step
    count of a `state` given): loss, grad_norm (of the batch's meta-gradient, also with memory), stepsize (NaN where not
    finite), skipped, not_finite (how many tasks of the meta-step were not; NaN in runs before this was counted), and the
    measurements.

    Errors: `InputError` for bad arguments, before anything is computed or written, and for a run folder that another process
    trains in; `Diverged`, which says why, when training stopped because nothing was finite; `HostFailure` when an environment
    on the host failed; `CheckpointError` when files of the run folder cannot be read or written; `MemoryError`, which names
    what takes less, when a device has no memory left; `ProcessLost` when another process is gone. With a run folder the state
    is saved whatever is raised, also by a loss, a callback or `tasks`. There, and in the main thread, SIGINT and SIGTERM let
    the meta-steps in flight end and be saved, and then raise `KeyboardInterrupt` or `ax.errors.Terminated`; a second one
    leaves at once. Where `jax.distributed` listens for SIGTERM, a notice to any process does the same in all (docs/scale.md).

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
    steps, seed = check_whole("", "steps", steps), check_whole("", "seed", seed, 0)
    max_skipped, shards = check_whole("", "max_skipped", max_skipped), check_whole("", "parameter_shards", parameter_shards)
    checkpoint_every = None if checkpoint_every is None else check_whole("", "checkpoint_every", checkpoint_every)
    _check_arguments(state, out, resume, checkpoint_every, callback, tasks, local_tasks)
    optimizer = default_optimizer(steps) if optimizer is None else optimizer
    step = make_step(problem, method, optimizer, tasks_per_step, in_flight=in_flight, memory=memory)
    tasks_per_step = step.tasks_per_step
    alone = on_one_device(problem, devices, shards)
    step = dataclasses.replace(step, mesh=None if alone else dev.mesh_of(devices, tasks_per_step, shards=shards))
    run = None if out is None else open_run(out)
    own = _own_callbacks(step, run, seed + _SEED_OFFSET, evaluate_every, validation, monitor_every, certify)
    watched = check_callbacks([*own, *check_callbacks(callbacks)])
    found = False
    if (run is not None or processes.several()) and config is None:
        parts = {"problem": problem, "method": method, "optimizer": optimizer, "memory": memory}
        config = describe_run(steps, tasks_per_step, seed, **parts)
        found = run is not None and check_resumable(run, config, resume)
    elif run is not None:
        found = run.check(config or {}, resume)
    if processes.several():
        check_same(
            config or {}, params, state, steps=steps, tasks_per_step=tasks_per_step, seed=seed, resume=resume,
            out=out is None, checkpoint_every=checkpoint_every, max_skipped=max_skipped, tasks=tasks is None,
            local_tasks=local_tasks, evaluate_every=evaluate_every, monitor_every=monitor_every,
            callbacks=[entry.name for entry in watched],
        )  # fmt: skip

    begun = 0 if state is None else int(state.step)
    shared = step.mesh if local_tasks and dev.spans(step.mesh) else None
    share = None if shared is None else dev.own_tasks(shared, tasks_per_step)
    opened = (
        contextlib.nullcontext()
        if tasks is None
        else contextlib.closing(
            Stream(tasks, lambda batch: step.given(batch, params, share), steps - begun, shared, tasks_per_step)
        )
    )
    stopping = Stopping(processes.preempted)
    nothing = contextlib.nullcontext()
    host, stops = dev.without_host(step.mesh), stopping if run else nothing
    with processes.watching(), run or nothing, explained(), host, opened as stream, stops:
        if run is not None and found:
            run.lock.take()
        ahead = None if stream is None else stream.first
        start = step.init(params, seed, ahead) if state is None else dev.place(dev.own(step.mesh), state)
        start = processes.as_first(start) if processes.several() else start
        for entry in own:
            if isinstance(entry, StabilityMonitor):
                entry.check(start)
        history = History(begun, watched)
        if run is not None and found:
            run.raise_steps(steps)
            restored = run.restore(start, lambda: older(step, start))
            start = start if restored is None else with_direction(step, restored, ahead)
            history.load(run, int(start.step), watched)
            for entry in watched:
                if hasattr(entry, "resume"):
                    entry.resume(run.series(entry.name))
        elif run is not None:
            # Compiled, and refused if it cannot be, before anything is written.
            _try(step, dev.place(step.mesh, start), ahead)
            run.create(config or {})
        if stream is not None and int(start.step) > begun:
            stream.skip(int(start.step) - begun, None if run is None else run.place(int(start.step)))

        state = dev.place(step.mesh, start)
        state = _loop(step, state, steps, stream, run, history, checkpoint_every, watched, callback, max_skipped, stopping)
    last: Any = dev.collect(step.mesh, state)
    if run is not None and stopping.asked is not None:
        raise told(stopping.asked, _STOPPED.format(step=int(last.step), steps=steps, name=run.folder.name))
    best = next((entry for entry in own if isinstance(entry, BestState)), None)
    return (last if best is None else best.choose(last)), history.arrays()


def _check_arguments(state, out, resume, checkpoint_every, callback, tasks, local_tasks) -> None:
    """Refuse arguments of the wrong type, and those that need others."""
    if out is None and (resume or checkpoint_every is not None):
        raise InputError("resume and checkpoint_every need a run folder: pass out=FOLDER.")
    if state is not None and not isinstance(state, State):
        raise InputError(f"state must be what ax.train or make_step(...).init returned, not {type(state).__name__}.")
    if callback is not None and not callable(callback):
        raise InputError(f"callback must be a function of (state, record), not {type(callback).__name__}.")
    if tasks is not None and not isinstance(tasks, Iterable):
        raise InputError(f"tasks= must be an iterable of task batches, not {type(tasks).__name__}.")
    if local_tasks and tasks is None:
        raise InputError("local_tasks=True says what tasks= gives: pass tasks= too, or leave local_tasks out.")


def _own_callbacks(step, run, seed, evaluate_every, validation: Any, monitor_every, certify) -> list[Any]:
    """The callbacks that `evaluate_every`, `validation`, `monitor_every` and `certify` stand for."""
    if validation is not None and evaluate_every is None:
        raise InputError("validation= needs evaluate_every= to say when the state is judged.")
    if validation is not None and not isinstance(validation, AbstractProblem):
        raise InputError(f"validation= must be ax.FiniteSum, ax.Resampling or ax.Sequential, not {type(validation).__name__}.")
    if certify and monitor_every is None:
        raise InputError("certify=True needs monitor_every= to say when the gradient's bound is measured.")
    for name, value in (("evaluate_every", evaluate_every), ("monitor_every", monitor_every)):
        if value is not None:
            check_whole("", name, value)
    own: list[Any] = []
    if validation is not None and evaluate_every is not None:
        own.append(BestState(step, evaluate_every, validation, seed, run))
    elif evaluate_every is not None:
        own.append(Evaluation(step, evaluate_every, step.problem, seed))
    if monitor_every is not None:
        own.append(StabilityMonitor(step, monitor_every))
        if certify:
            own.append(Certificate(step, monitor_every, seed))
    return own


def _try(step: Step, state: State, batch: PyTree) -> None:
    """Trace and, where the program takes a count, compile one meta-step without taking it."""
    if batch is None:
        run_chunk(step, state, jnp.array(0), _CAPACITY, jnp.array(1))
    else:
        eqx.filter_eval_shape(step, state, batch)


def _loop(step, state, steps, stream, run, history, checkpoint_every, callbacks, callback, max_skipped, stopping) -> State:
    length, saved, skipped = 1, None if run is None else run.newest(), Skipped(step)
    capacity = _CAPACITY if stream is None else stream.capacity
    # The last state of which everything is recorded, and its place in the tasks.
    whole = state, None

    def keep():
        nonlocal saved
        if run is not None and saved != int(whole[0].step):
            run.save(dev.own_copy(whole[0]), whole[1])
            saved = int(whole[0].step)

    with _kept_on_failure(keep):
        while (done := int(state.step)) < steps:
            if int(state.skipped) >= max_skipped:
                raise Diverged(_DIVERGED.format(count=max_skipped, step=done, why=_why_again(step, state, stream)))
            stop = _next_stop(done, min(done + min(length, capacity), steps), checkpoint_every, callbacks)
            began = time.perf_counter()
            forget_failures()
            batches = None if stream is None else dev.beside(stream.take(stop - done), state.params)
            before = state
            new, chunk, taken = run_chunk(step, state, jnp.array(stop - done), capacity, jnp.array(max_skipped), batches)
            taken = int(taken)
            processes.raise_failure()
            state = new
            chunk = {name: np.asarray(values)[:taken] for name, values in chunk.items()}
            # Long enough to hide the host's work, short enough to be watched; results do not depend on it.
            if taken == length and processes.largest(time.perf_counter() - began) < _SECONDS:
                length = min(2 * length, _CAPACITY)
            history.add(chunk)
            done += taken
            if run is not None:
                run.append(done - taken, chunk)
            _measure(callbacks, dev.own_copy(state), done, run, history)
            whole = state, None if stream is None else stream.state_after(taken)
            if checkpoint_every and done % checkpoint_every == 0:
                keep()
            if callback is not None:
                processes.together(functools.partial(callback, dev.own_copy(state), chunk))
            diverged = int(state.skipped) >= max_skipped
            # All processes stop at the same meta-step.
            stopping.asked = int(processes.largest(stopping.look() or 0)) or None
            if diverged or done >= steps or stopping.asked is not None:
                keep()
            if diverged:
                last = None if batches is None else picked(step.mesh, batches, taken - 1)
                why = explain(step, state, {name: values[-1] for name, values in chunk.items()}, last)
                raise Diverged(_DIVERGED.format(count=max_skipped, step=done, why=why))

            def replay(count, before=before, after=state, taken=taken, batches=batches):
                """The state after so many of these meta-steps, and the last one's tasks."""
                state = after
                if count != taken:
                    state = run_chunk(step, before, jnp.array(count), capacity, jnp.array(max_skipped), batches)[0]
                return state, None if batches is None else picked(step.mesh, batches, count - 1)

            skipped.add(chunk, replay)
            if stopping.asked is not None:
                break
    skipped.end()
    return state


@contextlib.contextmanager
def _kept_on_failure(keep: Callable[[], None]):
    """Whatever fails, save the last state of which everything is recorded; several processes must all know of the failure."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if processes.several() and not getattr(error, "told", False):
            raise
        try:
            keep()
        except Exception as second:
            error.add_note(f"The last state could not be saved either: {second}")
        raise


def _why_again(step: Step, state: State, stream: Stream | None) -> str:
    """Why the last meta-step of a run that had ended was not finite: it is taken once more."""
    if stream is not None:
        return "whose tasks came from tasks= and are gone, something was not finite: begin anew to see what."
    last = eqx.tree_at(lambda state: (state.step, state.skipped), state, (state.step - 1, state.skipped - 1))
    one = jnp.array(1)
    again, chunk, _ = run_chunk(step, last, one, _CAPACITY, last.skipped + 1)
    return explain(step, again, {name: np.asarray(values)[0] for name, values in chunk.items()}, None)


def _next_stop(done: int, most: int, checkpoint_every: int | None, callbacks: list[Any]) -> int:
    """The meta-step at which the host must look at the state: the first at which anything is due, at most `most`."""

    def due(step: int) -> bool:
        return (checkpoint_every is not None and step % checkpoint_every == 0) or any(c.due(step) for c in callbacks)

    return next((step for step in range(done + 1, most) if due(step)), most)


def _measure(callbacks: list[Any], state: State, done: int, run: Run | None, history: History) -> None:
    """Take the measurements that are due after `done` meta-steps, note them, and append them to the run."""
    for callback in callbacks:
        if callback.due(done):
            if processes.several():
                entry = processes.together(lambda callback=callback: check_measurement(callback, callback.measure(state)))
            else:  # at the depth that warnings count with
                entry = check_measurement(callback, callback.measure(state))
            history.note(done, columns_of(callback, entry))
            if run is not None:
                run.append_measurement(callback.name, {"step": done, **entry})
