"""The console script `adaptax`."""

import os
import sys
from collections.abc import Sequence

from adaptax import __version__
from adaptax.cli import configs
from adaptax.cli.usage import parse
from adaptax.errors import HostFailure, InputError

_ABOUT = f"adaptax {__version__}: meta-learning by gradient descent with many inner steps. (--version prints the version.)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Arguments:
        argv: the arguments after the program's name (default: those of this process).

    Returns: the exit code: 0, 1 (training diverged, or the system refused something), 2 (a mistake in the input),
        130 (interrupted).

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
        return _run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except HostFailure as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        remedy = "give the same command to begin anew"
        if arguments[:1] == ["train"]:
            kept = any(argument.startswith("--out") for argument in arguments)
            remedy = "the same command goes on from the last checkpoint" if kept else "with --out DIR a run can go on later"
        print(f"Interrupted: {remedy}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; without this Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        print(f"The system refused{where}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except SystemExit:  # from the parser, after --help
        return 0


def _run(arguments: list[str]) -> int:
    command = parse(configs.Command, arguments, arguments, prog="adaptax", description=_ABOUT)
    if isinstance(command, configs.Plan):
        from adaptax.cli.plan import plan

        return plan(command)
    # Only now JAX may be imported.
    from adaptax.cli.devices import keep_precision, repeat_exactly, use_all_cores

    repeat_exactly()
    use_all_cores()
    keep_precision()
    if isinstance(command, configs.Evaluate):
        from adaptax.cli.evaluate import evaluate

        return evaluate(command)
    if isinstance(command, configs.Measure):
        from adaptax.cli.measure import measure

        return measure(command)
    if isinstance(command, configs.Film):
        from adaptax.cli.film import film

        return film(command)
    if isinstance(command, configs.Demo):
        from adaptax.cli.demo import demo

        return demo(command)
    if isinstance(command, configs.Reproduce):
        from adaptax.cli.reproduce import reproduce

        return reproduce(command.experiment)
    from adaptax.cli.train import complete, train
    from adaptax.training.loop import Diverged

    config, options = command.task, arguments[2:]
    if config.config is not None or config.resume:
        prog = f"adaptax train {config.task}"
        config = complete(config, lambda base: parse(type(base), options, arguments, default=base, prog=prog))
    try:
        return train(config)
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
