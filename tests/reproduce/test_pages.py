"""The committed pages are those of the committed rows, and pages of altered rows or settings state something else."""

import dataclasses
from pathlib import Path

import pytest

from adaptax.report.rows import pick
from adaptax.reproduce import matrix, meta_training_page, sinusoid
from adaptax.reproduce.csv_rows import read_rows
from adaptax.reproduce.estimators import page as estimators
from adaptax.reproduce.meta_training import ADAM
from adaptax.reproduce.navigation import page as navigation
from adaptax.reproduce.navigation.settings import PAPER, SMALL, surrogate
from adaptax.reproduce.rates import convergence_map, cost_of_accuracy, noise_floor
from adaptax.reproduce.rates import page as rates
from adaptax.reproduce.rates.problems import ADAPTIVE, CONSTANT, EDGE, FIXED, GUARANTEED
from adaptax.reproduce.strategies import GGS, STEIN, UNCORRECTED

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "experiments"
COMPOSE = {
    "hessian-estimators": estimators.compose,
    "matrix": lambda rows: meta_training_page.compose(rows, "matrix", matrix.experiment(2000)),
    "sinusoid": lambda rows: meta_training_page.compose(rows, "sinusoid", sinusoid.experiment(3000)),
    "rates": rates.compose,
    "navigation": navigation.compose,
}


@pytest.fixture(scope="module")
def committed():
    """The rows of the committed CSVs, by experiment."""
    return {name: read_rows(FOLDER / name / f"{name}.csv") for name in COMPOSE}


@pytest.mark.parametrize("name", COMPOSE)
def test_committed_pages_are_made_of_the_committed_rows(committed, name):
    assert COMPOSE[name](committed[name]) == (FOLDER / name / "README.md").read_text()


def altered(rows, change, **wanted):
    """The rows, with `change` applied to a copy of those with the wanted entries."""
    chosen = {id(row) for row in pick(rows, **wanted)}
    assert chosen
    return [row | change(row) if id(row) in chosen else row for row in rows]


def times(factor, column="value"):
    """A change that multiplies a column by a number, or by a function of the row."""
    return lambda row: {column: row[column] * (factor(row) if callable(factor) else factor)} if column in row else {}


STALLED = {"part": "map", "measure": "stalled", "problem": "sinusoid"}
RATES = [
    # Convergence without noise.
    ({"measure": "mean phi"}, times(3), "The bound on the mean of φ holds", "The bound on the mean of φ is exceeded at "),
    ({"measure": "least square"}, times(1e40), "on the least ‖∇L‖² holds", "The bound on the least ‖∇L‖² is exceeded at "),
    ({"measure": "mean phi"}, times(lambda row: row["x"] ** 0.5), "is no evidence by itself", "-0.50 ± 0.00"),
    ({"measure": "least square"}, lambda row: {"value": 1 / row["x"]}, "falls geometrically", "0.73"),
    ({"part": "noise-free", "x": 10_000}, lambda row: {"x": 20_000}, "--scale 1`", "--scale 2`"),
    # The floor.
    ({"part": "floor"}, times(lambda row: row["x"]), "at most 0.0048;", "differ from −1 by at most 1"),
    ({"part": "floor"}, times(lambda row: row["x"]), "6 of 8 intervals contain", "0 of 8 intervals contain −1"),
    # The cost of an accuracy.
    ({"rule": GUARANTEED}, times(lambda row: row["steps"]), "None is above the promised", "Above the promised 1 is: "),
    ({"rule": GUARANTEED}, times(lambda row: row["steps"], "x"), "it hardly depends on N", "K lies between 39 and 26"),
    ({"rule": GUARANTEED, "seed": 1, "steps": 64, "samples": "S = 16"}, lambda row: {"measure": "not reached"},
     "0.66 ± 0.01 (resampling, S = 16)", f"Not all seeds reach the accuracy under {GUARANTEED} (resampling, S = 16) at N = 64"),
    ({"rule": FIXED, "outer": ADAPTIVE}, lambda row: {"measure": "reached", "x": 7, "value": 7.0},
     "not all seeds reach the accuracy at N = 16", "K is 7, 7, 7, 7, 7, 7, 7 at N = 1, 2, 4, 8, 16, 32, 64 (finite-sum)"),
    ({"rule": FIXED, "outer": CONSTANT}, lambda row: {"measure": "diverged"},
     "which reaches the accuracy at every N", "which does not reach the accuracy at every N."),
    ({"rule": EDGE}, times(lambda row: 100, "x"), "K is at most 2 at N = 16, 32 and 64", "K is at most 2 at N = 32 and 64"),
    ({"part": "plan"}, times(lambda row: row["steps"]), "the exponents 0.93 (finite-sum)", "the exponents 1.93 (finite-sum)"),
    # Bias and second moment.
    ({"measure": "bias", "S": 1}, times(1e3), "The bound on the bias holds", "bound on the bias is exceeded in 1 of 11 rows"),
    ({"measure": "second moment"}, times(3), "The bound on the second moment holds", "is exceeded in 11 of 11 rows"),
    ({"measure": "bias"}, times(lambda row: row["S"] ** 0.5), "Where third derivatives are bounded", "S to the power -0.50"),
    # Where training converges.
    (STALLED, lambda row: {"measure": "diverged"}, "Below the curve no run diverged", "Below the curve 13 runs diverged"),
    ({"part": "map", "measure": "converged"}, times(1e-9, "alpha"), "sufficient, not necessary", "No run converges above"),
    (STALLED, lambda row: {"measure": "converged"}, "Sinusoids converge above it only", "| Adam | below the curve | 13 |"),
]  # fmt: skip


