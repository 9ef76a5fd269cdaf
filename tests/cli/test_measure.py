"""`adaptax measure`: constants and a verdict from a saved run, the same each time, and nothing is changed."""

import json

import pytest

from adaptax.report import tables


def test_a_run_is_measured(run, finished, contents):
    folder = finished["matrix"]
    before = contents(folder)
    first = run("measure", folder, "--tasks", "16", "--epsilon", "1e6", "--format", "json")
    assert first.code == 0 and not first.err and contents(folder) == before
    result = json.loads(first.out)
    assert set(result["constants"]) == {"L", "lam", "mu", "rho", "sigma", "b"} and result["points_skipped"] == 0
    alpha, (L, _) = result["alpha"], result["constants"]["L"]
    assert result["q"] == pytest.approx((1 + alpha * L) ** (2 * result["inner_steps"]))
    (lam, _), (mu, _), n = result["constants"]["lam"], result["constants"]["mu"], result["inner_steps"]
    assert result["r"] == pytest.approx(max(1 + alpha * mu, alpha * lam - 1)) and result["r"] < 1 + alpha * L
    assert result["two_sided_q"] == pytest.approx(result["r"] ** (2 * n))
    assert 0 < result["two_sided_alpha"] <= 1 / lam and result["two_sided_alpha"] * n * max(mu, 0) <= 0.125001
    assert result["stationary"] and result["verdict"] == "stationary to 1e+06 at 95 %"
    assert result["low"] <= result["upper"] <= result["high"] and str(folder) not in first.out
    for text in (
        "lam ",
        "mu ",
        "rates needs q < 2",
        "both signs apart: r =",
        "verdict: stationary to 1e+06",
        "lower estimates of suprema",
    ):
        assert text in tables.measured(result)


@pytest.mark.slow
def test_a_network_is_measured(run, finished):
    result = run("measure", finished["sinusoid"], "--tasks", "8", "--seed", "3")
    assert result.code == 0 and "no finite rho" in result.out and "outer Adam" in result.out


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--tasks 7", "--tasks 7 must be a whole number of at least 8"),
        ("--epsilon 0", "--epsilon 0.0 must be a finite number above 0"),
        ("--epsilon small", "--epsilon must be followed by a number"),
        ("--seed -1", "--seed -1 must be a whole number from 0"),
        ("--step 3", "adaptax measure has no option --step"),
    ],
)
def test_bad_options(run, finished, options, sentence):
    assert sentence in run("measure", finished["matrix"], *options.split()).sentence


def test_folders_that_hold_no_run(run, tmp_path):
    assert "There is no run in" in run("measure", tmp_path).sentence
