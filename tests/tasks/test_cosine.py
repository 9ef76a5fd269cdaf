"""The cosine problem: every constant bounds what it should at random points, and is attained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import Cosine, cosine
from adaptax.tasks.cosine import _components, _second_moments, maxima

SLACK = 1 + 1e-10


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def pool():
    return cosine(dim=6, tasks=9, largest=1.5, amplitude=0.7, noise=(0.3, 0.4), seed=4)


def gradients(pool, w):
    """Support and target gradients of the whole pool at w, each of shape (tasks, dim)."""
    one = jax.grad(pool.finite_sum.loss)
    return tuple(jax.vmap(one, (None, 0))(w, terms) for terms in (pool.tasks.support, pool.tasks.target))


def spread(pool, w):
    target = gradients(pool, w)[1]
    return jnp.mean(jnp.sum((target - target.mean(0)) ** 2, 1))


def gap(pool, w):
    support, target = gradients(pool, w)
    return jnp.mean(jnp.sum((support - target) ** 2, 1))


def points(dim, n=1000, seed=0):
    return 5 * jax.random.normal(jax.random.key(seed), (n, dim))


def test_sigma_and_b_bound_and_are_attained(pool):
    at, constants = points(6), pool.constants
    support, target = (_components(*terms, pool.amplitude) for terms in (pool._support, pool._target))
    for measure, bound, components in [
        (spread, constants.sigma, target - target.mean(0)),
        (gap, constants.b, support - target),
    ]:
        measured = jnp.sqrt(jax.jit(jax.vmap(lambda w, f=measure: f(pool, w)))(at))
        assert measured.max() <= bound * SLACK and measured.max() > 0.6 * bound
        worst = jnp.asarray(maxima(_second_moments(components))[1])
        assert jnp.sqrt(measure(pool, worst)) == pytest.approx(bound, rel=1e-12)
        assert np.abs(jax.grad(lambda w, f=measure: f(pool, w))(worst)).max() < 1e-7


def test_L_bounds_and_is_attained(pool):
    hessian = jax.hessian(pool.finite_sum.loss)
    batch = (jnp.asarray(pool.target_phases[0]), jnp.asarray(pool.target_offsets[0]))
    norms = jnp.linalg.norm(jax.jit(jax.vmap(lambda w: hessian(w, batch)))(points(6)), 2, axis=(1, 2))
    assert norms.max() <= pool.constants.L * SLACK
    # Where all cosines are -1 the Hessian is A + c I.
    worst = jnp.pi - batch[0]
    assert jnp.linalg.norm(hessian(worst, batch), 2) == pytest.approx(pool.constants.L, rel=1e-12)


def test_lam_and_mu_bound_and_are_attained(pool):
    hessian = jax.hessian(pool.finite_sum.loss)
    batch = (jnp.asarray(pool.target_phases[0]), jnp.asarray(pool.target_offsets[0]))
    ends = jnp.linalg.eigvalsh(jax.jit(jax.vmap(lambda w: hessian(w, batch)))(points(6)))
    constants = pool.constants
    assert ends.max() <= constants.lam * SLACK and -ends.min() <= constants.mu + 1e-9
    assert jnp.linalg.eigvalsh(hessian(jnp.pi - batch[0], batch))[-1] == pytest.approx(constants.lam, rel=1e-12)
    assert jnp.linalg.eigvalsh(hessian(-batch[0], batch))[0] == pytest.approx(-constants.mu, rel=1e-12)


def test_rho_bounds_and_is_approached(pool):
    hessian = jax.jit(jax.hessian(pool.finite_sum.loss))
    batch = (jnp.asarray(pool.target_phases[0]), jnp.asarray(pool.target_offsets[0]))
    w, step = points(6), points(6, seed=1) * jnp.logspace(-3, 0, 1000)[:, None]
    change = jax.vmap(lambda w, s: hessian(w + s, batch) - hessian(w, batch))(w, step)
    ratios = jnp.linalg.norm(change, 2, axis=(1, 2)) / jnp.linalg.norm(step, axis=1)
    assert ratios.max() <= pool.constants.rho * (1 + 1e-8)
    worst, small = jnp.pi / 2 - batch[0], 1e-3 * jnp.eye(6)[0]
    ratio = jnp.linalg.norm(hessian(worst + small, batch) - hessian(worst - small, batch), 2) / 2e-3
    assert ratio == pytest.approx(pool.constants.rho, rel=1e-6)


def test_noise_constants(pool):
    problem, constants, n = pool.resampling, pool.constants, 100_000
    task = jax.tree.map(lambda a: a[0], pool.tasks.target)
    phases, offsets, xi, zeta = problem.draw(task, None, jax.random.key(0), n)
    w, zero = jnp.full(6, jnp.pi / 2), (jnp.zeros((1, 6)), jnp.zeros(1))
    each = jax.jit(jax.vmap(lambda x, z: jax.grad(problem.loss)(w, (phases, offsets, x[None], z[None]))))(xi, zeta)
    mean = jax.grad(problem.loss)(w, (*task, *zero))
    np.testing.assert_allclose(mean, jax.grad(problem.loss)(w, task), rtol=1e-14)
    squares = jnp.sum((each - mean) ** 2, 1)  # at sin(w) = 1 the bound is attained
    assert abs(squares.mean() - constants.sigma_g**2) < 4 * squares.std() / np.sqrt(n)
    error = squares.std() * 4 / np.sqrt(n)
    elsewhere = xi - zeta[:, None] * jnp.sin(points(6, 1))
    assert jnp.sum(elsewhere**2, 1).mean() <= constants.sigma_g**2 + error
    # The Hessian error is -zeta cos(w): its mean square in direction e_1 at w = 0 is s_z^2.
    one = jax.hessian(problem.loss)(jnp.zeros(6), (*task, xi[:1], zeta[:1]))
    difference = one - jax.hessian(problem.loss)(jnp.zeros(6), task)
    np.testing.assert_allclose(difference, -zeta[0] * jnp.eye(6), atol=1e-14)
    assert abs((zeta**2).mean() - constants.sigma_H**2) < 4 * constants.sigma_H**2 * np.sqrt(2 / n)


def test_batches_average_over_samples(pool):
    problem = pool.resampling
    task = problem.sample_task(jax.random.key(1))
    phases, offsets, xi, zeta = problem.draw(task, None, jax.random.key(2), 5)
    w = points(6, 1)[0]
    each = [problem.loss(w, (phases, offsets, xi[i : i + 1], zeta[i : i + 1])) for i in range(5)]
    assert problem.loss(w, (phases, offsets, xi, zeta)) == pytest.approx(np.mean(each), rel=1e-13)


def test_loss_is_the_formula(pool):
    w = np.asarray(points(6, 1)[0])
    task = jax.tree.map(lambda a: a[3], pool.tasks)
    for batch, phases, offsets in [
        (task.support, pool.support_phases[3], pool.support_offsets[3]),
        (task.target, pool.target_phases[3], pool.target_offsets[3]),
    ]:
        expected = 0.5 * w @ pool.matrix @ w + 0.7 * np.cos(w + phases).sum() + offsets @ w
        assert pool.finite_sum.loss(jnp.asarray(w), batch) == pytest.approx(expected, rel=1e-13)


def test_maxima_against_a_fine_grid():
    rng = np.random.default_rng(0)
    x = np.linspace(-np.pi, np.pi, 100_001)
    u = np.stack([np.ones_like(x), np.sin(x), np.cos(x)])
    random = np.einsum("kab,kcb->kac", *[rng.standard_normal((40, 3, 3))] * 2)
    special = [np.zeros((3, 3)), np.eye(3), np.diag([0, 1.0, 0]), np.diag([0, 0, 1.0]), np.diag([1.0, 0, 0])]
    nearly = [np.diag([1, 1 + 1e-9, 1.0]), np.diag([1.0, 1e-200, 0]), np.ones((3, 3)), 1e-30 * random[0]]
    moments = np.concatenate([random, special, nearly])
    values, places = maxima(moments)
    for m, value, place in zip(moments, values, places, strict=True):
        heights = np.einsum("ax,ab,bx->x", u, m, u)
        assert heights.max() * (1 - 1e-14) <= value <= heights.max() * (1 + 1e-8)
        at = np.array([1, np.sin(place), np.cos(place)])
        assert at @ m @ at == pytest.approx(value, rel=1e-13)


def test_the_matrix_and_the_lower_bound(pool):
    eigenvalues = np.linalg.eigvalsh(pool.matrix)
    np.testing.assert_allclose(eigenvalues, np.linspace(0.1, 1.5, 6), rtol=1e-12)
    losses = jax.jit(jax.vmap(lambda w: jax.vmap(pool.finite_sum.loss, (None, 0))(w, pool.tasks.target)))(points(6))
    assert losses.min(0).mean() >= pool.lower_bound
    quadratic = cosine(dim=3, tasks=4, amplitude=0.0)
    best = -np.linalg.solve(quadratic.matrix, quadratic.target_offsets.T).T
    attained = jax.vmap(quadratic.finite_sum.loss)(jnp.asarray(best), quadratic.tasks.target).mean()
    assert attained == pytest.approx(quadratic.lower_bound, rel=1e-12)


def test_special_cases():
    quadratic = cosine(dim=3, tasks=4, amplitude=0.0, difference=0.0).constants
    offsets = cosine(dim=3, tasks=4, amplitude=0.0, difference=0.0).target_offsets
    assert quadratic.rho == 0 and quadratic.b == 0
    assert quadratic.sigma**2 == pytest.approx(offsets.var(0).sum(), rel=1e-12)
    single = cosine(tasks=1).constants
    assert single.sigma == 0 and single.b > 0
    zeros = np.zeros((2, 2))
    indefinite = Cosine(np.diag([1.0, -2.0]), 0.5, zeros, zeros, zeros, zeros, (0.0, 0.0))
    assert indefinite.constants.L == 2.5 and indefinite.lower_bound == -np.inf


def test_tasks_come_uniformly_from_the_pool(pool):
    n = 9000
    keys = jax.random.split(jax.random.key(0), n)
    tasks = jax.vmap(pool.finite_sum.sample_task)(keys)
    index = jnp.argmin(jnp.abs(tasks.target[0][:, None, 0] - pool.tasks.target[0][None, :, 0]), 1)
    for drawn, whole in zip(jax.tree.leaves(tasks), jax.tree.leaves(pool.tasks), strict=True):
        np.testing.assert_array_equal(drawn, whole[index])
    counts = np.bincount(index, minlength=9)
    assert np.all(np.abs(counts - n / 9) < 4 * np.sqrt(n / 9 * (8 / 9)))
    np.testing.assert_array_equal(jax.vmap(pool.resampling.sample_task)(keys)[0], tasks.target[0])


def test_seeds_decide():
    one, again, two = (cosine(seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.matrix, again.matrix)
    assert one.constants == again.constants != two.constants


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 0}, "dim=0.*at least 1: change dim="),
        ({"tasks": 2.5}, "tasks=2.5.*whole number"),
        ({"smallest": 0.0}, "smallest=0.* positive number: change smallest="),
        ({"largest": 0.01}, "largest=0.01.* of at least 0.1: change largest="),
        ({"amplitude": -1.0}, "amplitude=-1.* of at least 0"),
        ({"amplitude": float("nan")}, "amplitude=nan.* finite number"),
        ({"noise": (0.1,)}, "pair of standard deviations"),
        ({"noise": 0.1}, "pair of standard deviations"),
        ({"difference": -0.1}, "at least 0"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(InputError, match=match):
        cosine(**options)


def test_refusals_of_own_arrays(pool):
    zeros = np.zeros((2, 2))
    with pytest.raises(InputError, match="must be symmetric"):
        Cosine(np.array([[1.0, 2.0], [0.0, 1.0]]), 0.5, zeros, zeros, zeros, zeros, (0.0, 0.0))
    with pytest.raises(InputError, match="must not be negative"):
        Cosine(np.eye(2), -0.5, zeros, zeros, zeros, zeros, (0.0, 0.0))
    with pytest.raises(InputError, match="must be finite"):
        Cosine(np.eye(2), 0.5, zeros, zeros, zeros, zeros + np.nan, (0.0, 0.0))
    with pytest.raises(InputError, match="shape \\(tasks, dim\\)"):
        Cosine(np.eye(2), 0.5, zeros, zeros, zeros, np.zeros((3, 2)), (0.0, 0.0))
    with pytest.raises(InputError, match=r"parameters of shape \(6,\), not \(5,\)"):
        pool.finite_sum.loss(jnp.zeros(5), jax.tree.map(lambda a: a[0], pool.tasks.target))


def test_numbers_of_numpy():
    one = cosine(np.int64(2), np.int32(3), largest=np.float64(2), amplitude=np.float32(0.5), difference=np.int64(0))
    assert one.constants == cosine(2, 3, largest=2.0, difference=0.0).constants
