"""Gymnasium environments on the host, one instance for each episode under way, which compiled programs call."""

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptax._tree import first_line
from adaptax.errors import InputError, note_failure


# Two of them are equal only if they are one object, because each has instances of its own.
@dataclasses.dataclass(eq=False, repr=False)
class Simulators:
    """Instances of one kind of gymnasium environment. A compiled program knows an episode under way by its number.

    Arguments:
        make: makes one instance.
        timeout: seconds that a call for all episodes may take.

    These two alone are fields, since they say which environments a saved run was trained on; the instances are not.
    """

    make: Callable[[], Any]
    timeout: float

    def __post_init__(self):
        self.idle: list[Any] = []
        self.running: dict[int, _Episode] = {}
        self.numbers = itertools.count()
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self.worker: threading.Thread | None = None
        self.first = self._new()
        self.observations, self.discrete = self.first.observation_space, hasattr(self.first.action_space, "n")
        self.idle.append(self.first)

    def __repr__(self) -> str:
        return f"Simulators({getattr(self.make, '__qualname__', type(self.make).__name__)}, timeout={self.timeout:g})"

    def _new(self) -> Any:
        env = self.make()
        for name in ("reset", "step", "observation_space", "action_space"):
            if not hasattr(env, name):
                raise InputError(f"make() must return a gymnasium environment, and {type(env).__name__} has no {name}.")
        inner = getattr(env, "unwrapped", env)
        if not (callable(getattr(inner, "set_task", None)) or hasattr(inner, "task")):
            raise InputError(f"{type(inner).__name__} cannot be told its task: give it set_task(task), or an attribute task.")
        return env

    def reset(self, tasks: list[Any], seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The numbers and first observations of new episodes; None after a failure."""

        def run():
            begun = [self._begin(task, int(seed)) for task, seed in zip(tasks, seeds, strict=True)]
            return tuple(np.asarray(column) for column in zip(*begun, strict=True))

        return self._within_timeout(run, "reset()")

    def step(self, numbers: np.ndarray, actions: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Observations, rewards and ends; None after a failure. Episodes that have ended keep their last observation."""

        def run():
            results = [self._step(int(n), action, horizon) for n, action in zip(numbers, actions, strict=True)]
            return tuple(np.asarray(column) for column in zip(*results, strict=True))

        return self._within_timeout(run, "step()")

    def _begin(self, task: Any, seed: int) -> tuple[int, np.ndarray]:
        env = self.idle.pop() if self.idle else self._new()
        inner = getattr(env, "unwrapped", env)
        if callable(getattr(inner, "set_task", None)):
            inner.set_task(task)
        else:
            inner.task = task
        observation = np.asarray(env.reset(seed=seed)[0])
        if observation.shape != self.observations.shape:
            text = f"an observation of shape {observation.shape} where its space has {self.observations.shape}"
            raise _Failure(f"The environment gave {text}: make every make() return the same kind of environment.")
        number = next(self.numbers) % 2**32
        self.running[number] = _Episode(env, observation)
        return number, observation

    def _step(self, number: int, action: np.ndarray, horizon: int) -> tuple[np.ndarray, float, bool]:
        episode = self.running[number]  # missing only after a failure, which has been noted already
        episode.steps += 1
        reward, done = 0.0, True
        if not episode.ended:
            chosen = int(action) if self.discrete else action
            observation, reward, done, truncated, _ = episode.env.step(chosen)
            episode.observation, reward, done = np.asarray(observation), float(reward), bool(done)
            if not np.isfinite(reward):
                text = f"The environment gave a reward of {reward} at step {episode.steps} of an episode"
                raise _Failure(f"{text}: make its rewards finite.")
            if truncated and not done and episode.steps < horizon:
                text = f"The environment cut an episode off at step {episode.steps}, before the horizon of {horizon}"
                raise _Failure(f"{text}: pass horizon={episode.steps}, or make environments without a time limit.")
            episode.ended = done
        if episode.steps == horizon:
            self.idle.append(self.running.pop(number).env)
        return episode.observation, reward, done

    def _within_timeout(self, run: Callable[[], Any], what: str) -> Any:
        """Run on one thread of our own, for many simulators must not be moved between threads."""
        if self.worker is None:
            self.jobs = queue.SimpleQueue()
            self.worker = threading.Thread(target=_work, args=(self.jobs,), daemon=True)
            self.worker.start()
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self.jobs.put((run, answer))
        try:
            result, error = answer.get(timeout=self.timeout)
        except queue.Empty:
            # The thread still hangs in the environment, so it is abandoned together with the instances.
            self.worker, self.idle, self.running = None, [], {}
            return self._fail(
                f"The environment did not answer {what} within {self.timeout:g} seconds: mend it, or pass a larger timeout=."
            )
        if error is None:
            return result
        at = max((episode.steps for episode in self.running.values()), default=0)
        self.idle, self.running = [], {}
        if isinstance(error, _Failure | InputError):
            return self._fail(str(error))
        text = f"The environment raised {type(error).__name__} in {what} at step {at} of an episode ({first_line(error)})"
        return self._fail(f"{text}: mend it, and go on with resume=True.")

    def _fail(self, sentence: str) -> None:
        """Note a failure for later. To raise would end one device's program, and the others would wait for it for ever."""
        note_failure(sentence)


class _Episode:
    """An episode under way."""

    def __init__(self, env: Any, observation: np.ndarray):
        self.env, self.observation, self.steps, self.ended = env, observation, 0, False


class _Failure(Exception):
    """A failure whose message is a whole sentence for the user."""


def _work(jobs: queue.SimpleQueue) -> None:
    while True:
        run, answer = jobs.get()
        try:
            answer.put((run(), None))
        except Exception as error:
            answer.put((None, error))
