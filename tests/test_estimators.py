"""Means, variances and error bounds of the difference estimators, and losses that may not be differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import no_tasks, relative

import adaptax as ax
from adaptax.curvature import FiniteDifference, GaussianSmoothing, LocalLoss, ZerothOrder
from adaptax.gradients import Smoothed

D, COUNT = 4, 40_000
RNG = np.random.default_rng(0)
H = RNG.normal(size=(D, D))
H = (H + H.T) / 2 + np.diag([1.0, 2.0, 0.5, 1.5])
V, W, SLOPE = RNG.normal(size=(3, D))
KEYS = jax.random.split(jax.random.key(3), COUNT)


def quadratic(w, rest):
    return 0.5 * w @ H @ w + SLOPE @ w


def sample(estimate):
    """The estimate for each key, as an array of numbers."""
    return np.asarray(jax.jit(jax.vmap(estimate))(KEYS))


def check(found, mean, variance):
    """Mean and total variance, each within four standard errors, which are so small that a factor would show."""
    error = found.std(0, ddof=1) / np.sqrt(COUNT)
    assert np.all(np.abs(found.mean(0) - mean) < 4 * error + 1e-6)
    squares = np.sum((found - mean) ** 2, axis=1)
    error = squares.std(ddof=1) / np.sqrt(COUNT)
    assert abs(squares.mean() - variance) < 4 * error
    assert 4 * error < 0.25 * variance


def frobenius(v):
    return np.sum(H**2) * (v @ v) + v @ H @ H @ v


def stein(v):
    """docs/theory.md, section 7 (e)."""
    t, hv, square = np.trace(H), H @ v, np.sum(H**2)
    return 0.25 * (D + 5) * (t**2 + 2 * square) * (v @ v) + (D + 4) * (t * (v @ hv) + 2 * hv @ hv) - hv @ hv


def plain(v):
    """Without the correction: 1/4 E |u|^2 s^2 (u'v)^2 = 1/4 (d + 6) X, less the squared mean."""
    t, hv, square = np.trace(H), H @ v, np.sum(H**2)
    x = (t**2 + 2 * square) * (v @ v) + 4 * t * (v @ hv) + 8 * hv @ hv
    mean = hv + 0.5 * t * v
    return 0.25 * (D + 6) * x - mean @ mean


PRODUCTS = {
    "smoothing": (GaussianSmoothing(samples=3, delta=1e-3), H @ V, frobenius(V) / 3),
    "antithetic": (GaussianSmoothing(samples=3, delta=1e-3, antithetic=True), H @ V, frobenius(V) / 3),
    "values": (ZerothOrder(samples=3, delta=1e-2), H @ V, stein(V) / 3),
    "values uncorrected": (ZerothOrder(samples=3, delta=1e-2, stein=False), H @ V + np.trace(H) * V / 2, plain(V) / 3),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_quadratics(x64, name):
    strategy, mean, variance = PRODUCTS[name]
    local = LocalLoss(quadratic, jnp.asarray(W))
    check(sample(lambda key: strategy.product(local, jnp.asarray(V), key)[1][0]), mean, variance)


@pytest.mark.long
def test_rows_of_what_does_not_adapt(x64):
    # The same quadratic with two entries of w and two that do not adapt: the product is a column block of H.
    joined = lambda w, rest: quadratic(jnp.concatenate([w, rest]), None)  # noqa: E731
    local, v = LocalLoss(joined, jnp.asarray(W[:2]), jnp.asarray(W[2:])), jnp.asarray(V[:2])
    for strategy in (GaussianSmoothing(samples=3), ZerothOrder(samples=3), FiniteDifference()):
        found = sample(lambda key: jnp.concatenate(strategy.product(local, v, key)[1]))  # noqa: B023
        error = found.std(0, ddof=1) / np.sqrt(COUNT)
        assert np.all(np.abs(found.mean(0) - H[:, :2] @ V[:2]) < 4 * error + 1e-6)


@pytest.mark.parametrize("antithetic", [False, True])
def test_smoothed_gradients(x64, antithetic):
    linear, g = (lambda x: SLOPE @ x), SLOPE
    strategy = Smoothed(samples=3, antithetic=antithetic)
    estimate = lambda key: strategy.value_and_gradient(linear, jnp.asarray(W), key)[1]  # noqa: E731
    # u u'g: E |u|^2 (u'g)^2 = (d + 2) |g|^2, less |g|^2.
    check(sample(estimate), g, (D + 1) * (g @ g) / 3)
    # On a quadratic the mean is the gradient for any width; the value is that of the loss itself.
    wide = Smoothed(samples=1, delta=0.5, antithetic=antithetic)
    found = sample(lambda key: wide.value_and_gradient(lambda x: quadratic(x, None), jnp.asarray(W), key)[1])
    error = found.std(0, ddof=1) / np.sqrt(COUNT)
    assert np.all(np.abs(found.mean(0) - (H @ W + SLOPE)) < 4 * error)
    assert wide.value_and_gradient(lambda x: quadratic(x, None), jnp.asarray(W), KEYS[0])[0] == quadratic(jnp.asarray(W), None)


@pytest.mark.parametrize("delta", [0.1, 0.4])
def test_error_of_finite_differences(x64, delta):
    # l'' = rho |x| at 0: the first bound is attained. l = nu x^4 / 24 has l''' = nu x: so is the second.
    rho, nu, v = 1.7, 2.3, jnp.array([-0.6])
    product = lambda loss: FiniteDifference(delta=delta).product(LocalLoss(loss, jnp.zeros(1)), v)[1][0]  # noqa: E731
    bent = product(lambda w, _: rho * jnp.sum(jnp.abs(w) ** 3) / 6)
    np.testing.assert_allclose(jnp.abs(bent), 0.5 * rho * delta * 0.6, rtol=1e-10)
    smooth = product(lambda w, _: nu * jnp.sum(w**4) / 24)
    np.testing.assert_allclose(jnp.abs(smooth), nu * delta**2 * 0.6 / 6, rtol=1e-10)


def test_finite_differences_on_quadratics_and_at_zero(x64):
    local = LocalLoss(quadratic, jnp.asarray(W))
    for delta in (1e-3, 10.0):
        assert relative(FiniteDifference(delta=delta).product(local, jnp.asarray(V))[1][0], H @ V) < 1e-9
    product = lambda v: FiniteDifference().product(local, v)[1][0]  # noqa: E731
    assert not np.any(product(jnp.zeros(D)))
    assert not np.any(np.isnan(jax.jacfwd(product)(jnp.zeros(D))))
    assert not np.any(np.isnan(FiniteDifference().product(LocalLoss(quadratic, jnp.zeros(D)), jnp.zeros(D))[1][0]))


def test_many_directions_in_half_precision():
    x = jnp.ones(3, jnp.bfloat16)
    linear = lambda x: jnp.sum(x.astype(jnp.float32) * jnp.array([1.0, 2.0, 3.0]))  # noqa: E731
    gradient = Smoothed(samples=10_000).value_and_gradient(linear, x, jax.random.key(0))[1]
    assert gradient.dtype == x.dtype
    # Four standard errors of at most |g| sqrt(d + 1) / sqrt(Q), and rounding.
    np.testing.assert_allclose(np.asarray(gradient, float), [1.0, 2.0, 3.0], atol=0.3 + 0.02)


# Losses that refuse to be differentiated: twice, or at all.


@jax.custom_jvp
def once(x):
    return x


@once.defjvp
def _once(primals, tangents):
    raise AssertionError("differentiated where it must not be")


@jax.custom_vjp
def twice(x):
    return x


twice.defvjp(lambda x: (x, None), lambda _, bar: (once(bar),))
GUARDS = {"gradients alone": twice, "values alone": once}


def guarded(guard):
    """Tasks of two dimensions whose loss carries the guard; the support has a frozen companion."""
    loss = lambda p, c: jnp.sum(jnp.cos(guard(p["w"]) - c) * guard(p["f"]))  # noqa: E731
    return ax.FiniteSum(loss, lambda key: ax.Task(*jax.random.normal(key, (2, 2))))


PARAMS = {"w": jnp.array([0.3, -0.2]), "f": jnp.array([0.5, 1.5])}
INNER = {"steps": 2, "stepsize": 0.1, "adapt": {"w": True, "f": False}}
MOMENTUM = optax.sgd(0.5, momentum=0.9)
ALLOWED = {
    "first order": ("gradients alone", ax.MetaGradient(ax.Inner(**INNER), ax.curvature.FirstOrder())),
    "differences": (
        "gradients alone",
        ax.MetaGradient(ax.Inner(**INNER, optimizer=MOMENTUM, proximal=0.1), FiniteDifference(), multi_step=ax.MultiStep()),
    ),
    "smoothing": ("gradients alone", ax.MetaGradient(ax.Inner(**INNER), GaussianSmoothing(samples=2), store="sqrt")),
    "reptile": ("gradients alone", ax.Reptile(ax.Inner(**INNER))),
    "rule": (
        "gradients alone",
        ax.MetaGradient(ax.Inner(**INNER | {"stepsize": ax.stepsize.Edge(differences=True, every=1)}), FiniteDifference()),
    ),
    "values": ("values alone", ax.MetaGradient(ax.Inner(**INNER, gradients=Smoothed()), ZerothOrder(samples=2))),
    "values with an optimiser": (
        "values alone",
        ax.MetaGradient(ax.Inner(**INNER, gradients=Smoothed(), optimizer=MOMENTUM), GaussianSmoothing(samples=2)),
    ),
    "reptile of values": ("values alone", ax.Reptile(ax.Inner(**INNER, gradients=Smoothed()))),
}


# The others take long to compile, and ask for nothing that these do not.
QUICK = ("first order", "smoothing", "values", "reptile of values")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALLOWED])
def test_nothing_is_differentiated_more_than_allowed(name):
    guard, method = ALLOWED[name]
    problem = guarded(GUARDS[guard])
    options = {"steps": 3, "tasks_per_step": 2, "optimizer": optax.sgd(0.01), "devices": jax.devices()[:1]}
    state, history = ax.train(problem, PARAMS, method, **options)
    assert not history["skipped"].any() and np.all(np.isfinite(history["loss"]))
    assert np.any(state.params["w"] != PARAMS["w"])
    task = problem.sample_task(jax.random.key(1))
    adapted = ax.adapt(problem, PARAMS, task, method.inner, jax.random.key(0))
    assert np.any(adapted.params["w"] != PARAMS["w"])
    curve = ax.evaluate(problem, PARAMS, state.inner, [0, 2], 4, devices=jax.devices()[:1])
    assert np.all(np.isfinite(curve.mean["loss"]))


