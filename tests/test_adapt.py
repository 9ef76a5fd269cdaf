"""Larger programs differentiated through `ax.adapt`, against the same programs with a loop written out."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import no_tasks, normal_like, relative

import adaptax as ax

STEPS = 3
RATES = jnp.array([0.3, 0.2, 0.1])


def loss(head, batch):
    features, labels, scale = batch
    return jnp.mean(jnp.cos(features @ head["w"] + head["b"] - scale[labels]) ** 2)


def inputs():
    rng = np.random.default_rng(0)
    support, query = rng.normal(size=(2, 4, 3))
    theta = {
        "encoder": jnp.asarray(rng.normal(size=(3, 2))),
        "head": {"w": jnp.asarray(rng.normal(size=2)), "b": jnp.asarray(0.3)},
        "scale": jnp.asarray([0.4, -0.7]),
        "rates": jnp.asarray(RATES, float),
    }
    return theta, jnp.asarray(support), jnp.asarray(query), jnp.array([0, 1, 1, 0])


def by_adapt(theta, batch):
    problem = ax.FiniteSum(loss, no_tasks)
    inner = ax.Inner(STEPS, ax.stepsize.Learned(RATES, per_step=True))
    adapted = ax.adapt(problem, ax.Meta(theta["head"], theta["rates"]), ax.Task(batch), inner)
    return adapted.params, adapted.losses


def by_sqrt(theta, batch):
    inner = ax.Inner(STEPS, ax.stepsize.Learned(RATES, per_step=True))
    meta = ax.Meta(theta["head"], theta["rates"])
    adapted = ax.adapt(ax.FiniteSum(loss, no_tasks), meta, ax.Task(batch), inner, store="sqrt")
    return adapted.params, adapted.losses


def by_closure(theta, batch):
    # The encoded support set reaches the loss as a value that the function closes over.
    problem = ax.FiniteSum(lambda head, _: loss(head, batch), no_tasks)
    inner = ax.Inner(STEPS, ax.stepsize.Learned(RATES, per_step=True))
    adapted = ax.adapt(problem, ax.Meta(theta["head"], theta["rates"]), ax.Task(jnp.ones(1)), inner)
    return adapted.params, adapted.losses


def by_hand(theta, batch):
    head, losses = theta["head"], []
    for j in range(STEPS):
        losses.append(loss(head, batch))
        gradient = jax.grad(loss)(head, batch)
        head = jax.tree.map(lambda w, g: w - theta["rates"][j] * g, head, gradient)  # noqa: B023
    return head, jnp.stack(losses)


def program(descend):
    """An encoder that feeds the support set; the losses on the way count too, with different weights."""
    _, support, query, labels = inputs()

    def value(theta, shift=0.0):
        encode = lambda x: jnp.tanh((x + shift) @ theta["encoder"])  # noqa: E731
        head, losses = descend(theta, (encode(support), labels, theta["scale"]))
        return loss(head, (encode(query), labels, theta["scale"])) + losses @ jnp.array([0.5, -0.3, 0.2])

    return value


FORMS = pytest.mark.parametrize("descend", [by_adapt, by_sqrt, by_closure])
SHIFTS = jnp.array([0.0, 0.5, -0.3])


@FORMS
def test_gradient_of_a_larger_program(x64, descend):
    theta = inputs()[0]
    expected = jax.jit(jax.value_and_grad(program(by_hand)))(theta)
    assert relative(jax.value_and_grad(program(descend))(theta), expected) < 1e-10
    assert relative(jax.jit(jax.value_and_grad(program(descend)))(theta), expected) < 1e-10


def test_vmap_of_grad_and_grad_of_vmap(x64):
    theta = inputs()[0]
    each = lambda descend: jax.vmap(jax.grad(program(descend)), in_axes=(None, 0))  # noqa: E731
    assert relative(jax.jit(each(by_adapt))(theta, SHIFTS), jax.jit(each(by_hand))(theta, SHIFTS)) < 1e-10
    together = lambda descend: jax.grad(  # noqa: E731
        lambda theta: jnp.sum(jnp.sin(jax.vmap(program(descend), in_axes=(None, 0))(theta, SHIFTS)))
    )
    assert relative(jax.jit(together(by_adapt))(theta), jax.jit(together(by_hand))(theta)) < 1e-10


@pytest.mark.parametrize("descend", [by_adapt, by_closure])
def test_second_derivatives_of_a_larger_program(x64, descend):
    theta = inputs()[0]
    direction = normal_like(theta, 1)

    def along(descend):
        slope = lambda theta: sum(  # noqa: E731
            jnp.vdot(g, d)
            for g, d in zip(jax.tree.leaves(jax.grad(program(descend))(theta)), jax.tree.leaves(direction), strict=True)
        )
        return jax.jit(jax.grad(slope))(theta)

    assert relative(along(descend), along(by_hand)) < 1e-9


def test_a_loss_that_holds_arrays_is_differentiated_too(x64):
    class Metric(eqx.Module):
        matrix: jax.Array

        def __call__(self, w, centre):
            return jnp.sum(jnp.sin(self.matrix @ (w - centre)) ** 2)

    w, centre = jnp.array([0.5, -0.2]), jnp.array([0.1, 0.3])
    matrix = jnp.array([[1.0, 0.4], [0.2, 0.8]])

    def ours(matrix):
        problem = ax.FiniteSum(Metric(matrix), no_tasks)
        return jnp.sum(ax.adapt(problem, w, ax.Task(centre), ax.Inner(3, 0.2)).params ** 2)

    def hand(matrix):
        x = w
        for _ in range(3):
            x = x - 0.2 * jax.grad(Metric(matrix))(x, centre)
        return jnp.sum(x**2)

    assert relative(jax.grad(ours)(matrix), jax.grad(hand)(matrix)) < 1e-10


def test_frozen_parameters_reach_the_output_twice(x64):
    # Once through the path and once because they are part of the adapted parameters.
    quadratic = lambda w, c: jnp.sum((w["a"] * w["b"] - c) ** 2)  # noqa: E731
    problem, c = ax.FiniteSum(quadratic, no_tasks), jnp.array([1.0, 2.0])
    params = {"a": jnp.array([0.3, 0.2]), "b": jnp.array([0.5, 1.5])}
    inner = ax.Inner(3, 0.1, adapt={"a": True, "b": False})

    def ours(params):
        return quadratic(ax.adapt(problem, params, ax.Task(c), inner).params, c)

    def hand(params):
        for _ in range(3):
            params = {"a": params["a"] - 0.1 * jax.grad(quadratic)(params, c)["a"], "b": params["b"]}
        return quadratic(params, c)

    assert relative(jax.grad(ours)(params), jax.grad(hand)(params)) < 1e-10


def test_resampling(x64):
    # The draw moves with the task, so the derivative by the task goes through the samples; by w it does not.
    draw = lambda centre, w, key, size: centre * jax.random.normal(key, (size, 2)) + w  # noqa: E731
    noisy = lambda w, x: jnp.mean(jnp.sin(w - x) ** 2)  # noqa: E731
    problem, key = ax.Resampling(noisy, no_tasks, draw), jax.random.key(3)
    w, centre, samples = jnp.array([0.3, -0.6]), jnp.array([1.0, 0.5]), ax.Samples(step=4)
    inner = ax.Inner(3, 0.4)

    def ours(w, centre):
        adapted = ax.adapt(problem, w, centre, inner, key, samples=samples)
        return jnp.sum(jnp.cos(adapted.params)) + adapted.losses[1], adapted.losses

    def hand(w, centre):
        losses = []
        for j in range(3):
            fresh = jax.random.fold_in(jax.random.fold_in(key, 0), j)
            batch = draw(centre, jax.lax.stop_gradient(w), fresh, 4)
            losses.append(noisy(w, batch))
            w = w - 0.4 * jax.grad(noisy)(w, batch)
        return jnp.sum(jnp.cos(w)) + losses[1], jnp.stack(losses)

    grad, losses = jax.grad(ours, argnums=(0, 1), has_aux=True)(w, centre)
    expected, other = jax.jit(jax.grad(hand, argnums=(0, 1), has_aux=True))(w, centre)
    assert relative((grad, losses), (expected, other)) < 1e-10
    assert len(np.unique(losses)) == 3
    # The same key walks the same path in the meta-gradient.
    info = ax.MetaGradient(inner, samples=samples)(problem, w, centre, key)[2]
    np.testing.assert_allclose(info.losses, losses, rtol=1e-12)


def test_no_steps_is_the_identity(x64):
    theta, support, _, labels = inputs()
    task = ax.Task((support @ theta["encoder"], labels, theta["scale"]))
    problem, inner = ax.FiniteSum(loss, no_tasks), ax.Inner(0)
    adapted = ax.adapt(problem, theta["head"], task, inner)
    assert relative(adapted.params, theta["head"]) == 0
    assert adapted.losses.shape == (0,)
    grad = jax.grad(lambda head: jnp.sum(ax.adapt(problem, head, task, inner).params["w"] ** 2))(theta["head"])
    np.testing.assert_allclose(grad["w"], 2 * theta["head"]["w"], rtol=1e-12)
