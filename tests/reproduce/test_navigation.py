"""The navigation experiment: its page from made-up rows, what its verdicts say, and a small run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import adaptax as ax
from adaptax.report.rows import pick
from adaptax.reproduce.csv_rows import read_rows, write_rows
from adaptax.reproduce.navigation import experiment, settings
from adaptax.reproduce.navigation.page import mean_over_seeds, publish, verdict
from adaptax.reproduce.navigation.settings import (
    EDGE,
    FIXED,
    FROM_RETURNS,
    LOADED,
    PAPER,
    PLAIN,
    PRETRAINED,
    REUSED,
    SMALL,
    UNTRAINED,
)
from adaptax.reproduce.strategies import EXACT, FIRST_ORDER


def test_intervals_are_student_s():
    x = [3.0, 4.5, 5.0, 9.0]
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    mean, half = mean_over_seeds(x)
    np.testing.assert_allclose((mean - half, mean + half), (low, high), rtol=1e-12)
    assert verdict(mean_over_seeds([1.0, 1.1, 0.9])) == "better" and verdict(mean_over_seeds([-1.0, -1.1, -0.9])) == "worse"
    assert (
        verdict(mean_over_seeds([-1.0, 1.1, 0.9])) == "not told apart"
        and verdict(mean_over_seeds([1.0, np.nan])) == "not finite"
    )


def returns(case, seed, adapted):
    """Made up: exact gains 20 by a step, the first-order method 20 and a little that is not the same for all seeds."""
    base = -40.0 - seed
    gain = {EXACT: 20.0, FIRST_ORDER: 20.0 + (-1) ** seed, PRETRAINED: 5.0}.get(case.name, 10.0)
    return base + (gain if adapted == 1 else gain - 3 if adapted else 0)


def made_up():
    rows = []
    for setting, cases in ((PAPER, settings.paper_cases()), (SMALL, settings.small_cases())):
        for case in cases:
            about = {"setting": setting.name, "method": case.name, "inner_steps": case.inner_steps, "rule": case.rule}
            for seed in range(3):
                mark = about | {"seed": seed, "meta_step": 0 if case.method is None else 7, "env_steps": 70}
                rows += [mark | {"part": part, "value": 0.25} for part in ("seconds", "stepsize")]
                for n in settings.TESTED:
                    value = returns(case, seed, n)
                    rows += [mark | {"part": "final", "trajectories": s, "adapted": n, "value": value} for s in setting.sizes]
                if case.method is not None:
                    both = [mark | {"part": "training", "adapted": n, "value": returns(case, seed, n)} for n in (0, 1)]
                    rows += both + [row | {"meta_step": 0, "env_steps": 0, "value": -50.0} for row in both]
                if setting.drawn and not seed:
                    path = mark | {"part": "path", "trajectories": 0, "y": 0.0}
                    rows += [path | {"adapted": n, "goal": goal, "time": t, "x": 0.1 * t}
                             for n in (0, 1) for goal in range(4) for t in range(3)]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("navigation")
    write_rows(out / "navigation.csv", experiment.COLUMNS, made_up())
    publish(out)
    names = [f"{name}.{kind}" for name in ("estimators", "paths", "returns") for kind in ("png", "svg")]
    assert sorted(path.name for path in out.iterdir()) == sorted(["README.md", "navigation.csv", *names])
    return (out / "README.md").read_text()


def test_the_page_has_the_numbers_of_the_csv(page):
    assert "adaptax reproduce navigation --seeds 3 --steps 7`" in page
    # Returns -40, -41, -42 before; 4.3027 is Student's quantile with two degrees of freedom.
    assert f"| {EXACT} | 20 | -41.00 ± {4.3027 / 3**0.5:.2f} | -21.00 ± 2.48 | -24.00 ± 2.48 |" in page
    first, second = "20.00 ± 0.00 (better)", "-3.00 ± 0.00 (worse)"
    assert f"- {EXACT.capitalize()}: one step changes the return by {first}, a second one by {second}." in page
    for method in (FIRST_ORDER, PRETRAINED, UNTRAINED, FROM_RETURNS):
        assert f"| {method} |" in page


def test_statements_follow_the_data(page):
    beside = "with 20 trajectories: first order (FOMAML) not told apart, trained without adaptation worse, untrained worse."
    assert f"- Beside exact after 1 {beside}" in page
    # Made up to have their best returns after one step, but for the untrained policy: before any.
    assert "with its best number of steps among those tested, chosen on these same goals: exact after 1, -21.00 ± 2.48;" in page
    assert "N = 1: 15.00 ± 0.00 (better); N = 2: 15.00 ± 0.00 (better);" in page
    assert "Beside exact's best: first order (FOMAML) not told apart, trained without adaptation" in page


def test_cases_are_what_they_are_called():
    problem = ax.tasks.rl.navigation(horizon=25, loss=settings.surrogate())

    def steps(case):
        return ax.tasks.rl.environment_steps(case.method, problem, SMALL.tasks)

    cases = {(case.name, case.inner_steps, case.rule): case for case in settings.small_cases()}
    assert len(cases) == len(settings.small_cases())
    each = 20 * 25 * 20
    assert steps(cases[EXACT, 1, FIXED]) == 3 * each and steps(cases[EXACT, 3, FIXED]) == 7 * each
    assert steps(cases[FIRST_ORDER, 1, FIXED]) == 2 * each and steps(cases[PRETRAINED, 0, FIXED]) == each
    assert steps(cases[FROM_RETURNS, 1, FIXED]) == (21 + 21 + 21) * each
    assert all(case.method.inner.steps == case.inner_steps for case in cases.values() if case.method is not None)


@pytest.mark.parametrize("seeds, steps, processes, name", [(1, 5, 1, "seeds="), (2, 0, 1, "steps="), (2, 5, 0, "processes=")])
def test_bad_sizes(tmp_path, seeds, steps, processes, name):
    with pytest.raises(ax.InputError, match=name):
        experiment.navigation(tmp_path / "out", seeds, steps, processes=processes)
    assert not (tmp_path / "out").exists()


def test_a_finished_experiment_is_not_run_again(tmp_path):
    committed = Path(__file__).resolve().parents[2] / "docs" / "experiments" / "navigation"
    shutil.copy(committed / "navigation.csv", tmp_path)
    experiment.navigation(tmp_path, 5, 200, pytest.fail)
    assert (tmp_path / "README.md").read_text() == (committed / "README.md").read_text()


@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch):
    small = {"horizon": 3, "hidden": (3,), "goals": 3, "tasks": 3, "trajectories": 3, "values": 2}
    sizes = [setting._replace(**small) for setting in (PAPER, SMALL)]
    kept = {"paper": (EXACT, UNTRAINED), "small": (EXACT, PRETRAINED, UNTRAINED, REUSED, LOADED, PLAIN, FROM_RETURNS)}
    for size, (setting, names) in zip(sizes, kept.items(), strict=True):
        every = getattr(experiment, f"{setting}_cases")(size)
        few = [case for case in every if case.name in names and case.inner_steps < 2 and case.rule == FIXED]
        few += [case for case in every if (case.inner_steps, case.rule) == (3, EDGE)]
        monkeypatch.setattr(experiment, f"{setting}_cases", lambda setting, few=few: few)
    experiment.navigation(tmp_path, 2, 2, lambda text: None, settings=sizes)
    rows = read_rows(tmp_path / "navigation.csv")
    # Given again, nothing is left to do; what is missing is done again, and found to be the same.
    experiment.navigation(tmp_path, 2, 2, pytest.fail, settings=sizes)
    done, missing = [], {"setting": "small", "method": UNTRAINED, "seed": 1}
    write_rows(tmp_path / "navigation.csv", experiment.COLUMNS, [row for row in rows if row not in pick(rows, **missing)])
    experiment.navigation(tmp_path, 2, 2, done.append, settings=sizes)
    again = read_rows(tmp_path / "navigation.csv")
    assert len(done) == 1 and "untrained, N = 0" in done[0]
    assert [row for row in again if row["part"] != "seconds"] == [row for row in rows if row["part"] != "seconds"]
    assert np.all(np.isfinite([row["value"] for row in rows if "value" in row])) and (tmp_path / "README.md").exists()
    for setting, names in kept.items():
        assert {row["method"] for row in pick(rows, setting=setting)} == set(names)
    # Before the first meta-step all methods are the same policy, and afterwards they are not.
    first = pick(rows, part="training", setting="small", meta_step=0, seed=1, adapted=0)
    last = pick(rows, part="final", setting="small", seed=1, adapted=0)
    assert len({row["value"] for row in first}) == 1 and len({row["value"] for row in last}) == len(last) == 8
    # What a rule resolved is what the policy is tested with.
    assert all(row["value"] != 0.1 for row in pick(rows, part="stepsize", rule=EDGE))


@pytest.mark.slow
def test_runs_in_processes_of_their_own_find_the_same(tmp_path):
    sizes = [setting._replace(horizon=3, hidden=(3,), goals=3) for setting in (PAPER, SMALL)]
    last = len(settings.paper_cases()) - 1
    jobs = [(0, 0, 0), (0, last, 1)]
    one, two = (dict(experiment._results(jobs, sizes, 1, processes)) for processes in (1, 2))
    assert sorted(one) == sorted(two) == sorted(jobs)
    for job in jobs:
        pairs = [(a, b) for a, b in zip(one[job][0], two[job][0], strict=True) if a["part"] != "seconds"]
        rounded = {"value": 0, "x": 0, "y": 0}
        assert all({**a, **rounded} == {**b, **rounded} for a, b in pairs)
        # The number of host devices may be another there, and with it rounding.
        np.testing.assert_allclose(*zip(*((a.get("value", 0), b.get("value", 0)) for a, b in pairs), strict=True), rtol=1e-3)
