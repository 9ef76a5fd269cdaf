"""Lists of images: which text files among the data say the class or the split of pictures, and what they say."""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from adaptax.tasks.images.io.class_names import folded, is_split, listed
from adaptax.tasks.images.io.decoding import OTHER_PICTURES, SUFFIXES
from adaptax.tasks.images.io.tables import NotUsed, Table, parse_table

# Larger files are not lists of files and labels, which are a few megabytes of text.
MAX_LIST = 64 << 20
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
NOT_READ = (".xlsx", ".xls", ".ods", ".mat", ".parquet", ".feather", ".arrow", ".h5", ".hdf5", ".xml", ".yaml", ".yml", ".db")
NEEDED = "give a CSV with the columns filename,label, or remove it"
_SAYS_LIST = re.compile(r"label|class|categor|split|annot|list|metadata|index")
_FILE = re.compile(r"file|path|image|img|picture|photo|\bid\b")
_LABEL = re.compile(r"label|class|categor|target|species|breed")
_SPLIT = re.compile(r"(data)?[\W_]*(split|set|subset|partition|phase|usage)s?")


class Row(NamedTuple):
    """A line of a list: the file as written, its class and its split, each None where the list has no such column."""

    file: str
    label: str | None
    split: str | None


@dataclass(frozen=True)
class FileList:
    """A list of pictures.

    Arguments:
        name: of the list's file.
        rows: its lines.
        usual: whether its columns are `filename,label`.
    """

    name: str
    rows: list[Row]
    usual: bool

    @property
    def labelled(self) -> bool:
        """Whether the list says the class of each picture."""
        return self.rows[0].label is not None

    def of(self, split: str | None) -> list[Row]:
        """The rows of a split, by the list's column of splits or else by the list's own name; all rows for None."""
        if split is None or PurePosixPath(self.name).stem == split:
            return self.rows
        return [row for row in self.rows if row.split == split]

    @property
    def splits(self) -> set[str]:
        """The splits that can be chosen from this list."""
        return {row.split for row in self.rows if row.split} or {PurePosixPath(self.name).stem}


@dataclass(frozen=True)
class Lists:
    """What the text files of a source say.

    Arguments:
        pictures: lists of pictures.
        names: lines that are no pictures, by the list's name: perhaps names of classes.
        not_used: for each file that seems to be a list and is not used, a sentence without its remedy.
    """

    pictures: list[FileList] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    not_used: list[str] = field(default_factory=list)


def find_lists(sizes: Mapping[str, int], read: Callable[[str], bytes], finder: "Finder", path: str) -> Lists:
    """Read the lists among the files of a source.

    Arguments:
        sizes: bytes of each file that is not hidden, by name.
        read: a function from a name to the file's bytes.
        finder: of the files that a list names.
        path: of the source, for messages.
    """
    found = Lists()
    for name, size in sizes.items():
        suffix = os.path.splitext(name)[1].lower()
        if suffix in NOT_READ and says_list(name):
            found.not_used.append(f"'{name}' in '{path}' may be a list of classes, and files {suffix} are not read")
        if suffix not in (*TABLES, ".txt"):
            continue
        try:
            if size > MAX_LIST:
                raise NotUsed(f"it is larger than {MAX_LIST >> 20} MiB")
            table = parse_table(name, read(name))
            rows = _rows(table, name, finder, suffix == ".txt")
            one_column = bool(table) and not any(row[1:] for row in table)
            if says_list(name) and not rows and not one_column:
                raise NotUsed("it names no picture")
        except NotUsed as error:
            if suffix in TABLES or is_split(PurePosixPath(name).stem):
                found.not_used.append(f"'{name}' in '{path}' is not used as a list of pictures, because {error}")
            continue
        if rows:
            found.pictures.append(FileList(name, rows, [_word(cell) for cell in table[0]] == ["filename", "label"]))
        elif one_column:
            found.names[name] = [row[0] for row in table]
    return found


def says_list(name: str) -> bool:
    """Whether a file's name is that of a list of pictures, classes or splits."""
    stem = PurePosixPath(name).stem
    return is_split(stem) or bool(_SAYS_LIST.search(stem.casefold()))


def _rows(table: Table, name: str, finder: "Finder", plain: bool) -> list[Row]:
    """The rows of a table, none if it names no picture; `NotUsed` if it seems to be a list and cannot be used."""
    if plain and table and not any(row[1:] for row in table):
        table = _by_spaces(table, name, finder)
    if not table:
        return []
    first = table[0]
    known = any(_FILE.search(_word(cell)) or _LABEL.search(_word(cell)) for cell in first if not re.search(r"\d", cell))
    head = not any(finder.is_file(cell, name) for cell in first) and (known or len(first) > 1)
    header = [_word(cell) for cell in first] if head else [""] * len(first)
    body = table[1:] if head else table
    labels = [c for c, word in enumerate(header) if _LABEL.search(word)]
    files = _file_columns(header, body, labels, name, finder)
    if not files:
        if head and len(first) > 1 and body and (known or says_list(name)) and not plain:
            raise NotUsed(f"none of its columns {listed(first)} names pictures of the data")
        return []
    column = files[0]
    labels = _one_label([c for c in labels if c != column], body, first)
    splits = [c for c, word in enumerate(header) if c not in (column, *labels) and _SPLIT.fullmatch(word)]
    splits = [c for c in splits if all(len(row) > c and is_split(row[c]) for row in body)]
    if not labels and not head and len(first) == 2:
        other = {row[1 - column] for row in body if len(row) == 2}
        numbers = len(other) == len(body) > 1 and all(cell.isdecimal() for cell in other)
        labels = [] if numbers else [1 - column]
    if not labels and not splits and len(first) > 1 and not (plain and not head):
        found = f"its columns are {listed(first)}" if head else f"it has {len(first)} columns without a header"
        raise NotUsed(f"{found}, and none of them is known to be the class")

    def cell(row: list[str], columns: list[int]) -> str | None:
        return (row[columns[0]] if columns[0] < len(row) else "") if columns else None

    return [Row(cell(row, [column]) or "", cell(row, labels), cell(row, splits)) for row in body]


