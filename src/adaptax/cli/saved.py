"""Options in files: the `config.json` of a run, and the files that a user gives with --config.

A run's file, of format 2, has the task, `steps`, and every option that differs from the default, at the top; under `defaults`
the values of all other options, as they were when the run began; and the checksums of the data. So an old run is never
stopped by an option that was added later (a file that does not name it leaves it at its default, or at the family's `before`),
and keeps its own values where a default has changed since. Two runs are compared by the values of their options, not by the
text of their files. Files of format 1 named all options at the top, and are read in the same way.

Values from files are parsed as if they had been typed.
"""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from adaptax.cli.families import FAMILIES
from adaptax.cli.naming import origins
from adaptax.cli.options import Mark, NetworkText, canonical_stepsize, flag, hints, marked
from adaptax.cli.parse import as_arguments, parse
from adaptax.cli.training import Training
from adaptax.errors import InputError

Config = TypeVar("Config", bound=Training)

FORMAT = 2
_CHECKSUM = "_sha256"


def describe(config: Training) -> dict[str, Any]:
    """The contents of a run's `config.json`."""
    values, defaults = options_of(config), options_of(type(config)())
    kept = {name for name, value in values.items() if name == "steps" or value != defaults[name]}
    return {
        "format": FORMAT,
        "task": config.task,
        **{name: value for name, value in values.items() if name in kept},
        **{name + _CHECKSUM: digest for name, digest in checksums(config).items()},
        "defaults": {name: value for name, value in values.items() if name not in kept},
    }


def options_of(config: Training) -> dict[str, Any]:
    """The options that a run keeps, by name, as values for JSON."""
    kept = [name for name in hints(type(config)) if name not in marked(type(config), Mark.UNSAVED)]
    values = {name: getattr(config, name) for name in kept}
    for name, value in values.items():
        if isinstance(value, tuple):
            values[name] = list(value)
        if isinstance(value, Path):
            values[name] = str(value.absolute())
    return values | {"stepsize": canonical_stepsize(config.stepsize)}


def checksums(config: Training) -> dict[str, str]:
    """The checksums of the data that the options name, by option."""
    paths = {name: getattr(config, name) for name in marked(type(config), Mark.DATA)}
    return {name: _checksum(path) for name, path in paths.items() if path is not None}


def from_saved(saved: dict[str, Any], where: str) -> Training:
    """The options that a run has kept.

    Arguments:
        saved: the contents of its `config.json`.
        where: the run's name in messages.

    Errors: `InputError` if they were not written by `adaptax train`, or by a later version of it.
    """
    family = FAMILIES.get(str(saved.get("task")))
    if family is None:
        raise InputError(f"{where} was not written by adaptax train: use ax.evaluate or ax.train on it from Python.")
    # A run keeps no folder to write to, and one that names some is not followed.
    unsaved = marked(family, Mark.UNSAVED)
    values = {n: value for n, value in _in_one(saved, family, where).items() if n.replace("-", "_") not in unsaved}
    return overlay(family(), {**family.before, **values}, where)


def differences(saved: dict[str, Any], config: Training, where: str) -> list[str]:
    """How the options of a run differ from these, in words; data that were only moved count as the same."""
    there = from_saved(saved, where)
    if there.task != config.task:
        return [f"task is {there.task!r} there and {config.task!r} here"]
    found, then, now = checksums(config), options_of(there), options_of(config)
    changed = []
    for name in sorted(now):
        if name in found and name + _CHECKSUM in saved:
            if saved[name + _CHECKSUM] != found[name]:
                changed.append(f"{flag(name)} has another checksum there")
        elif then[name] != now[name]:
            changed.append(f"{flag(name)} is {then[name]!r} there and {now[name]!r} here")
    return changed


def check_data(saved: dict[str, Any], config: Training) -> None:
    """Refuse data that are not those of the run.

    Errors: `InputError`.
    """
    for name, digest in checksums(config).items():
        if saved.get(name + _CHECKSUM, digest) != digest:
            path = getattr(config, name)
            raise InputError(f"'{path}' is not the file of this run, for its checksum differs: give the path of that one.")


