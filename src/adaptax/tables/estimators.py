"""Estimators by the conventions of scikit-learn that learn over groups and adapt to a new one from a few rows."""

import numpy as np

# First, since it says what to do where there is no scikit-learn.
from adaptax.tables.base import MetaEstimator  # isort: skip
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from adaptax.errors import InputError
from adaptax.tables import conformal


class MetaRegressor(RegressorMixin, MetaEstimator):
    r"""Regression over many groups of rows (patients, machines, shops) that adapts to a new group from a few rows.

    X and y are standardised inside. Columns must be numbers without gaps: put an encoder or an imputer before it in a pipeline.
    The model is trained as few-shot learning: a task is a group, some of whose rows are known, and others are predicted.

    Arguments:
        support: how many rows of a new group will be known (training draws from half to twice as many), or the smallest and the
            largest number (default None: from 1 to half the rows of a typical group, 20 at most).
        order: the column of X, by name or number, that orders the rows of a group, such as a time: training adapts to the first
            rows of a group and predicts later ones (default None: to random rows).
        model: what adapts. "additive": a last layer in closed form (ridge regression about a learned prior) on learned features
            of single columns; "ridge": the same on features of all columns; "head": the last layer of a network by gradient
            steps; "all": a whole network by gradient steps; "auto" (default): that of these with the least error on groups held
            out.
        hidden: widths of the hidden layers (default (16, 16)); networks of all columns have twice these.
        inner_steps: N of "head" and "all", with the step sizes of `ax.stepsize.Auto` (default 5).
        max_steps: meta-steps of each training at most; it ends earlier where groups held out get no better (default 600).
        tasks_per_step: groups of a meta-step (default 16; more where groups are small).
        folds: parts of the groups, each held out by one model; predictions are the mean of the models (default 5).
        random_state: decides everything that is random (default 0).

    Attributes after `fit`:
        model_: which model was taken.
        fitted_.tried: by model, the mean error on groups held out (absolute error in standard deviations; for classes the mean
            logarithm of the loss).
        n_iter_: the meta-steps up to the best state, of the model that took most.
        report_: for each group, by the model that was trained without it: rows, the mean error after adaptation with its 95 %
            interval over draws of support and target rows, and the one before adaptation (400 groups of a fold at most).
        gain_: by how much adaptation lowers that error, mean over groups, and the lower end of a one-sided interval (95 %).

    Errors: `ValueError` from `fit` for wrong data or arguments, as scikit-learn's estimators.

    Example:
        >>> import adaptax as ax, numpy as np
        >>> random = np.random.default_rng(0)
        >>> groups, x = np.repeat(np.arange(30), 12), random.uniform(-1, 1, (360, 2))
        >>> y = random.normal(size=30)[groups] + random.normal(size=30)[groups] * x[:, 0]
        >>> model = ax.MetaRegressor(support=4, model="additive", max_steps=100, folds=2).fit(x, y, groups=groups)
        >>> new = random.uniform(-1, 1, (20, 2))
        >>> predictor = model.adapt(new[:4], 3 - 2 * new[:4, 0])
        >>> bool(np.abs(predictor.predict(new[4:]) - (3 - 2 * new[4:, 0])).mean() < 0.5)
        True

    Source: docs/tables.md; Bertinetto et al. (2019), arXiv 1805.08136; Finn, Abbeel, Levine (2017), ICML.
    """

    def predict(self, X, groups=None):
        """Predictions.

        Arguments:
            X: rows.
            groups: the group of each row (default: that of `adapt` without groups; before `adapt` none, so that the
                meta-initialisation predicts). Groups of the training table are adapted to by some of their rows, `support` at
                most. A group without support rows is predicted by the meta-initialisation, with a warning.

        Returns: an array of shape (n,).
        """
        return self._predict(self._rows(X), groups)

    def score(self, X, y, sample_weight=None, groups=None):
        """The coefficient of determination of the predictions.

        With groups, and before `adapt`, each group is adapted to by `support` of its rows at most (the first in the order, or
        random ones), and judged on the others; groups of one row are judged by the meta-initialisation.

        Arguments:
            X, y: rows.
            sample_weight: the weight of each row (default: all are equal).
            groups: the group of each row (default: none).
        """
        return self._few_shot_score(X, y, sample_weight, groups)

    def predict_interval(self, X, groups=None, coverage=0.9):
        """Lower and upper ends of intervals that cover the target of a row of a new group with a probability of `coverage`.

        Arguments:
            X, groups: as in `predict`.
            coverage: the probability, averaged over groups and rows (default 0.9).

        Returns: two arrays of shape (n,).

        Errors: `InputError` if there were too few groups to calibrate such intervals.
        """
        X = self._rows(X)
        mean, scale, shots = self._found(X, groups)
        numbers, which = np.unique(shots, return_inverse=True)
        half = np.array([self._width(int(k), coverage) for k in numbers])[which] * scale
        return tuple(self._in_units(mean[:, 0] + side * half) for side in (-1, 1))

    def can_give_intervals(self, coverage=0.9):
        """Whether there were enough groups to calibrate intervals of this coverage."""
        check_is_fitted(self, "fitted_")
        return bool(self.fitted_.scores) and len(self.fitted_.error) >= conformal.least_groups(coverage)

    def _width(self, shots: int, coverage: float) -> float:
        scores = self.fitted_.scores
        if not 0 < coverage < 1:
            raise InputError(f"coverage={coverage!r} must be between 0 and 1.")
        if not scores:
            raise InputError("Intervals need groups that were held out, and there was one group alone: fit on more groups.")
        # Fewer rows than there are make the intervals wider at most.
        known = max(k for k in scores if k <= shots)
        values, there, place = scores[known]
        return conformal.width(values, there, place, int(place.max()) + 1, coverage)

    def _predict(self, X, groups):
        return self._in_units(self._found(X, groups)[0][:, 0])

    def _in_units(self, values: np.ndarray) -> np.ndarray:
        return self.y_mean_ + self.y_scale_ * values.astype(np.float64)

    def _checked(self, X, y, reset=True):
        return validate_data(self, X, y, reset=reset, dtype=np.float64, y_numeric=True)

    def _learn_targets(self, y):
        self.y_mean_, scale = float(y.mean()), float(y.std())
        self.y_scale_ = scale if scale > 0 else 1.0
        return self._known_targets(y)

    def _known_targets(self, y):
        return ((y - self.y_mean_) / self.y_scale_).astype(np.float32)

    def _outputs(self):
        return 1

    def _score(self, y, predicted, weights):
        return r2_score(y, predicted, sample_weight=weights)


