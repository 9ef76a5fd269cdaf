"""What adaptax is compared with on grouped tables: means of the support rows and boosted trees, and the register of all peers.

A peer has `fit(table, groups, k, mode, seed)`, which fits and tunes on the rows of these training groups alone, and
`predict(xs, ys, os, xt, ot)` for one new group: the features, targets and orders of the support rows, then the features and
orders of the rows to predict. It gives targets, or for two classes the probabilities of class 1.
"""

from itertools import product
from typing import Protocol

import numpy as np
from scipy.special import expit, logit
from table_data import Array, Case, Choice, Fold, Mode, Table, cases, inner_folds
from table_kernels import GaussianProcess, GroupLogistic, GroupRidge, MixedModel, offset_probabilities
from table_networks import FineTuned

# How much the support mean is drawn towards what is known without it: as much as this many rows say.
SHRINKAGE = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Standard deviations of a new group's offset of the log-odds.
OFFSETS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
# The boosted trees: leaves of a tree and loss, and after how many trees to stop. No tree leaves the training mean.
TREES = tuple(product((4, 16), ("l2", "l1")))
STAGES = (0, 10, 30, 100, 250, 500)


class Peer(Protocol):
    """A method of few-shot prediction."""

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Fit and tune on the training groups."""

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The predictions for the other rows of a new group."""
        ...


class SupportMean:
    """The mean target of the support rows, drawn towards the mean of the training rows; for two classes, the frequency."""

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the shrinkage."""
        choice = Choice(table)
        for fold in inner_folds(table, groups, k, mode, seed):
            self.mean = table.y[fold.rows].mean()
            for case, self.shrinkage in product(fold.cases, SHRINKAGE):
                choice.add(self.shrinkage, case, self._mean(table.y[case.support]) * np.ones(len(case.other)))
        self.shrinkage, self.mean = choice.best(), table.y[table.rows(groups)].mean()

    def _mean(self, ys: Array) -> float:
        return (ys.sum() + self.shrinkage * self.mean) / (len(ys) + self.shrinkage)

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The same for all rows."""
        return np.full(len(xt), self._mean(ys))


class _Trees:
    """Boosted trees of LightGBM that give targets or log-odds after any of their stages, on top of given scores."""

    def __init__(
        self,
        x: Array,
        y: Array,
        setting: tuple[int, str],
        classes: int | None,
        seed: int,
        trees: int = STAGES[-1],
        rate: float = 0.1,
        weight: Array | None = None,
        base: Array | None = None,
        smallest: int = 10,
    ):
        import lightgbm

        leaves, loss = setting
        self.start = 0.0
        if base is None:
            self.start = float(np.median(y) if loss == "l1" else y.mean()) if classes is None else float(logit(y.mean()))
            base = np.full(len(y), self.start)
        options = {"objective": loss if classes is None else "binary", "num_leaves": leaves, "learning_rate": rate}
        options |= {"min_data_in_leaf": smallest, "min_data_in_bin": min(3, smallest), "lambda_l2": 1.0}
        options |= {"feature_fraction": 0.7, "bagging_fraction": 0.7 if smallest > 1 else 1.0, "bagging_freq": 1}
        options |= {"seed": seed, "num_threads": 1, "verbosity": -1, "deterministic": True, "force_row_wise": True}
        options |= {"min_sum_hessian_in_leaf": 0.0 if smallest == 1 else 1e-3, "feature_pre_filter": False}
        data = lightgbm.Dataset(x, y, weight=weight, init_score=base, params=options)
        self.model = lightgbm.train(options, data, trees)

    def __call__(self, x: Array, trees: int) -> Array:
        """The scores after that many trees, without the given ones."""
        if trees == 0 or self.model.num_trees() == 0:
            return np.full(len(x), self.start)
        return self.start + self.model.predict(x, num_iteration=trees, raw_score=True, num_threads=1)


class Boosting:
    """Boosted trees on the features of all training rows; the support is not used."""

    strengths: tuple = (None,)

    def correct(self, scores: Array, ys: Array, other: Array, strength: float | None) -> Array:
        """The predictions of the other rows, from the scores and targets of the support rows and the scores of the others."""
        return other if self.classes is None else expit(other)

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the trees, and what `correct` needs, together; fit the trees."""
        self.classes = table.classes
        settings = TREES if table.classes is None else [setting for setting in TREES if setting[1] == "l2"]
        choice = Choice(table)
        for fold, setting in product(inner_folds(table, groups, k, mode, seed), settings):
            trees = _Trees(table.x[fold.rows], table.y[fold.rows], setting, table.classes, seed)
            for stage in STAGES:
                scores = _spread(trees, table, fold, stage)
                for case, strength in product(fold.cases, self.strengths):
                    predicted = self.correct(scores[case.support], table.y[case.support], scores[case.other], strength)
                    choice.add((setting, stage, strength), case, predicted)
        self.setting, self.stage, self.strength = choice.best()
        rows = table.rows(groups)
        self.trees = _Trees(table.x[rows], table.y[rows], self.setting, table.classes, seed, max(self.stage, 1))

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The predictions for the other rows of a new group."""
        return self.correct(self.trees(xs, self.stage), ys, self.trees(xt, self.stage), self.strength)


