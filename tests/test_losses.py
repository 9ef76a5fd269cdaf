"""Losses that hold loops, branches, checkpoints, solvers and kernels of one's own: what the meta-gradient makes of each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative

import adaptax as ax

pytestmark = pytest.mark.usefixtures("x64")
STEPS, ALPHA = 3, 0.1


def task(seed=1):
    a, b = jax.random.normal(jax.random.key(seed), (2, 4), float)
    return ax.Task(a, b)


def params(seed=0):
    return 0.5 * jax.random.normal(jax.random.key(seed), (4, 4), float)


def scan(w, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(w @ h + x), None), x, None, 5)[0]


def bounded_loop(w, x):
    return jax.lax.fori_loop(0, 5, lambda i, h: jnp.tanh(w @ h + x), x)


def equinox_loop(w, x):
    def step(carry):
        n, h = carry
        return n + 1, jnp.tanh(w @ h + x)

    return eqx.internal.while_loop(lambda carry: carry[0] < 5, step, (0, x), max_steps=16, kind="checkpointed")[1]


def branch(w, x):
    return jax.lax.cond(jnp.sum(w) > 0, lambda h: jnp.tanh(w @ h), lambda h: jnp.sin(w @ h), x)


def checkpoint(w, x):
    return jax.checkpoint(lambda h: jnp.tanh(w @ jnp.tanh(w @ h)))(x)


def solve(w, x):
    return jnp.linalg.solve(jnp.eye(4) * 3 + w, x)


def eigenvector(w, x):
    vector = jnp.linalg.eigh(jnp.diag(jnp.arange(4.0)) + 0.3 * (w + w.T))[1][:, -1]
    return x * (vector @ x)


def ode(w, x, **options):
    diffrax = pytest.importorskip("diffrax")
    term = diffrax.ODETerm(lambda t, y, args: jnp.tanh(args @ y))
    control = diffrax.PIDController(1e-8, 1e-8)
    options = {"adjoint": diffrax.DirectAdjoint()} if not options else {}
    return diffrax.diffeqsolve(
        term, diffrax.Tsit5(), 0.0, 1.0, 0.1, x, args=w, stepsize_controller=control, max_steps=64, **options
    ).ys[-1]


def ode_by_default(w, x):
    """With the solver's own adjoint, which can be differentiated once."""
    return ode(w, x, throw=True)


@jax.custom_vjp
def softened(x):
    return jnp.log(jnp.cosh(x))


softened.defvjp(lambda x: (softened(x), x), lambda x, g: (g * jnp.tanh(x),))


def kernel(w, x):
    """A kernel with a backward rule alone: forward mode cannot enter it."""
    return softened(w @ x)


def opaque_call(w, x):
    """A call of the host with a backward rule that is a call of the host too."""

    @jax.custom_vjp
    def call(y):
        return jax.pure_callback(lambda y: np.tanh(y), jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="expand_dims")

    def backward(y, g):
        slope = lambda y: 1 - np.tanh(y) ** 2  # noqa: E731
        return (g * jax.pure_callback(slope, jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="expand_dims"),)

    call.defvjp(lambda y: (call(y), y), backward)
    return call(w @ x)


LOOPS = (scan, bounded_loop, equinox_loop, branch, checkpoint)
EXACT = {f.__name__: f for f in (*LOOPS, solve, eigenvector, ode, kernel)}


def loss_of(function):
    return lambda w, x: jnp.mean((function(w, x) - x[::-1]) ** 2)


def problem(function):
    return ax.FiniteSum(loss_of(function), lambda key: task())


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "ode" else name for name in EXACT])
def test_the_exact_meta_gradient(name):
    loss, one, w = loss_of(EXACT[name]), task(), params()
    value, gradient, _ = ax.MetaGradient(ax.Inner(STEPS, ALPHA))(problem(EXACT[name]), w, one)

    def end(w):
        for _ in range(STEPS):
            w = w - ALPHA * jax.grad(loss)(w, one.support)
        return loss(w, one.target)

    along = params(7) / jnp.linalg.norm(params(7))
    slope = (end(w + 1e-5 * along) - end(w - 1e-5 * along)) / 2e-5
    assert relative(value, end(w)) < 1e-12
    assert relative(jnp.sum(gradient * along), slope) < 1e-6
    # JAX itself cannot go through a loop with checkpoints twice.
    if name != "equinox_loop":
        assert relative(gradient, jax.grad(end)(w)) < 1e-9


@pytest.mark.parametrize(
    ("hard", "easy", "said"),
    [
        (opaque_call, lambda w, x: jnp.tanh(w @ x), "Pure callbacks do not support"),
        pytest.param(ode_by_default, ode, r"diffrax.DirectAdjoint\(\)", marks=pytest.mark.slow),
    ],
)
def test_what_has_no_second_derivative_gets_a_sentence_and_differences_serve(hard, easy, said):
    one, w, inner = task(), params(), ax.Inner(STEPS, ALPHA)
    with pytest.raises(ax.InputError, match=said) as error:
        ax.MetaGradient(inner)(problem(hard), w, one)
    assert "ax.curvature.FiniteDifference()" in str(error.value)
    exact = ax.MetaGradient(inner)(problem(easy), w, one)[1]
    assert relative(ax.MetaGradient(inner, ax.curvature.FiniteDifference())(problem(hard), w, one)[1], exact) < 1e-5


def test_a_loop_without_a_fixed_number_of_rounds_gets_a_sentence_and_smoothing_serves():
    def loop(w, x):
        def more(carry):
            return (carry[0] < 20) & (jnp.linalg.norm(carry[1]) > 1e-3)

        return jax.lax.while_loop(more, lambda carry: (carry[0] + 1, 0.3 * jnp.tanh(w @ carry[1])), (0, x))[1] + jnp.tanh(w @ x)

    with pytest.raises(ax.InputError, match=r"while_loop.*Smoothed"):
        ax.MetaGradient(ax.Inner(STEPS, ALPHA))(problem(loop), params(), task())
    inner = ax.Inner(STEPS, ALPHA, gradients=ax.gradients.Smoothed(samples=2000, antithetic=True))
    method = ax.MetaGradient(inner, ax.curvature.FirstOrder())
    value, gradient, _ = method(problem(loop), params(), task(), jax.random.key(0))
    assert jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))