@pytest.mark.parametrize("wanted, change, before, after", RATES)
def test_the_rates_page_follows_its_rows(committed, wanted, change, before, after):
    found = rates.compose(committed["rates"]), rates.compose(altered(committed["rates"], change, **wanted))
    assert before in found[0] and before not in found[1]
    assert after in found[1] and (after not in found[0] or after == "0.73")


@pytest.mark.parametrize(
    "module, name, value, words",
    [
        (noise_floor, "SAMPLES", 50, "S = D = T = D_L = 50"),
        (cost_of_accuracy, "D_L", 17, "D_L = 17"),
        (cost_of_accuracy, "EPSILON", 0.3, "‖∇L(w_k)‖ ≤ 0.3"),
        (convergence_map, "SMALL", 0.25, "‖∇L‖ is at most 0.25"),
        (rates, "DIM", 9, "9 parameters"),
    ],
)
def test_the_rates_page_follows_its_settings(committed, monkeypatch, module, name, value, words):
    assert words not in rates.compose(committed["rates"])
    monkeypatch.setattr(module, name, value)
    assert words in rates.compose(committed["rates"])


DIRECTIONS = {"part": "directions", "measure": "rms", "samples": 1000}
ESTIMATORS = [
    (DIRECTIONS | {"estimator": UNCORRECTED}, times(0.01), "never: its bias stays", "does not err by more than Stein's form"),
    (DIRECTIONS | {"estimator": UNCORRECTED}, times(1e-4), "These err by less", "No other one errs by less at this Q"),
    ({"measure": "variance", "estimator": GGS}, times(50), "All of the 48", "All but 4 of the 48"),
    ({"measure": "rms", "estimator": STEIN}, times(lambda row: row["samples"] ** 0.5), "Stein -0.487", "Stein 0.013"),
    ({"measure": "trace"}, times(0.01), "which the bias exceeds by a factor 9.3", "½|tr H|‖v‖/‖Hv‖ = 0.0928"),
    ({"part": "radius", "measure": "width error"}, times(lambda row: row["delta"] ** 0.1), "by at most 0.02", "by at most 0.1"),
    ({"part": "radius", "estimator": "finite difference"}, times(1.5), ": 0.999 to 1.000", ": 1.499 to 1.500"),
    ({"part": "directions"}, lambda row: {"repeats": 30}, "--repeats 200 --seed 0`", "--repeats 30 --seed 0`"),
    ({"part": "run"}, lambda row: {"value": 4}, "--seed 0`", "--seed 4`"),
    ({"measure": "rms", "samples": 10}, times(1e-3), "An error above 1 is larger", "| zeroth order, Stein |"),
]  # fmt: skip


