"""Linear models and Gaussian processes that predict a new group of a table from its support rows.

Each has `fit(table, groups, k, mode, seed)`, which uses the rows of these training groups alone, and
`predict(xs, ys, os, xt, ot)` for one new group: the features, targets and orders of the support rows, then the features and
orders of the rows to predict. `table_peers.py` names them all.
"""

import warnings
from itertools import product

import numpy as np
from scipy.linalg import cho_factor, cho_solve, qr
from scipy.optimize import minimize
from scipy.special import expit
from table_data import Array, Choice, Mode, Table, inner_folds


class Scale:
    """Shifts and scales columns to mean 0 and standard deviation 1 over the rows it was made from."""

    def __init__(self, x: Array):
        self.mean, spread = x.mean(0), x.std(0)
        self.spread = np.where(spread > 0, spread, 1.0)

    def __call__(self, x: Array) -> Array:
        return (x - self.mean) / self.spread

    def back(self, x: Array) -> Array:
        """The inverse."""
        return x * self.spread + self.mean


def offset_probabilities(scores: Array, labels: Array, other: Array, spread: float) -> Array:
    """The probabilities of class 1 at the log-odds `other` plus an offset, averaged over what the support says of the offset.

    The offset has a normal prior of mean 0 and this standard deviation; `scores` are the support rows' log-odds without it.
    """
    if spread == 0:
        return expit(other)
    offsets = spread * np.linspace(-4, 4, 61)
    signs = np.where(labels == 1, 1.0, -1.0)
    log_weight = -np.logaddexp(0, -signs[:, None] * (scores[:, None] + offsets)).sum(0) - 0.5 * (offsets / spread) ** 2
    weight = np.exp(log_weight - log_weight.max())
    return expit(other[:, None] + offsets) @ (weight / weight.sum())


class GroupRidge:
    """Ridge regression on the support rows, about the coefficients of a ridge regression on all training rows.

    Intercept, slope of the order and the other slopes have penalties of their own. A pooled penalty of infinity leaves only the
    training mean to start from.
    """

    POOLED = (1e-3, 1e-1, 1.0, np.inf)  # penalty for each training row
    # The variance of the intercept, the slope and the other slopes about the pooled ones, in units of the noise variance.
    INTERCEPT = (0.1, 1.0, 10.0, 100.0, 1e4)
    SLOPE = (0.0, 0.1, 1.0, 10.0, 1e2, 1e3, 1e5)
    OTHERS = (0.0, 1e-3, 1e-2, 1e-1, 1.0)

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Tune the penalties; fit the pooled ridge."""
        variances = np.array(list(product(self.INTERCEPT, self.SLOPE, self.OTHERS)))
        choice = Choice(table)
        for fold in inner_folds(table, groups, k, mode, seed):
            self._pool(table, fold.rows)
            for case in fold.cases:
                s, t = case.support, case.other
                found = self._predict(table.x[s], table.y[s], table.order[s], table.x[t], table.order[t], variances)
                for (i, variance), (j, penalty) in product(enumerate(variances), enumerate(self.POOLED)):
                    choice.add((tuple(variance), j, penalty), case, found[i, :, j])
        variance, self.pooled, _ = choice.best()
        self.variance = np.array([variance])
        self._pool(table, table.rows(groups))

    def _pool(self, table: Table, rows: Array) -> None:
        x, y = table.x[rows], table.y[rows]
        self.scale, self.order_scale, self.mean = Scale(x), Scale(table.order[rows]), y.mean()
        x = self.scale(x)
        self.not_order = ~np.all(table.x == table.order[:, None], axis=0)
        inner, moment = x.T @ x, x.T @ (y - self.mean)
        eye = np.eye(x.shape[1])
        self.weights = np.stack(
            [
                np.zeros(len(eye)) if np.isinf(penalty) else np.linalg.solve(inner + penalty * len(x) * eye, moment)
                for penalty in self.POOLED
            ],
            axis=1,
        )

    def _predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array, variances: Array) -> Array:
        """The predictions with each of the variances, for each row, about each pooled ridge."""
        xs, xt, os, ot = self.scale(xs), self.scale(xt), self.order_scale(os), self.order_scale(ot)
        residual = ys[:, None] - self.mean - xs @ self.weights
        zs, zt = xs[:, self.not_order], xt[:, self.not_order]
        parts = [(np.ones((len(xt), len(xs))), 1.0), (np.outer(ot, os), np.outer(os, os)), (zt @ zs.T, zs @ zs.T)]
        across = sum(v[:, None, None] * part for v, (part, _) in zip(variances.T, parts, strict=True))
        within = sum(v[:, None, None] * part for v, (_, part) in zip(variances.T, parts, strict=True)) + np.eye(len(xs))
        return self.mean + xt @ self.weights + across @ np.linalg.solve(within, residual[None])

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The predictions for the other rows of a new group."""
        return self._predict(xs, ys, os, xt, ot, self.variance)[0, :, self.pooled]


