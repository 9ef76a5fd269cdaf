"""The run folder: configuration, environment, history, measurements and checkpoints, safe to stop at any moment."""

import hashlib
import json
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptax.errors import InputError
from adaptax.training import lock
from adaptax.training.checkpoints import Checkpoints, DamagedCheckpoint
from adaptax.training.files import append_lines, flush, parsed, read_json, read_lines, told, write_bytes, write_json, write_text
from adaptax.training.step import RECORDED, State

_FIRST = ("environment.json", "manifest.json", "config.json")
_HISTORY = "history.jsonl"


class Run:
    """One run folder.

    `config.json` says what is run, and `environment.json` with which versions and devices. `history.jsonl` has one line for
    each meta-step; each callback's series, such as `evaluations.jsonl` and `stability.jsonl`, has one line for each
    measurement. `checkpoints` holds the states (see `Checkpoints`). Lines that a stopped run wrote after its last checkpoint
    are taken back on resuming, so that the run goes on bit for bit. Whoever writes holds `lock`, until the end of a `with`.

    Arguments:
        folder: the path of the folder, which need not exist yet.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        self.checkpoints = Checkpoints(self.folder)
        self.lock = lock.Lock(self.folder)
        # By file that this process has appended to: a running checksum, and of how many bytes.
        self._sums: dict[str, tuple[Any, int]] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: Any) -> None:
        self.lock.release()

    @staticmethod
    def is_run(folder: str | os.PathLike) -> bool:
        """Whether a folder is a run folder."""
        return (Path(folder) / "config.json").is_file()

    def check(self, config: dict[str, Any], resume: bool) -> bool:
        """Whether there is something to resume; nothing is written.

        Errors: `InputError` if the folder holds another run, this run without `resume`, or anything else.
        """
        if self.is_run(self.folder):
            saved = self.config()
            if resume and _raises(saved, config):
                saved["steps"] = config["steps"]
            self.refuse(differences(saved, config))
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
        left = {lock.FILE, *_FIRST, *(f"{name}.part" for name in _FIRST)}
        return all(child.name in left for child in self.folder.iterdir())

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and take its lock; it is a run folder once it has its configuration."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            if self.is_run(self.folder):
                raise InputError(f"{self.folder.name} has become a run folder meanwhile: give the same command again.")
            self.checkpoints.create()
            write_json(self.folder / "environment.json", environment())
            write_json(self.folder / "config.json", config)
        except OSError as error:
            text = f"{self.folder.name} cannot be written ({error.strerror}): choose another output folder."
            raise InputError(text) from error

    def config(self) -> dict[str, Any]:
        """The contents of `config.json`."""
        try:
            config = read_json(self.folder / "config.json")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder.name} is not a run folder: its config.json cannot be read.") from error
        if not isinstance(config, dict):
            raise InputError(f"{self.folder.name} is not a run folder: its config.json holds no configuration.")
        return config

    def raise_steps(self, steps: int) -> None:
        """Let a run go on to more meta-steps than it was begun with."""
        if _raises(config := self.config(), {"steps": steps}):
            with told(path := self.folder / "config.json", "written"):
                write_json(path, {**config, "steps": steps})

    def changed_environment(self) -> list[str]:
        """The differences between the environment here and that in which the run began; then it cannot go on bit for bit."""
        try:
            saved = read_json(self.folder / "environment.json")
        except (OSError, ValueError):
            saved = None
        if not isinstance(saved, dict):
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
        sums = {}
        for path in self._lines():
            with told(path, "written"):
                flush(path)
                sums[path.name] = self._sum(path, int(state.step))
        self.checkpoints.save(state, place, sums)

    def _sum(self, path: Path, step: int) -> str:
        """The checksum of the lines that lead up to a checkpoint, later than those before; lines are read once, so that a long
        history costs no more than a short one, and a change in them is not taken over."""
        digest, size = self._sums.get(path.name, (hashlib.sha256(), 0))
        with open(path, "rb") as file:
            file.seek(size)
            data = file.read()
        kept = _kept(data, path.name, step)
        digest.update(data[:kept])
        if path.name in self._sums:  # others may be replaced as a whole
            self._sums[path.name] = digest, size + kept
        return digest.hexdigest()

    def restore(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        """The state to go on from, or None; all later lines are taken back."""
        state = self.checkpoints.restore(like, older)
        step = 0 if state is None else int(state.step)
        sums, self._sums = self.checkpoints.sums(step), {}
        for path in self._lines():
            with told(path, "written"):
                data = path.read_bytes()
                if (kept := _kept(data, path.name, step)) < len(data):
                    write_bytes(path, data[:kept])
            digest = hashlib.sha256(data[:kept]).hexdigest()
            if sums.get(path.name, digest) != digest:
                sums[path.name] = None
        changed = [name for name, digest in sums.items() if digest is None or not (self.folder / name).is_file()]
        if changed:
            text = f"{self.folder.name} has {', '.join(changed)} with other contents than were saved"
            said = "the state does not depend on them, and what cannot be read is NaN in the history"
            warnings.warn(f"{text}: {said}.", DamagedCheckpoint, stacklevel=4)
        return state

    def place(self, step: int) -> Any:
        """The state of the iterator that tasks came from at a checkpoint; None if none was saved."""
        return self.checkpoints.place(step)

    def append(self, first_step: int, record: dict[str, np.ndarray]) -> None:
        """Append one line of the history for each meta-step of a record."""
        entries = [
            {"step": first_step + i, **{name: record[name][i].item() for name in RECORDED}} for i in range(len(record["loss"]))
        ]
        self._append(_HISTORY, entries)

    def append_measurement(self, name: str, entry: dict[str, Any]) -> None:
        """Append one measurement to the series of that name."""
        self._append(f"{name}.jsonl", [entry])

    def _append(self, name: str, entries: list[dict[str, Any]]) -> None:
        with told(path := self.folder / name, "written"):
            append_lines(path, entries)
        self._sums.setdefault(name, (hashlib.sha256(), 0))

    def history(self, done: int) -> dict[str, list]:
        """The columns of the meta-steps before `done`, by name; a line that is lost leaves a NaN in each."""
        with told(path := self.folder / _HISTORY, "read"):
            found = {entry["step"]: entry for entry in read_lines(path) if entry["step"] < done}
        columns: dict[str, list] = {name: [] for name in RECORDED}
        for step in range(min(found, default=done), done):
            entry = found.get(step, {})
            for name in RECORDED:
                value = entry.get(name)  # Older runs did not count the tasks that were not finite.
                columns[name].append(value if value is not None else False if name == "skipped" else math.nan)
        return columns

    def series(self, name: str) -> list[dict[str, Any]]:
        """The measurements in the series of that name so far."""
        with told(path := self.folder / f"{name}.jsonl", "read"):
            return list(read_lines(path))

    def write_evaluation(self, result: dict[str, Any], text: str) -> None:
        """Keep the evaluation that ends a run, and the same as a table; the run is finished once both are there."""
        with told(self.folder / "evaluation.json", "written"):
            write_text(self.folder / "evaluation.txt", text + "\n")
            write_json(self.folder / "evaluation.json", result)

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation that ended the run, or None."""
        try:
            found = read_json(self.folder / "evaluation.json")
        except (OSError, ValueError):  # also a damaged one, for it can be made again
            return None
        return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None

    def _lines(self) -> Iterator[Path]:
        yield from sorted(self.folder.glob("*.jsonl"))


def _raises(saved: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether a configuration has more meta-steps than that which was saved."""
    there, now = saved.get("steps"), here.get("steps")
    return isinstance(there, int) and isinstance(now, int) and now > there


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
        "devices": [device.device_kind for device in jax.devices()],
        "backend": jax.default_backend(),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
    }


def _kept(data: bytes, name: str, steps: int) -> int:
    """How many bytes of a file of lines belong to a checkpoint: up to the last line of its meta-steps that can be read."""
    end = data.rfind(b"\n") + 1
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        entry = parsed(data[start:end])
        # A measurement at step k is made after k meta-steps; the history counts meta-steps from 0.
        if entry is not None and (entry["step"] < steps if name == _HISTORY else entry["step"] <= steps):
            break
        end = start
    return end
