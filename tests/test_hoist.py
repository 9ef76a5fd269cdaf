"""What no inner step changes is computed once: the same derivatives, from less work."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import central, cross_entropy, images, no_tasks, normal_like, regression, relative

import adaptax as ax
from adaptax._hoist import hoist
from adaptax._parameters import split

PARTS = {
    "the last layer": lambda path: path.startswith("layers.2"),
    "the first layer": lambda path: path.startswith("layers.0"),
    "the middle": lambda path: path.startswith("layers.1"),
    "one bias": lambda path: path == "layers.1.bias",
}


@pytest.mark.parametrize("options", [{}, {"store": "sqrt"}], ids=["iterates", "sqrt"])
@pytest.mark.parametrize("part", PARTS)
def test_the_meta_gradient_is_that_of_backpropagation(x64, part, options):
    problem, model, task = regression(sizes=(1, 5, 4, 1))
    inner = ax.Inner(4, 0.2, PARTS[part])
    value, grad, info = ax.MetaGradient(inner, **options)(problem, model, task)
    other_value, other, other_info = ax.MetaGradient(inner, mode="backprop")(problem, model, task)
    assert abs(value - other_value) < 1e-12 and relative(grad, other) < 1e-12
    assert relative(info.losses, other_info.losses) < 1e-12


@pytest.mark.parametrize(
    "inner",
    [
        lambda part: ax.Inner(3, 1.0, part, optimizer=optax.sgd(0.1, momentum=0.9)),
        lambda part: ax.Inner(3, 0.2, part, proximal=0.5),
        lambda part: ax.Inner(3, ax.stepsize.Learned(0.2, per="leaf", per_step=True), part),
    ],
    ids=["momentum", "proximal", "learned"],
)
def test_with_every_kind_of_inner_step(x64, inner):
    problem, model, task = regression(sizes=(1, 5, 4, 1))
    inner = inner(PARTS["the last layer"])
    given = ax.Meta(model, inner.stepsize.start(model, 3)) if isinstance(inner.stepsize, ax.stepsize.Learned) else model
    grad = ax.MetaGradient(inner)(problem, given, task)[1]
    assert relative(grad, ax.MetaGradient(inner, mode="backprop")(problem, given, task)[1]) < 1e-12


def test_the_frozen_part_by_finite_differences(x64):
    problem, model, task = regression(sizes=(1, 5, 4, 1))
    method = ax.MetaGradient(ax.Inner(4, 0.2, PARTS["the last layer"]))
    direction = normal_like(model, 1)
    grad = method(problem, model, task)[1]
    slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(direction), strict=True))
    assert central(lambda w: method(problem, w, task)[0], model, direction, 1e-5) == pytest.approx(float(slope), rel=1e-7)


@pytest.mark.long
def test_only_the_features_are_kept_of_a_network():
    _, model, task = images()
    inner = ax.Inner(1, 0.1, lambda path: path.startswith("head"))
    parts = split(ax.FiniteSum(cross_entropy, lambda key: task), inner, model, task, ax.Samples())
    loss = lambda w, rest, j: cross_entropy(eqx.combine(w, rest, parts.static), task.support)  # noqa: E731
    left = hoist(loss, parts.adapting, parts.frozen)
    count = len(task.support[0])
    assert [array.shape for array in left.known] == [(count, model.head.weight.shape[0])]
    assert left.loss(parts.adapting, left.known, 0) == pytest.approx(float(loss(parts.adapting, parts.frozen, 0)), rel=1e-6)
    program = str(jax.make_jaxpr(left.loss)(parts.adapting, left.known, 0))
    assert program.count("dot_general") == 1


def test_what_depends_on_the_step_or_is_no_number_stays_right(x64):
    labels = jnp.array([0, 2, 1])

    def loss(w, rest, j):
        table = jnp.sin(rest["table"])
        return jnp.sum(w * table[labels] * (j + 1.0)) + jnp.sum(jnp.cumsum(rest["other"])) * jnp.sum(jnp.arange(3.0) * w)

    w, rest = jnp.array([1.0, 2.0, 3.0]), {"table": jnp.array([0.3, 0.1, 0.7]), "other": jnp.array([0.5, -1.0])}
    left = hoist(loss, w, rest)
    for j in (0, 3):
        expected, by_rest = jax.value_and_grad(loss, argnums=1)(w, rest, j)
        got, bar = jax.value_and_grad(left.loss, argnums=1)(w, left.known, j)
        assert abs(got - expected) < 1e-12
        assert relative(left.pull_back(bar), by_rest) < 1e-12


def test_a_compiled_loss_is_one_operation(x64):
    problem, model, task = regression(sizes=(1, 5, 4, 1))
    inner = ax.Inner(3, 0.2, PARTS["the last layer"])
    compiled = ax.FiniteSum(eqx.filter_jit(problem.loss), no_tasks)
    grad = ax.MetaGradient(inner)(compiled, model, task)[1]
    assert relative(grad, ax.MetaGradient(inner, mode="backprop")(problem, model, task)[1]) < 1e-12
