"""Tables of text, as lists of images come: CSV with any separator, JSON, or plain lines."""

import csv
import io
import json
from typing import Any

from adaptax.tasks.images.io.class_names import is_split

Table = list[list[str]]
# From what names hold least often to what they hold most often.
_SEPARATORS = ("\t", "|", ";", ",")


class NotUsed(Exception):
    """A file cannot be used as a list of pictures; the message is the reason, as a part of a sentence."""


def parse_table(name: str, data: bytes) -> Table:
    """The rows of a text file as cells without spaces around them; empty rows are left out.

    Arguments:
        name: of the file: `.json` and `.jsonl` are read as JSON, others as lines.
        data: the bytes of the file: UTF-8, or UTF-16 with a byte order mark.

    Errors: `NotUsed`, if it is no such text.

    Example:
        >>> from adaptax.tasks.images.io.tables import parse_table
        >>> parse_table("train.csv", b"image;label\\n1.png;cat\\n")
        [['image', 'label'], ['1.png', 'cat']]
        >>> parse_table("train.json", b'{"cat": ["1.png", "2.png"]}')
        [['label', 'filename'], ['cat', '1.png'], ['cat', '2.png']]
    """
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        raise NotUsed("it is not text in UTF-8") from None
    if name.lower().endswith((".json", ".jsonl", ".ndjson")):
        rows = _from_json(text, name)
    else:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        # Excel's line that names the separator.
        lines = lines[1:] if lines and lines[0].lower().startswith("sep=") else lines
        try:
            rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=_separator(lines), skipinitialspace=True))
        except csv.Error as error:
            raise NotUsed(f"it cannot be read as CSV ({error})") from None
    rows = [[cell.strip() for cell in row] for row in rows]
    return [row for row in rows if any(row)]


def _separator(lines: list[str]) -> str:
    """What separates the cells: that of tab, bar, semicolon and comma which makes the first lines equally long."""
    first = [line for line in lines[:20] if line.strip()]
    for separator in _SEPARATORS:
        widths = {len(row) for row in csv.reader(first, delimiter=separator, skipinitialspace=True)}
        if len(widths) == 1 and widths != {1}:
            return separator
    return max(_SEPARATORS, key=lambda separator: sum(separator in line for line in first))


def _from_json(text: str, name: str) -> Table:
    """The table of a list of objects, of an object of lists, or of an object from files to labels."""
    try:
        value = json.loads(text) if name.lower().endswith(".json") else [json.loads(n) for n in text.splitlines() if n.strip()]
    except (ValueError, RecursionError):
        raise NotUsed("it is not JSON") from None
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        columns = list(dict.fromkeys(key for item in value for key in item))
        return [columns, *([_cell(item.get(column, "")) for column in columns] for item in value)]
    if isinstance(value, list):
        return [[_cell(item)] for item in value]
    if not isinstance(value, dict):
        return []
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    if "image_names" in lists and "image_labels" in lists:  # the lists of Chen et al. (2019)
        files, labels = lists["image_names"], lists["image_labels"]
        return [["filename", "label"], *([_cell(a), _cell(b)] for a, b in zip(files, labels, strict=False))]
    if lists and len(lists) == len(value):
        kind = "split" if all(map(is_split, lists)) else "label"
        return [[kind, "filename"], *([key, _cell(item)] for key, items in lists.items() for item in items)]
    if value and not any(isinstance(item, list | dict) for item in value.values()):
        return [["filename", "label"], *([key, _cell(item)] for key, item in value.items())]
    return []


def _cell(value: Any) -> str:
    return "" if isinstance(value, list | dict | None) else str(value)
