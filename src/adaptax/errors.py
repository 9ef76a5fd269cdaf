"""The exceptions of the library: mistakes in the input, failures on the host and of other processes, unusable run files."""

import signal


class InputError(ValueError):
    """Input that cannot be used: the message is one sentence that says what is wrong and what to change.

    It is raised before any computation and before anything is written. The command line prints the same sentence and
    exits with code 2.

    Example:
        >>> from adaptax.errors import InputError
        >>> issubclass(InputError, ValueError)
        True
    """


class HostFailure(RuntimeError):
    """A compiled program called the host, for example a simulator, and the call failed: the message is one sentence.

    `ax.train` raises it after saving the state before the meta-step that failed; the command line exits with code 1.

    Example:
        >>> from adaptax.errors import HostFailure
        >>> issubclass(HostFailure, RuntimeError)
        True
    """


class CheckpointError(RuntimeError):
    """The files of a run cannot be read or written, though all that was saved may be whole: the message is one sentence.

    What was saved before is left as it is; the command line exits with code 1.

    Example:
        >>> from adaptax.errors import CheckpointError
        >>> issubclass(CheckpointError, RuntimeError)
        True
    """


class Terminated(SystemExit):
    """A process was asked to end by SIGTERM: `ax.train` raises it when a run folder has the state.

    Not caught, it ends the process with the exit code 143, which is 128 + SIGTERM.

    Example:
        >>> from adaptax.errors import Terminated
        >>> Terminated("Meta-step 40 is saved.").code
        143
    """

    def __init__(self, *words: str):
        super().__init__(*words)
        self.code = 128 + signal.SIGTERM


class ProcessLost(RuntimeError):
    """Another of the processes that take a run together has ended or cannot be reached: the message is one sentence.

    A run with a folder goes on from its last checkpoint when all processes are started again; the command line exits with
    code 1.

    Example:
        >>> from adaptax.errors import ProcessLost
        >>> issubclass(ProcessLost, RuntimeError)
        True
    """


class NotTrained(UserWarning):
    """Something that looks like a parameter is none, so that it is neither adapted nor trained.

    Example:
        >>> from adaptax.errors import NotTrained
        >>> issubclass(NotTrained, UserWarning)
        True
    """


class NotFiniteWarning(UserWarning):
    """Some tasks or meta-steps were not finite: the message says how many, what was the first, and where to look.

    `ax.train`, `ax.evaluate`, `ax.adapt` and `ax.measure` give it; `ax.diagnose` says the same of any tasks.

    Example:
        >>> from adaptax.errors import NotFiniteWarning
        >>> issubclass(NotFiniteWarning, UserWarning)
        True
    """


class DrawnOnce(UserWarning):
    """A function draws numbers outside JAX, so that they are drawn once, when the program is made, or uses no key at all.

    The message names the function and what to do: to draw with `jax.random` and the key that the function is given.

    Example:
        >>> from adaptax.errors import DrawnOnce
        >>> issubclass(DrawnOnce, UserWarning)
        True
    """


# An error raised in a callback may abort a program on several devices, so sentences are kept here instead.
_noted: list[str] = []


def note_failure(sentence: str) -> None:
    """Keep a sentence until the program that called the host has come to its end."""
    _noted.append(sentence)


def forget_failures() -> None:
    """Drop the sentences of earlier programs, before a program is run."""
    _noted.clear()


def raise_failure() -> None:
    """Raise `HostFailure` with the first sentence that was kept, if there is one, after a program has come to its end."""
    if _noted:
        first = _noted[0]
        _noted.clear()
        raise HostFailure(first)
