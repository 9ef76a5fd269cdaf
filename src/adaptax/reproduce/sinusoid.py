"""Regression of sinusoids: docs/theory.md, section 10.2."""

from collections.abc import Iterable
from pathlib import Path

import adaptax as ax
from adaptax.reproduce.csv_rows import Say, write_rows
from adaptax.reproduce.meta_training import ADAM, COLUMNS, Experiment, StepSizes, check_sizes, train_all
from adaptax.reproduce.meta_training_page import publish
from adaptax.reproduce.page_text import network

# The step sizes of the paper, then larger inner ones.
SETTINGS = (StepSizes(1e-4, 1e-4, published=True), StepSizes(1e-3, 1e-4), StepSizes(1e-2, 1e-4))
SHOTS, QUERIES = 10, 10
# The number of parts of a curve along training.
_PARTS = 30


def experiment(steps: int, hidden: Iterable[int] = (40, 40)) -> Experiment:
    """The sinusoids with a ReLU network and Adam outside, as it is trained for so many meta-steps."""
    sizes = (1, *hidden, 1)
    return Experiment(
        title="Regression of sinusoids",
        about=f"A task is a sinusoid of random amplitude and phase, seen at {SHOTS} points and judged at {QUERIES} others "
        f"([theory](../../theory.md), section 10.2). The network is {network(sizes)} with ReLUs.",
        problem=ax.tasks.sinusoid(SHOTS, QUERIES),
        initial=lambda key: ax.models.mlp(sizes, key=key),
        optimizer=ADAM,
        settings=SETTINGS,
        tasks_per_step=25,
        every=max(1, steps // _PARTS),
    )


def sinusoid(out: Path, seeds: int = 5, steps: int = 3000, say: Say = print, *, hidden: Iterable[int] = (40, 40)) -> None:
    r"""Meta-train $A\sin(x-\varphi)$ with every method, at three inner step sizes.

    Arguments:
        out: the folder for sinusoid.csv, the figures and README.md; made if it is not there.
        seeds: the number of seeds; a seed's initial network and tasks are the same for all methods.
        steps: meta-steps.
        say: called with a sentence about the progress (default: it is printed).
        hidden: widths of the hidden layers.

    Errors: `InputError` for fewer than 2 seeds, more than 1000, or fewer than one meta-step.

    Example:
        >>> from pathlib import Path
        >>> sinusoid(Path("reproduced/sinusoid"), seeds=2, steps=10)  # doctest: +SKIP

    Source: Finn, Abbeel, Levine (2017), ICML; the settings of arXiv 2002.07836v1; docs/theory.md, section 10.
    """
    seeds, steps = check_sizes(seeds, steps)
    out.mkdir(parents=True, exist_ok=True)
    what = experiment(steps, hidden)
    rows = train_all(what, seeds, steps, say)
    write_rows(out / "sinusoid.csv", COLUMNS, rows)
    describe(out, what)


def describe(out: Path, what: Experiment) -> None:
    """Draw the figures and write README.md from sinusoid.csv."""
    publish(out, "sinusoid", what)
