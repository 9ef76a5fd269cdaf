"""Folders, zips and tars as one thing: names with sizes, and bytes by name. Nothing is ever written or extracted."""

import bz2
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from adaptax._tree import first_line
from adaptax.errors import InputError
from adaptax.tasks.images.io.safe_paths import unsafe

MAX_FILES = 2_000_000
MAX_DEPTH = 12
# Beyond these an archive is a bomb: pictures hardly shrink further when they are packed.
MAX_MEMBER = 1 << 30
MAX_TOTAL = 256 << 30
MAX_RATIO = 200
SLACK = 64 << 20
MAX_READ = 65 << 20
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
PICKLED = (
    "'{path}' is a pickle, which may run any code when it is read: if you trust it, convert it once by "
    "np.savez(file, images=..., labels=...)."
)


@dataclass(frozen=True)
class Source:
    """Files that can be read in the order of `sizes` at the least cost.

    Arguments:
        path: of the whole, for messages.
        sizes: bytes of each file by its name relative to the root, with slashes.
        read: from a name to the bytes.
    """

    path: str
    sizes: dict[str, int]
    read: Callable[[str], bytes]


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """The files in a folder, a zip or a tar; `InputError` for anything else, and for what is unsafe in them."""
    with ExitStack() as stack:
        with refusing(path):
            refuse_pickle(path)
            kind = _folder if os.path.isdir(path) else _tar if path.lower().endswith(TARS) else _zip
            source = kind(path, stack)

        def read(name: str) -> bytes:
            with refusing(path):
                return source.read(name)

        yield Source(path, source.sizes, read)


@contextmanager
def refusing(path: str) -> Iterator[None]:
    """What goes wrong in reading a file, as an `InputError` with one sentence."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no '{error.filename or path}': give the path of a folder, zip, tar or npz.") from error
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"'{path}' cannot be read ({reason}): give a folder, zip, tar or npz, or get it again.") from error
    except Exception as error:  # what damaged archives raise is not listed anywhere
        raise InputError(f"'{path}' is damaged ({first_line(error)}): get it again and check its checksum.") from error


def refuse_pickle(path: str) -> None:
    """Pickles run whatever code is in them, so that none is read."""
    start = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(2)
    if is_pickle(path) or (start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4", b"\5")):
        raise InputError(PICKLED.format(path=path))


def is_pickle(name: str) -> bool:
    """Whether a file is a pickle by its name."""
    return name.lower().endswith((".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib"))


def _folder(root: str, _: ExitStack) -> Source:
    sizes: dict[str, int] = {}
    _walk(root, "", os.path.realpath(root), sizes, 0)

    def read(name: str) -> bytes:
        # A pipe put in the place of a file must not make us wait.
        handle = os.open(os.path.join(root, *name.split("/")), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"'{name}' in '{root}' is no plain file: take it out.")
            return file.read(MAX_MEMBER + 1)

    return Source(root, dict(sorted(sizes.items())), read)


def _walk(root: str, folder: str, real: str, sizes: dict[str, int], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"'{folder}' in '{root}' is more than {MAX_DEPTH} folders deep: flatten it.")
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if unsafe(name):
                raise InputError(f"'{root}' holds {name!r}, a name that cannot be used: rename it.")
            inside = os.path.realpath(entry.path).startswith(os.path.join(real, ""))
            if entry.is_symlink() and (entry.is_dir() or not inside):
                reason = "a link to a folder" if inside else "a link that leads out of the folder"
                raise InputError(f"'{name}' in '{root}' is {reason}: replace it by what it stands for.")
            if entry.is_dir():
                _walk(root, name, real, sizes, depth + 1)
                continue
            if not entry.is_file():
                raise InputError(f"'{name}' in '{root}' is no plain file: take it out.")
            sizes[name] = entry.stat().st_size
            if len(sizes) > MAX_FILES:
                raise InputError(f"'{root}' holds more than {MAX_FILES:,} files: split it.")


def _zip(path: str, stack: ExitStack) -> Source:
    archive = stack.enter_context(zipfile.ZipFile(path))
    count = _Count(path)
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{entry.filename!r} in '{path}' is a link: pack the files themselves.")
        count(entry.filename, entry.file_size)
        entries[entry.filename] = entry

    def read(name: str) -> bytes:
        with archive.open(entries[name]) as file:
            return file.read(entries[name].file_size + 1)

    return Source(path, count.sizes, read)


def _tar(path: str, stack: ExitStack) -> Source:
    plain: Any = stack.enter_context(io.FileIO(path))
    start = plain.read(3)
    plain.seek(0)
    if start[:2] == b"\x1f\x8b":
        plain = stack.enter_context(gzip.GzipFile(fileobj=plain))
    elif start == b"BZh":
        plain = stack.enter_context(bz2.BZ2File(plain))
    archive = stack.enter_context(tarfile.TarFile(fileobj=_Bounded(plain)))  # pyright: ignore[reportArgumentType]
    count = _Count(path)
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        if member.isdir():
            continue
        if not member.isfile() or member.issparse():
            raise InputError(f"{member.name!r} in '{path}' is a link or no plain file: pack the files themselves.")
        name = member.name.removeprefix("./")
        count(name, member.size)
        members[name] = member

    def read(name: str) -> bytes:
        member = archive.extractfile(members[name])
        assert member is not None  # a plain file
        return member.read()

    return Source(path, count.sizes, read)


class _Bounded:
    """A file from which nobody reads more at once than any picture or list may be long, as a false header would have it."""

    def __init__(self, file: Any):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise ValueError("a header asks for more than any file may hold")
        return self.file.read(size)


class _Count:
    """The sizes of an archive's members, each checked as it is met, before it is unpacked."""

    def __init__(self, path: str):
        self.path, self.sizes, self.total = path, dict[str, int](), 0
        self.most = min(MAX_TOTAL, MAX_RATIO * os.path.getsize(path) + SLACK)

    def __call__(self, name: str, size: int) -> None:
        if unsafe(name):
            message = f"'{self.path}' holds {name!r}, a name that leads out of its folder or cannot be printed"
            raise InputError(f"{message}: use the archive as published.")
        if name in self.sizes:
            raise InputError(f"'{self.path}' holds {name!r} twice: pack it anew.")
        self.sizes[name] = size
        self.total += size
        if len(self.sizes) > MAX_FILES:
            raise InputError(f"'{self.path}' holds more than {MAX_FILES:,} files: split it.")
        if size > MAX_MEMBER:
            raise InputError(f"{name!r} in '{self.path}' is larger than {MAX_MEMBER >> 20} MiB: take it out.")
        if self.total > self.most:
            raise InputError(f"'{self.path}' unpacks to more than {self.most >> 20} MiB, as a bomb does: split or unpack it.")
