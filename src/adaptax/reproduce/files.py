"""The one CSV of an experiment: everything that its figures and its page are made from."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Say = Callable[[str], None]


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows; entries that a row has not are left empty, and floats keep nine digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})


def read_rows(path: Path) -> list[Row]:
    """Read them back: numbers as float, or int where they are whole, empty entries left out."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: _number(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows with these entries.

    Example:
        >>> pick([{"q": 1, "v": 2.0}, {"q": 2, "v": 3.0}], q=2)
        [{'q': 2, 'v': 3.0}]
    """
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def distinct(rows: Iterable[Row], column: str) -> list[Any]:
    """The entries of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