def _spread(trees: _Trees, table: Table, fold: Fold, stage: int) -> Array:
    """The scores of the rows of a fold's cases, at their places in the table."""
    rows = np.unique(np.concatenate([np.concatenate([case.support, case.other]) for case in fold.cases]))
    scores = np.full(len(table.y), np.nan)
    scores[rows] = trees(table.x[rows], stage)
    return scores


class BoostingShifted(Boosting):
    """Boosted trees on all training rows, plus the shrunken mean residual of the support rows; log-odds for two classes."""

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the trees and the shrinkage together; fit the trees."""
        self.strengths = SHRINKAGE if table.classes is None else OFFSETS
        super().fit(table, groups, k, mode, seed)

    def correct(self, scores: Array, ys: Array, other: Array, strength: float | None) -> Array:
        """The scores plus the shift that the support rows ask for."""
        if self.classes is None:
            return other + np.sum(ys - scores) / (len(ys) + strength)
        return offset_probabilities(scores, ys, other, strength)


class BoostingContinued:
    """Boosted trees on all training rows, continued with the support rows of the new group among them.

    The continuation sees which rows are of the new group, and the support rows have a share of the total weight. Validation
    chooses the share, the number of further trees, and whether to start from the pooled trees or the training mean.
    """

    SHARES = (0.03, 0.3, 0.9)
    FURTHER = (0, 3, 10, 30, 100)
    ROWS = 500  # random training rows in the continuation
    CASES = 10  # cases of each fold, at most

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the pooled trees, then the continuation."""
        self.seed, self.classes = seed, table.classes
        pooled = Boosting()
        pooled.fit(table, groups, k, mode, seed)
        stages = (0, pooled.stage or STAGES[1])
        choice = Choice(table)
        for fold in inner_folds(table, groups, k, mode, seed, draws=1, limit=self.CASES):
            trees = _Trees(table.x[fold.rows], table.y[fold.rows], pooled.setting, table.classes, seed, stages[1])
            for self.stage in stages:
                self._start(table, fold.rows, trees)
                scores = _spread(trees, table, fold, self.stage)
                for case, share in product(fold.cases, self.SHARES):
                    xs, ys = table.x[case.support], table.y[case.support]
                    further = self._continue(xs, ys, scores[case.support], share, self.FURTHER[-1])
                    for count in self.FURTHER:
                        predicted = self._link(scores[case.other] + further(_marked(table.x[case.other], 1), count))
                        choice.add((self.stage, share, count), case, predicted)
        self.stage, self.share, self.count = choice.best()
        rows = table.rows(groups)
        self.trees = _Trees(table.x[rows], table.y[rows], pooled.setting, table.classes, seed, stages[1])
        self._start(table, rows, self.trees)

    def _start(self, table: Table, rows: Array, trees: _Trees) -> None:
        """Keep some training rows and their scores for the continuation."""
        kept = np.random.default_rng(self.seed).permutation(rows)[: self.ROWS]
        self.x, self.y, self.scores = _marked(table.x[kept], 0), table.y[kept], trees(table.x[kept], self.stage)

    def _link(self, scores: Array) -> Array:
        return scores if self.classes is None else expit(scores)

    def _continue(self, xs: Array, ys: Array, scores: Array, share: float, count: int) -> _Trees:
        weight = np.repeat([1.0, share / (1 - share) * len(self.y) / len(ys)], [len(self.y), len(ys)])
        x, y = np.concatenate([self.x, _marked(xs, 1)]), np.concatenate([self.y, ys])
        base = np.concatenate([self.scores, scores])
        return _Trees(x, y, (4, "l2"), self.classes, self.seed, count, 0.2, weight, base, smallest=1)

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """Continue with these support rows, then predict."""
        scores = self.trees(xt, self.stage)
        if self.count:
            further = self._continue(xs, ys, self.trees(xs, self.stage), self.share, self.count)
            scores = scores + further(_marked(xt, 1), self.count)
        return self._link(scores)


def _marked(x: Array, mark: float) -> Array:
    """The features and one that says whether the row is of the new group."""
    return np.column_stack([x, np.full(len(x), mark)])


