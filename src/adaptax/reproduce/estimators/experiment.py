r"""Bias and variance of the estimators $\hat Hv$ of docs/theory.md, section 7, over Q and over $\delta$."""

import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import adaptax as ax
from adaptax._checks import check_whole
from adaptax.reproduce import predictions as predict
from adaptax.reproduce.csv_rows import Row, Say, write_rows
from adaptax.reproduce.estimators import losses
from adaptax.reproduce.estimators.losses import Place
from adaptax.reproduce.estimators.page import NAME, publish
from adaptax.reproduce.strategies import (
    ANTITHETIC,
    CALLS,
    FINITE_DIFFERENCE,
    FIRST_ORDER,
    GGS,
    IN_LOSSES,
    STEIN,
    UNCORRECTED,
    priced,
    strategies,
)

COLUMNS = (
    "part",
    "loss",
    "estimator",
    "samples",
    "delta",
    "repeats",
    "calls",
    "in_losses",
    "measure",
    "value",
    "error",
    "predicted",
)

SAMPLES = (1, 10, 100, 1000)
# The radius at which directions are compared, between truncation and rounding in double precision.
DELTA = 1e-3
DELTAS = tuple(10.0 ** (k / 2) for k in range(-18, 3))
RADIUS_SAMPLES = 10


def estimators_by_name(samples: int, delta: Any) -> dict[str, ax.curvature.AbstractCurvature]:
    r"""The estimators by name, with Q directions and the radius $\delta$ (None: the library's own choice)."""
    known = strategies(samples, delta)
    antithetic = ax.curvature.GaussianSmoothing(samples=samples, delta=delta, antithetic=True)  # type: ignore[call-arg]
    names = (FIRST_ORDER, FINITE_DIFFERENCE, GGS, ANTITHETIC, UNCORRECTED, STEIN)
    return {name: antithetic if name == ANTITHETIC else known[name] for name in names}


def hessian_estimators(
    out: Path,
    repeats: int = 200,
    seed: int = 0,
    say: Say = print,
    *,
    samples: tuple[int, ...] = SAMPLES,
    deltas: tuple[float, ...] = DELTAS,
    kinds: tuple[str, ...] = (losses.QUADRATIC, losses.TANH, losses.RELU),
) -> None:
    r"""Measure every estimator of Hv against the exact product, on a quadratic and on small networks.

    Arguments:
        out: the folder for hessian-estimators.csv, the figures and README.md; made if it is not there.
        repeats: the number of independent products behind every number.
        seed: the losses, the points and all directions are drawn from it.
        say: called with a sentence about the progress (default: it is printed).
        samples: the numbers of directions Q, increasing.
        deltas: the radii $\delta$, increasing.
        kinds: the losses; a ReLU network has kinks, so there is no prediction over its directions.

    Errors: `InputError` if `repeats` is not a whole number of at least 10, or the seed none of at least 0.

    Example:
        >>> from pathlib import Path
        >>> hessian_estimators(Path("reproduced/hessian-estimators"), repeats=50)  # doctest: +SKIP

    Source: docs/theory.md, section 7.
    """
    repeats, seed = check_whole("", "repeats", repeats, 10), check_whole("", "seed", seed, 0)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = [{"part": "run", "measure": "seed", "value": seed}]
    with jax.enable_x64(True), jax.threefry_partitionable(False):
        for kind in kinds:
            place = losses.place_of(kind, seed)
            rows += constants(place)
            if place.name in losses.SMOOTH:
                rows += over_samples(place, samples, repeats, seed)
                say(f"{place.name}: {repeats} products of each estimator with Q = {samples[0]} to {samples[-1]}")
            rows += over_radii(place, deltas, repeats, seed)
            say(f"{place.name}: {repeats} products of each estimator with δ = {deltas[0]:.0e} to {deltas[-1]:.0e}")
    write_rows(out / f"{NAME}.csv", COLUMNS, rows)
    publish(out)


def constants(place: Place) -> list[Row]:
    """The part "loss": exact constants of a loss."""
    found = {
        "d": place.w.size, "trace": jnp.trace(place.h), "frobenius": jnp.linalg.norm(place.h),
        "norm": jnp.linalg.norm(place.h, 2), "product": jnp.linalg.norm(place.hv), "third": place.third(),
    }  # fmt: skip
    return [{"part": "loss", "loss": place.name, "measure": name, "value": float(value)} for name, value in found.items()]


