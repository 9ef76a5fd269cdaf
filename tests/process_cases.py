"""What one process and several take alike. `tests/training/test_processes.py` runs it in one, and starts others with `main`."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptax as ax
from adaptax.stepsize import measurement

SCALES, START = (1.0, 2.0, 4.0), (1.0, -1.0, 0.5)
STEPS, HALF, TASKS = 12, 8, 5


def loss(w, c):
    return 0.5 * jnp.sum(jnp.array(SCALES) * (w - c) ** 2)


def sample(key):
    return ax.Task(*jax.random.normal(key, (2, 3)))


PROBLEM = ax.FiniteSum(loss, sample)


class Length(ax.training.Callback):
    """A user's measurement, which mixes the state with an array of its own."""

    name = "length"

    def measure(self, state):
        return {"from_start": float(jnp.linalg.norm(state.params - jnp.array(START)))}


class Fails(Length):
    """A measurement that fails in process 1 alone."""

    name = "fails"

    def measure(self, state):
        if jax.process_index() == 1:
            raise OSError("the disk is full")
        return super().measure(state)


def train(steps=STEPS, method=None, problem=PROBLEM, params=None, **options):
    method = ax.MetaGradient(ax.Inner(3)) if method is None else method
    options = {"tasks_per_step": TASKS, "optimizer": optax.adam(0.05), "steps": steps, **options}
    state, history = ax.train(problem, jnp.array(START) if params is None else params, method, **options)
    leaves = jax.tree.leaves((state.params, state.inner.stepsize))
    return state, history, {f"leaf {i}": np.asarray(leaf) for i, leaf in enumerate(leaves)} | history


def everything(devices=None):
    """Training with all that is measured on the way, and an evaluation."""
    state, _, found = train(
        devices=devices, evaluate_every=4, validation=PROBLEM, monitor_every=6, certify=True, callbacks=[Length(every=5)]
    )
    curve = ax.evaluate(PROBLEM, state.params, state.inner, [0, 3, 6], 21, devices=devices)
    return found | {"mean": curve.mean["loss"], "low": curve.low["loss"], "high": curve.high["loss"]}


def batches(other=0):
    draws = np.random.default_rng(other).normal(size=(STEPS, 2, TASKS, 3)).astype(np.float32)
    return [ax.Task(*draw) for draw in draws]


def from_host(devices=None):
    """Training on batches that an iterator gives."""
    return train(devices=devices, tasks=batches())[2]


class Drawn:
    """An iterator over this process's share of batches of four tasks, which can be put back."""

    def __init__(self, kind=np.float32):
        count, index = jax.process_count(), jax.process_index()
        share = slice(4 // count * index, 4 // count * (index + 1))
        self.batches = [jax.tree.map(lambda leaf: leaf[:4][share].astype(kind), batch) for batch in batches()]
        self.next = self.given = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next, self.given = self.next + 1, self.given + 1
        return self.batches[self.next - 1]

    def get_state(self):
        return {"next": self.next, "process": jax.process_index()}

    def set_state(self, state):
        assert state["process"] == jax.process_index()
        self.next = state["next"]


def local(devices=None, out=None):
    """Training on batches of which each process draws its own share, with a rest after half of them."""
    options = {"devices": devices, "tasks_per_step": 4, "local_tasks": True, "out": out}
    if out is not None:
        train(HALF, tasks=Drawn(), **options)
    drawn = Drawn()
    found = train(tasks=drawn, resume=out is not None, **options)[2]
    assert drawn.given == (STEPS if out is None else 1 + STEPS - HALF)
    return found


def of_a_bad_task():
    """What is said of a task that is not finite and lies in process 1, by both."""
    drawn = Drawn()
    if jax.process_index() == jax.process_count() - 1:
        drawn.batches[2].support[-1, 1] = np.nan
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train(tasks=drawn, tasks_per_step=4, local_tasks=True)
    return [str(entry.message) for entry in found]


def resampling(devices=None):
    """Training on samples that a simulator on the host draws."""
    from adaptax.tasks import rl

    problem = rl.gymnasium_family(slope, lambda key: jax.random.uniform(key, minval=1.0), horizon=3)
    policy = rl.GaussianPolicy(ax.models.mlp((1, 4, 1), key=jax.random.key(0)), 1)
    method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(2, 2, 2))
    state, _, found = train(3, method, problem, policy, devices=devices)
    curve = ax.evaluate(problem, state.params, state.inner, [0, 1], 5, samples=method.samples, devices=devices)
    return found | {"mean": curve.mean["loss"]}


