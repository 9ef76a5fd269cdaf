"""Folders, zips and tars behind one interface: the sizes of files by name, and their bytes by name.

Nothing is extracted to disk. Names, links, numbers and sizes are checked before anything is unpacked.
"""

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
# Limits on one file and on all files, in bytes unpacked.
MAX_MEMBER = 1 << 30
MAX_TOTAL = 256 << 30
# An archive that unpacks to more than MAX_RATIO times its size plus SLACK bytes is a decompression bomb: pictures are
# compressed already.
MAX_RATIO = 200
SLACK = 64 << 20
# The largest single read from a tar.
MAX_READ = 65 << 20
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
PICKLED = (
    "'{path}' is a pickle, which may run any code when it is read: if you trust it, convert it once by "
    "np.savez(file, images=..., labels=...)."
)


@dataclass(frozen=True)
class Source:
    """The files of a folder or an archive. Reading them in the order of `sizes` is the fastest.

    Arguments:
        path: path of the folder or archive, for messages.
        sizes: bytes of each file, by its name relative to the root, with slashes.
        read: a function from a name to the file's bytes.
    """

    path: str
    sizes: dict[str, int]
    read: Callable[[str], bytes]


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Open a folder, a zip or a tar. Raises `InputError` for anything else, and for unsafe names, links and sizes."""
    with ExitStack() as stack:
        with reading_errors(path):
            refuse_pickle(path)
            kind = _folder if os.path.isdir(path) else _tar if path.lower().endswith(TARS) else _zip
            source = kind(path, stack)

        def read(name: str) -> bytes:
            with reading_errors(path):
                return source.read(name)

        yield Source(path, source.sizes, read)


@contextmanager
def reading_errors(path: str) -> Iterator[None]:
    """Turn every error of the block, which reads a file, into an `InputError` of one sentence."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no '{error.filename or path}': give the path of a folder, zip, tar or npz.") from error
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"'{path}' cannot be read ({reason}): give a folder, zip, tar or npz, or get it again.") from error
    except Exception as error:  # the libraries document no list of what a damaged archive may raise
        raise InputError(f"'{path}' is damaged ({first_line(error)}): download it again and check its checksum.") from error


def refuse_pickle(path: str) -> None:
    """Raise `InputError` for a pickle, by its name or its first bytes, because loading one may run any code."""
    start = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            start = file.read(2)
    if is_pickle(path) or (start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4", b"\5")):
        raise InputError(PICKLED.format(path=path))


def is_pickle(name: str) -> bool:
    """Whether a file's name has the suffix of a pickle."""
    return name.lower().endswith((".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib"))


def _folder(root: str, _: ExitStack) -> Source:
    """The files of a folder, sorted by name."""
    sizes: dict[str, int] = {}
    _walk(root, "", os.path.realpath(root), sizes, 0)

    def read(name: str) -> bytes:
        # Non-blocking, so that a pipe which has taken the file's place since the check cannot hang the reader.
        handle = os.open(os.path.join(root, *name.split("/")), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"'{name}' in '{root}' is not a regular file: remove it.")
            return file.read(MAX_MEMBER + 1)

    return Source(root, dict(sorted(sizes.items())), read)


def _walk(root: str, folder: str, real: str, sizes: dict[str, int], depth: int) -> None:
    """Add the sizes of all files below `folder` to `sizes`. Hidden files are passed over; links must stay in the root."""
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
                raise InputError(f"'{name}' in '{root}' is {reason}: replace it by the files themselves.")
            if entry.is_dir():
                _walk(root, name, real, sizes, depth + 1)
                continue
            if not entry.is_file():
                raise InputError(f"'{name}' in '{root}' is not a regular file: remove it.")
            sizes[name] = entry.stat().st_size
            if len(sizes) > MAX_FILES:
                raise InputError(f"'{root}' holds more than {MAX_FILES:,} files: split it.")


def _zip(path: str, stack: ExitStack) -> Source:
    """The files of a zip, in the order in which they lie in it."""
    archive = stack.enter_context(zipfile.ZipFile(path))
    members = _Members(path)
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(f"{entry.filename!r} in '{path}' is a link: pack the files themselves.")
        members.add(entry.filename, entry.file_size)
        entries[entry.filename] = entry

    def read(name: str) -> bytes:
        with archive.open(entries[name]) as file:
            return file.read(entries[name].file_size + 1)

    return Source(path, members.sizes, read)


def _tar(path: str, stack: ExitStack) -> Source:
    """The files of a tar, plain or compressed by gzip or bzip2, in the order in which they lie in it."""
    plain: Any = stack.enter_context(io.FileIO(path))
    start = plain.read(3)
    plain.seek(0)
    if start[:2] == b"\x1f\x8b":
        plain = stack.enter_context(gzip.GzipFile(fileobj=plain))
    elif start == b"BZh":
        plain = stack.enter_context(bz2.BZ2File(plain))
    archive = stack.enter_context(tarfile.TarFile(fileobj=_Bounded(plain)))  # pyright: ignore[reportArgumentType]
    members = _Members(path)
    entries: dict[str, tarfile.TarInfo] = {}
    for entry in archive:
        if entry.isdir():
            continue
        if not entry.isfile() or entry.issparse():
            raise InputError(f"{entry.name!r} in '{path}' is a link or not a regular file: pack the files themselves.")
        name = entry.name.removeprefix("./")
        members.add(name, entry.size)
        entries[name] = entry

    def read(name: str) -> bytes:
        file = archive.extractfile(entries[name])
        assert file is not None  # a regular file
        return file.read()

    return Source(path, members.sizes, read)


class _Bounded:
    """A file that refuses reads of more than MAX_READ bytes at once, which only a false header asks for."""

    def __init__(self, file: Any):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise ValueError("a header asks for more than any file may hold")
        return self.file.read(size)


class _Members:
    """The sizes of an archive's members by name. Each is checked as it is added, before it is unpacked."""

    def __init__(self, path: str):
        self.path, self.sizes, self.total = path, dict[str, int](), 0
        self.most = min(MAX_TOTAL, MAX_RATIO * os.path.getsize(path) + SLACK)

    def add(self, name: str, size: int) -> None:
        """Check one member's name and size, and the number and size of all so far."""
        if unsafe(name):
            message = f"'{self.path}' holds {name!r}, a name that leads out of its folder or cannot be printed"
            raise InputError(f"{message}: use the archive as published.")
        if name in self.sizes:
            raise InputError(f"'{self.path}' holds {name!r} twice: pack it again with one of them.")
        self.sizes[name] = size
        self.total += size
        if len(self.sizes) > MAX_FILES:
            raise InputError(f"'{self.path}' holds more than {MAX_FILES:,} files: split it.")
        if size > MAX_MEMBER:
            raise InputError(f"{name!r} in '{self.path}' is larger than {MAX_MEMBER >> 20} MiB: remove it.")
        if self.total > self.most:
            message = f"'{self.path}' unpacks to more than {self.most >> 20} MiB, as a decompression bomb does"
            raise InputError(f"{message}: split or unpack it.")
