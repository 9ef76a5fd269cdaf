"""Small files of a run folder: JSON that is replaced as a whole or not at all, and lines that are appended."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole or not at all."""
    draft = path.with_name(path.name + ".part")
    with open(draft, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def append_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Append entries, one JSON line each; numbers that are not finite become null."""

    def finite(x):
        return None if isinstance(x, float) and not math.isfinite(x) else x

    with open(path, "a") as file:
        for entry in entries:
            file.write(json.dumps({name: finite(value) for name, value in entry.items()}) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file; a last line that was not finished is left out."""
    if path.is_file():
        with open(path) as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    if path.is_file():
        with open(path, "a") as file:
            os.fsync(file.fileno())