def _file_columns(header: list[str], body: Table, labels: list[int], name: str, finder: "Finder") -> list[int]:
    """The columns that name pictures, the likeliest first."""
    sample, scores = body[:50], {}
    for c, word in enumerate(header):
        cells = [row[c] for row in sample if c < len(row)]
        named = bool(_FILE.search(word)) and c not in labels
        # A number is the name of a picture only where the header says so.
        share = sum(finder.is_file(cell, name) and (named or not cell.isdecimal()) for cell in cells)
        if share > len(cells) / 2 or (named and labels):
            scores[c] = (-share, not named, c)
    return sorted(scores, key=lambda c: scores[c])


def _one_label(columns: list[int], body: Table, first: list[str]) -> list[int]:
    """The column of the class: of columns that tell the same pictures apart, names rather than numbers."""

    def values(*chosen: int) -> set[tuple[str, ...]]:
        return {tuple(row[c] for c in chosen) for row in body if len(row) > max(chosen)}

    if len(columns) > 1:
        columns = sorted(columns, key=lambda c: all(value.isdecimal() for (value,) in values(c)))
        if any(not len(values(columns[0])) == len(values(c)) == len(values(columns[0], c)) for c in columns[1:]):
            raise NotUsed(f"each of its columns {listed(first[c] for c in columns)} may be the class")
    return columns[:1]


def _by_spaces(table: Table, name: str, finder: "Finder") -> Table:
    """The table of lines such as `1.png 3` or `1 cat/1.png`, if the lines as a whole are not names of pictures."""
    sample = [row[0] for row in table[:20]]
    for split, column in ((lambda line: line.rsplit(None, 1), 0), (lambda line: line.split(None, 1), 1)):
        parts = [split(line) for line in sample]
        if all(len(part) == 2 and finder.find(part[column], name) and not part[column].isdecimal() for part in parts):
            return [split(row[0]) for row in table] if not any(finder.find(line, name) for line in sample) else table
    return table


def _word(cell: str) -> str:
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cell)).casefold().strip()


@functools.lru_cache(maxsize=64)
def _bases(beside: str) -> tuple[str, ...]:
    """The folders in which the files of the list `beside` are looked for first."""
    names = ("images", ".", "../images", PurePosixPath(beside).stem)
    return tuple(os.path.normpath(os.path.join(os.path.dirname(beside), name)) for name in names)


class Finder:
    """Finds the file that a list means: beside the list, by its whole path anywhere, or by the end of an absolute path.

    Arguments:
        files: the names of all files.
        path: of the source, whose name may be in the paths of a list.
    """

    def __init__(self, files: Iterable[str], path: str):
        self.files, self.root = set(files), os.path.basename(os.path.abspath(path))
        self._by_stem: dict[str, list[tuple[list[str], str]]] = {}

    def is_file(self, cell: str, beside: str) -> bool:
        """Whether a cell is the name of a picture, one that is there or one that is not."""
        return cell.lower().endswith((*SUFFIXES, *OTHER_PICTURES)) or bool(self.find(cell, beside))

    def find(self, cell: str, beside: str) -> list[str]:
        """The files that a cell of the list `beside` may mean: none, one, or several."""
        if not cell:
            return []
        written = cell.replace("\\", "/")
        if ":" in written:
            written = re.sub(r"^[a-z]+://|^[A-Za-z]:(?=/)", "/", written)
        near = (os.path.normpath(f"{base}/{written}") for base in _bases(beside) if written[0] != "/")
        exact = list(dict.fromkeys(file for file in near if file in self.files))
        if exact:
            return exact
        parts = [part for part in os.path.normpath(written).split("/") if part not in ("", ".", "..")]
        # The start of an absolute path, up to the name of the source, is of another machine; a split in it is not.
        for start in range(len(parts)):
            dropped = parts[:start]
            other = any(is_split(part) and part != self.root for part in dropped)
            if start and (other or not (written.startswith("/") or dropped[-1] == self.root)):
                continue
            if found := self._ending(parts[start:]):
                return found
        return []

    def _ending(self, parts: list[str]) -> list[str]:
        """The pictures whose paths end so, whatever the capital letters and the form of Unicode; the suffix may lack."""
        if not self._by_stem:
            index = defaultdict(list)
            for file in sorted(self.files):
                if file.lower().endswith(SUFFIXES):
                    *folders, last = file.split("/")
                    index[folded(os.path.splitext(last)[0])].append((list(map(folded, [*folders, last])), file))
            self._by_stem = dict(index)
        *folders, last = map(folded, parts)
        whole = self._matching(os.path.splitext(parts[-1])[0], folders, lambda there: there == last)
        return whole or self._matching(parts[-1], folders, lambda there: True)

    def _matching(self, stem: str, folders: list[str], same: Callable[[str], bool]) -> list[str]:
        size = len(folders)
        candidates = self._by_stem.get(folded(stem), [])
        return [file for (*above, last), file in candidates if above[len(above) - size :] == folders and same(last)]
