"""The meta-gradient against closed forms, backpropagation and central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MISSION, central, flat, images, no_tasks, normal_like, regression, relative

import adaptax as ax

STEPS = (0, 1, 2, 3, 10, 50)


MODES = ("auto", "recursion", "backprop")


def quadratic(w, batch):
    matrix, vector = batch
    return 0.5 * w @ matrix @ w - vector @ w


def random_quadratics(seed, d=7):
    """Support and target losses with different Hessians, whose eigenvalues lie in [-0.3, 2]."""
    rng = np.random.default_rng(seed)

    def one():
        q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        return q @ np.diag(rng.uniform(-0.3, 2, d)) @ q.T, rng.normal(size=d)

    return one(), one(), rng.normal(size=d)


def closed_form(support, target, w, rates):
    """w_N, the losses and the derivatives by w_0 and every a_j, with explicit matrices (rates: (N, d))."""
    (h, b), (ht, bt) = support, target
    path, losses = [w], []
    for a in rates:
        losses.append(0.5 * path[-1] @ h @ path[-1] - b @ path[-1])
        path.append(path[-1] - a * (h @ path[-1] - b))
    last = ht @ path[-1] - bt
    jacobians = [np.eye(len(w)) - np.diag(a) @ h for a in rates]
    after = [np.eye(len(w))]  # d w_N / d w_j, from j = N down to 0
    for jacobian in reversed(jacobians):
        after.append(after[-1] @ jacobian)
    after = after[::-1]
    by_rates = [-(h @ path[j] - b) * (after[j + 1].T @ last) for j in range(len(rates))]
    value = 0.5 * path[-1] @ ht @ path[-1] - bt @ path[-1]
    return value, after[0].T @ last, np.array(by_rates).reshape(len(rates), len(w)), np.array(losses)


@pytest.mark.parametrize("kind", [{}, {"store": "sqrt"}, {"mode": "backprop"}], ids=["iterates", "sqrt", "backprop"])
@pytest.mark.parametrize("steps", STEPS)
def test_quadratics_have_the_closed_form(x64, steps, kind):
    problem = ax.FiniteSum(quadratic, no_tasks)
    method = ax.MetaGradient(ax.Inner(steps, 0.3), **kind)
    for seed in range(3):
        support, target, w = random_quadratics(seed)
        value, grad, info = method(problem, jnp.asarray(w), ax.Task(support, target))
        exact = closed_form(support, target, w, np.full((steps, len(w)), 0.3))
        assert abs(value - exact[0]) <= 1e-10 * abs(exact[0])
        assert relative(grad, exact[1]) < 1e-10
        assert info.losses.shape == (steps,)
        np.testing.assert_allclose(info.losses, exact[3], rtol=1e-10)
        assert info.value == value
        assert info.stepsize == 0.3


@pytest.mark.parametrize("kind", [{}, {"store": "sqrt"}, {"mode": "backprop"}], ids=["iterates", "sqrt", "backprop"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_quadratics_with_a_rate_for_every_step_and_parameter(x64, steps, kind):
    # Rates that differ between entries and steps do not commute with the Hessian: the order of the factors shows.
    support, target, w = random_quadratics(5)
    rates = np.random.default_rng(1).uniform(0.05, 0.6, (steps, len(w)))
    learned = ax.stepsize.Learned(rates, per_step=True)
    method = ax.MetaGradient(ax.Inner(steps, learned), **kind)
    meta = ax.Meta(jnp.asarray(w), jnp.asarray(rates))
    _, grad, _ = method(ax.FiniteSum(quadratic, no_tasks), meta, ax.Task(support, target))
    _, by_params, by_rates, _ = closed_form(support, target, w, rates)
    assert relative(grad.params, by_params) < 1e-10
    assert relative(grad.stepsize, by_rates) < 1e-10


def test_quadratics_have_the_central_difference(x64):
    support, target, w = random_quadratics(3)
    problem, task = ax.FiniteSum(quadratic, no_tasks), ax.Task(support, target)
    method = ax.MetaGradient(ax.Inner(10, 0.3))
    value = jax.jit(lambda w: method(problem, w, task)[0])
    grad = method(problem, jnp.asarray(w), task)[1]
    for seed in range(3):
        direction = normal_like(w, seed)
        # The value is quadratic in w_0: a wide difference has no truncation error.
        expected = central(value, jnp.asarray(w), direction, 0.5)
        assert abs(jnp.vdot(grad, direction) - expected) < 1e-10 * abs(expected)


@pytest.mark.parametrize(
    "make, steps",
    [pytest.param(regression, 5, id="mlp"), pytest.param(images, 2, id="conv4", marks=MISSION)],
)
def test_networks_have_the_derivative_of_backpropagation_and_of_differences(x64, make, steps):
    problem, model, task = make()
    inner = ax.Inner(steps, 0.2)
    value, grad, info = ax.MetaGradient(inner)(problem, model, task)
    other_value, other, other_info = ax.MetaGradient(inner, mode="backprop")(problem, model, task)
    assert relative(grad, other) < 1e-10
    assert abs(value - other_value) < 1e-12
    np.testing.assert_allclose(info.losses, other_info.losses, rtol=1e-10)
    # The second-order terms matter here: leaving them out would have been noticed.
    adapted = ax.adapt(problem, model, task, inner).params
    assert relative(jax.jit(jax.grad(problem.loss))(adapted, task.target), grad) > 1e-2
    final = lambda w: ax.MetaGradient(inner)(problem, w, task)[0]  # noqa: E731
    direction = normal_like(model, 3)
    length = np.linalg.norm(flat(direction))
    slope = flat(grad) @ flat(direction) / length
    # So narrow that no relu or maximum changes sides in between.
    expected = central(final, model, jax.tree.map(lambda leaf: leaf / length, direction), 1e-7)
    assert abs(slope - expected) < 1e-6 * abs(expected)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9, 12])
def test_sqrt_store_recomputes_the_same_path(x64, steps):
    problem, model, task = regression()
    inner = ax.Inner(steps, lambda j: 0.2 / (j + 1))
    stored = ax.MetaGradient(inner)(problem, model, task)
    recomputed = ax.MetaGradient(inner, store="sqrt")(problem, model, task)
    assert relative(recomputed[:2], stored[:2]) < 1e-12
    np.testing.assert_allclose(recomputed[2].losses, stored[2].losses, rtol=1e-12)


def test_first_order_is_the_target_gradient_at_the_adapted_parameters(x64):
    problem, model, task = regression()
    inner = ax.Inner(5, 0.2)
    adapted = ax.adapt(problem, model, task, inner).params
    expected = jax.grad(problem.loss)(adapted, task.target)
    assert relative(ax.MetaGradient(inner, ax.curvature.FirstOrder())(problem, model, task)[1], expected) < 1e-12


def test_another_outer_loss_judges_the_target_set_only(x64):
    support, target, w = random_quadratics(2)
    other = lambda w, batch: jnp.sum(jnp.cos(w)) + quadratic(w, batch)  # noqa: E731
    problem = ax.FiniteSum(quadratic, no_tasks, target_loss=other)
    method, task = ax.MetaGradient(ax.Inner(4, 0.3)), ax.Task(support, target)
    value, grad, _ = method(problem, jnp.asarray(w), task)
    hessian, vector = support
    final = w
    for _ in range(4):
        final = final - 0.3 * (hessian @ final - vector)
    power = np.linalg.matrix_power(np.eye(len(w)) - 0.3 * hessian, 4)
    assert relative(grad, power @ (target[0] @ final - target[1] - np.sin(final))) < 1e-10
    assert abs(value - other(final, target)) < 1e-10


@pytest.mark.parametrize("width", [4, 200], ids=["recursion", "backpropagation"])
def test_the_form_chosen_for_the_shapes_gives_the_same_as_both(x64, width):
    def loss(net, batch):
        return jnp.mean((net(batch[0]) - batch[1]) ** 2)

    x = normal_like(jnp.zeros((6, width)), 1)
    problem, task = ax.FiniteSum(loss, lambda key: None), ax.Task((x[:3], x[:3, :1]), (x[3:], x[3:, :1]))
    net = ax.models.mlp([width, width, 1], key=jax.random.key(0))

    def program(net, mode="auto"):
        return ax.MetaGradient(ax.Inner(3, 0.01), mode=mode)(problem, net, task)

    found = {mode: str(jax.make_jaxpr(lambda net, mode=mode: program(net, mode)[1])(net)) for mode in MODES}
    assert (
        found["auto"]
        == found["backprop" if width == 200 else "recursion"]
        != found["recursion" if width == 200 else "backprop"]
    )
    values = {mode: program(net, mode) for mode in MODES}
    for mode in ("recursion", "backprop"):
        assert relative(values["auto"][1], values[mode][1]) < 1e-12
        assert jnp.allclose(values["auto"][2].losses, values[mode][2].losses, rtol=1e-12)


def test_what_backpropagation_does_not_do_alike_is_left_to_the_recursion():
    def loss(net, batch):
        return jnp.mean((net(batch[0]) - batch[1]) ** 2)

    x = jnp.ones((3, 90))
    problem, task = ax.FiniteSum(loss, lambda key: None), ax.Task((x, x), (x, x))
    net = ax.models.mlp([90, 90, 90], key=jax.random.key(0))

    def program(inner=None, mode="auto", **options):
        method = ax.MetaGradient(inner or ax.Inner(2, 0.01), mode=mode, **options)
        return str(jax.make_jaxpr(lambda net: method(problem, net, task)[1])(net))

    assert program() == program(mode="backprop")
    for options in (
        {"store": 1}, {"truncate": 1}, {"microbatches": 3}, {"precision": "bfloat16"}, {"multi_step": ax.MultiStep()},
        {"curvature": ax.curvature.FirstOrder()}, {"inner": ax.Inner(2, 0.01, adapt=lambda path: path.startswith("layers.1"))},
        {"inner": ax.Inner(2, 0.01, optimizer=optax.sgd(1.0, momentum=0.5))}, {"inner": ax.Inner(2, 0.01, proximal=1.0)},
    ):  # fmt: skip
        assert program(**options) == program(mode="recursion", **options)