class MetaClassifier(ClassifierMixin, MetaEstimator):
    r"""Classification over many groups of rows that adapts to a new group from a few rows; classes mean the same in all groups.

    X is standardised inside. Columns must be numbers without gaps: put an encoder or an imputer before it in a pipeline.

    Arguments and attributes: as `MetaRegressor`; errors are minus the logarithm of the probability of a row's class.

    Errors: `ValueError` from `fit` for wrong data or arguments, as scikit-learn's estimators.

    Example:
        >>> import adaptax as ax, numpy as np
        >>> random = np.random.default_rng(0)
        >>> groups, x = np.repeat(np.arange(30), 12), random.uniform(-1, 1, (360, 2))
        >>> y = np.where(random.normal(size=30)[groups] + x[:, 0] > 0, "high", "low")
        >>> model = ax.MetaClassifier(support=4, model="ridge", max_steps=100, folds=2).fit(x, y, groups=groups)
        >>> predictor = model.adapt(x[:4], y[:4])
        >>> predictor.predict_proba(x[4:12]).shape, model.classes_.tolist()
        ((8, 2), ['high', 'low'])

    Source: docs/tables.md; Bertinetto et al. (2019), arXiv 1805.08136; Finn, Abbeel, Levine (2017), ICML.
    """

    def predict(self, X, groups=None):
        """The most probable class of each row, shape (n,); see `MetaRegressor.predict`."""
        return self._predict(self._rows(X), groups)

    def predict_proba(self, X, groups=None):
        """The probabilities of `classes_`, shape (n, number of classes)."""
        return self._probabilities(self._rows(X), groups)

    def score(self, X, y, sample_weight=None, groups=None):
        """The share of rows whose class is predicted.

        With groups, and before `adapt`, each group is adapted to by `support` of its rows at most (the first in the order, or
        random ones), and judged on the others; groups of one row are judged by the meta-initialisation.

        Arguments:
            X, y: rows.
            sample_weight: the weight of each row (default: all are equal).
            groups: the group of each row (default: none).
        """
        return self._few_shot_score(X, y, sample_weight, groups)

    def _probabilities(self, X, groups):
        exp = np.exp(self._found(X, groups)[0].astype(np.float64))
        return exp / exp.sum(1, keepdims=True)

    def _predict(self, X, groups):
        return self.classes_[self._probabilities(X, groups).argmax(1)]

    def _checked(self, X, y, reset=True):
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float64)
        check_classification_targets(y)
        return X, y

    def _learn_targets(self, y):
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise InputError(
                f"The targets have one class alone ({self.classes_.tolist()[0]!r}): a classifier needs two at least."
            )
        return self._known_targets(y)

    def _known_targets(self, y):
        if unknown := np.setdiff1d(y, self.classes_).tolist():
            raise InputError(f"Class {unknown[0]!r} was not in the targets of fit, whose classes are {self.classes_.tolist()}.")
        return np.searchsorted(self.classes_, y).astype(np.int32)

    def _outputs(self):
        return len(self.classes_)

    def _score(self, y, predicted, weights):
        return accuracy_score(y, predicted, sample_weight=weights)
