"""The description of a run begun from Python in its run folder, and whether the run may go on with other arguments.

A method, an optimiser or a problem is described in words and by checksums. The text names the classes, functions and numbers
that it is made of. `code` is a checksum that also covers the instructions of functions, everything that they close over, and
all arrays; `called` covers the functions and numbers that these functions find by name in their own module. `attributes` is a
checksum of the attributes of plain objects among these, and `containers` of lists and dicts of the module; they may be counters
or caches. A difference in the text, in `code` or `called` is refused, one in the others is said in a warning. Checksums are
compared only under the same Python and packages, since another version compiles functions differently.
"""

import dataclasses
import functools
import hashlib
import types
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax

from adaptax.errors import InputError
from adaptax.methods import MetaGradient
from adaptax.problem import AbstractProblem
from adaptax.stepsize.rules import Guaranteed
from adaptax.training.run import Run, differences

_COMPARED = ("problem", "method", "optimizer", "memory")
_REFUSED, _TOLD = ("code", "called"), ("attributes", "containers")
# How checksums are formed: those of another number are not compared.
_FORM = 2
_CHECKSUMS = (*_REFUSED, *_TOLD, "checksums")


class NotCompared(UserWarning):
    """A run goes on, and parts of what it was begun with could not be compared with what it goes on with."""


def describe_run(steps: int, tasks_per_step: int, seed: int, **parts: Any) -> dict[str, Any]:
    """The configuration of a run: its numbers, and its parts (`problem`, `method`, `optimizer`, `memory`) in words and code."""
    given = {name: part for name, part in parts.items() if part is not None}
    return {
        "steps": steps,
        "tasks_per_step": tasks_per_step,
        "seed": seed,
        **{name: describe(part) for name, part in given.items()},
        **{kind: {name: getattr(fingerprint(part), kind) for name, part in given.items()} for kind in _REFUSED + _TOLD},
        "checksums": _FORM,
    }


def check_resumable(run: Run, here: dict[str, Any], resume: bool) -> bool:
    """`Run.check` for a run begun from Python: more steps are welcome, and parts are compared as far as they can be."""
    if not run.is_run(run.folder):
        return run.check(here, resume)
    saved = run.config()
    if "tasks_per_step" not in saved or "task" in saved:
        return run.check(here, resume)  # begun by the command line, or with config=
    # Runs from before these were described are compared by the rest.
    compared = {name: here[name] for name in here if name not in _CHECKSUMS and (name in saved or name not in _COMPARED)}
    told = differences({name: value for name, value in saved.items() if name not in _CHECKSUMS}, compared)
    if resume and isinstance(saved.get("steps"), int) and saved["steps"] < here["steps"]:
        told = [text for text in told if not text.startswith("steps is ")]
    other, moved = (
        sorted({name for kind in kinds for name, sum in here[kind].items() if saved.get(kind, {}).get(name, sum) != sum})
        for kinds in (_REFUSED, _TOLD)
    )
    former = {name for kind in _REFUSED for name in saved.get(kind, {})} if saved.get("checksums") != _FORM else set()
    if former:
        other = moved = []
    same_versions = not any(text.startswith(("python", "packages")) for text in run.changed_environment())
    if same_versions:
        told += [
            f"the functions or arrays of {name} differ" for name in other if not any(t.startswith(f"{name} is ") for t in told)
        ]
    longer = isinstance(saved.get("steps"), int) and saved["steps"] != here["steps"]
    if resume and longer and told == ["the functions or arrays of optimizer differ"]:
        text = f"{run.folder.name} was begun for steps={saved['steps']}, and its optimiser is scheduled over them"
        raise InputError(f"{text}: give the same steps=, or begin with an optimizer= that is not, such as optax.adam(1e-3).")
    run.refuse(told)
    unknown = sorted(set(_COMPARED) & set(here) - (set(saved) - former))
    if resume and unknown:
        _warn(run, unknown, "could not be compared, since it was begun before they were saved so")
    if resume and other and not same_versions:
        _warn(run, other, "could not be compared, since it began under other versions")
    if resume and moved and same_versions:
        _warn(run, moved, "holds or uses objects whose contents are others than when it began")
    return run.check({**saved}, resume)


def _warn(run: Run, names: Sequence[str], text: str) -> None:
    message = f"{run.folder.name} goes on, but its {', '.join(names)} {text}: make sure that they are the same."
    warnings.warn(message, NotCompared, stacklevel=5)


def describe(value: Any) -> str:
    """A method, optimiser or problem with all its options, in words that do not change from one process to another."""
    if isinstance(value, eqx.Module):
        fields = ((field.name, _entry(value, field.name)) for field in _fields(value))
        return f"{type(value).__name__}({', '.join(f'{name}={describe(entry)}' for name, entry in fields)})"
    if isinstance(value, functools.partial):
        return describe(value.func) if not (value.args or value.keywords) else f"partial({describe(value.func)})"
    if eqx.is_array(value) or isinstance(value, np.ndarray):
        array = _plain(value)
        return str(array.tolist()) if array.size <= 8 else f"{array.dtype}{list(array.shape)}"
    if isinstance(value, optax.GradientTransformation):
        return describe(value.update)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(describe, value))})"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)