class BoostingSummaries:
    """Boosted trees that see, beside a row's features, what the support rows of its group say.

    They also see how the features differ from their means over the support. They are fitted to cases drawn from the training
    groups, with the same K and mode. Targets are taken relative to one of the summaries, which validation chooses.
    """

    # The columns of `_summaries` to start from: the support mean, the interpolated target, and the line through the support.
    STARTS = (0, 2, 3)
    DRAWS, ROWS = 6, 30  # supports of a training group where they are random, and rows to predict of each, at most
    CASES = 3000  # random cases, at most

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the trees and the start; fit the trees."""
        self.classes = table.classes
        self.spread = table.order[table.rows(groups)].std() or 1.0
        settings = ((4, "l1"), (16, "l1")) if table.classes is None else ((4, "l2"), (16, "l2"))
        choice = Choice(table)
        for fold in inner_folds(table, groups, k, mode, seed):
            seen = self._seen(table, fold.groups, k, mode, seed)
            judged = [self._inputs(table, case, case.other) for case in fold.cases]
            ends = np.cumsum([len(case.other) for case in fold.cases])[:-1]
            for setting, start in product(settings, self.STARTS if table.classes is None else (None,)):
                self.start = start
                trees = self._trees(seen, setting, seed, STAGES[-1])
                for stage in STAGES:
                    predicted = np.split(self._scores(trees, np.concatenate(judged), stage), ends)
                    for case, scores in zip(fold.cases, predicted, strict=True):
                        choice.add((setting, start, stage), case, scores)
        setting, self.start, self.stage = choice.best()
        self.trees = self._trees(self._seen(table, groups, k, mode, seed), setting, seed, max(self.stage, 1))

    def _seen(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> tuple[Array, Array]:
        """The inputs and targets of cases drawn from these groups."""
        rng = np.random.default_rng(seed)
        drawn = cases(table, groups, k, mode, rng, self.DRAWS)
        drawn = [drawn[i] for i in rng.permutation(len(drawn))[: self.CASES]]
        rows = [rng.permutation(case.other)[: self.ROWS if mode == "random" else None] for case in drawn]
        inputs = [self._inputs(table, case, chosen) for case, chosen in zip(drawn, rows, strict=True)]
        return np.concatenate(inputs), table.y[np.concatenate(rows)]

    def _inputs(self, table: Table, case: Case, rows: Array) -> Array:
        s = case.support
        return self._summaries(table.x[s], table.y[s], table.order[s], table.x[rows], table.order[rows])

    def _summaries(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """What the support says of the rows: mean, spread, interpolated target, line, nearest target, distance, last target."""
        ys, places = ys.astype(float), np.unique(os)
        means = np.array([ys[os == place].mean() for place in places])
        away = (os - os.mean()) / self.spread
        slope = away @ (ys - ys.mean()) / (away @ away + 0.01)
        line = ys.mean() + slope * (ot - os.mean()) / self.spread
        near = np.argmin(np.abs(ot[:, None] - places), axis=1)
        every = np.ones(len(ot))
        return np.column_stack(
            [ys.mean() * every, ys.std() * every, np.interp(ot, places, means), line, means[near], ot - places[near]]
            + [slope * every, means[-1] * every, ot - places[-1], ot - places[0], xt, xt - xs.mean(0)]
        )

    def _trees(self, seen: tuple[Array, Array], setting: tuple[int, str], seed: int, count: int) -> _Trees:
        inputs, y = seen
        if self.classes is None:
            y = y - inputs[:, self.start]
        return _Trees(inputs, y, setting, self.classes, seed, count)

    def _scores(self, trees: _Trees, inputs: Array, stage: int) -> Array:
        scores = trees(inputs, stage)
        return expit(scores) if self.classes is not None else inputs[:, self.start] + scores

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The predictions for the other rows of a new group."""
        return self._scores(self.trees, self._summaries(xs, ys, os, xt, ot), self.stage)


PEERS: dict[str, type[Peer]] = {
    "support mean": SupportMean,
    "boosting": Boosting,
    "boosting + group mean": BoostingShifted,
    "boosting with support rows": BoostingContinued,
    "boosting with support summaries": BoostingSummaries,
    "MLP fine-tuned": FineTuned,
    "ridge per group": GroupRidge,
    "linear mixed model": MixedModel,
    "Gaussian process over order": GaussianProcess,
}
CLASSIFIERS: dict[str, type[Peer]] = {
    "support frequency": SupportMean,
    "boosting": Boosting,
    "boosting + offset": BoostingShifted,
    "boosting with support rows": BoostingContinued,
    "boosting with support summaries": BoostingSummaries,
    "MLP fine-tuned": FineTuned,
    "logistic regression + offset": GroupLogistic,
}
