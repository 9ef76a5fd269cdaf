"""Gymnasium environments on the host, one instance for each episode under way, which compiled programs call."""

import dataclasses
import inspect
import itertools
import queue
import threading
from collections.abc import Callable, Mapping
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
        try:
            import gymnasium

            from adaptax.tasks.rl.spaces import Actions, Observations
        except ImportError as error:
            raise InputError("gymnasium_family needs gymnasium: pip install 'adaptax[rl]'.") from error
        self.gym = gymnasium
        self.idle: list[Any] = []
        self.running: dict[int, _Episode] = {}
        self.numbers = itertools.count()
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self.worker: threading.Thread | None = None
        self.first: Any = None
        self.first = self._new()
        self.observations = Observations(self.first.observation_space)
        self.actions = Actions(self.first.action_space)
        # A second one shows whether every make() makes one of its own.
        self.idle += [self.first, self._new()]

    def __repr__(self) -> str:
        return f"Simulators({getattr(self.make, '__qualname__', type(self.make).__name__)}, timeout={self.timeout:g})"

    @property
    def limit(self) -> int | None:
        """The number of steps after which gymnasium's `TimeLimit` cuts an episode off; None without one."""
        limits = [
            layer._max_episode_steps for layer in self._layers(self.first) if isinstance(layer, self.gym.wrappers.TimeLimit)
        ]
        return min(limits, default=None)

    def _layers(self, env: Any) -> list[Any]:
        """An environment's wrappers from the outermost inward, and the environment within."""
        layers = [env]
        while isinstance(layers[-1], self.gym.Wrapper):
            layers.append(layers[-1].env)
        return [*layers, getattr(layers[-1], "unwrapped", layers[-1])]

    def _new(self) -> Any:
        try:
            env = self.make()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"make() raised {type(error).__name__} ({first_line(error)}): mend it or what it calls."
            ) from error
        if hasattr(env, "single_action_space"):
            text = "return a single environment, since each episode gets one of its own"
            raise InputError(f"make() returned {type(env).__name__}, which steps several environments at once: {text}.")
        for name in ("reset", "step", "observation_space", "action_space"):
            if not hasattr(env, name):
                raise InputError(f"make() must return a gymnasium environment, and {type(env).__name__} has no {name}.")
        layers, name = self._layers(env), _name(env)
        if not any(callable(getattr(layer, "set_task", None)) or hasattr(layer, "task") for layer in layers):
            raise InputError(f"{name} cannot be told its task: give it set_task(task), or an attribute task.")
        if not _takes_seed(layers[-1].reset):
            raise InputError(f"{name}.reset() takes no seed: give it gymnasium's interface, reset(seed=None, options=None).")
        if self.first is not None and layers[-1] is self._layers(self.first)[-1]:
            raise InputError(f"make() returned one {name} twice: let every make() make one of its own.")
        if self.first is not None and env.action_space != self.first.action_space:
            raise InputError(f"make() returned a {name} with another action_space than before: let all have the same.")
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
        layers = self._layers(env)
        tell = next((layer.set_task for layer in layers if callable(getattr(layer, "set_task", None))), None)
        if tell is not None:
            tell(task)
        else:
            next(layer for layer in layers if hasattr(layer, "task")).task = task
        given = env.reset(seed=seed)
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping | None)):
            text = f"{type(given).__name__} of {len(given)}" if isinstance(given, tuple) else type(given).__name__
            raise InputError(f"{_name(env)}.reset() returned a {text}: return the pair (observation, info), as gymnasium does.")
        number = next(self.numbers) % 2**32
        episode = self.running[number] = _Episode(env)
        episode.observation = self.observations.read(given[0], _name(env), "in reset()")
        return number, episode.observation

    def _step(self, number: int, row: np.ndarray, horizon: int) -> tuple[np.ndarray, float, bool]:
        episode = self.running[number]  # missing only after a failure, which has been noted already
        episode.steps += 1
        reward, done = 0.0, True
        if not episode.ended:
            env, name, where = episode.env, _name(episode.env), f"at step {episode.steps} of an episode"
            given = env.step(self.actions.make(row, where))
            if not (isinstance(given, tuple | list) and len(given) == 5):
                text = f"{len(given)} values" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
                needed = "the five (observation, reward, terminated, truncated, info), as gymnasium does"
                raise InputError(f"{name}.step() returned {text}: return {needed}.")
            observation, reward, done, truncated, _ = given
            episode.observation = self.observations.read(observation, name, where)
            reward = _reward(reward, name, where)
            done, truncated = _flag(done, "terminated", name, where), _flag(truncated, "truncated", name, where)
            if truncated and not done and episode.steps < horizon:
                text = f"{name} cut an episode off at step {episode.steps}, before the horizon of {horizon}"
                raise InputError(f"{text}: pass horizon={episode.steps}, or make environments without a time limit.")
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
        if isinstance(error, InputError):
            return self._fail(str(error))
        text = f"The environment raised {type(error).__name__} in {what} at step {at} of an episode ({first_line(error)})"
        return self._fail(f"{text}: mend it, and go on with resume=True.")

    def _fail(self, sentence: str) -> None:
        """Note a failure for later. To raise would end one device's program, and the others would wait for it for ever."""
        note_failure(sentence)


class _Episode:
    """An episode under way."""

    def __init__(self, env: Any):
        self.env, self.observation, self.steps, self.ended = env, np.zeros(()), 0, False


def _name(env: Any) -> str:
    return type(getattr(env, "unwrapped", env)).__name__


def _takes_seed(reset: Callable[..., Any]) -> bool:
    try:
        taken = inspect.signature(reset).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return True
    return any(parameter.name == "seed" or parameter.kind is parameter.VAR_KEYWORD for parameter in taken)


def _reward(value: Any, name: str, where: str) -> float:
    """A reward: any number, also in an array of one entry."""
    try:
        number = np.asarray(value, np.float64 if hasattr(value, "__float__") else None)
    except (TypeError, ValueError):
        number = np.asarray(None)
    if number.size != 1 or number.dtype.kind not in "biuf":
        raise InputError(f"{name} gave a reward of {_shown(value)} {where}: return one number.")
    if not abs(number.item()) <= float(np.finfo(np.float32).max):
        raise InputError(f"{name} gave a reward of {number.item()} {where}: make its rewards finite.")
    return float(number.item())


def _flag(value: Any, what: str, name: str, where: str) -> bool:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biu":
        raise InputError(f"{name} gave {_shown(value)} for {what} {where}: return True or False.")
    return bool(array.item())


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", ())
    return f"{type(value).__name__} of shape {shape}" if shape else repr(value)[:60]


def _work(jobs: queue.SimpleQueue) -> None:
    while True:
        run, answer = jobs.get()
        try:
            answer.put((run(), None))
        except Exception as error:
            answer.put((None, error))
