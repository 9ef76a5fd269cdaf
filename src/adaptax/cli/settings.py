"""Configurations from files and run folders, and back: the one place that knows what a saved configuration looks like."""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adaptax.cli.configs import TASKS, Images, Training
from adaptax.errors import InputError

Config = TypeVar("Config", bound=Training)

# How a run is started says nothing about what it is.
_NOT_SAVED = ("out", "config", "resume", "cache")
# Saved only where they are set, so that runs from before there were such options go on.
_LATER = ("colour", "flips", "model", "norm", "validation", "method")
DIGEST = "_sha256"

# The smallest value of each option that is a whole number.
_LEAST = {
    "inner_steps": 0, "steps": 1, "tasks_per_step": 1, "checkpoint_every": 1, "evaluate_every": 1, "monitor_every": 1,
    "evaluation_tasks": 2,
    "evaluation_steps": 0, "shots": 1, "queries": 1, "hidden": 1, "dim": 1, "ways": 2, "channels": 1, "size": 16,
    "trajectories": 1, "horizon": 1,
}  # fmt: skip


def describe(config: Training) -> dict[str, Any]:
    """What `config.json` says: the task, every option that matters, and checksums of the data."""
    saved: dict[str, Any] = {"task": config.task}
    default = type(config)()
    for name in _names(config):
        value = getattr(config, name)
        if name in _LATER and value == getattr(default, name):
            continue
        saved[name] = list(value) if isinstance(value, tuple) else value
    saved["stepsize"] = canonical_stepsize(config.stepsize)
    if isinstance(config, Images):
        paths = {name: str(path.absolute()) for name, path in _files(config).items()}
        saved |= paths | digests(config)
    return saved


def digests(config: Images) -> dict[str, str]:
    """The checksums of the data, by option."""
    return {name + DIGEST: _digest(path) for name, path in _files(config).items()}


def _digest(path: Path) -> str:
    if path.is_dir():
        from adaptax.tasks.images.io.prepared import fingerprint

        return fingerprint(path, contents=True)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(config: Images) -> dict[str, Path]:
    return {name: path for name in ("data", "test_data") if (path := getattr(config, name)) is not None}


def from_saved(saved: dict[str, Any], where: str) -> Training:
    """The configuration that `describe` saved; `where` names the run in messages."""
    kind = TASKS.get(saved["task"]) if isinstance(saved, dict) and isinstance(saved.get("task"), str) else None
    if kind is None:
        raise InputError(f"{where} was not written by adaptax train: use ax.evaluate or ax.train on it from Python.")
    return overlay(kind(), as_saved(saved), where)


def as_saved(saved: dict[str, Any]) -> dict[str, Any]:
    """What a run's file stands for: before there was a choice, the whole network adapted, at a constant outer step size."""
    return {"adapt": "everything", "schedule": "constant"} | saved if saved.get("task") == Images.task else saved


def overlay(config: Config, values: dict[str, Any], where: str) -> Config:
    """The configuration with values from a file, whose names and types are checked."""
    hints = get_type_hints(type(config))
    changes = {}
    if (task := values.get("task", config.task)) != config.task:
        raise InputError(f"{where} is for the task {task!r}, not {config.task}: use adaptax train {task}.")
    for key, value in values.items():
        name = key.replace("-", "_")
        if name == "task" or (name.endswith(DIGEST) and name.removesuffix(DIGEST) in hints):
            continue
        if name in ("config", "resume"):
            raise InputError(f"{where} sets {key!r}, which only the command line can: take it out.")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"see adaptax train {config.task} --help."
            raise InputError(f"{where} sets {key!r}, which is no option of {config.task}: {remedy}")
        try:
            changes[name] = _fit(value, hints[name])
        except (ValueError, OverflowError) as error:
            raise InputError(f"{where} sets {key!r} to {value!r}: make it {error}.") from None
    return dataclasses.replace(config, **changes)


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


