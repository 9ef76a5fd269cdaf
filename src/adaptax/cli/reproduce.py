"""`adaptax reproduce`: the reference experiments, each into a folder of its own."""

import math
import sys

from adaptax.cli import settings
from adaptax.cli.configs import HessianEstimators, MatrixExperiment, NavigationExperiment, RatesExperiment, SinusoidExperiment
from adaptax.errors import InputError

Options = HessianEstimators | MatrixExperiment | SinusoidExperiment | RatesExperiment | NavigationExperiment


def reproduce(options: Options) -> int:
    """Check the options, then run; how far it is goes to stderr, and where the page is to stdout."""
    settings.check_folder(options.out)
    if isinstance(options, HessianEstimators):
        settings.check_count("--repeats", options.repeats, 10)
        settings.check_seed(options.seed)
        from adaptax.reproduce.estimators import hessian_estimators

        hessian_estimators(options.out, options.repeats, options.seed, _say)
    elif isinstance(options, RatesExperiment):
        settings.check_count("--seeds", options.seeds, 2)
        if not 0 < options.scale < math.inf:
            raise InputError(f"--scale {options.scale} must be a positive number such as 0.1.")
        from adaptax.reproduce.rates import rates

        rates(options.out, options.seeds, options.scale, _say)
    else:
        settings.check_count("--seeds", options.seeds, 2)
        settings.check_count("--steps", options.steps, 1)
        from adaptax.reproduce.matrix import matrix
        from adaptax.reproduce.navigation import navigation
        from adaptax.reproduce.sinusoid import sinusoid

        if isinstance(options, NavigationExperiment):
            settings.check_count("--processes", options.processes, 1)
            navigation(options.out, options.seeds, options.steps, _say, processes=options.processes)
        else:
            run = {MatrixExperiment: matrix, SinusoidExperiment: sinusoid}[type(options)]
            run(options.out, options.seeds, options.steps, _say)
    print(f"What was found: {options.out / 'README.md'}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
