"""A fitted ensemble of models of a table: their fit by folds of groups, and the predictions of their mean."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax.tables.training import Settings, Trained, draws, residuals, train
from adaptax.tables.ways import Way
from adaptax.tasks.table import SampleRows, round_up

# Rows of a group that are predicted at once, and how many such blocks are.
_ROWS, _BLOCKS, _MANY = 64, 8, 128
# Folds by which the two best ways are found.
_CHOOSING = 2
# Groups whose residuals calibrate intervals, at most, and tasks of all of them, at least.
_CALIBRATION, _TASKS = 2000, 256


class Fitted(NamedTuple):
    """The models of all folds.

    Arguments:
        way: how they adapt.
        name: its name.
        params, rates: stacked over the folds.
        outputs: 1 for a regression, else the number of classes.
        steps: the meta-steps of the model that was trained longest, up to its best state.
        tried: by the name of each way, its mean error on groups held out, in the folds that chose.
        held: the groups that were held out and judged, fold by fold.
        error, spread, before: the mean error of their rows after adaptation, its standard error, and the one before.
        scores: by number of support rows, what `conformal.width` needs: scores, which rows there are, the group of each task.
    """

    way: Way
    name: str
    params: PyTree
    rates: PyTree
    outputs: int
    steps: int
    tried: dict[str, float]
    held: np.ndarray
    error: np.ndarray
    spread: np.ndarray
    before: np.ndarray
    scores: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


def fit(ways: dict[str, Way], rows: SampleRows, groups: np.ndarray, settings: Settings, folds: int, seed: int) -> Fitted:
    """Train each way on the first two folds, the two best of them on the others too, and keep the best.

    Arguments:
        ways: the ways, by name.
        rows: all rows.
        groups: the groups to train on.
        settings: shared ones.
        folds: how many folds there are; with a single one nothing is held out, and the first way is taken.
        seed: decides the folds and the trainings.
    """
    order = np.random.default_rng(seed).permutation(groups)
    held = [order[i::folds] for i in range(folds)] if folds > 1 else [order[:0]]
    found: dict[str, list[Trained]] = {name: [] for name in ways}

    def train_to(name: str, last: int) -> None:
        for i in range(len(found[name]), last):
            found[name].append(train(ways[name], rows, np.setdiff1d(order, held[i]), held[i], settings, seed + i))

    def errors() -> dict[str, float]:
        """The mean error of each way, infinite where it is not finite."""
        means = {name: float(np.mean(np.concatenate([t.error for t in models]))) for name, models in found.items() if models}
        return {name: mean if np.isfinite(mean) else np.inf for name, mean in means.items()}

    best = list(ways)[:1]
    if folds > 1:
        for name in ways:
            train_to(name, min(_CHOOSING, folds))
        best = sorted(ways, key=errors().__getitem__)[:2]
    for name in best:
        train_to(name, folds)
    # Ways that were left behind keep the errors of the first folds.
    tried = errors() if folds > 1 else {}
    name = min(best, key=tried.__getitem__) if tried else best[0]
    models = found[name]
    parts = [(t.held, t.error, t.spread, t.before) for t in models]
    judged, error, spread, before = (np.concatenate(part) for part in zip(*parts, strict=True))
    params, rates = _stacked([(t.params, t.rates) for t in models])
    scores = {} if folds == 1 else _scores(ways[name], models, rows, held, settings, seed)
    return Fitted(
        ways[name],
        name,
        params,
        rates,
        settings.outputs,
        max(t.step for t in models),
        tried,
        judged,
        error,
        spread,
        before,
        scores,
    )


def support_sizes(most: int) -> list[int]:
    """The numbers of support rows that intervals are calibrated for."""
    return sorted({k for k in (0, 1, 2, 3, 5, 10, 20, 50) if k < most} | {most})


def _scores(way: Way, models: list[Trained], rows: SampleRows, held: list[np.ndarray], settings: Settings, seed: int) -> dict:
    """Each fold's residuals on the groups that it has not seen."""
    found = {}
    share = max(1, _CALIBRATION // len(held))
    for shots in support_sizes(settings.support[1]):
        parts, first = [], 0
        for model, groups in zip(models, held, strict=True):
            tasks = draws(groups[:share], seed, (shots, shots), -(-_TASKS // len(held)))
            scaled, there = residuals(way, model.params, model.rates, rows, tasks, settings.outputs)
            parts.append((scaled, there, tasks.place + first))
            first += len(tasks.held)
        scores, there, place = (np.concatenate(part) for part in zip(*parts, strict=True))
        found[shots] = (scores, there, place)
    return found


def predict(
    fitted: Fitted, supports: list[tuple[np.ndarray, np.ndarray]], which: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean outputs of the models for rows of groups, and the scale of their errors.

    Arguments:
        fitted: the models.
        supports: for each group its support rows, (x, y).
        which: the group of each row, shape (n,).
        x: the rows, shape (n, F).

    Returns: the outputs, shape (n, outputs) (logarithms of probabilities for classes), and the scales, shape (n,).
    """
    order = np.argsort(which, kind="stable")
    blocks = [block for rows in _runs(which[order], order) for block in np.split(rows, range(_ROWS, len(rows), _ROWS))]
    mean, scale = np.zeros((len(x), fitted.outputs), np.float32), np.zeros(len(x), np.float32)
    at_once = _MANY if len(blocks) > 16 * _MANY else _BLOCKS
    size = round_up(max(4, *(len(s[1]) for s in supports)))
    for first in range(0, len(blocks), at_once):
        part = blocks[first : first + at_once]
        given = [supports[which[block[0]]] for block in part]
        support = _padded([s[0] for s in given], at_once, size), _padded([s[1] for s in given], at_once, size)
        mask = _padded([np.ones(len(s[1]), np.float32) for s in given], at_once, size)
        inputs = _padded([x[block] for block in part], at_once, _ROWS)
        found = _predict(fitted.way, fitted.params, fitted.rates, (*support, mask), inputs, fitted.outputs)
        means, scales = np.asarray(found[0]), np.asarray(found[1])
        for i, block in enumerate(part):
            mean[block], scale[block] = means[i, : len(block)], scales[i, : len(block)]
    return mean, scale


def _runs(groups: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, where those of a group follow each other."""
    return np.split(rows, np.flatnonzero(np.diff(groups)) + 1) if len(rows) else []


def _padded(parts: list[np.ndarray], count: int, size: int) -> np.ndarray:
    """The parts under each other, filled up with zeros."""
    filled = np.zeros((count, size, *parts[0].shape[1:]), parts[0].dtype)
    for row, part in zip(filled, parts, strict=False):
        row[: len(part)] = part
    return filled


def _stacked(trees: list[Any]) -> Any:
    arrays, rest = zip(*[eqx.partition(tree, eqx.is_array) for tree in trees], strict=True)
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), rest[0])


@eqx.filter_jit
def _predict(way: Way, params: PyTree, rates: PyTree, support: tuple, inputs: Any, outputs: int) -> tuple[Array, Array]:
    arrays, rest = eqx.partition((params, rates), eqx.is_array)

    def of_group(x, y, mask, inputs):
        def of_model(arrays):
            params, rates = eqx.combine(arrays, rest)
            mean, scale = way.predict(params, way.adapt(params, rates, (x, y, mask), outputs), inputs)
            return (mean if outputs == 1 else jax.nn.log_softmax(mean)), scale

        mean, scale = jax.vmap(of_model)(arrays)
        together = jnp.mean(mean, 0) if outputs == 1 else jax.nn.logsumexp(mean, 0) - jnp.log(len(mean))
        return together, jnp.sqrt(jnp.mean(scale**2, 0))

    return jax.vmap(of_group)(support[0], support[1], support[2], inputs)