def on_other_hardware():
    """Step-size rules that measure a tenth more in process 1."""
    resolve = measurement._resolve

    def wrong(*arguments):
        alpha, *rest = resolve(*arguments)
        return ((1 + 0.1 * jax.process_index()) * alpha, *rest)

    return mock.patch.object(measurement, "_resolve", wrong)


def measured(devices=None):
    """Constants of the theory, a bound on the meta-gradient's norm and an evaluation, of an odd number of tasks."""
    params, inner = jnp.array(START), ax.Inner(2, ax.stepsize.Edge(tasks=2))
    with on_other_hardware():
        found = ax.measure.constants(PROBLEM, params, inner, tasks=5, iterations=3, devices=devices)
        bound = ax.measure.stationarity(PROBLEM, params, ax.MetaGradient(inner), tasks=9, devices=devices)
        curve = ax.evaluate(PROBLEM, params, inner, [0, 1, 2], 5, devices=devices)
    values = {name: getattr(found, name).value for name in ("L", "lam", "mu", "sigma", "b")}
    values |= {name: getattr(bound, name) for name in ("squared_norm", "upper", "low")}
    return values | {"mean": curve.mean["loss"]}


def slope():
    import gymnasium

    class Slope(gymnasium.Env):
        """A point that is pushed along a line; the reward is how near it comes to the task."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
        task = 0.0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.at = self.np_random.normal()
            return np.array([self.at], np.float32), {}

        def step(self, action):
            self.at += float(action[0])
            return np.array([self.at], np.float32), -((self.at - float(self.task)) ** 2), False, False, {}

    return Slope()


def refused(call):
    """The sentence that a call ends with."""
    try:
        call()
    except (Exception, KeyboardInterrupt, ax.errors.Terminated) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def sinusoids(devices=None):
    """The sinusoid problem with the network and the step sizes that are the default."""
    problem, params = ax.tasks.sinusoid(), ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
    state, history = ax.train(problem, params, ax.MetaGradient(ax.Inner(10)), steps=20, tasks_per_step=24, devices=devices)
    curve = ax.evaluate(problem, state.params, state.inner, [0, 10, 20], 100, devices=devices)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves((state.params, state.inner.stepsize))])
    start = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    return {"params": flat, "start": start, "loss": history["loss"], "mean": curve.mean["loss"], "low": curve.low["loss"]}


def asked_to_stop(number, index, out):
    """How training ends after process 1 alone has got a signal: the sentence, and the last step that this process has seen."""
    seen = []

    def callback(state, record):
        seen.append(int(state.step))
        if index == 1 and len(seen) == 2:
            os.kill(os.getpid(), number)
        time.sleep(0.02 * (len(seen) > 2))  # the history of a second is not long

    method = ax.MetaGradient(ax.Inner(1, 0.1))
    told = refused(lambda: train(10**6, method, out=out, callback=callback))
    return [told, seen[-1]]


def in_two(folder, index):
    """What process `index` of two does in the test."""
    found = {"everything": everything(), "from_host": from_host(), "resampling": resampling(), "measured": measured()}
    # Process 1 sees no folder of process 0.
    place = folder if index == 0 else folder / "unseen"
    begun = {"out": place / "by two", "evaluate_every": 4, "validation": PROBLEM}
    train(HALF, **begun)
    found["resumed"] = train(**begun | {"out": place / "by one"}, resume=True)[2]
    found["local"] = local(out=place / "local")
    # Each by itself, with devices of its own.
    alone = ax.evaluate(PROBLEM, jnp.array(START), ax.Inner(1, 0.1), [1], 4, devices=jax.local_devices())
    told = {
        "devices": refused(lambda: train(devices=jax.devices()[:1])),
        "arguments": refused(lambda: train(seed=index)),
        "problems": refused(lambda: train(problem=ax.FiniteSum(lambda w, c: (1 + index) * loss(w, c), sample))),
        "batches": refused(lambda: train(tasks=batches(index))),
        "forms": refused(lambda: train(tasks=Drawn(kind=[np.float32, np.float16][index]), tasks_per_step=4, local_tasks=True)),
        "shares": refused(lambda: train(tasks=batches(), local_tasks=True)),
        "whole": refused(lambda: train(tasks=batches(), tasks_per_step=4, local_tasks=True)),
        "bad task": of_a_bad_task(),
        "evaluation": refused(lambda: ax.evaluate(PROBLEM, jnp.array(START) + index, ax.Inner(1, 0.1), [1], 4)),
        "constants": refused(lambda: ax.measure.constants(PROBLEM, jnp.array(START), ax.Inner(1, 0.1), tasks=4, seed=index)),
        "callback": refused(lambda: train(callbacks=[Fails(every=1)])),
        "folder": refused(lambda: train(HALF, out=place / "by two")),
        "alone": alone.mean["loss"].tolist(),
        "interrupted": asked_to_stop(signal.SIGINT, index, place / "interrupted"),
        # JAX listens for SIGTERM, once in the life of a process, and tells the processes of it about a second later.
        "preempted": asked_to_stop(signal.SIGTERM, index, place / "preempted"),
    }
    return found, told


def main(work, index, count, devices, port, folder):
    """Be process `index` of `count`, do one kind of work, and write what it gives."""
    jax.config.update("jax_num_cpu_devices", devices)
    if count > 1:
        # A machine that stops its processes for a while must not make them count as dead.
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=3600)
    jax.config.update("jax_disable_most_optimizations", True)
    module, _, name = work.rpartition(".")
    function = getattr(importlib.import_module(module or __name__), name)
    found, told = function(Path(folder), index) if name == "in_two" else ({name: function()}, {})
    flat = {f"{name}/{key}": value for name, values in found.items() for key, value in values.items()}
    np.savez(Path(folder) / f"{index}.npz", **flat)
    (Path(folder) / f"{index}.json").write_text(json.dumps(told))


def start(code, environment=None):
    """A process of Python that runs a piece of code."""
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join(map(str, (here.parent / "src", here)))
    environment = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(running, seconds):
    """What processes printed, once they have ended; none is left behind."""
    try:
        until = time.monotonic() + seconds
        return [process.communicate(timeout=max(until - time.monotonic(), 1)) for process in running]
    finally:
        end(running)


def end(running):
    """Kill the processes that still run, and close what they wrote to."""
    for process in running:
        process.kill()
        if not process.stdout.closed:
            process.communicate()
        process.wait()


def run(work, count, devices, port, folder, seconds, environment=None):
    """Processes that do one kind of work: the numbers and the sentences of each."""
    folder.mkdir(exist_ok=True)
    given = [(work, index, count, devices, port, str(folder)) for index in range(count)]
    codes = [f"import process_cases; process_cases.main{arguments!r}" for arguments in given]
    running = [start(code, environment) for code in codes]
    said = finish(running, seconds)
    assert [process.returncode for process in running] == [0] * count, said
    found, told = [], []
    for index in range(count):
        with np.load(folder / f"{index}.npz") as file:
            found.append({name: file[name] for name in file.files})
        told.append(json.loads((folder / f"{index}.json").read_text()))
    return found, told
