"""The rates experiment: its short cuts are exact, and a small run in full writes its files and page."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax import theory
from adaptax.report.rows import pick
from adaptax.reproduce.csv_rows import read_rows
from adaptax.reproduce.rates import (
    bias_and_second_moment,
    bounds_on_instances,
    convergence_map,
    convergence_without_noise,
    cost_by_adapted_gradients,
    cost_of_accuracy,
    fits,
    noise_floor,
    problems,
)
from adaptax.reproduce.rates.problems import COSINE, FINITE, QUADRATIC, RESAMPLING, Exact, Scales


@pytest.mark.slow
def test_one_draw_is_distributed_as_the_mean_of_its_samples(x64):
    pool = problems.pool_of(COSINE)
    task = jax.tree.map(lambda leaf: leaf[0], pool.tasks.target)
    plain = pool.resampling
    keys = jax.random.split(jax.random.key(0), 4000)
    w = jnp.arange(6.0)
    for purpose, size in ((1, 4), (2, 9), (3, 16), (4, 25)):
        short = problems.problem_of(pool, RESAMPLING, Scales.of(4, 9, 16, 25))

        def gradients(problem, count):
            return jax.vmap(lambda key: jax.grad(problem.loss)(w, problem.draw(task, w, key, count)))(keys)

        a, b = gradients(short, purpose), gradients(plain, size)
        spread = float(jnp.sqrt(jnp.sum(a.var(0)) / len(keys)))
        assert jnp.linalg.norm(a.mean(0) - b.mean(0)) < 6 * spread
        assert abs(jnp.sum(a.var(0)) / jnp.sum(b.var(0)) - 1) < 0.06
    exact = problems.problem_of(pool, RESAMPLING, Scales.of())
    value = exact.loss(w, exact.draw(task, w, jax.random.key(0), 1))
    assert float(value) == float(pool.finite_sum.target_loss(w, task))


@pytest.mark.parametrize("case", [pytest.param(FINITE, marks=pytest.mark.slow), RESAMPLING])
def test_exact_derivatives_and_one_step_without_noise(x64, case):
    pool, steps, alpha = problems.pool_of(COSINE), 3, jnp.asarray(0.05)
    exact, c = Exact(problems.problem_of(pool, case), steps), problems.constants_of(pool, case)
    w = problems.starts(1)[0]
    value, gradient, mean_norm = exact(w, alpha)

    def meta_loss(w):
        def one(task):
            at = w
            for _ in range(steps):
                at = at - alpha * jax.grad(pool.finite_sum.loss)(at, task.support if case == FINITE else task.target)
            return pool.finite_sum.loss(at, task.target)

        return jnp.mean(jax.vmap(one)(pool.tasks))

    np.testing.assert_allclose(value, meta_loss(w), rtol=1e-12)
    np.testing.assert_allclose(gradient, jax.grad(meta_loss)(w), rtol=1e-10)
    bend = theory.smoothness(theory.Expansion(0.05, c.L, steps), c.rho, mean_norm, c.b)
    (after,), (norms,) = problems.descend(exact, c, w[None], alpha, 1)
    np.testing.assert_allclose(after, w - gradient / (2 * bend), rtol=1e-12)
    np.testing.assert_allclose(norms[0], jnp.linalg.norm(gradient), rtol=1e-12)


def test_slopes_and_their_intervals():
    x = np.array([1.0, 2, 4, 8])
    values = np.stack([3 / x, 5 / x**1.2], axis=1)
    mean, half = fits.slope(x, values)
    # Student's quantile with one degree of freedom is 12.706; the standard error of -1 and -1.2 is 0.1.
    assert abs(mean + 1.1) < 1e-12 and abs(half - 1.2706) < 1e-3


def test_the_first_passage_is_counted():
    found = cost_of_accuracy.reached(np.array([1.0, 0.5, 0.09, 0.2]), 7.0)
    assert found == {"measure": "reached", "x": 2, "value": 14.0}
    assert cost_of_accuracy.reached(np.array([1.0, 0.5]), 7.0) == {"measure": "not reached"}
    assert cost_of_accuracy.reached(np.array([1.0, np.nan]), 7.0) == {"measure": "diverged"}


@pytest.mark.slow
def test_the_experiment_in_small(tmp_path):
    from adaptax.reproduce.rates import rates

    rates(tmp_path, seeds=2, scale=0.02, say=lambda text: None, largest=4)
    rows = read_rows(tmp_path / "rates.csv")
    free = pick(rows, part="noise-free", measure="mean phi")
    assert {row["problem"] for row in free} == {COSINE, QUADRATIC}
    assert all(row["value"] <= row["bound"] for row in free)
    moments = pick(rows, part="moments")
    assert all(row["value"] <= row["bound"] + 4 * row["error"] for row in moments)
    page = (tmp_path / "README.md").read_text()
    for name in ("noise-free", "floors", "costs", "moments", "maps"):
        assert f"({name}.png)" in page and (tmp_path / f"{name}.svg").is_file()


def test_what_a_meta_step_sees_by_adapted_gradients(x64):
    pool, steps, alpha = problems.pool_of(problems.CONVEX), 3, jnp.asarray(0.4)
    w = problems.starts(1)[0]
    at = cost_by_adapted_gradients.look(pool.finite_sum, w, alpha, steps)
    value, gradient, mean_norm = Exact(pool.finite_sum, steps)(w, alpha)
    np.testing.assert_allclose(at.gradients.mean(0), gradient, rtol=1e-10)
    np.testing.assert_allclose([at.value, at.before.mean()], [value, mean_norm], rtol=1e-12)
    c = pool.constants
    assert abs(c.mu) < 1e-15 and c.lam == c.L
    # One meta-step of the same batches, whose outer step is written out.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    chosen, apart = (jax.random.randint(key, (n,), 0, 8) for key, n in zip(keys, (16, 8), strict=True))
    for adapted, sizes in ((True, at.after), (False, at.before)):
        path = c.path(0.4, steps) if adapted else theory.Expansion(0.4, c.L, steps)
        slope = theory.jacobian_lipschitz(path, c.rho) if adapted else theory.smoothness_slope(path, c.rho)
        bend = (path.q * c.L if adapted else theory.smoothness_floor(path, c.rho, c.b)) + slope * sizes[apart].mean()
        norms, _ = cost_by_adapted_gradients.simulate(pool, c, w[None], 0.4, steps, adapted, 2)
        after = Exact(pool.finite_sum, steps)(w - at.gradients[chosen].mean(0) / (2 * bend), alpha)[1]
        np.testing.assert_allclose(norms[0], [jnp.linalg.norm(gradient), jnp.linalg.norm(after)], rtol=1e-9)


def test_the_bounds_on_random_losses_hold():
    rows = list(bounds_on_instances.measure(300))
    largest = {row["measure"]: row["value"] for row in pick(rows, case="largest")}
    smaller = largest.pop(bounds_on_instances.SMALLER)
    assert len(largest) == 9 and max(largest.values()) <= 1 + 1e-6 and min(largest.values()) > 0.3 and smaller > 1e6
    many = bounds_on_instances.draw(40)
    w, step = np.ones((40, 3)), 1e-6
    hessian = np.stack([(many.gradient(0, w + step * e) - many.gradient(0, w - step * e)) / 2e-6 for e in np.eye(3)], -1)
    np.testing.assert_allclose(many.hessian(w), hessian, atol=1e-6)
    end = np.stack([(many.adapted(w + step * e)[0] - many.adapted(w - step * e)[0]) / 2e-6 for e in np.eye(3)], 1)
    np.testing.assert_allclose(many.adapted(w)[1], end, atol=1e-5 * np.abs(end).max())


def test_pools_share_what_they_should(x64):
    whole, one = problems.pool_of(COSINE), problems.pool_of(COSINE, tasks=1)
    assert one.constants.sigma == 0 < whole.constants.sigma
    assert dataclasses.replace(one.constants, sigma=1, b=1) == dataclasses.replace(whole.constants, sigma=1, b=1)
    assert problems.pool_of(QUADRATIC).constants.rho == 0
    assert isinstance(problems.problem_of(whole, RESAMPLING, Scales.of(1)), ax.Resampling)


@pytest.mark.parametrize("sizes, name", [({"seeds": 1}, "seeds=1"), ({"scale": 0}, "scale=0"), ({"largest": 0}, "largest=0")])
def test_bad_sizes(tmp_path, sizes, name):
    from adaptax.reproduce.rates import rates

    with pytest.raises(ax.InputError, match=f"{name}.*: change {name.split('=')[0]}="):
        rates(tmp_path / "out", **sizes)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.mission
def test_sizes_reach_every_experiment(tmp_path, monkeypatch):
    """The experiments stand in by the committed rows, of which the CSV and the page are made again."""
    from adaptax.reproduce.rates import rates

    committed = Path(__file__).resolve().parents[2] / "docs" / "experiments" / "rates"
    rows, seen = read_rows(committed / "rates.csv"), []
    wanted = {
        convergence_without_noise: {"measure": [("part", "noise-free")]},
        noise_floor: {"measure": [("part", "floor")]},
        cost_of_accuracy: {"measure": [("part", "cost"), ("part", "plan")]},
        bias_and_second_moment: {"measure": [("part", "moments")]},
        cost_by_adapted_gradients: {"measure": [("part", "two-sided cost")]},
        bounds_on_instances: {"measure": [("part", "two-sided bounds")]},
        convergence_map: {"measure_cosine": [("problem", "rough cosine")], "measure_sinusoid": [("problem", "sinusoid")]},
    }
    for module, functions in wanted.items():
        for name, entries in functions.items():

            def stand_in(*sizes, entries=entries):
                seen.append(sizes)
                return [row for row in rows if any(row.get(column) == value for column, value in entries)]

            monkeypatch.setattr(module, name, stand_in)
    rates(tmp_path, 3, 0.1, lambda text: None, largest=8)
    assert seen == [(3, 1000), (3, 250), (3, 300, 8), (6400,), (3, 100, 8), (150,), (50, 8), (80, 8)]
    assert sorted(map(str, read_rows(tmp_path / "rates.csv"))) == sorted(map(str, rows))
    assert (tmp_path / "README.md").read_text() == (committed / "README.md").read_text()
