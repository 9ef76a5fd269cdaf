"""Small files of a run folder: JSON that is replaced as a whole or not at all, and lines that are appended."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adaptax._tree import first_line
from adaptax.errors import CheckpointError


@contextlib.contextmanager
def told(path: Path, done: str):
    """Say in one sentence which file of a run the system refused; `done` is what could not be done, "read" or "written"."""
    try:
        yield
    except OSError as error:
        text = f"{path.parent.name}/{path.name} cannot be {done} ({error.strerror or first_line(error)})"
        remedy = "make room, or mend the disk or its permissions, and give the same command again"
        raise CheckpointError(f"{text}, and nothing that was saved is lost: {remedy}.") from error


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file as a whole or not at all; what is no file, such as a pipe, is written to."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    draft = path.with_name(path.name + ".part")
    with open(draft, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_json(path: Path) -> Any:
    """The value in a file.

    Errors: `ValueError` if it is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def append_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Append entries, one JSON line each; numbers that are not finite become null."""

    def finite(x):
        return None if isinstance(x, float) and not math.isfinite(x) else x

    with open(path, "a") as file:
        for entry in entries:
            file.write(json.dumps({name: finite(value) for name, value in entry.items()}) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file; lines that were not finished or are damaged are left out."""
    if path.is_file():
        with open(path, "rb") as file:
            yield from (entry for entry in map(parsed, file) if entry is not None)


def parsed(line: bytes) -> dict[str, Any] | None:
    """The entry of a line: a step, and numbers by name; None if the line was not finished, or is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not all(x is None or isinstance(x, bool | int | float) for x in entry.values()):
        return None
    step = entry.get("step")
    return entry if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53 else None


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    if path.is_file():
        with open(path, "a") as file:
            os.fsync(file.fileno())
