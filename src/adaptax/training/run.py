"""The run folder: configuration, environment, history and checkpoints, safe to stop at any moment."""

import hashlib
import itertools
import json
import math
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from adaptax.errors import InputError
from adaptax.training.step import RECORDED, State

_KEPT = 2
# What is measured now and then.
_RARE = ("evaluations.jsonl", "stability.jsonl")
_FIRST_FILES = ("environment.json", "environment.json.part", "config.json.part")


class Run:
    """One run folder.

    `config.json` says what is run, `environment.json` with what, `history.jsonl` has one line a meta-step,
    `evaluations.jsonl` and `stability.jsonl` one for each measurement, `checkpoints/` the states and `manifest.json` their
    checksums, `best/` and `best.json` the state that did best on validation tasks.
    A checkpoint counts once the manifest names it; whatever a stopped run wrote after its last checkpoint is taken
    back on resuming, so that the run goes on bit for bit.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()

    @staticmethod
    def is_run(folder: str | os.PathLike) -> bool:
        return (Path(folder) / "config.json").is_file()

    def open(self, config: dict[str, Any], resume: bool) -> bool:
        """Claim the folder for this configuration; whether there is something to resume.

        Errors: as of `check`.
        """
        found = self.check(config, resume)
        if not found:
            self.create(config)
        return found

    def check(self, config: dict[str, Any], resume: bool) -> bool:
        """Whether there is something to resume; nothing is written.

        Errors: `InputError` if the folder holds another run, this run without `resume`, or anything else.
        """
        config = json.loads(json.dumps(config))
        if self.is_run(self.folder):
            saved = self.config()
            differences = [
                f"{name} is {saved.get(name)!r} there and {config.get(name)!r} here"
                for name in sorted({*saved, *config})
                if saved.get(name) != config.get(name)
            ]
            if differences:
                text = f"{self.folder.name} holds a run with another configuration ({'; '.join(differences)}): "
                raise InputError(text + "use another output folder, or the same options.")
            if not resume:
                raise InputError(f"{self.folder.name} holds this run already: pass resume=True, or another folder.")
            return True
        if self.folder.exists() and not (self.folder.is_dir() and self._unused()):
            raise InputError(f"{self.folder.name} exists and is not a run folder: choose an empty or a new folder.")
        return False

    def _unused(self) -> bool:
        # A run that was killed while its folder was being made left some of these, and may be started again.
        return all(child.name in _FIRST_FILES for child in self.folder.iterdir())

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder; it is a run folder once it has its configuration."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "environment.json", _environment())
            _write(self.folder / "config.json", config)
        except OSError as error:
            text = f"{self.folder.name} cannot be written ({error.strerror}): choose another output folder."
            raise InputError(text) from error

    def config(self) -> dict[str, Any]:
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
            _write(self.folder / "config.json", {**config, "steps": steps})

    def newest(self) -> int:
        """The meta-step of the newest checkpoint that counts, 0 before the first."""
        return max(map(int, self._manifest()), default=0)

    def changed_environment(self) -> list[str]:
        """What is different here from where the run began, in words; then it cannot go on bit for bit."""
        try:
            saved = json.loads((self.folder / "environment.json").read_text())
        except (OSError, ValueError):
            return ["its environment.json cannot be read"]
        here = _environment()
        return [f"{name} was {saved.get(name)}, is {here[name]}" for name in here if saved.get(name) != here[name]]

    def save(self, state: State) -> None:
        """Write a checkpoint of this state; it counts when the manifest names it."""
        arrays = _arrays(state)
        step = int(state.step)
        # What leads up to a checkpoint is on the disk before the checkpoint counts.
        for name in ("history.jsonl", *_RARE):
            _flush(self.folder / name)
        with self._manager() as manager:
            _save(manager, step, arrays)
            kept = {str(step) for step in manager.all_steps()}
        manifest = {k: v for k, v in self._manifest().items() if k in kept}
        _write(self.folder / "manifest.json", {**manifest, str(step): _digest(arrays)})

    def restore(self, like: State) -> State | None:
        """The newest whole checkpoint, or None; later ones that do not count are removed."""
        manifest = self._manifest()
        checkpoints = self.folder / "checkpoints"
        if checkpoints.is_dir():
            for child in checkpoints.iterdir():
                if child.name not in manifest:
                    shutil.rmtree(child, ignore_errors=True)
        for step in sorted(map(int, manifest), reverse=True):
            with self._manager() as manager:
                arrays = _restore(manager, step)
            if arrays is not None and _digest(arrays) == manifest[str(step)]:
                state = self._as(like, arrays)
                self._cut_all(step)
                return state
            # A damaged checkpoint is never resumed from; the one before it is.
            manifest.pop(str(step))
            _write(self.folder / "manifest.json", manifest)
            shutil.rmtree(checkpoints / str(step), ignore_errors=True)
        self._cut_all(0)
        return None

    def load(self, like: State) -> State:
        """The newest whole checkpoint, for reading: nothing is changed."""
        manifest = self._manifest()
        for step in sorted(map(int, manifest), reverse=True):
            with self._manager() as manager:
                arrays = _restore(manager, step)
            if arrays is not None and _digest(arrays) == manifest[str(step)]:
                return self._as(like, arrays)
        raise InputError(f"{self.folder.name} has no whole checkpoint yet: let the run reach its first one.")

    def save_best(self, state: State) -> None:
        """Keep the state that has done best on validation tasks, beside the checkpoints."""
        step, arrays = int(state.step), _arrays(state)
        # A run that is gone through again comes to the same later best once more.
        if step <= self._best().get("step", -1):
            return
        # The one before stays until best.json names this one, so that a run may be killed in between.
        with self._manager("best") as manager:
            _save(manager, step, arrays)
        _write(self.folder / "best.json", {"step": step, "sha256": _digest(arrays)})

    def load_best(self, like: State) -> State | None:
        """The state that `save_best` kept, or None."""
        if not (best := self._best()):
            return None
        with self._manager("best") as manager:
            arrays = _restore(manager, best["step"])
        if arrays is None or _digest(arrays) != best["sha256"]:
            raise InputError(
                f"{self.folder.name} has a best checkpoint that is damaged: delete its best.json to use the newest."
            )
        return self._as(like, arrays)

    def _best(self) -> dict[str, Any]:
        path = self.folder / "best.json"
        try:
            return json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            text = f"{self.folder.name} has a best.json that cannot be read: delete it to use the newest checkpoint."
            raise InputError(text) from error

    def append(self, first_step: int, record: dict[str, np.ndarray]) -> None:
        """Add one line for each meta-step."""
        with open(self.folder / "history.jsonl", "a") as file:
            for i in range(len(record["loss"])):
                file.write(_line({"step": first_step + i, **{name: record[name][i].item() for name in RECORDED}}))

    def append_evaluation(self, entry: dict[str, Any]) -> None:
        self._append("evaluations.jsonl", entry)

    def append_stability(self, entry: dict[str, Any]) -> None:
        self._append("stability.jsonl", entry)

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        with open(self.folder / name, "a") as file:
            file.write(_line(entry))

    def history(self) -> dict[str, list]:
        """What has been recorded so far, by name."""
        return _columns(self.folder / "history.jsonl", RECORDED)

    def evaluations(self) -> list[dict[str, Any]]:
        return list(_lines(self.folder / "evaluations.jsonl"))

    def stability(self) -> list[dict[str, Any]]:
        return list(_lines(self.folder / "stability.jsonl"))

    def write_evaluation(self, result: dict[str, Any], text: str) -> None:
        """Keep the evaluation that ends a run, and the same as a table; the run is finished once both are there."""
        _write_text(self.folder / "evaluation.txt", text + "\n")
        _write(self.folder / "evaluation.json", result)

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation that ended the run, or None."""
        path = self.folder / "evaluation.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def _as(self, like: State, arrays: dict[str, Any]) -> State:
        """A state made of these arrays; a checkpoint of something else is refused, and kept."""
        there, here = ([f"{x.dtype}{list(x.shape)}" for _, x in sorted(a.items())] for a in (arrays, _arrays(like)))
        if there != here:
            pairs = itertools.zip_longest(there, here, fillvalue="nothing")
            first = next(f"{a} there and {b} here" for a, b in pairs if a != b)
            raise InputError(
                f"{self.folder.name} holds a state of another model, optimiser or number type (an array is {first}): "
                "use those of that run, or another output folder."
            )
        return _with_arrays(like, arrays)

    def _manifest(self) -> dict[str, str]:
        path = self.folder / "manifest.json"
        try:
            return json.loads(path.read_text()) if path.is_file() else {}
        except ValueError as error:
            text = f"{self.folder.name} has a manifest.json that cannot be read: restore it, or use another output folder."
            raise InputError(text) from error

    def _manager(self, folder: str = "checkpoints"):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder / folder, options=options)

    def _cut_all(self, steps: int) -> None:
        for name in ("history.jsonl", *_RARE):
            self._cut(name, steps)

    def _cut(self, name: str, steps: int) -> None:
        """Take back the lines of meta-steps after the checkpoint, and a line that was not finished."""
        path = self.folder / name
        if not path.is_file():
            return
        kept = [line for line in path.read_text().splitlines(keepends=True) if _kept(line, steps, name)]
        if len("".join(kept)) != path.stat().st_size:
            _write_text(path, "".join(kept))


