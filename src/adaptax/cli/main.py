"""The console script `adaptax`."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from adaptax import __version__
from adaptax._signals import terminable
from adaptax.cli import processes
from adaptax.cli.commands import COMMANDS, Evaluate, Measure, Plan
from adaptax.cli.naming import as_typed
from adaptax.cli.options import check
from adaptax.cli.parse import find, parse
from adaptax.cli.saved import complete, sources
from adaptax.cli.training import Training
from adaptax.errors import CheckpointError, HostFailure, InputError, ProcessLost, Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Arguments:
        argv: the arguments after the program's name (default: those of this process).

    Returns: the exit code: 0, 1 (training diverged, or the system refused something), 2 (a mistake in the input),
        130 (interrupted by SIGINT), 143 (ended by SIGTERM).

    Example:
        >>> from adaptax.cli.main import main
        >>> main(["--version"])
        adaptax 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"adaptax {__version__}")
        return 0
    try:
        code = _answer(arguments)
    except BaseException:
        if not processes.joined():
            raise
        traceback.print_exc()
        code = 1
    if code and processes.joined():
        processes.leave(code)
    return code


def _answer(arguments: list[str]) -> int:
    """Run one command, and say what stopped it in one sentence."""
    try:
        with terminable():
            return _run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except (HostFailure, CheckpointError, ProcessLost, MemoryError) as error:
        print(str(error) or "The memory does not suffice: take fewer tasks a meta-step.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted: {_remedy(arguments)}.", file=sys.stderr)
        return 130
    except Terminated:
        print(f"Terminated: {_remedy(arguments)}.", file=sys.stderr)
        return 143
    except BrokenPipeError:
        # The reader of the output has gone; without this Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        print(f"The system refused{where}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except SystemExit:  # from the parser, after --help
        return 0


def _remedy(arguments: list[str]) -> str:
    """How to go on after a command that was stopped."""
    if arguments[:1] != ["train"]:
        return "give the same command to begin anew"
    kept = any(argument.startswith("--out") for argument in arguments)
    return "the same command goes on from the last checkpoint" if kept else "with --out DIR a run can go on later"


def _run(arguments: list[str]) -> int:
    prog, kind, rest = find(COMMANDS, arguments)
    command = parse(kind, rest, prog)
    if isinstance(command, Training | Evaluate | Measure):
        # Process 0 tells the others what its run folder holds, so they must have met.
        if processes.join(command):
            _start_jax(processes.sharing(command), command.process_id or 0)
            processes.meet()
    elif not isinstance(command, Plan) or command.measure is not None:
        processes.refuse(prog)
    if isinstance(command, Training):
        command = complete(command, rest, prog)
    with as_typed(kind, lambda: sources(command, rest)):
        check(command)
        return _execute(command)


def _execute(command: Any) -> int:
    # A plan needs no JAX, unless it measures.
    if not isinstance(command, Plan) and not processes.joined():
        _start_jax()
    if isinstance(command, Training):
        from adaptax.cli.train import train

        return train(command)
    return command.execute()


def _start_jax(sharing: int = 1, number: int = 0) -> None:
    from adaptax.cli.devices import keep_precision, keep_to_own_cores, repeat_exactly, use_all_cores

    repeat_exactly()
    use_all_cores(sharing)
    keep_to_own_cores(sharing, number)
    keep_precision()
