"""The lock of a run folder: one process trains there at a time."""

import contextlib
import datetime
import errno
import json
import os
import platform
import sys
import warnings
from pathlib import Path

from adaptax.errors import InputError

FILE = "lock"
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """A lock of the operating system on a file in a run folder, so that it ends with its process, however that ends.

    The file says who holds it, and goes with the lock. One that is left by a process that was killed holds nothing. On a file
    system without locks a warning says that nothing keeps a second process away.

    Arguments:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock.

        Errors: `InputError` if another process, or another training in this one, has it, or the folder cannot be written.
        """
        path = self.folder / FILE
        while self._file is None:
            try:
                number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                text = f"{self.folder.name} cannot be written ({error.strerror})"
                raise InputError(f"{text}: make it writable, or choose another output folder.") from error
            try:
                _lock(number)
                # The holder before may have taken its file away between the two lines.
                if not _is_at(number, path):
                    os.close(number)
                    continue
            except OSError as error:
                if error.errno in _BUSY:
                    os.close(number)
                    raise InputError(f"{self._holder(path)}: wait until it ends, or choose another output folder.") from None
                if error.errno not in _NO_LOCKS:
                    os.close(number)
                    raise
                text = f"{self.folder.name} lies on a file system without locks"
                warnings.warn(f"{text}: let no other process train there meanwhile.", stacklevel=4)
            self._file = number
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with contextlib.suppress(OSError):  # a full disk
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, json.dumps({"process": os.getpid(), "machine": platform.node(), "since": now}).encode())

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.folder / FILE)
            os.close(self._file)
            self._file = None

    def _holder(self, path: Path) -> str:
        try:
            said = json.loads(path.read_text())
            who = f"process {said['process']} of {said['machine']} since {said['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return f"{self.folder.name} is in use by {who}"


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(number: int) -> None:
        os.lseek(number, 2**30, os.SEEK_SET)  # beyond the text, which others may then read
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
