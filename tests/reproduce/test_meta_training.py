"""The training experiments in small: rows, page, and the errors of meta-gradients."""

import dataclasses

import numpy as np
import pytest

import adaptax as ax
from adaptax.report.rows import pick
from adaptax.reproduce import matrix, meta_training, meta_training_page, sinusoid
from adaptax.reproduce.csv_rows import read_rows
from adaptax.reproduce.meta_training import StepSizes
from adaptax.reproduce.strategies import EXACT, FINITE_DIFFERENCE, FIRST_ORDER, GGS, NAMES, STEIN, UNCORRECTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small run of the factorisation."""
    out = tmp_path_factory.mktemp("matrix") / "new"
    matrix.matrix(out, 2, 6, lambda text: None, error_tasks=20)
    return out


def test_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "matrix.csv", "matrix.png", "matrix.svg"]
    rows = pick(read_rows(folder / "matrix.csv"), part="training")
    assert len(rows) == len(NAMES) * len(matrix.SETTINGS) * 2 * 7
    assert {row["method"] for row in rows} == set(NAMES) and {row["seed"] for row in rows} == {0, 1}
    for name, calls, in_losses in ((EXACT, 7, 30), (FIRST_ORDER, 4, 12), (GGS, 37, 111), (STEIN, 67, 75)):
        last = pick(rows, method=name, meta_step=6)[0]
        assert (last["calls"], last["in_losses"]) == (6 * 10 * calls, 6 * 10 * in_losses)


def test_page_has_the_numbers_of_the_csv(folder):
    page, rows = (folder / "README.md").read_text(), read_rows(folder / "matrix.csv")
    for setting in matrix.SETTINGS:
        assert f"## α = {setting.alpha:g}" in page
        for name in NAMES:
            losses = [r["value"] for r in pick(rows, part="training", method=name, meta_step=6, alpha=setting.alpha)]
            assert f"| {name} | {np.median(losses):.4g} [{min(losses):.4g}, {max(losses):.4g}]" in page
        errors = [row["value"] for row in pick(rows, part="gradient error", method=GGS, alpha=setting.alpha)]
        assert f"{np.median(errors):.2g} (" in page


@pytest.mark.slow
def test_the_page_can_be_made_again(folder):
    before = (folder / "README.md").read_text()
    matrix.describe(folder, matrix.experiment(6))
    assert (folder / "README.md").read_text() == before


def test_methods_start_alike_and_exact_is_the_library_s(folder):
    rows = pick(read_rows(folder / "matrix.csv"), part="training", seed=1, alpha=0.05)
    assert len({row["value"] for row in pick(rows, meta_step=0)}) == 1
    values = {name: pick(rows, method=name, meta_step=6)[0]["value"] for name in NAMES}
    assert values[FINITE_DIFFERENCE] == pytest.approx(values[EXACT], rel=1e-4)
    assert values[FIRST_ORDER] < values[EXACT] < values[UNCORRECTED]


def test_gradient_errors():
    rows = matrix.gradient_errors(matrix.experiment(1), StepSizes(1e-2, 3e-3), 0, 100)
    error = {row["method"]: row["value"] for row in rows}
    assert error[EXACT] == 0 and error[FINITE_DIFFERENCE] < 1e-4
    assert 0.03 < error[GGS] < 0.09 and 0.15 < error[FIRST_ORDER] < 0.23 and 0.4 < error[UNCORRECTED] < 1
    first = pick(rows, method=FIRST_ORDER)[0]
    assert first["value"] == pytest.approx(first["predicted"], rel=0.15)


def test_statements_follow_the_data():
    """A method that differs is said to, one that scatters is not, and one that breaks is named."""
    losses = {EXACT: [1.0, 1.1], GGS: [1.0, 1.101], FIRST_ORDER: [2.0, 2.2], STEIN: [0.9, 1.5], UNCORRECTED: [np.inf, 1.0]}
    rows = [
        {"method": name, "seed": seed, "meta_step": step, "calls": step, "value": 3.0 if step == 0 else value}
        for name, values in losses.items() for seed, value in enumerate(values) for step in (0, 1)
    ]  # fmt: skip
    found = {one.method: one for one in meta_training_page.outcomes(rows)[0]}
    assert found[GGS].same and not found[GGS].differs
    assert found[FIRST_ORDER].differs and found[FIRST_ORDER].ratio == pytest.approx(2)
    assert not found[STEIN].same and not found[STEIN].differs
    assert found[UNCORRECTED].differs and not found[UNCORRECTED].finite and found[UNCORRECTED].words() == "not to be had"
    assert found[UNCORRECTED].end() == "1 [1, 1]; 1 of 2 not finite"


@pytest.mark.slow
def test_sinusoid_with_one_method(monkeypatch):
    what = dataclasses.replace(sinusoid.experiment(2, (4,)), settings=(StepSizes(1e-2, 1e-2),), held_out=10, tasks_per_step=3)
    known = meta_training.strategies
    monkeypatch.setattr(meta_training, "strategies", lambda q, delta: {EXACT: known(q, delta)[EXACT]})
    rows = meta_training.train_all(what, 2, 2, lambda text: None)
    assert [(row["meta_step"], row["seed"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(np.isfinite(row["value"]) for row in rows) and rows[0]["value"] != rows[1]["value"]


@pytest.mark.parametrize("run", [matrix.matrix, sinusoid.sinusoid])
@pytest.mark.parametrize("seeds, steps, name", [(1, 5, "seeds=1"), (2, 0, "steps=0")])
def test_bad_sizes(run, tmp_path, seeds, steps, name):
    with pytest.raises(ax.InputError, match=name):
        run(tmp_path / "out", seeds, steps)
    assert not (tmp_path / "out").exists()