@pytest.mark.parametrize("wanted, change, before, after", ESTIMATORS)
def test_the_estimators_page_follows_its_rows(committed, wanted, change, before, after):
    rows = committed["hessian-estimators"]
    found = estimators.compose(rows), estimators.compose(altered(rows, change, **wanted))
    assert before in found[0] and before not in found[1] and after in found[1]


def test_the_meta_training_pages_follow_rows_and_settings(committed):
    rows, what = committed["matrix"], matrix.experiment(2000)
    before = COMPOSE["matrix"](rows)
    worse = "it is worse than using no Hessian at all"
    assert worse in before and "## α = 0.01 (the paper's)" in before and "takes longer steps" in before
    less = altered(rows, times(0.01), part="gradient error", method=UNCORRECTED)
    assert worse not in meta_training_page.compose(less, "matrix", what)
    settings = tuple(sizes._replace(published=not sizes.published) for sizes in what.settings)
    other = dataclasses.replace(what, inner_steps=5, tasks_per_step=7, optimizer=ADAM, settings=settings, held_out=60)
    after = meta_training_page.compose(rows, "matrix", other)
    assert "Inner steps: N = 5; tasks a meta-step: 7; outer optimiser: Adam." in after
    assert "takes longer steps" not in after and "mean over 60 held-out tasks after N = 5 inner steps" in after
    assert "6 gradients and 5 Hessian-vector products" in after
    assert "## α = 0.01, outer" in after and "## α = 0.05 (the paper's)" in after


def test_the_navigation_page_follows_settings_and_rows(committed, monkeypatch):
    rows = committed["navigation"]
    small = SMALL._replace(horizon=7, hidden=(5,), trajectories=9, values=3)
    text = navigation.compose(rows, (PAPER._replace(goals=11, tasks=12, trajectories=13, fisher=4), small))
    assert "over 11 held-out goals" in text and "A meta-step takes 12 goals, with 13 trajectories at every use" in text
    assert "F is formed on 4 of the goals" in text and "Horizon 7, network 2-5-2, " in text
    assert "the surrogates of 9 episodes a task" in text and "both zeroth-order forms have 3, " in text
    published = "those of published code, whose α = 0.1"
    assert published in text and "from returns alone takes 21 times the environment steps" in text
    plain = surrogate(published=False)
    monkeypatch.setattr(navigation, "surrogate", lambda: plain)
    cheap = altered(rows, times(0.5, "env_steps"), method=navigation.FROM_RETURNS)
    text = navigation.compose(cheap)
    assert published not in text and "normalise=False, discount_weighting=True)`: generalised" in text
    assert "from returns alone takes 10.5 times the environment steps" in text


def test_goals_and_policies_are_as_the_navigation_page_says():
    import jax
    import jax.numpy as jnp

    import adaptax as ax
    from adaptax.reproduce.navigation.settings import GOAL_BOX, STD, policy

    goals = jax.vmap(ax.tasks.rl.navigation().sample_task)(jax.random.split(jax.random.key(0), 2000))
    assert 0.99 * GOAL_BOX < float(jnp.max(jnp.abs(goals))) <= GOAL_BOX
    network = policy(SMALL, 0)
    assert float(jnp.exp(network.log_std).max()) == pytest.approx(STD) and network.mean.activation is jax.nn.relu


def test_sinusoids_that_converged_needed_adaptation():
    """The error of the best function without adaptation, by drawing, is above what counts as converged."""
    import jax
    import jax.numpy as jnp

    import adaptax as ax

    tasks = jax.vmap(ax.tasks.sinusoid(1, 100).sample_task)(jax.random.split(jax.random.key(0), 4000))
    x, y = (part.ravel() for part in tasks.target)
    # E[y | x] is a multiple of cos x.
    slope = jnp.vdot(jnp.cos(x), y) / jnp.vdot(jnp.cos(x), jnp.cos(x))
    assert float(jnp.mean((y - slope * jnp.cos(x)) ** 2)) == pytest.approx(convergence_map.least_unadapted(), rel=0.03)
    assert convergence_map.least_unadapted() > convergence_map.LEARNED
