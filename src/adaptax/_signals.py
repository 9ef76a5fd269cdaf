"""Signals that ask a process to stop: training finishes and saves the meta-steps in flight first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from adaptax.errors import Terminated

_ASKED = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nStopping: the meta-steps in flight are finished and saved first. Once more leaves at once.\n"


def leave(number: int, frame: FrameType | None = None) -> None:
    """Raise what stands for a signal: `KeyboardInterrupt` or `Terminated`; this is a handler of signals."""
    raise told(number, "")


def told(number: int, sentence: str) -> BaseException:
    """The exception that stands for a signal."""
    words = (sentence,) if sentence else ()
    return Terminated(*words) if number == signal.SIGTERM else KeyboardInterrupt(*words)


class Stopping(contextlib.AbstractContextManager):
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second one leaves at once.

    Handlers are put back at the end. Only the main thread of a process can have handlers, so elsewhere nothing is noted. A
    signal that is ignored, or that a program handles in a way of its own, is left to it.

    Arguments:
        notice: whether JAX has told all processes of a SIGTERM to one of them. It returns None where JAX does not listen, and
            otherwise SIGTERM is left to JAX.

    Attributes: `asked`, the number of the signal that was noted, or None.
    """

    def __init__(self, notice: Callable[[], bool | None] = lambda: None):
        self.asked: int | None = None
        self._notice, self._listens = notice, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        noticed = self._notice()
        self._listens = noticed is not None
        self.asked = signal.SIGTERM if noticed else None
        if threading.current_thread() is threading.main_thread():
            for number in _ASKED[:1] if self._listens else _ASKED:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, leave):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        self._listens = False

    def look(self) -> int | None:
        """The signal that was noted here, or that JAX has told of; with JAX, all processes look equally often."""
        if self._listens and self._notice() and self.asked is None:
            self.asked = signal.SIGTERM
        return self.asked

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            leave(number)
        self.asked = number
        with contextlib.suppress(OSError):
            os.write(2, _SAID)


@contextlib.contextmanager
def terminable():
    """While it is entered, SIGTERM raises `Terminated`, so that a program ends in good order."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