class MixedModel:
    """A linear mixed model: all features have fixed effects, and each group has an intercept and a slope of the order.

    The variances are those of statsmodels' MixedLM (restricted maximum likelihood). A new group's intercept and slope are
    predicted from its support rows. Where the fit does not converge, the groups have an intercept alone.
    """

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Fit the fixed effects and the variances; nothing is tuned."""
        from statsmodels.regression.mixed_linear_model import MixedLM

        rows = table.rows(groups)
        self.scale, self.order_scale, self.target = Scale(table.x[rows]), Scale(table.order[rows]), Scale(table.y[rows])
        fixed = self._design(table.x[rows])
        _, upper, pivot = qr(fixed, mode="economic", pivoting=True)
        rank = np.sum(np.abs(np.diag(upper)) > 1e-5 * abs(upper[0, 0]))
        self.columns = np.sort(pivot[:rank])  # the others repeat these
        order, y = self.order_scale(table.order[rows]), self.target(table.y[rows])
        self.covariance = self.fixed = np.full((1, 1), np.nan)
        for self.effects in (2, 1):
            random = self._random(order)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    model = MixedLM(y, fixed[:, self.columns], table.group[rows], exog_re=random)
                    result = model.fit(reml=True, method=["lbfgs", "powell"] if self.effects == 1 else ["lbfgs"])
                except np.linalg.LinAlgError:
                    continue
            self.fixed, self.covariance, self.noise = result.fe_params, np.asarray(result.cov_re), result.scale
            if result.converged and np.all(np.isfinite(self.covariance)) and np.all(np.isfinite(self.fixed)):
                return
        if not np.all(np.isfinite(self.covariance)):
            raise ValueError(f"the mixed model of {table.name} does not converge")

    def _design(self, x: Array) -> Array:
        return np.column_stack([np.ones(len(x)), self.scale(x)])

    def _random(self, order: Array) -> Array:
        return np.column_stack([np.ones(len(order)), order])[:, : self.effects]

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The best linear unbiased prediction of the rows, given the fitted variances."""
        zs, zt = self._random(self.order_scale(os)), self._random(self.order_scale(ot))
        residual = self.target(ys) - self._design(xs)[:, self.columns] @ self.fixed
        covariance = zs @ self.covariance @ zs.T + self.noise * np.eye(len(zs))
        effects = self.covariance @ zs.T @ np.linalg.solve(covariance, residual)
        return self.target.back(self._design(xt)[:, self.columns] @ self.fixed + zt @ effects)


