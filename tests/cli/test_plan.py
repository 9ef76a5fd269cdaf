"""`adaptax plan`: the plan of the theory, as a table and as JSON, and what is refused."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaptax import theory

CONSTANTS = {"L": 2.0, "rho": 1.0, "sigma": 0.7, "sigma_g": 0.9, "sigma_H": 0.5, "b": 0.2, "gap": 3.0}


@pytest.fixture
def constants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps(CONSTANTS))
    Path("c.toml").write_text("\n".join(f"{k} = {v}" for k, v in CONSTANTS.items()))


@pytest.mark.parametrize("case", ["finite-sum", "resampling"])
def test_the_plan_is_that_of_the_theory(run, constants, case):
    options = ["--epsilon", "0.05", "--inner-steps", "3", "--case", case]
    result = run("plan", "--constants", "c.json", *options, "--format", "json")
    expected = theory.plan(theory.Constants(**CONSTANTS), epsilon=0.05, steps=3, case=case)
    said = json.loads(result.out)
    assert {name: value for name, value in said["constants"].items() if value is not None} == CONSTANTS
    assert all(
        said[name] == getattr(expected, name) for name in ("alpha", "iterations", "tasks_per_step", "step_samples", "gradients")
    )
    table = run("plan", "--constants", "c.toml", *options).out
    for words in (
        "L = 2",
        "quantity",
        f"{expected.iterations:,}",
        "Hessian-vector products",
        "worst case",
        f"B'{' ' * 20}"[:3],
    ):
        assert words in table


def test_options_reach_the_plan(run, constants):
    common = ["plan", "--constants", "c.json", "--format", "json"]
    assert json.loads(run(*common, "--gamma", "0.2").out)["alpha"] == 0.2 / 10
    assert json.loads(run(*common, "--steps", "3").out) == json.loads(run(*common, "--inner-steps", "3").out)
    assert json.loads(run(*common, "--c-beta", "3").out)["C_beta"] == 3
    assert json.loads(run(*common, "--optimise-c-beta").out)["C_beta"] not in (2, 3)


def test_the_two_sided_rule_is_planned_with_its_bounds(run, constants):
    """A convex inner loss: the step size does not fall with N."""
    known = CONSTANTS | {"lam": 2.0, "mu": 0.0}
    Path("convex.json").write_text(json.dumps(known))
    options = ["--rule", "two-sided", "--adapted-gradient", "0.4", "--spread", "0.3", "--gamma-plus", "0.8", "--steps", "7"]
    said = json.loads(run("plan", "--constants", "convex.json", *options, "--format", "json").out)
    bounds = {"rule": "two-sided", "adapted_gradient": 0.4, "spread": 0.3, "gamma_plus": 0.8}
    expected = theory.plan(theory.Constants(**known), epsilon=0.1, steps=7, **bounds)
    assert said["alpha"] == expected.alpha == 0.4
    assert all(said[name] == getattr(expected, name) for name in ("iterations", "tasks_per_step", "gradients", *bounds))


def test_it_answers_within_a_second_and_without_jax(constants):
    code = (
        "import sys, adaptax.cli.main as m; m.main(['plan', '--constants', 'c.json', '--case', 'resampling']);"
        "sys.exit('jax' in sys.modules)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "quantity" in done.stdout
    # Under a second on a quiet machine; this only guards against another order of magnitude.
    assert time.perf_counter() - began < 10


@pytest.mark.slow
def test_constants_are_measured_on_a_task_and_on_a_run(run, train, tmp_path):
    common = ["--tasks", "2", "--steps", "2", "--epsilon", "0.1", "--format", "json"]
    task = json.loads(run("plan", "--measure", "matrix", *common).out)
    # The Hessian at w_0 is |w|^2 I + 2 w w^T - y y^T.
    assert task["constants"]["L"] > 1 and task["constants"]["gap"] > 0 and task["constants"]["sigma_g"] == 0
    assert task["alpha"] == 0.125 / (2 * task["constants"]["L"])
    train("matrix", "--out", tmp_path / "run")
    saved = json.loads(run("plan", "--measure", tmp_path / "run", *common).out)
    assert saved["constants"]["L"] > 0 and saved["constants"] != task["constants"]
    assert "lower estimates of suprema" in run("plan", "--measure", tmp_path / "run", *common[:-2]).out


BAD = [
    ("", "needs constants: give either --constants FILE or --measure TASK"),
    ("--constants c.json --measure matrix", "needs constants: give either"),
    ("--constants none.json", "--constants none.json cannot be read"),
    ("--constants c.txt", "must be a .json or a .toml file"),
    ("--constants c.json --epsilon 0", "--epsilon 0.0 must be a finite number above 0"),
    ("--constants c.json --epsilon small", "--epsilon must be followed by a number"),
    ("--constants c.json --inner-steps 0", "--inner-steps 0 must be a whole number of at least 1"),
    (
        "--constants c.json --gamma 0.5",
        "--gamma 0.5 makes q = (1 + alpha L)^(2N) 2.594, and the theorem needs q < 2: give --gamma below 0.3589",
    ),
    ("--constants c.json --case rl", "--case must be followed by finite-sum or resampling"),
    ("--constants c.json --c-beta 0.1", "--c-beta is 0.1, with which no size suffices: raise --c-beta above 0.5"),
    ("--constants half.json", "--constants half.json does not say gap: add it"),
    ("--constants odd.json", "sets 'Lipschitz', which is no constant: use L, rho"),
    ("--constants negative.json", "negative.json: sigma -1 must be a finite number of at least 0: change sigma."),
    ("--constants c.json --rule two-sided", "--rule two-sided needs --adapted-gradient NUMBER"),
    ("--constants c.json --adapted-gradient 1", "--rule two-sided needs --adapted-gradient NUMBER, and no other rule takes it"),
    ("--constants c.json --spread 1", "--spread is for --rule two-sided"),
    ("--constants c.json --rule two-sided --adapted-gradient 1 --gamma-plus 3", "--gamma-plus 3"),
    ("--measure images", "has no data to measure on"),
    ("--measure navigation", "no support sets to measure constants on"),
    ("--measure nothing", "There is no task and no run 'nothing': give sinusoid, matrix, or the folder of a run"),
    ("--measure matrix --tasks 1", "--tasks 1 must be a whole number of at least 2"),
]


@pytest.mark.parametrize("arguments, sentence", BAD)
def test_bad_options(run, constants, arguments, sentence):
    Path("half.json").write_text('{"L": 1, "rho": 1, "sigma": 1}')
    Path("odd.json").write_text('{"Lipschitz": 1}')
    Path("negative.json").write_text('{"L": 1, "rho": 1, "sigma": -1, "gap": 1}')
    assert sentence in run("plan", *arguments.split()).sentence