@pytest.mark.parametrize(
    "guard, method",
    [
        ("gradients alone", ax.MetaGradient(ax.Inner(2, 0.1))),
        ("gradients alone", ax.MetaGradient(ax.Inner(2, ax.stepsize.Edge()), FiniteDifference())),
        ("gradients alone", ax.Implicit(ax.Inner(2, 0.1, proximal=1.0))),
        ("values alone", ax.MetaGradient(ax.Inner(2, 0.1), FiniteDifference())),
        ("values alone", ax.MetaGradient(ax.Inner(2, 0.1), ZerothOrder())),
    ],
)
def test_the_guards_do_guard(guard, method):
    problem = guarded(GUARDS[guard])
    with pytest.raises((AssertionError, ax.InputError), match="differentiated where it must not be"):
        method(problem, PARAMS, problem.sample_task(jax.random.key(1)), jax.random.key(0))


def noise_in_the_factors(task, params, key, size):
    loud = 0.0 if size == 1 else 3.0
    return loud * jax.random.normal(key, (size, 3))


def test_an_optimiser_is_differentiated_at_the_gradient_of_its_own_step(x64):
    # Given the path, factors with samples of their own leave the product unbiased, also where the optimiser is not linear.
    loss = lambda w, noise: jnp.sum(jnp.cos(w) + 0.3 * jnp.roll(w, 1) * w) + jnp.mean(noise, 0) @ (w + jnp.cos(w))  # noqa: E731
    problem = ax.Resampling(loss, no_tasks, noise_in_the_factors)
    inner = ax.Inner(3, optimizer=optax.adam(0.4, eps_root=1e-2))
    w = jnp.array([0.4, -0.9, 1.3])
    method = ax.MetaGradient(inner, samples=ax.Samples(1, 2, 3))
    found = sample(lambda key: method(problem, w, jnp.zeros(()), key)[1])
    quiet = ax.FiniteSum(lambda w, _: loss(w, jnp.zeros((1, 3))), no_tasks)
    exact = ax.MetaGradient(inner)(quiet, w, ax.Task(w, w))[1]
    assert np.all(np.abs(found.mean(0) - exact) < 4 * found.std(0, ddof=1) / np.sqrt(COUNT))