def with_network(config: Config, model: str | None, where: Path) -> Config:
    """The options of a run, whose network of the user's own is imported only if it is named anew.

    Arguments:
        config: the options as they were saved.
        model: MODULE:FUNCTION as it is given now, or a network of the library for none.
        where: the run.

    Errors: `InputError` if it is not named, or is for a run that has none.
    """
    saved, given = getattr(config, "model", None), model if model not in NetworkText.known else None
    if saved is None or saved in NetworkText.known:
        if given is not None:
            raise InputError(f"--model {given} is for a network of your own, and {where} has none: leave it out.")
        return config
    if given is None:
        raise InputError(f"{where} has a network of your own: name its function, --model {saved}.")
    return dataclasses.replace(config, model=given)  # type: ignore[call-arg]


def complete(config: Config, arguments: list[str], prog: str) -> Config:
    """The options with those of a run (`--resume`) and of a file (`--config`) below the arguments, which win.

    Arguments:
        config: the options as parsed over the defaults.
        arguments: what they were parsed from.
        prog: the command, for messages.
    """
    if config.config is None and not config.resume:
        return config
    base, values, out = type(config)(), {}, config.out
    if config.config is not None:
        values = _in_one(read_file(config.config), type(config), str(config.config))
        given = overlay(base, values, str(config.config))
        out = given.out if out is None else out
    if config.resume:
        if out is None:
            raise InputError("--resume needs the run folder to go on with: add --out DIR.")
        from adaptax.training.shared_run import open_run

        run = open_run(out)
        if not run.is_run(out):
            raise InputError(f"There is no run in {out} to go on with: leave out --resume to start one.")
        there = from_saved(run.config(), str(out))
        if not isinstance(there, type(config)):
            raise InputError(f"{out} is for the task {there.task!r}, not {config.task}: use adaptax train {there.task}.")
        base = with_network(there, getattr(config, "model", None), out)
    return parse(type(config), arguments, prog, overlay(base, values, str(config.config)))


def sources(config: Any, arguments: list[str]) -> dict[str, Any]:
    """The run (`--resume`) or the file (`--config`) that options come from, by option; nothing for those that were typed."""
    if not isinstance(config, Training):
        return {}
    found = origins(arguments, hints(type(config)), config.out) if config.resume and config.out is not None else {}
    if config.config is not None:
        found |= origins(arguments, _in_one(read_file(config.config), type(config), str(config.config)), config.config)
    return found


def overlay(config: Config, values: Mapping[str, Any], where: str) -> Config:
    """The options with values from a file, whose name is `where` in messages."""
    if (task := values.get("task", config.task)) != config.task:
        raise InputError(f"{where} is for the task {task!r}, not {config.task}: use adaptax train {task}.")
    given = {name.replace("-", "_"): value for name, value in values.items() if name != "task"}
    for name in ("config", "resume"):
        if name in given:
            raise InputError(f"{where} sets {name!r}, which only the command line can: take it out.")
    try:
        arguments = as_arguments(given, type(config), prog := f"adaptax train {config.task}")
        return parse(type(config), arguments, prog, config)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _in_one(values: dict[str, Any], family: type[Training], where: str) -> dict[str, Any]:
    """The options of a file by their names of today, whether or not a run has written it."""
    if values.get("format", 1) not in (1, FORMAT):
        raise InputError(f"{where} was written by a later version of adaptax: update adaptax to read it.")
    defaults = values.get("defaults", {})
    if not isinstance(defaults, dict):
        raise InputError(f"{where} sets 'defaults', which is no option: take it out.")
    given = {n: value for n, value in values.items() if n not in ("format", "defaults") and not n.endswith(_CHECKSUM)}
    return {family.renamed.get(name, name): value for name, value in (defaults | given).items()}


def read_file(path: Path, name: str = "--config") -> dict[str, Any]:
    """The contents of a JSON or TOML file that an option names."""
    readers = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers:
        raise InputError(f"{name} {path} must be a .json or a .toml file.")
    try:
        values = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{name} {path} cannot be read ({error.strerror}): give the path of a file.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} {path} is not valid {path.suffix[1:].upper()} ({error}): mend it.") from error
    if not isinstance(values, dict):
        raise InputError(f'{name} {path} must hold values by name, such as {{"steps": 1000}}.')
    return values


def _checksum(path: Path) -> str:
    if path.is_dir():
        from adaptax.tasks.images.io.prepared import fingerprint

        return fingerprint(path, contents=True)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