def over_samples(place: Place, samples: tuple[int, ...], repeats: int, seed: int) -> list[Row]:
    """The part "directions": root mean square error, variance and bias over Q, with standard errors and predictions."""
    rows, local = [], place.local()
    for q in samples:
        for name, strategy in estimators_by_name(q, DELTA).items():
            if not strategy.stochastic and q != samples[0]:
                continue
            count = repeats if strategy.stochastic else 1
            cost = strategy.cost(ax.Cost(gradients=1))
            row = {
                "part": "directions", "loss": place.name, "estimator": name, "samples": q, "delta": DELTA, "repeats": count,
                "calls": priced(cost, CALLS), "in_losses": priced(cost, IN_LOSSES),
            }  # fmt: skip
            errors = np.asarray(_products(local, strategy, place.v, _keys(seed, q, count)) - place.hv)
            rows += [row | measured for measured in _moments(place, name, q, errors)]
    return rows


def _moments(place: Place, name: str, q: int, errors: np.ndarray) -> list[Row]:
    """The measures of one estimator, from the errors of its products, shape (repeats, d)."""
    h, v, hv = place.h, place.v, place.hv
    squares, length = np.sum(errors**2, axis=1), float(jnp.linalg.norm(hv))
    rms, count = math.sqrt(squares.mean()), len(errors)
    variances = {GGS: predict.ggs_variance, STEIN: predict.stein_variance, UNCORRECTED: predict.uncorrected_variance}
    variances[ANTITHETIC] = predict.ggs_variance
    bias = np.asarray(predict.uncorrected_bias(h, v)) if name == UNCORRECTED else np.zeros(len(v))
    if name not in variances:
        # Without random directions one product suffices: its error is its bias.
        predicted = {FIRST_ORDER: 1.0, FINITE_DIFFERENCE: DELTA**2 / 6 * float(place.third()) / length}[name]
        return [{"measure": "rms", "value": rms / length, "error": 0.0, "predicted": predicted}]
    variance = float(variances[name](h, v)) / q
    mean, centred = errors.mean(axis=0), errors - errors.mean(axis=0)
    spread = np.sum(centred**2, axis=1) * count / (count - 1)
    along = errors @ np.asarray(v)
    # The squared mean error is measured in units of its mean under noise alone, the trace of the covariance over the count.
    # The variance of that quotient is twice the sum of squared eigenvalues over the squared trace.
    covariance = centred.T @ centred / (count - 1)
    trace = float(np.trace(covariance))
    noise = math.sqrt(2 * float(np.sum(covariance**2))) / trace
    return [
        {
            "measure": "rms", "value": rms / length,
            "error": float(squares.std(ddof=1)) / math.sqrt(count) / (2 * rms * length),
            "predicted": math.sqrt(float(bias @ bias) + variance) / length,
        },
        {
            "measure": "variance", "value": float(spread.mean()), "error": float(spread.std(ddof=1)) / math.sqrt(count),
            "predicted": variance,
        },
        {
            "measure": "bias along v", "value": float(along.mean()), "error": float(along.std(ddof=1)) / math.sqrt(count),
            "predicted": float(bias @ np.asarray(v)),
        },
        {
            "measure": "bias beyond prediction", "value": float((mean - bias) @ (mean - bias)) * count / trace, "error": noise,
            "predicted": 1.0,
        },
    ]  # fmt: skip


def over_radii(place: Place, deltas: tuple[float, ...], repeats: int, seed: int) -> list[Row]:
    r"""The part "radius": the error that $\delta$ makes in a product, apart from the noise of its directions.

    The error is taken against the same estimator on the quadratic model of the loss, with the same directions.
    """
    # One object for each loss, since another function would be compiled again.
    rows, length, local, model = [], float(jnp.linalg.norm(place.hv)), place.local(), place.model()
    for name, unit in estimators_by_name(RADIUS_SAMPLES, 1.0).items():
        if name == FIRST_ORDER:
            continue
        keys = _keys(seed, 0, repeats if unit.stochastic else 1)
        limit = _products(model, unit, place.v, keys)
        for delta in (*deltas, None):
            strategy = estimators_by_name(RADIUS_SAMPLES, None if delta is None else jnp.asarray(delta))[name]
            difference = _products(local, strategy, place.v, keys) - limit
            row = {"part": "radius", "loss": place.name, "estimator": name, "samples": RADIUS_SAMPLES, "repeats": len(keys)}
            row |= {"measure": "default" if delta is None else "width error"}
            row["value"] = float(jnp.sqrt(jnp.mean(jnp.sum(difference**2, axis=1)))) / length
            if delta is not None:
                row["delta"] = delta
                if name == FINITE_DIFFERENCE:
                    row["predicted"] = delta**2 / 6 * float(place.third()) / length
            rows.append(row)
    return rows


def _keys(seed: int, use: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), use), count)


@eqx.filter_jit
def _products(local: Any, strategy: ax.curvature.AbstractCurvature, v: jax.Array, keys: jax.Array) -> jax.Array:
    """One product for each key."""
    return jax.vmap(lambda key: strategy.product(local, v, key)[1][0])(keys)
