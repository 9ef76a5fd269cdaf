"""Saved results, and the parts of tables in Markdown."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# A range of fewer rounds says nothing about the spread.
ROUNDS = 3


def load(name: str) -> dict | None:
    """The results of that name, if they have been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def kept(name: str, entries: str) -> list[dict]:
    """The saved entries of a result that grows entry by entry; each says where it was measured."""
    result = load(name)
    if result is None:
        return []
    return [{"measured": {"machine": result["machine"]}} | entry for entry in result[entries]]


def rows_of(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def spread(rounds: Sequence[float], form: str = "{:.3g}") -> str:
    """The median over rounds with the range, or with the number of rounds where there are fewer than three."""
    middle = form.format(statistics.median(rounds))
    if len(rounds) < ROUNDS:
        return f"{middle} ({len(rounds)} round{'s' if len(rounds) > 1 else ''})"
    if min(rounds) == max(rounds):
        return middle
    low, high = (form.format(value).removesuffix(" ×") for value in (min(rounds), max(rounds)))
    return f"{middle} [{low}, {high}]"
