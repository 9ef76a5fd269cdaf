"""The run folder of several processes: process 0 alone reads and writes it, and tells the others what it holds."""

import os
from collections.abc import Callable
from typing import Any, cast

from jaxtyping import PyTree

from adaptax import _processes as processes
from adaptax._tree import arrays_of
from adaptax.training.checkpoints import Checkpoints
from adaptax.training.run import Run
from adaptax.training.step import State


def open_run(folder: str | os.PathLike) -> Run:
    """A run folder, for one process or for several."""
    return cast(Run, SharedRun(folder)) if processes.several() else Run(folder)


def check_same(config: dict[str, Any], params: PyTree, state: State | None, **options: Any) -> None:
    """Refuse to train where processes were given different arguments.

    Arguments:
        config: the description of the run.
        params, state: what it begins with.
        options: other arguments, as values for JSON.
    """
    sums = {kind: config.get(kind) for kind in ("code", "called", "attributes", "containers")}
    said = {name: value for name, value in config.items() if name not in sums}
    for kind in ("code", "called"):
        for name, digest in (sums[kind] or {}).items():
            said[name] = [said.get(name), digest]
    processes.check_same({**said, **options, "params": processes.checksum(params), "state": processes.checksum(state)})


class _OnFirst:
    """An object whose methods run in process 0 alone; all processes get what they return, or fail as they fail."""

    def __init__(self, whole: Any):
        self.whole = whole

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.whole, name)
        return lambda *arguments, **options: processes.on_first(lambda: method(*arguments, **options))


class SharedRun(_OnFirst):
    """`Run` for several processes. Only process 0 needs to see the folder."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(Run(folder))
        self.folder, self.checkpoints = self.whole.folder, _SharedCheckpoints(self.whole.checkpoints)
        self.lock = _OnFirst(self.whole.lock)

    def __enter__(self) -> "SharedRun":
        return self

    def __exit__(self, *error: Any) -> None:
        self.whole.__exit__(*error)  # by each for itself, since the others may be gone

    def restore(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        return self.checkpoints.of_first(self.whole.restore, like, older)


class _SharedCheckpoints(_OnFirst):
    whole: Checkpoints

    def load_best(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        return self.of_first(self.whole.load_best, like, older)

    def load(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        return self.of_first(self.whole.load, like, older)

    def of_first(self, read: Callable[..., State | None], like: State, older: Callable[[], State] | None) -> State | None:
        """The state that process 0 reads."""
        found: list[State | None] = [None]

        def look() -> bool:
            found[0] = read(like, older)
            return found[0] is not None

        if not processes.on_first(look):
            return None
        arrays = processes.arrays_of_first(None if found[0] is None else arrays_of(found[0]))
        return self.whole._as(like, arrays, older)
