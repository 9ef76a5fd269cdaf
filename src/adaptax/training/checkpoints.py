"""Checkpoints of a run: saved whole or not at all, verified before they are read, and never deleted for failing to read."""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adaptax import _processes as processes
from adaptax._tree import arrays_of, first_line, with_arrays
from adaptax.errors import CheckpointError, InputError
from adaptax.training.files import read_json, told, write_json
from adaptax.training.older import one_sided
from adaptax.training.step import State

_KEPT = 2
_RESTORE = "restore it, or use another output folder"


class DamagedCheckpoint(UserWarning):
    """Bytes of a run have changed since they were written: a checkpoint, then the one before it is used; or the history."""


class Checkpoints:
    """The states in a run folder.

    `checkpoints/STEP` holds a state and `manifest.json` the checksums of its files; a checkpoint counts once the manifest
    names it. `best/` and `best.json` are the same for the state that did best on validation tasks.

    A checkpoint is damaged if its files differ from their checksums. It is then moved to `damaged/`, which is said in a
    warning, and the one before it is used. Any other failure, such as a disk error or a reader that does not know the format,
    raises `CheckpointError` and changes nothing.

    States are read into one of the same shapes, `like`, or else as states were made before (`training.older`).

    Arguments:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def create(self) -> None:
        """Begin a manifest, so that one that is missing later was lost."""
        write_json(self.folder / "manifest.json", {})

    def newest(self) -> int:
        """The meta-step of the newest checkpoint that counts, 0 before the first."""
        return max(map(int, self._manifest()), default=0)

    def save(self, state: State, place: Any = None, sums: dict[str, str] | None = None) -> None:
        """Write a checkpoint of this state; it counts when the manifest names it, which it does once it has been read back.

        Arguments:
            state: the state.
            place: its place in the tasks, for JSON, if it has one.
            sums: the checksums of the lines that lead up to it, by file.

        Errors: `CheckpointError` if it cannot be written.
        """
        arrays, step = arrays_of(state), int(state.step)
        with self._written("checkpoints", step):
            with self._manager("checkpoints") as manager:
                _write_arrays(manager, step, arrays)
                kept = {str(step) for step in manager.all_steps()}
            manifest = {name: entry for name, entry in self._manifest().items() if name in kept}
            entry = self._entry("checkpoints", step, arrays) | ({"lines": sums} if sums else {})
            entry |= {} if place is None else {"tasks": place}
            self._read_back("checkpoints", step, entry["sha256"])
            write_json(self.folder / "manifest.json", {**manifest, str(step): entry})

    def restore(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        """The newest whole checkpoint, or None; checkpoints that the manifest does not name are removed.

        Errors: `CheckpointError` if there are checkpoints and no manifest.
        """
        manifest, checkpoints = self._manifest(), self.folder / "checkpoints"
        if checkpoints.is_dir():
            if not (self.folder / "manifest.json").is_file() and any(child.name.isdecimal() for child in checkpoints.iterdir()):
                text = f"{self.folder.name} has checkpoints and no manifest.json, which has their checksums"
                raise CheckpointError(f"{text}: restore it, or move checkpoints/ away to begin anew; nothing was changed.")
            for child in checkpoints.iterdir():
                if child.name not in manifest:
                    shutil.rmtree(child, ignore_errors=True)
        for step in sorted(map(int, manifest), reverse=True):
            arrays = self._read("checkpoints", step, manifest[str(step)])
            if arrays is not None:
                return self._as(like, arrays, older)
            self._set_aside(step, manifest)
        return None

    def place(self, step: int) -> Any:
        """The place in the tasks at a checkpoint; None if none was saved."""
        entry = self._manifest().get(str(step))
        return entry.get("tasks") if isinstance(entry, dict) else None

    def sums(self, step: int) -> dict[str, Any]:
        """The checksums of the lines that lead up to a checkpoint, by file, if they were saved."""
        entry = self._manifest().get(str(step))
        return dict(entry.get("lines", {})) if isinstance(entry, dict) else {}

    def load(self, like: State, older: Callable[[], State] | None = None) -> State:
        """The newest whole checkpoint, for reading: nothing is changed."""
        manifest = self._manifest()
        for step in sorted(map(int, manifest), reverse=True):
            arrays = self._read("checkpoints", step, manifest[str(step)])
            if arrays is not None:
                return self._as(like, arrays, older)
        raise InputError(f"{self.folder.name} has no whole checkpoint yet: let the run reach its first one.")

    def save_best(self, state: State) -> None:
        """Keep the state that has done best on validation tasks, beside the checkpoints."""
        step, arrays = int(state.step), arrays_of(state)
        # A run that is gone through again comes to the same later best once more.
        if step <= self._best().get("step", -1):
            return
        # The one before stays until best.json names this one, so that a run may be killed in between.
        with self._written("best", step):
            with self._manager("best") as manager:
                _write_arrays(manager, step, arrays)
            entry = self._entry("best", step, arrays)
            self._read_back("best", step, entry["sha256"])
            write_json(self.folder / "best.json", {"step": step, **entry})

    def load_best(self, like: State, older: Callable[[], State] | None = None) -> State | None:
        """The state that `save_best` kept, or None."""
        if not (best := self._best()):
            return None
        arrays = self._read("best", best["step"], best)
        if arrays is None:
            text = f"{self.folder.name} has a best checkpoint that is damaged"
            raise InputError(f"{text}: delete its best.json to use the newest checkpoint.")
        return self._as(like, arrays, older)

    def _read_back(self, kind: str, step: int, digest: Any) -> None:
        """Refuse a checkpoint whose arrays are not those written, as when a disk lost a part of it without an error."""
        if self._read(kind, step, digest) is None:
            text = f"The checkpoint {self.folder.name}/{kind}/{step} is not what was written to it; it does not count"
            raise CheckpointError(f"{text}: check the disk, and give the same command again.")

    def _read(self, kind: str, step: int, entry: Any) -> dict[str, np.ndarray] | None:
        """The arrays of one checkpoint; None if its bytes are not those that were written."""
        # Runs saved before there were checksums of files have that of the arrays alone.
        digest, files = (entry, None) if isinstance(entry, str) else (entry["sha256"], entry.get("files"))
        name = f"{self.folder.name}/{kind}/{step}"
        try:
            if files is not None and _file_digests(self.folder / kind / str(step)) != files:
                return None
            with self._manager(kind) as manager:
                arrays = _read_arrays(manager, step)
        except OSError as error:
            reason = error.strerror or first_line(error)
            text = f"The checkpoint {name} cannot be read ({reason}); nothing was changed"
            raise CheckpointError(f"{text}: mend the disk or its permissions, and give the same command again.") from error
        except Exception as error:
            text = f"The checkpoint {name} cannot be read by the installed orbax-checkpoint ({first_line(error)})"
            remedy = f"install the version in its environment.json, or move {kind}/{step} away to do without it"
            raise CheckpointError(f"{text}; nothing was changed: {remedy}.") from error
        return arrays if _digest(arrays) == digest else None

    def _set_aside(self, step: int, manifest: dict[str, Any]) -> None:
        """Move a damaged checkpoint to `damaged/` under a name that is free, and say so."""
        source, aside = self.folder / "checkpoints" / str(step), self.folder / "damaged"
        manifest.pop(str(step))
        others = f"the run goes on from checkpoint {max(map(int, manifest))}" if manifest else "the run begins anew"
        where = "it is gone"
        try:
            if source.exists():
                aside.mkdir(exist_ok=True)
                names = itertools.chain([str(step)], (f"{step}.{i}" for i in itertools.count(1)))
                name = next(name for name in names if not (aside / name).exists())
                os.replace(source, aside / name)
                where = f"it was moved to damaged/{name}"
            write_json(self.folder / "manifest.json", manifest)
        except OSError as error:
            text = f"The damaged checkpoint {self.folder.name}/checkpoints/{step} cannot be set aside ({error.strerror})"
            raise CheckpointError(f"{text}: make the folder writable, and give the same command again.") from error
        text = f"The checkpoint {self.folder.name}/checkpoints/{step} differs from its checksum"
        warnings.warn(f"{text}: {where}, and {others}.", DamagedCheckpoint, stacklevel=4)

    def _entry(self, kind: str, step: int, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"sha256": _digest(arrays), "files": _file_digests(self.folder / kind / str(step))}

    def _best(self) -> dict[str, Any]:
        best = self._json("best.json", "delete it to use the newest checkpoint")
        if best and not (isinstance(best.get("step"), int) and _is_entry(best)):
            raise self._unreadable("best.json", "delete it to use the newest checkpoint")
        return best

    def _manifest(self) -> dict[str, Any]:
        manifest = self._json("manifest.json", _RESTORE)
        if not all(re.fullmatch("[0-9]{1,15}", name) and _is_entry(entry) for name, entry in manifest.items()):
            raise self._unreadable("manifest.json", _RESTORE)
        return manifest

    def _json(self, name: str, remedy: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            with told(path, "read"):
                found = read_json(path) if path.is_file() else {}
        except ValueError as error:
            raise self._unreadable(name, remedy) from error
        if not isinstance(found, dict):
            raise self._unreadable(name, remedy)
        return found

    def _unreadable(self, name: str, remedy: str) -> InputError:
        return InputError(f"{self.folder.name} has a {name} that cannot be read: {remedy}.")

    @contextlib.contextmanager
    def _written(self, kind: str, step: int):
        """Say in one sentence that a checkpoint cannot be written; those before it are whole."""
        try:
            # The writer would make a folder that is gone anew, and what it then holds would be no run.
            if not self.folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the folder is gone")
            yield
        except (CheckpointError, InputError):
            raise
        except Exception as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
            text = f"The checkpoint {self.folder.name}/{kind}/{step} cannot be written ({reason})"
            remedy = "make room, or mend the disk or its permissions, and give the same command again"
            raise CheckpointError(f"{text}, and nothing that was saved is lost: {remedy}.") from error

    def _manager(self, kind: str):
        import orbax.checkpoint as ocp

        more = {}
        if processes.several():  # process 0 alone writes
            (self.folder / kind).mkdir(exist_ok=True)
            alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix=f"adaptax-{kind}")
            more = {"multiprocessing_options": alone, "create": False}
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False, **more)
        manager = ocp.CheckpointManager(self.folder / kind, options=options)
        # It would ask JAX with the meta-step, and spoil the number of calls that `processes.preempted` counts.
        manager.reached_preemption = lambda step: False
        return manager

    def _as(self, like: State, arrays: dict[str, np.ndarray], older: Callable[[], State] | None) -> State:
        """A state made of these arrays; a checkpoint of something else is refused, and kept."""
        there, here = (_shapes(a) for a in (arrays, arrays_of(like)))
        if there != here:
            former = [like] if older is None else [like, older()]
            for before in [*map(one_sided, former), *former[1:]]:
                if there == _shapes(arrays_of(before)):
                    return with_arrays(before, arrays)
            pairs = itertools.zip_longest(there, here, fillvalue="nothing")
            difference = next(f"{a} there and {b} here" for a, b in pairs if a != b)
            raise InputError(
                f"{self.folder.name} holds a state of another model, optimiser or number type (an array is {difference}): "
                "use those of that run, or another output folder."
            )
        return with_arrays(like, arrays)


def _is_entry(entry: Any) -> bool:
    """Whether an entry of a manifest has the form of one: a checksum, or checksums by file."""
    if not isinstance(entry, dict):
        return isinstance(entry, str)
    named = (entry.get("files", {}), entry.get("lines", {}))
    return isinstance(entry.get("sha256"), str) and all(isinstance(sums, dict) for sums in named)


def _write_arrays(manager, step: int, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    manager.save(step, args=ocp.args.StandardSave(arrays))


def _read_arrays(manager, step: int) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    return manager.restore(step, args=ocp.args.StandardRestore())


def _shapes(arrays: dict[str, np.ndarray]) -> list[str]:
    return [f"{x.dtype}{list(x.shape)}" for _, x in sorted(arrays.items())]


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _file_digests(folder: Path) -> dict[str, str]:
    """The checksum of each file below a folder, by its path there."""
    digests: dict[str, str] = {}
    if not folder.is_dir():
        return digests
    for root, _, names in os.walk(folder, onerror=_raise):
        for path in (Path(root, name) for name in names):
            with open(path, "rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _raise(error: OSError) -> None:
    # Without this, a folder that may not be read would look like an empty one.
    raise error
