"""The run folder: configuration, environment, history, measurements and checkpoints, safe to stop at any moment."""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptax.errors import InputError
from adaptax.training.checkpoints import Checkpoints
from adaptax.training.files import append_lines, flush, read_lines, write_json, write_text
from adaptax.training.step import RECORDED, State

_FIRST_FILES = ("environment.json", "environment.json.part", "config.json.part")
_HISTORY = "history.jsonl"


class Run:
    """One run folder.

    `config.json` says what is run, and `environment.json` with which versions and devices. `history.jsonl` has one line for
    each meta-step; each callback's series, such as `evaluations.jsonl` and `stability.jsonl`, has one line for each
    measurement. `checkpoints` holds the states (see `Checkpoints`). Lines that a stopped run wrote after its last checkpoint
    are taken back on resuming, so that the run goes on bit for bit.

    Arguments:
        folder: the path of the folder, which need not exist yet.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        self.checkpoints = Checkpoints(self.folder)

    @staticmethod
    def is_run(folder: str | os.PathLike) -> bool:
        """Whether a folder is a run folder."""
        return (Path(folder) / "config.json").is_file()

    def check(self, config: dict[str, Any], resume: bool) -> bool:
        """Whether there is something to resume; nothing is written.

        Errors: `InputError` if the folder holds another run, this run without `resume`, or anything else.
        """
        if self.is_run(self.folder):
            self.refuse(differences(self.config(), config))
            if not resume:
                raise InputError(f"{self.folder.name} holds this run already: pass resume=True, or another folder.")
            return True
        if self.folder.exists() and not (self.folder.is_dir() and self._unused()):
            raise InputError(f"{self.folder.name} exists and is not a run folder: choose an empty or a new folder.")
        return False

    def refuse(self, differences: list[str]) -> None:
        """Refuse to go on with another configuration, if there are differences."""
        if differences:
            text = f"{self.folder.name} holds a run with another configuration ({'; '.join(differences)}): "
            raise InputError(text + "use another output folder, or the same options.")

    def _unused(self) -> bool:
        # A run that was killed while its folder was being made left some of these, and may be started again.
        return all(child.name in _FIRST_FILES for child in self.folder.iterdir())

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder; it is a run folder once it has its configuration."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "environment.json", environment())
            write_json(self.folder / "config.json", config)
        except OSError as error:
            text = f"{self.folder.name} cannot be written ({error.strerror}): choose another output folder."
            raise InputError(text) from error

    def config(self) -> dict[str, Any]:
        """The contents of `config.json`."""
        try:
            config = json.loads((self.folder / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder.name} is not a run folder: its config.json cannot be read.") from error
        if not isinstance(config, dict):
            raise InputError(f"{self.folder.name} is not a run folder: its config.json holds no configuration.")
        return config

    def raise_steps(self, steps: int) -> None:
        """Let a run go on to more meta-steps than it was begun with."""
        if steps > (config := self.config())["steps"]:
            write_json(self.folder / "config.json", {**config, "steps": steps})

    def changed_environment(self) -> list[str]:
        """The differences between the environment here and that in which the run began; then it cannot go on bit for bit."""
        try:
            saved = json.loads((self.folder / "environment.json").read_text())
        except (OSError, ValueError):
            return ["its environment.json cannot be read"]
        here = environment()
        return [f"{name} was {saved.get(name)}, is {here[name]}" for name in here if saved.get(name) != here[name]]

    def newest(self) -> int:
        """The meta-step of the newest checkpoint, 0 before the first."""
        return self.checkpoints.newest()

    def save(self, state: State, place: Any = None) -> None:
        """Write a checkpoint; the lines that lead up to it are on the disk before it counts.

        Arguments:
            state: the state.
            place: the state of the iterator that tasks came from, for JSON, if it has one.
        """
        for path in self._lines():
            flush(path)
        self.checkpoints.save(state, place)

    def restore(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        """The state to go on from, or None; all later lines are taken back."""
        state = self.checkpoints.restore(like, older)
        for path in self._lines():
            _cut(path, 0 if state is None else int(state.step))
        return state

    def place(self, step: int) -> Any:
        """The state of the iterator that tasks came from at a checkpoint; None if none was saved."""
        return self.checkpoints.place(step)

    def append(self, first_step: int, record: dict[str, np.ndarray]) -> None:
        """Append one line of the history for each meta-step of a record."""
        entries = [
            {"step": first_step + i, **{name: record[name][i].item() for name in RECORDED}} for i in range(len(record["loss"]))
        ]
        append_lines(self.folder / _HISTORY, entries)

    def append_measurement(self, name: str, entry: dict[str, Any]) -> None:
        """Append one measurement to the series of that name."""
        append_lines(self.folder / f"{name}.jsonl", [entry])

    def history(self) -> dict[str, list]:
        """The columns recorded so far, by name."""
        columns: dict[str, list] = {name: [] for name in RECORDED}
        for entry in read_lines(self.folder / _HISTORY):
            for name in RECORDED:
                value = entry.get(name)  # Older runs did not count the tasks that were not finite.
                columns[name].append(math.nan if value is None else value)
        return columns

    def series(self, name: str) -> list[dict[str, Any]]:
        """The measurements in the series of that name so far."""
        return list(read_lines(self.folder / f"{name}.jsonl"))

    def write_evaluation(self, result: dict[str, Any], text: str) -> None:
        """Keep the evaluation that ends a run, and the same as a table; the run is finished once both are there."""
        write_text(self.folder / "evaluation.txt", text + "\n")
        write_json(self.folder / "evaluation.json", result)

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation that ended the run, or None."""
        path = self.folder / "evaluation.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def _lines(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*.jsonl"))


def differences(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The entries in which two configurations differ, in words."""
    here = json.loads(json.dumps(here))
    return [
        f"{name} is {saved.get(name)!r} there and {here.get(name)!r} here"
        for name in sorted({*saved, *here})
        if saved.get(name) != here.get(name)
    ]


def environment() -> dict[str, Any]:
    """The versions and the devices in use."""
    packages = ("adaptax", "equinox", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in packages},
        "devices": [device.device_kind for device in jax.local_devices()],
        "backend": jax.default_backend(),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
    }


def _cut(path: Path, steps: int) -> None:
    """Take back the lines of meta-steps after the checkpoint, and a line that was not finished."""
    kept = [line for line in path.read_text().splitlines(keepends=True) if _kept(line, steps, path.name)]
    if len("".join(kept)) != path.stat().st_size:
        write_text(path, "".join(kept))


def _kept(line: str, steps: int, name: str) -> bool:
    if not line.endswith("\n"):
        return False
    step = json.loads(line)["step"]
    # A measurement at step k is made after k meta-steps; the history counts meta-steps from 0.
    return step < steps if name == _HISTORY else step <= steps
