"""What the estimators for tables share, by the conventions of scikit-learn."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_array, check_is_fitted, check_random_state, validate_data
except ImportError as error:
    from adaptax.errors import InputError

    raise InputError("MetaRegressor and MetaClassifier need scikit-learn: pip install 'adaptax[tables]'.") from error

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.tables.fitted import Fitted, fit, predict
from adaptax.tables.support import Supports, few_shot_split
from adaptax.tables.training import Settings
from adaptax.tables.ways import Ridge, Steps
from adaptax.tasks.table import round_up, sampler

# The quantiles of a normal distribution for intervals of 95 %.
_ONE_SIDED_95, _TWO_SIDED_95 = 1.6448536269514722, 1.959963984540054
_NO_SUPPORT = "{n} groups have no support rows, and are predicted by the meta-initialisation: give their rows to adapt() first."


class MetaEstimator(BaseEstimator):
    """What `MetaRegressor` and `MetaClassifier` share."""

    n_features_in_: int
    _checked: Callable[..., tuple[np.ndarray, np.ndarray]]
    _learn_targets: Callable[[np.ndarray], np.ndarray]
    _known_targets: Callable[[np.ndarray], np.ndarray]
    _outputs: Callable[[], int]
    _score: Callable[..., float]
    predict: Callable[..., np.ndarray]

    def __init__(
        self, *, support=None, order=None, model="auto", hidden=(16, 16), inner_steps=5, max_steps=600, tasks_per_step=16,
        folds=5, random_state=0,
    ):  # fmt: skip
        self.support, self.order, self.model, self.hidden = support, order, model, hidden
        self.inner_steps, self.max_steps, self.tasks_per_step = inner_steps, max_steps, tasks_per_step
        self.folds, self.random_state = folds, random_state

    def fit(self, X, y, groups=None):
        """Meta-train over groups.

        Arguments:
            X: features, shape (n, F), or a DataFrame of numbers.
            y: targets, shape (n,).
            groups: the group of each row, shape (n,) (default: each row is a group of its own, and nothing is adapted).

        Returns: the estimator.

        Errors: `ValueError` (as scikit-learn's, also `InputError`) for wrong data or arguments.
        """
        X, y = self._checked(X, y)
        y = self._learn_targets(y)
        names = np.arange(len(y)) if groups is None else group_column(groups, len(y))
        self.group_names_, which = np.unique(names, return_inverse=True)
        counts = np.bincount(which)
        self.x_mean_, scale = X.mean(0), X.std(0)
        self.x_scale_ = np.where(scale > 1e-12 * np.maximum(np.abs(self.x_mean_), 1), scale, 1)
        self.order_column_ = self._order_column()
        self.support_ = self._support_rows(counts)
        by = None if self.order_column_ is None else X[:, self.order_column_]
        fewest, most = self.support_
        # Other numbers of support rows too make more tasks of few groups; groups held out are judged at the number asked for.
        drawn = (max(1, fewest // 2), 2 * most) if 0 < fewest == most else self.support_
        rows = sampler(self._scaled(X), y, which, by, drawn, min(32, round_up(int(counts.max()))), pad=True)
        groups_used = np.flatnonzero(counts > 1) if counts.max() > 1 else np.arange(len(counts))
        folds = min(check_whole(type(self).__name__, "folds", self.folds), len(groups_used))
        rows_a_step = check_whole(type(self).__name__, "tasks_per_step", self.tasks_per_step)
        # Groups of few rows take more tasks, so that a meta-step sees as many rows.
        tasks = rows_a_step * max(1, 32 // rows.queries)
        settings = Settings(
            self._outputs(), check_whole(type(self).__name__, "max_steps", self.max_steps), tasks, self.support_
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.fitted_: Fitted = fit(self._ways(), rows, groups_used, settings, folds, seed)
        self.model_ = self.fitted_.name
        self.n_iter_ = self.fitted_.steps
        self.report_, self.gain_ = self._report(counts)
        self._supports = Supports.of_training(rows, self.support_[1], self.group_names_, seed)
        self._seed, self._adapted = seed, False
        return self

    def adapt(self, X, y, groups=None):
        """A fitted predictor for new groups, from their support rows; this estimator stays as it is.

        Arguments:
            X, y: the support rows.
            groups: the group of each row (default: all belong to one group, which `predict` without groups then means).

        Returns: an estimator of the same kind, whose `predict` adapts to these groups.

        Errors: `ValueError` if the rows do not fit those of `fit`, or a class was not in its targets.
        """
        check_is_fitted(self, "fitted_")
        X, y = self._checked(X, y, reset=False)
        y = self._known_targets(y)
        names = None if groups is None else group_column(groups, len(y))
        adapted = copy.copy(self)
        adapted._supports = Supports.given(self._scaled(X), y, names, self._supports.empty)
        adapted._adapted = True
        return adapted

    def _few_shot_score(self, X, y, sample_weight, groups):
        """The score of rows; see `score`."""
        check_is_fitted(self, "fitted_")
        if groups is None or self._adapted:
            return self._score(y, self.predict(X, groups), sample_weight)
        X, y = self._checked(X, y, reset=False)
        names = group_column(groups, len(y))
        by = None if self.order_column_ is None else X[:, self.order_column_]
        support = few_shot_split(names, by, self.support_[1], self._seed)
        adapted = self.adapt(X[support], y[support], names[support])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            weights = None if sample_weight is None else np.asarray(sample_weight)[~support]
            return self._score(y[~support], adapted._predict(X[~support], names[~support]), weights)

    def save(self, path, about=None):
        """Write one file that `ax.load` reads: arrays and a description in JSON, no code and no row of the training table.

        Arguments:
            path: the file; one that is there is replaced as a whole.
            about: what the file is to say of the model, a dict for JSON (default None).

        Errors: `InputError` for what a file cannot hold, and for a path that cannot be written.
        """
        from adaptax.tables.file import write

        check_is_fitted(self, "fitted_")
        write(path, self, dict(about or {}))

    def _predict(self, X, groups):
        raise NotImplementedError("abstract")

    def _found(self, X, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The outputs and scales of rows, and how many support rows each one's group has."""
        names = None if groups is None else group_column(groups, len(X))
        which, unknown = self._supports.places(names, len(X))
        if unknown:
            warnings.warn(_NO_SUPPORT.format(n=f"{unknown:,}"), UserWarning, stacklevel=4)
        supports = self._supports.rows
        mean, scale = predict(self.fitted_, supports, which, self._scaled(X))
        return mean, scale, np.array([len(s[1]) for s in supports])[which]

    def _report(self, counts: np.ndarray) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
        fitted, unit = self.fitted_, getattr(self, "y_scale_", 1.0)
        report = {
            "group": self.group_names_[fitted.held], "rows": counts[fitted.held],
            "error": fitted.error * unit, "low": (fitted.error - _TWO_SIDED_95 * fitted.spread) * unit,
            "high": (fitted.error + _TWO_SIDED_95 * fitted.spread) * unit, "error_before": fitted.before * unit,
        }  # fmt: skip
        gain = report["error_before"] - report["error"]
        if len(gain) < 2:
            return report, (float("nan"), float("nan"))
        return report, (float(gain.mean()), float(gain.mean() - _ONE_SIDED_95 * gain.std(ddof=1) / np.sqrt(len(gain))))

    def _rows(self, X):
        check_is_fitted(self, "fitted_")
        return validate_data(self, X, reset=False, dtype=np.float64)

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        """Standardised rows; columns of zeros fill up their number, so that few programs are compiled."""
        x = ((X - self.x_mean_) / self.x_scale_).astype(np.float32)
        return np.pad(x, ((0, 0), (0, -x.shape[1] % 4)))

    def _order_column(self) -> int | None:
        if self.order is None:
            return None
        names = list(getattr(self, "feature_names_in_", range(self.n_features_in_)))
        if self.order in names:
            return names.index(self.order)
        if isinstance(self.order, int | np.integer) and 0 <= self.order < self.n_features_in_:
            return int(self.order)
        raise InputError(f"order={self.order!r} is no column of X: it has {', '.join(map(repr, names))}.")

    def _support_rows(self, counts: np.ndarray) -> tuple[int, int]:
        if self.support is None:
            most = int(np.clip(np.median(counts[counts > 1]) // 2, 1, 20)) if counts.max() > 1 else 1
            return 1, most
        given = self.support if isinstance(self.support, tuple | list) else (self.support, self.support)
        if len(given) != 2 or given[0] > given[1]:
            raise InputError(f"support={self.support!r} must be a number of rows, or the smallest and the largest one.")
        return check_whole(type(self).__name__, "support", given[0], 0), check_whole(type(self).__name__, "support", given[1])

    def _ways(self) -> dict[str, Any]:
        hidden = tuple(check_whole(type(self).__name__, "hidden", width) for width in self.hidden)
        if not hidden:
            raise InputError("hidden=() must have a width at least, such as (16, 16).")
        steps = check_whole(type(self).__name__, "inner_steps", self.inner_steps)
        wide = tuple(2 * width for width in hidden)
        ways = {
            "additive": Ridge(True, hidden), "ridge": Ridge(False, wide),
            "head": Steps(True, wide, steps), "all": Steps(False, wide, steps),
        }  # fmt: skip
        if self.model == "auto":
            return ways
        if self.model not in ways:
            raise InputError(f"model={self.model!r} must be 'auto', {', '.join(map(repr, ways))}.")
        return {self.model: ways[self.model]}


def group_column(groups: Any, rows: int) -> np.ndarray:
    anything: Any = None
    groups = check_array(groups, ensure_2d=False, dtype=anything, input_name="groups")
    if groups.shape != (rows,):
        raise InputError(f"groups= has the shape {groups.shape} where there are {rows} rows: give the group of each row.")
    return groups