def _kept(line: str, steps: int, name: str) -> bool:
    if not line.endswith("\n"):
        return False
    step = json.loads(line)["step"]
    # What is measured at step k is measured after k meta-steps; the history counts meta-steps from 0.
    return step <= steps if name in _RARE else step < steps


def _save(manager, step: int, arrays: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    manager.save(step, args=ocp.args.StandardSave(arrays))


def _restore(manager, step: int) -> dict[str, Any] | None:
    """The arrays of one checkpoint as they were saved, or None if they cannot be read."""
    import orbax.checkpoint as ocp

    try:
        return manager.restore(step, args=ocp.args.StandardRestore())
    except Exception:
        # Whatever the reader meets in a damaged file, the answer is the same: this checkpoint does not count.
        return None


def _arrays(state: State) -> dict[str, Any]:
    """The state's arrays by position, keys as plain numbers, all on one device."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if _is_kept(leaf)]
    plain = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return {f"{i:05d}": np.asarray(x) for i, x in enumerate(plain)}


def _is_kept(leaf: Any) -> bool:
    # Arrays without entries hold nothing to save, and the writer refuses them.
    return eqx.is_array(leaf) and leaf.size > 0


def _with_arrays(like: State, arrays: dict[str, Any]) -> State:
    leaves, treedef = jax.tree.flatten(like)
    values = iter(arrays[name] for name in sorted(arrays))

    def put(leaf):
        if not _is_kept(leaf):
            return leaf
        value = jnp.asarray(next(values))
        return jax.random.wrap_key_data(value) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else value

    return jax.tree.unflatten(treedef, [put(leaf) for leaf in leaves])


def _digest(arrays: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _environment() -> dict[str, Any]:
    packages = ("adaptax", "equinox", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in packages},
        "devices": [device.device_kind for device in jax.local_devices()],
        "backend": jax.default_backend(),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
    }


def _line(entry: dict[str, Any]) -> str:
    finite = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x  # noqa: E731
    return json.dumps({name: finite(value) for name, value in entry.items()}) + "\n"


def _lines(path: Path):
    if path.is_file():
        with open(path) as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, list]:
    columns: dict[str, list] = {name: [] for name in names}
    for entry in _lines(path):
        for name in names:
            columns[name].append(math.nan if entry[name] is None else entry[name])
    return columns


def _flush(path: Path) -> None:
    if path.is_file():
        with open(path, "a") as file:
            os.fsync(file.fileno())


def _write(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Replace a file as a whole or not at all."""
    draft = path.with_name(path.name + ".part")
    with open(draft, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