def check(config: Training) -> None:
    """Refuse what cannot be before anything is computed, by the names that the options have here."""
    canonical_stepsize(config.stepsize)
    for name in ("discount", "trace"):
        if not 0 <= (value := getattr(config, name, 1.0)) <= 1:
            raise InputError(f"{option(name)} {value} must be a number from 0 to 1.")
    for name in ("learning_rate", "sigma", "radius"):
        if not 0 < (value := getattr(config, name, 1.0)) < math.inf:
            raise InputError(f"{option(name)} {value} must be a positive number such as 0.001.")
    check_seed(config.seed)
    for name, bound in _LEAST.items():
        values = getattr(config, name, None)
        for value in values if isinstance(values, tuple) else (values,):
            check_count(option(name), value, bound)
    if config.resume and config.out is None:
        raise InputError("--resume needs the run folder to go on with: add --out DIR.")
    if config.out is not None:
        check_folder(config.out)
    if isinstance(config, Images):
        _check_images(config)


def _check_images(config: Images) -> None:
    """Refuse options that do not go together."""
    if config.data is None:
        raise InputError("There is nothing to train on: add --data PATH, an Omniglot zip or a folder of class folders.")
    if config.method == "prototypical" and config.inner_steps:
        raise InputError("--method prototypical takes no inner steps: add --inner-steps 0.")
    if config.method != "maml" and config.head != "shared":
        raise InputError(f"--head {config.head} is for --method maml: leave it out for {config.method}.")
    if config.method == "prototypical" and config.adapt != "head":
        raise InputError("--method prototypical adapts nothing: leave out --adapt.")
    if config.method == "pretrain" and canonical_stepsize(config.stepsize).startswith(("edge", "guaranteed")):
        raise InputError("--method pretrain is fine-tuned with a step size of its own: give --stepsize a number such as 0.1.")
    if config.method == "pretrain" and config.validation is not None:
        raise InputError("--method pretrain is not chosen by validation: leave out --validation.")
    if config.validation is not None and config.evaluate_every is None:
        raise InputError("--validation needs --evaluate-every to say when the network is judged: add --evaluate-every 100.")


def check_count(name: str, value: int | None, least: int) -> None:
    """Refuse a number below the least one; an option that was left out is None."""
    if value is not None and value < least:
        raise InputError(f"{name} {value} must be a whole number of at least {least}.")


def check_seed(seed: int) -> None:
    """Refuse a seed that is not the seed of a key."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} must be a whole number from 0 to {2**32 - 1}.")


def check_folder(out: Path) -> None:
    """Refuse an output folder that cannot be made because there is a file where it, or one above it, would be."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {out} cannot be a folder, for {nearest.name} is a file: choose another one.")


def canonical_stepsize(text: str) -> str:
    """One spelling for each step size: a number, or a rule, with its factor unless that is the default."""
    rule, colon, gamma = text.strip().lower().partition(":")
    is_rule = rule in ("edge", "guaranteed")
    default = 1.0 if rule == "edge" else 1 / 8
    try:
        value = default if is_rule and not colon else float(gamma if is_rule else text)
    except ValueError:
        raise InputError(f"--stepsize {text} must be a number, edge or guaranteed (edge:1.5 for a factor).") from None
    if not 0 < value < math.inf:
        raise InputError(f"--stepsize {text} must be positive and finite; without adaptation use --inner-steps 0.")
    return str(value) if not is_rule else rule if value == default else f"{rule}:{value}"


def option(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def _names(config: Training) -> list[str]:
    return [field.name for field in dataclasses.fields(config) if field.name not in _NOT_SAVED]


def _fit(value: Any, hint: Any) -> Any:
    """A value from a file as the type of its option, or a `ValueError` that says what it should be."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _fit(value, inner)
    if kind is Literal:
        if value in arguments:
            return value
        raise ValueError(" or ".join(map(repr, arguments)))
    if kind is tuple:
        if isinstance(value, list):
            return tuple(_fit(entry, arguments[0]) for entry in value)
        raise ValueError("a list of whole numbers")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and number:
        return value
    if hint is float and number:
        return float(value)
    # A step size may be a number or the name of a rule.
    if hint is str and (number or isinstance(value, str)):
        return str(value)
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a number or a name", Path: "a path"}
    raise ValueError(names[hint])
