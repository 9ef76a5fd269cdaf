"""Measured constants: below the exact ones, equal to closed forms where there are some, on any kind of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import images, regression

import adaptax as ax
from adaptax import measure, theory
from adaptax._lanczos import both_ends
from adaptax.errors import InputError
from adaptax.tasks import cosine


@pytest.fixture(scope="module")
def pool():
    return cosine(dim=5, tasks=7, largest=1.5, amplitude=0.7, noise=(0.3, 0.4), seed=4)


def test_finite_sum_against_dense_matrices_and_closed_forms(pool, x64):
    w, inner, tasks = jnp.linspace(-2.0, 2.0, 5), ax.Inner(3, 0.2), pool.tasks
    found = measure.constants(pool.finite_sum, w, inner, tasks=tasks, iterations=20)
    gradient, hessian = jax.jit(jax.grad(pool.finite_sum.loss)), jax.jit(jax.hessian(pool.finite_sum.loss))
    norms, highest, lowest = [], [], []
    for i in range(7):
        support, target = ((p[i], o[i]) for p, o in (tasks.support, tasks.target))
        at = w
        for _ in range(4):
            eigenvalues = np.linalg.eigvalsh(hessian(at, support))
            norms += [np.abs(eigenvalues).max(), np.linalg.norm(hessian(at, target), 2)]
            highest.append(eigenvalues[-1])
            lowest.append(eigenvalues[0])
            at = at - 0.2 * gradient(at, support)
    assert found.L.value == pytest.approx(max(norms), rel=1e-9)
    assert found.lam.value == pytest.approx(max(highest), rel=1e-9)
    assert found.mu.value == pytest.approx(-min(lowest), rel=1e-9) and 0 < found.mu.value < found.lam.value
    by_task = np.reshape(lowest, (7, 4)).min(1)
    assert found.mu.standard_error == pytest.approx(by_task.std(ddof=1) / np.sqrt(7), rel=1e-6)
    assert theory.Constants(L=found.L.value, rho=1.0, sigma=0.0, lam=found.lam.value, mu=found.mu.value).path(0.1, 2).q > 1
    support, target = (jax.vmap(gradient, (None, 0))(w, terms) for terms in (tasks.support, tasks.target))
    deviations = jnp.sum((target - target.mean(0)) ** 2, 1)
    assert found.sigma.value == pytest.approx(float(jnp.sqrt(deviations.sum() / 6)), rel=1e-9)
    assert found.b.value == pytest.approx(float(jnp.sqrt(jnp.mean(jnp.sum((support - target) ** 2, 1)))), rel=1e-9)
    exact = pool.constants
    assert 0.8 * exact.L < found.L.value <= exact.L and 0.8 * exact.rho < found.rho.value <= exact.rho
    assert found.sigma.value * np.sqrt(6 / 7) <= exact.sigma and found.b.value <= exact.b
    assert found.sigma_g.value == found.sigma_H.value == found.points_skipped == 0
    assert all(value.standard_error >= 0 for value in (found.L, found.rho, found.sigma, found.b))
    # Each point: 2 losses by 5 products, and 2 directions, 2 rounds, 5 differences of two; the gradients are 3 + 8 + 4.
    assert found.cost == ax.Cost(gradients=7 * 15, hessian_vector_products=7 * 4 * (10 + 40))


@pytest.mark.long
def test_mu_is_negative_where_the_losses_are_strongly_convex(pool):
    found = measure.constants(pool.finite_sum, jnp.zeros(5), ax.Inner(1, 0.1, proximal=2.0), tasks=pool.tasks)
    plain = measure.constants(pool.finite_sum, jnp.zeros(5), ax.Inner(0, 0.1), tasks=pool.tasks)
    assert -2 < found.mu.value < 0 < plain.mu.value and 0 < found.lam.value - 2 < pool.constants.L


@pytest.mark.long
def test_resampling_against_closed_forms(pool):
    w = jnp.full(5, 0.4)
    found = measure.constants(pool.resampling, w, ax.Inner(0, 0.1), tasks=24, iterations=8, draws=48, seed=1)
    s_x, s_z = pool.noise
    near = lambda value, exact: abs(value.value - exact) < 4 * value.standard_error  # noqa: E731
    assert near(found.sigma_g, np.sqrt(5 * s_x**2 + s_z**2 * 5 * np.sin(0.4) ** 2))
    assert near(found.sigma_H, s_z * np.cos(0.4))
    assert found.sigma_g.value < pool.constants.sigma_g + 4 * found.sigma_g.standard_error
    assert found.L.value < pool.constants.L + 4 * s_z / np.sqrt(48)
    gradients = jax.vmap(jax.grad(pool.finite_sum.loss), (None, 0))(w, pool.tasks.target)
    assert near(found.sigma, float(jnp.sqrt(jnp.mean(jnp.sum((gradients - gradients.mean(0)) ** 2, 1)))))
    assert found.b.value == 0


def test_rho_where_it_is_attained(pool, x64):
    # The third derivative of the first support loss is largest along the axes, which no random direction is.
    w = jnp.pi / 2 - jnp.asarray(pool.support_phases[0])
    found = measure.constants(pool.finite_sum, w, ax.Inner(3, 0.2), tasks=pool.tasks)
    assert found.rho.value == pytest.approx(0.7, rel=1e-3) and found.rho.value <= 0.7 * (1 + 1e-6)


def test_points_that_are_not_finite_are_passed_over(pool, x64):
    broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), pool.tasks)
    told = r"sigma, b cannot be measured \(are NaN\): 1 of 7 tasks was not finite, task 1 .* NaN in task\.support\[0\], task"
    with pytest.warns(ax.NotFiniteWarning, match=told):
        found = measure.constants(pool.finite_sum, jnp.zeros(5), ax.Inner(3, 0.2), tasks=broken)
    assert found.points_skipped == 8 and 0 < found.L.value <= pool.constants.L and 0 < found.rho.value <= pool.constants.rho
    assert np.isnan(found.sigma.value)


def stacked(task, count=3):
    """Tasks that are not all alike: the inputs of each are scaled."""
    scale = lambda leaf: jnp.stack([leaf * (1 + k) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf for k in range(count)])  # noqa: E731
    return jax.tree.map(scale, task)


@pytest.mark.slow
def test_networks_with_all_options():
    problem, model, task = regression()
    inner = ax.Inner(
        2, ax.stepsize.Edge(), adapt=lambda path: "1" in path, optimizer=optax.sgd(1.0, momentum=0.5), proximal=0.3,
        start=lambda model: jax.tree.map(lambda leaf: 2 * leaf if jnp.ndim(leaf) else leaf, model),
    )  # fmt: skip
    found = measure.constants(problem, model, inner, tasks=stacked(task), iterations=5)
    assert found.L.value >= found.lam.value > 0.3 and found.rho.value > 0 and found.sigma.value > 0
    assert found.points_skipped == 0


@pytest.mark.slow
def test_learned_rates():
    problem, model, task = regression()
    learned = ax.stepsize.Learned(0.01)
    params = ax.Meta(model, learned.start(model, 2))
    given = measure.constants(problem, model, ax.Inner(2, 0.01), tasks=stacked(task), iterations=4)
    found = measure.constants(problem, params, ax.Inner(2, learned), tasks=stacked(task), iterations=4)
    assert found.L.value == pytest.approx(given.L.value, rel=1e-4) and found.sigma.value == pytest.approx(given.sigma.value)


@pytest.mark.slow
def test_convolutional_networks():
    problem, model, task = images(channels=4)
    found = measure.constants(problem, model, ax.Inner(1, 0.1), tasks=stacked(task, 2), iterations=4)
    assert found.L.value > 0 and found.points_skipped == 0 and found.rho.value > 0


def test_lanczos_breaks_down_in_order():
    diagonals = jnp.array([[3.0, 1.0, -5.0, 1.0], [0.0] * 4, [2.0] * 4, [jnp.nan] * 4, [1.0] * 4, [4.0, -7.0, 1.0, 0.0]])
    starts = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0] * 4, [1.0, 2.0, 3.0, 4.0], [1.0] * 4, [0.0] * 4, [1.0] * 4])
    ends = jax.jit(jax.vmap(lambda d, start: both_ends(lambda v: d * v, start, 20)))(diagonals, starts)
    np.testing.assert_allclose(ends.low, [1, 0, 2, jnp.nan, jnp.nan, -7], atol=1e-5)
    np.testing.assert_allclose(ends.high, [3, 0, 2, jnp.nan, jnp.nan, 4], atol=1e-5)
    np.testing.assert_allclose(jnp.abs(ends.bottom[-1]), [0, 1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(jnp.abs(ends.top[-1]), [1, 0, 0, 0], atol=1e-3)
    # Where all directions are alike, both are the start.
    np.testing.assert_allclose([ends.bottom[2], ends.top[2]], [starts[2] / jnp.linalg.norm(starts[2])] * 2, atol=1e-5)


def test_rounding_makes_no_negative_eigenvalue():
    """Low rank ends the iteration early; what is left of a vector then must not count as one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5, 60)) * 10.0 ** rng.uniform(-3, 3, (40, 1, 1))
    grams, starts = (
        jnp.asarray(np.einsum("kij,kil->kjl", x, x), jnp.float32),
        jnp.asarray(rng.normal(size=(40, 60)), jnp.float32),
    )
    largest = np.linalg.norm(x, 2, axis=(1, 2)) ** 2
    ends = jax.jit(jax.vmap(lambda a, start: both_ends(lambda v: a @ v, start, 12)))(grams, starts)
    assert (np.asarray(ends.low) > -1e-5 * largest).all()
    np.testing.assert_allclose(ends.high, largest, rtol=1e-5)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"tasks": 1}, "tasks=1 must be a whole number of at least 2"),
        ({"iterations": 0}, "iterations=0"),
        ({"draws": 7}, "draws=7"),
        ({"seed": -1}, "seed=-1"),
        ({"radius": 0.0}, "radius=0.0 must be a positive number"),
    ],
)
def test_refusals(pool, options, match):
    with pytest.raises(InputError, match=match):
        measure.constants(pool.finite_sum, jnp.zeros(5), ax.Inner(1, 0.1), **options)
    with pytest.raises(InputError, match="inner must be"):
        measure.constants(pool.finite_sum, jnp.zeros(5), 0.1)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.mission
