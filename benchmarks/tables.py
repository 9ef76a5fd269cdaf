"""Saved results, and tables of them in Markdown."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def rows_of(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def paragraph(write: Callable[[dict], str]) -> Callable[[], str]:
    """What `write` says of the results of its own name, or nothing while there are none."""

    @functools.wraps(write)
    def written() -> str:
        result = load(write.__name__)
        return "" if result is None else write(result)

    return written