class Fingerprint(NamedTuple):
    """Checksums of a value, as the module's docstring describes them."""

    code: str
    attributes: str
    called: str
    containers: str


def fingerprint(value: Any) -> Fingerprint:
    """The checksums of a value."""
    code, attributes, called, containers = (hashlib.sha256() for _ in range(4))
    plain, found, held = list[Any](), list[Any](), list[Any]()
    _feed(code, value, {}, plain, found)
    seen: dict[int, int] = {}
    while plain:
        _feed(attributes, getattr(plain.pop(0), "__dict__", None), seen, plain, [])
    seen = {}
    while found:
        entry = found.pop(0)
        if isinstance(entry, list | dict):
            held.append(entry)
        elif id(entry) not in seen:
            _feed(called, entry, seen, [], found)
    for entry in held:
        _feed(containers, entry, {}, [], [])
    return Fingerprint(*(digest.hexdigest() for digest in (code, attributes, called, containers)))


def _feed(digest: Any, value: Any, seen: dict[int, int], plain: list[Any], found: list[Any]) -> None:
    """Feed a value to a checksum; plain objects are only named, and appended to a list, as is what is found by name."""

    def say(*words: Any) -> None:
        digest.update(("\0".join(map(str, words)) + "\n").encode())

    if isinstance(value, float) and value.is_integer():
        value = int(value)  # some schedules of optax make numbers of one kind of their own when they are first called
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        say(type(value).__name__, repr(value))
        return
    if eqx.is_array(value) or isinstance(value, np.ndarray | np.generic):
        array = _plain(value)
        say("array", array.dtype, array.shape)
        digest.update(np.ascontiguousarray(array).tobytes())
        return
    if id(value) in seen:  # an object met before, perhaps one that holds itself
        say("again", seen[id(value)])
        return
    seen[id(value)] = len(seen)
    if isinstance(value, types.CodeType):
        say("code", value.co_name, value.co_code.hex(), value.co_names, value.co_varnames)
        parts: Any = value.co_consts
    elif isinstance(value, types.FunctionType):
        say("function", value.__module__, value.__qualname__)
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        used = [value.__globals__.get(name) for name in value.__code__.co_names]
        # Numbers and arrays of the module that the function uses; functions of other modules go by their names.
        used = [x for x in used if isinstance(x, bool | int | float | str | tuple | np.ndarray) or eqx.is_array(x)]
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, *cells, *used]
        found += _found_by_name(value)
    elif isinstance(value, types.MethodType):
        parts = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        say("partial")
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, dict):
        say("dict", len(value))
        parts = [part for key in sorted(value, key=str) for part in (str(key), value[key])]
    elif isinstance(value, set | frozenset):
        parts = sorted(map(str, value))
    elif isinstance(value, tuple | list):
        say(type(value).__name__, len(value))
        parts = value
    elif isinstance(value, type | types.ModuleType):
        say("name", getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__))
        parts = ()
    elif dataclasses.is_dataclass(value):
        say("object", type(value).__module__, type(value).__qualname__)
        parts = [part for field in _fields(value) for part in (field.name, _entry(value, field.name))]
    elif (wrapped := getattr(value, "__wrapped__", None)) is not None:
        parts = (wrapped,)
    else:
        say("object", type(value).__module__, type(value).__qualname__)
        plain.append(value)
        parts = ()
    for part in parts:
        _feed(digest, part, seen, plain, found)


def _found_by_name(function: types.FunctionType) -> list[Any]:
    """What a function, or one inside it, finds in its own module: functions, lists, dicts, and inside also numbers."""
    inside, found = [function.__code__], []
    for code in inside:
        inside += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        for name in code.co_names:
            value = function.__globals__.get(name)
            value = getattr(value, "__wrapped__", value) if callable(value) else value
            own = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
            number = isinstance(value, bool | int | float | str | tuple | np.ndarray) or eqx.is_array(value)
            if own or isinstance(value, list | dict) or (number and code is not function.__code__):
                found.append(value)
    return found


def _fields(value: Any) -> list[Any]:
    """The fields of a module or dataclass, without an option that older runs did not have and that is not used."""
    later = {"trainable"} if isinstance(value, AbstractProblem) and value.trainable is None else set()
    if isinstance(value, MetaGradient):
        later |= {name for name in ("precision", "truncate", "microbatches") if getattr(value, name) is None}
    later |= {"gamma_plus"} if isinstance(value, Guaranteed) and value.gamma_plus == 1 else set()
    return [field for field in dataclasses.fields(value) if field.name not in later]


def _entry(value: Any, name: str) -> Any:
    """A field; the recursion and "auto", which give the same gradient, are one, since older runs have only the first."""
    entry = getattr(value, name, None)
    return "recursion" if isinstance(value, MetaGradient) and name == "mode" and entry == "auto" else entry


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _plain(value: Any) -> np.ndarray:
    """An array as a NumPy array, keys as numbers."""
    if eqx.is_array(value) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)
