"""Files of arrays by name and a header in JSON, in NumPy's npz format. Nothing in them is executed."""

import contextlib
import io
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from adaptax._tree import first_line
from adaptax.errors import InputError

_HEADER = "header"
_SEE = "give a file that save() wrote, or a run folder"


def write(path: str | os.PathLike, kind: str, number: int, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a file; one that is there is replaced as a whole.

    Arguments:
        path: where.
        kind, number: what the file is, and the version of its form.
        header: what JSON can hold.
        arrays: arrays by name.

    Errors: `InputError` for a path that cannot be written.
    """
    path, plain, dtypes = Path(path), {}, {}
    for name, leaf in arrays.items():
        array = np.asarray(leaf)
        dtypes[name] = array.dtype.name
        # NumPy's format has no name for the types of JAX alone, such as bfloat16.
        plain[name] = array.view(np.dtype(f"u{array.dtype.itemsize}")) if array.dtype.kind == "V" else array
    whole = {"format": kind, "version": number, "adaptax": version("adaptax"), **header, "dtypes": dtypes}
    written = io.BytesIO()
    np.savez_compressed(written, **{_HEADER: np.frombuffer(json.dumps(whole, sort_keys=True).encode(), np.uint8)}, **plain)
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_bytes(written.getvalue())
        os.replace(draft, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another path.") from error


def kind_of(path: Path) -> str | None:
    """What a file is; None if it is none of these."""
    header = _contents(path)[0]
    return header.get("format") if isinstance(header, dict) else None


def read(path: Path, kind: str, number: int, parts: set[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays of a file.

    Arguments:
        path: where.
        kind, number: what it must be, and the newest version that can be read.
        parts: what its header must have.

    Errors: `InputError` if it is not there, something else, of a later version, or not whole.
    """
    header, arrays = _contents(path)
    number_there = header.get("version") if isinstance(header, dict) else None
    if not isinstance(header, dict) or header.get("format") != kind or type(number_there) is not int:
        raise InputError(f"{path.name} is no {kind.removeprefix('adaptax ')} of adaptax: {_SEE}.")
    if number_there > number:
        text = f"{path.name} was saved by adaptax {header.get('adaptax')}, a later version"
        raise InputError(f"{text}: install it to read the file.")
    with whole(path):
        if not parts | {"dtypes"} <= header.keys() or header["dtypes"].keys() != arrays.keys():
            raise KeyError("a part is missing")
        return header, {name: array.view(jnp.dtype(header["dtypes"][name])) for name, array in arrays.items()}


@contextlib.contextmanager
def whole(path: Path):
    """Refuse a file whose contents turn out not to fit each other, however that shows."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path.name} is not whole ({first_line(error)}): save it again.") from error


def _contents(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        # NumPy leaves a file open that it cannot read, unless it is given an open one.
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            return json.loads(arrays.pop(_HEADER).tobytes()), arrays
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: {_SEE}.") from None
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror or error}): {_SEE}.") from error
    except Exception:  # zip, deflate, NumPy's format and JSON each have errors of their own for damaged bytes
        return None, {}