def test_samples_follow_the_task_and_not_the_device(pool, x64):
    # Three tasks on two devices: the last place is filled up with one of them, which must not count twice.
    options = {"tasks": 3, "iterations": 1, "draws": 8, "seed": 3}
    w, inner = jnp.linspace(-2.0, 2.0, 5), ax.Inner(0, 0.1)
    one, two = (measure.constants(pool.resampling, w, inner, **options, devices=jax.devices()[:n]) for n in (1, 2))
    for name in ("L", "lam", "mu", "rho", "sigma", "sigma_g", "sigma_H"):
        np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=1e-6, err_msg=name)
    assert two.cost == one.cost and one.sigma.value > 0


def test_parameters_that_are_cut_stay_where_they_are(pool):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), "x")
    w = jnp.linspace(-2.0, 2.0, 6)[:4]
    cut = jax.device_put(w, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    few = cosine(dim=4, tasks=3, seed=4).finite_sum
    whole, parts = (measure.stationarity(few, x, ax.MetaGradient(ax.Inner(1, 0.1)), tasks=8) for x in (w, cut))
    assert parts.upper == pytest.approx(whole.upper, rel=1e-5)
    with pytest.raises(InputError, match="leave devices= out"):
        measure.constants(few, cut, ax.Inner(1, 0.1), tasks=3, devices=jax.devices()[:2])
