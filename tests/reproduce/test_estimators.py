"""The estimators' experiment in small: the predictions, what is measured, and what the page says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.report.rows import pick
from adaptax.reproduce import predictions as predict
from adaptax.reproduce.csv_rows import read_rows
from adaptax.reproduce.estimators import experiment, losses
from adaptax.reproduce.strategies import GGS, STEIN, UNCORRECTED


def test_predictions_by_quadrature(x64):
    """Moments of one direction in two dimensions, from Gauss-Hermite nodes, which are exact for these polynomials."""
    h, v = jnp.array([[2.0, 0.5], [0.5, -1.0]]), jnp.array([0.6, -1.1])
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    u = jnp.stack(jnp.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    p = jnp.outer(weights, weights).ravel() / (2 * np.pi)
    s, uv = jnp.sum(u @ h * u, axis=1), u @ v
    terms = {
        predict.ggs_variance: (uv[:, None] * (u @ h), h @ v),
        predict.stein_variance: ((s / 2)[:, None] * (uv[:, None] * u - v), h @ v),
        predict.uncorrected_variance: ((s / 2 * uv)[:, None] * u, h @ v + predict.uncorrected_bias(h, v)),
    }
    for formula, (term, mean) in terms.items():
        np.testing.assert_allclose(p @ term, mean, rtol=1e-12)
        np.testing.assert_allclose(formula(h, v), p @ jnp.sum((term - mean) ** 2, axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", [losses.QUADRATIC, pytest.param(losses.TANH, marks=pytest.mark.slow)])
def test_the_model_has_the_estimator_s_limit(x64, name):
    place = losses.quadratic(0, 6) if name == losses.QUADRATIC else losses.network(name, 0, (3,))
    key = jax.random.key(1)
    for stein in (False, True):
        at = ax.curvature.ZerothOrder(samples=3, delta=1e-4, stein=stein).product(place.local(), place.v, key)[1][0]
        limit = ax.curvature.ZerothOrder(samples=3, delta=1.0, stein=stein).product(place.model(), place.v, key)[1][0]
        np.testing.assert_allclose(at, limit, atol=1e-5 * float(jnp.linalg.norm(limit)))


@pytest.mark.slow
def test_over_samples(x64):
    """The uncorrected form levels off at half the trace; the others go down as predicted."""
    place = losses.quadratic(0)
    rows = experiment.over_samples(place, (10, 1000), 200, 0)
    rms = {(row["estimator"], row["samples"]): row["value"] for row in pick(rows, measure="rms")}
    floor = float(jnp.trace(place.h) / 2 / jnp.linalg.norm(place.hv))
    assert rms[UNCORRECTED, 1000] == pytest.approx(floor, rel=0.1)
    for name in (GGS, STEIN):
        assert rms[name, 1000] == pytest.approx(rms[name, 10] / 10, rel=0.15)
    for row in rows:
        if row["error"] > 0:
            assert abs(row["value"] - row["predicted"]) < 4.5 * row["error"], row


@pytest.mark.slow
def test_files_and_page(tmp_path):
    lines = []
    sizes = {"samples": (1, 4), "deltas": (1e-6, 1e-4, 1e-2), "kinds": (losses.QUADRATIC,)}
    experiment.hessian_estimators(tmp_path / "out", 10, 0, lines.append, **sizes)
    names = ["README.md", "directions.png", "directions.svg", "hessian-estimators.csv", "radius.png", "radius.svg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names and len(lines) == 2
    assert all(path.stat().st_size < 300_000 for path in (tmp_path / "out").iterdir())
    rows = read_rows(tmp_path / "out" / "hessian-estimators.csv")
    assert {row["part"] for row in rows} == {"run", "loss", "directions", "radius"}
    page = (tmp_path / "out" / "README.md").read_text()
    for name in (GGS, STEIN, UNCORRECTED):
        row = pick(rows, part="directions", loss="quadratic", estimator=name, samples=4, measure="rms")[0]
        assert f"| {name} | {row['value']:.3g} ± " in page
    trace = pick(rows, part="loss", loss="quadratic", measure="trace")[0]["value"]
    assert trace == pytest.approx(10.5) and f"{trace:.4g}" in page


def test_bad_sizes(tmp_path):
    with pytest.raises(ax.InputError, match="repeats=3 must be a whole number of at least 10"):
        experiment.hessian_estimators(tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()
