"""Regression of sinusoids: docs/theory.md, section 10.2."""

from collections.abc import Iterable
from pathlib import Path

import optax

import adaptax as ax
from adaptax.reproduce.files import Say, write_rows
from adaptax.reproduce.training import COLUMNS, Experiment, Setting, check_sizes, train_all
from adaptax.reproduce.training_page import publish

# The step size of the paper, at which the methods barely differ, and larger ones.
ALPHAS, OUTER = (1e-4, 1e-3, 1e-2), 1e-4
_ABOUT = (
    "A task is a sinusoid of random amplitude and phase, seen at 10 points and judged at 10 others "
    "([theory](../../theory.md), section 10.2). A ReLU network adapts by three inner steps; 25 tasks a meta-step, Adam outside."
)
_PARTS = 30


def experiment(steps: int, hidden: Iterable[int] = (40, 40)) -> Experiment:
    """What is trained: the network 1-40-40-1 on 10 + 10 points, 25 tasks a meta-step, Adam outside."""
    return Experiment(
        problem=ax.tasks.sinusoid(),
        initial=lambda key: ax.models.mlp((1, *hidden, 1), key=key),
        optimizer=optax.adam,
        settings=tuple(Setting(alpha, OUTER) for alpha in ALPHAS),
        tasks_per_step=25,
        every=max(1, steps // _PARTS),
    )


def sinusoid(out: Path, seeds: int = 5, steps: int = 3000, say: Say = print, *, hidden: Iterable[int] = (40, 40)) -> None:
    r"""Meta-train $A\sin(x-\varphi)$ with every method, at three inner step sizes.

    Arguments:
        out: the folder for sinusoid.csv, the figures and README.md; made if it is not there.
        seeds: how many seeds; initial network and tasks of a seed are the same for all methods.
        steps: meta-steps.
        say: told how far it is (default: printed).
        hidden: widths of the hidden layers.

    Errors: `InputError` for fewer than two seeds or fewer than one meta-step.

    Example:
        >>> from pathlib import Path
        >>> sinusoid(Path("reproduced/sinusoid"), seeds=2, steps=10)  # doctest: +SKIP

    Source: Finn, Abbeel, Levine (2017), ICML; the settings of arXiv 2002.07836v1; docs/theory.md, section 10.
    """
    check_sizes(seeds, steps)
    out.mkdir(parents=True, exist_ok=True)
    what = experiment(steps, hidden)
    rows = train_all(what, seeds, steps, say)
    write_rows(out / "sinusoid.csv", COLUMNS, rows)
    describe(out, what)


def describe(out: Path, what: Experiment) -> None:
    """The figures and README.md, from sinusoid.csv."""
    publish(out, "sinusoid", what, "Regression of sinusoids", _ABOUT)