class GaussianProcess:
    """In each group a Gaussian process over the order alone; its mean is a line, the same for all groups.

    Its covariance is a constant, a linear kernel, noise, and a kernel that validation chooses. What is left free maximises the
    sum of the marginal likelihoods of the training groups, each by at most `ROWS` random rows, from several starts.
    """

    KERNELS = ("matern 1/2", "matern 3/2", "rbf")
    ROWS = 32
    LENGTHS = (0.1, 0.5, 2.0)  # where the search starts, in standard deviations of the order
    # Bounds of the logarithms: the standard deviations of constant, line and kernel, the kernel's length, and the noise.
    BOUNDS = ((-6.0, 3.0), (-6.0, 3.0), (-6.0, 3.0), (-4.0, 5.0), (-9.0, 1.0))

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Choose the kernel and what it leaves free."""
        rng = np.random.default_rng(seed)
        self._rescale(table, table.rows(groups))
        starts = [np.log([1.0, 0.3, 0.5, length, 0.1]).tolist() + [0.0, 0.0] for length in self.LENGTHS]
        found = {kernel: self._search(table, groups, kernel, starts, rng) for kernel in self.KERNELS}
        choice = Choice(table)
        for fold in inner_folds(table, groups, k, mode, seed):
            for kernel in self.KERNELS:
                free = self._search(table, fold.groups, kernel, [found[kernel]], rng)
                for case in fold.cases:
                    s, t = case.support, case.other
                    choice.add(kernel, case, self._predict(kernel, free, table.y[s], table.order[s], table.order[t]))
        self.kernel = choice.best()
        self.free = found[self.kernel]

    def _rescale(self, table: Table, rows: Array) -> None:
        self.order_scale, self.target = Scale(table.order[rows]), Scale(table.y[rows])

    @classmethod
    def _shape(cls, kernel: str, distance: Array) -> tuple[Array, Array]:
        """The kernel at a distance in lengths, and its derivative by the logarithm of the length."""
        if kernel == "matern 1/2":
            value = np.exp(-distance)
            return value, distance * value
        if kernel == "matern 3/2":
            decay = np.exp(-np.sqrt(3) * distance)
            return (1 + np.sqrt(3) * distance) * decay, 3 * distance**2 * decay
        value = np.exp(-0.5 * distance**2)
        return value, distance**2 * value

    def _search(self, table: Table, groups: Array, kernel: str, starts: list, rng: np.random.Generator) -> Array:
        """The free parameters of greatest likelihood: the logarithms of `BOUNDS`, then the mean's height and slope."""
        picked = [np.flatnonzero(table.group == group) for group in groups]
        picked = [rng.choice(rows, min(self.ROWS, len(rows)), replace=False) for rows in picked]
        size = max(map(len, picked))
        order, target, real = np.zeros((3, len(picked), size))
        for i, rows in enumerate(picked):
            order[i, : len(rows)], target[i, : len(rows)] = self.order_scale(table.order[rows]), self.target(table.y[rows])
            real[i, : len(rows)] = 1
        pairs = real[:, :, None] * real[:, None]
        distance = np.abs(order[:, :, None] - order[:, None])
        line, eye = order[:, :, None] * order[:, None], np.eye(size)

        def loss(free: Array) -> tuple[float, Array]:
            constant, slope, height, length, noise = np.exp([2, 2, 2, 1, 2] * free[:5])
            value, by_length = self._shape(kernel, distance / length)
            terms = [np.full_like(pairs, constant), slope * line, height * value, height * by_length, noise * eye]
            # Padding is independent noise of variance 1 about 0, which adds nothing to the likelihood.
            covariance = pairs * (terms[0] + terms[1] + terms[2] + terms[4]) + (1 - real)[:, :, None] * eye
            residual = real * (target - free[5] - free[6] * order)
            lower = np.linalg.cholesky(covariance)
            inverse = np.linalg.inv(lower)
            inverse = inverse.transpose(0, 2, 1) @ inverse
            alpha = np.einsum("gij,gj->gi", inverse, residual)
            total = 0.5 * np.sum(residual * alpha) + np.sum(np.log(np.diagonal(lower, axis1=1, axis2=2)))
            outer = pairs * (inverse - alpha[:, :, None] * alpha[:, None])
            slopes = [0.5 * factor * np.sum(outer * term) for factor, term in zip([2, 2, 2, 1, 2], terms, strict=True)]
            slopes += [-np.sum(real * alpha), -np.sum(order * alpha)]
            return total / real.sum(), np.array(slopes) / real.sum()

        bounds = [*self.BOUNDS, (-5.0, 5.0), (-5.0, 5.0)]
        results = [minimize(loss, np.array(start), jac=True, method="L-BFGS-B", bounds=bounds) for start in starts]
        return min(results, key=lambda result: result.fun).x

    def _predict(self, kernel: str, free: Array, ys: Array, os: Array, ot: Array) -> Array:
        os, ot = self.order_scale(os), self.order_scale(ot)
        constant, slope, height, length, noise = np.exp([2, 2, 2, 1, 2] * free[:5])

        def covariance(a: Array, b: Array) -> Array:
            value, _ = self._shape(kernel, np.abs(a[:, None] - b) / length)
            return constant + slope * np.outer(a, b) + height * value

        factor = cho_factor(covariance(os, os) + noise * np.eye(len(os)), lower=True)
        residual = self.target(ys) - free[5] - free[6] * os
        return self.target.back(free[5] + free[6] * ot + covariance(ot, os) @ cho_solve(factor, residual))

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The predictions for the other rows of a new group; the features are not used."""
        return self._predict(self.kernel, self.free, ys, os, ot)


class GroupLogistic:
    """Logistic regression with an offset of the log-odds for each group, of normal prior; for two classes.

    The coefficients and the training groups' offsets maximise the posterior. A new group's offset is averaged over its
    posterior, given the support rows. Validation chooses the standard deviations of the coefficients, of the offsets in the
    fit and of the offset of a new group.
    """

    COEFFICIENTS = (0.03, 0.3)
    FITTED = (0.3, 1.0, 3.0)
    NEW = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)

    def fit(self, table: Table, groups: Array, k: int, mode: Mode, seed: int) -> None:
        """Choose the standard deviations and fit the coefficients."""
        choice = Choice(table)
        for fold in inner_folds(table, groups, k, mode, seed):
            for coefficients, fitted in product(self.COEFFICIENTS, self.FITTED):
                self._fit(table, fold.rows, coefficients, fitted)
                scores = self._scores(table.x)
                for case, new in product(fold.cases, self.NEW):
                    s, t = case.support, case.other
                    choice.add((coefficients, fitted, new), case, offset_probabilities(scores[s], table.y[s], scores[t], new))
        coefficients, fitted, self.new = choice.best()
        self._fit(table, table.rows(groups), coefficients, fitted)

    def _fit(self, table: Table, rows: Array, coefficients: float, fitted: float) -> None:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.linear_model import LogisticRegression

        self.scale = Scale(table.x[rows])
        _, member = np.unique(table.group[rows], return_inverse=True)
        own = csr_matrix((np.full(len(rows), fitted), (np.arange(len(rows)), member)))
        # One penalty for all: columns are multiplied by the standard deviations of what multiplies them.
        columns = hstack([csr_matrix(coefficients * self.scale(table.x[rows])), own]).tocsr()
        model = LogisticRegression(C=1.0, max_iter=300, tol=1e-3).fit(columns, table.y[rows])
        self.weights, self.intercept = coefficients * model.coef_[0, : table.x.shape[1]], model.intercept_[0]

    def _scores(self, x: Array) -> Array:
        return self.scale(x) @ self.weights + self.intercept

    def predict(self, xs: Array, ys: Array, os: Array, xt: Array, ot: Array) -> Array:
        """The probabilities of class 1 of the other rows of a new group."""
        return offset_probabilities(self._scores(xs), ys, self._scores(xt), self.new)
