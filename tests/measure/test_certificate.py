"""The certificate: the right mean, verdicts that follow from the numbers, and blocks that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import regression

import adaptax as ax
from adaptax import measure
from adaptax.errors import InputError
from adaptax.measure import certificate
from adaptax.measure.certificate import tasks_needed
from adaptax.measure.squared_norm import SquaredNorm
from adaptax.tasks import cosine

METHOD = ax.MetaGradient(ax.Inner(2, 0.2))


@pytest.fixture(scope="module")
def pool():
    return cosine(dim=4, tasks=9, seed=2)


def truth(pool, w, method=METHOD):
    return float(jnp.linalg.norm(method.batch(pool.finite_sum, w, pool.tasks)[1]))


def test_it_bounds_the_gradient_of_the_pool(pool):
    w = jnp.full(4, 0.7)
    found = measure.stationarity(pool.finite_sum, w, METHOD, tasks=300)
    exact = truth(pool, w)
    assert abs(found.squared_norm - exact**2) < 4 * found.standard_error
    assert found.low <= exact <= found.upper <= found.high and found.upper < 2 * exact
    assert found.epsilon is found.stationary is found.more_tasks is None
    assert found.cost == METHOD.cost().times(300)
    wider = measure.stationarity(pool.finite_sum, w, METHOD, tasks=300, bias=0.5)
    assert wider.upper == pytest.approx(found.upper + 0.5) and wider.low == pytest.approx(max(found.low - 0.5, 0))


def test_verdicts(pool):
    w = jnp.full(4, 0.7)
    exact = truth(pool, w)
    certify = lambda epsilon, tasks=100: measure.stationarity(pool.finite_sum, w, METHOD, epsilon=epsilon, tasks=tasks)  # noqa: E731
    sure = certify(3 * exact)
    assert sure.stationary and sure.more_tasks is None and sure.verdict.startswith("stationary to")
    never = certify(0.1 * exact)
    assert not never.stationary and never.more_tasks is None and "will not show it" in never.verdict
    first = certify(3 * exact).upper
    estimate = np.sqrt(sure.squared_norm)
    between = (estimate + 3 * first) / 4
    more = certify(between)
    assert not more.stationary and more.more_tasks > 0 and f"about {more.more_tasks} more tasks" in more.verdict


def test_the_number_of_tasks_needed():
    found = SquaredNorm(1.0, 0.1, 1.3, 0.8, 1.4, linear=2.0, degenerate=3.0)
    more = tasks_needed(found, np.sqrt(1.1), 100)
    # Where the linear part rules, a third of the width takes nine times the tasks.
    assert more == pytest.approx(800, rel=0.1)
    assert tasks_needed(found, 1.0, 100) is None and tasks_needed(found, -1.0, 100) is None


def test_blocks_and_rules(pool, monkeypatch):
    w, method = jnp.ones(4), ax.MetaGradient(ax.Inner(2, ax.stepsize.Edge(tasks=2)))
    whole = measure.stationarity(pool.finite_sum, w, method, tasks=10)
    # Nine of the ten fit.
    monkeypatch.setattr(certificate, "_BUDGET", 10 * 4 * 4 - 1)
    blocks = measure.stationarity(pool.finite_sum, w, method, tasks=10, in_flight=2)
    alone = measure.stationarity(pool.finite_sum, w, method, tasks=10, devices=jax.devices()[:1])
    for found in (blocks, alone):
        np.testing.assert_allclose([found.upper, found.low], [whole.upper, whole.low], rtol=1e-4)
    # Blocks of 4, 4 and 2: the later ones are formed again beside each earlier one.
    assert blocks.cost == method.cost().times(10 + 6 + 2) and whole.cost == method.cost().times(10)


@pytest.mark.slow
def test_networks():
    problem, model, task = regression()
    sample_task = lambda key: jax.tree.map(lambda leaf: leaf + jax.random.uniform(key), task)  # noqa: E731
    problem = ax.FiniteSum(problem.loss, sample_task)
    found = measure.stationarity(problem, model, METHOD, tasks=20)
    assert 0 <= found.low < found.upper < found.high < np.inf


def test_resampling_draws_and_numbers_that_are_not_finite(pool):
    found = measure.stationarity(pool.resampling, jnp.zeros(4), METHOD, tasks=8, epsilon=1e9)
    assert found.stationary
    lost = measure.stationarity(pool.finite_sum, jnp.full(4, jnp.nan), METHOD, tasks=8, epsilon=1.0)
    assert not lost.stationary and lost.upper == np.inf and "not finite" in lost.verdict


@pytest.mark.parametrize(
    "options, match",
    [
        ({"tasks": 7}, "tasks=7 must be a whole number of at least 8"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be a positive number"),
        ({"bias": -1.0}, "bias=-1.0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_refusals(pool, options, match):
    with pytest.raises(InputError, match=match):
        measure.stationarity(pool.finite_sum, jnp.zeros(4), METHOD, **options)


def test_refuses_what_is_no_method(pool):
    with pytest.raises(InputError, match=r"method must be a method such as ax\.MetaGradient"):
        measure.stationarity(pool.finite_sum, jnp.zeros(4), METHOD.inner)  # pyright: ignore[reportArgumentType]
