"""The model that adapts in closed form: its posterior, its gradient, and what padding changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.tables.ridge import RidgeModel
from adaptax.tables.ways import Ridge, errors


def model_of(additive=True, outputs=1, seed=0):
    model = RidgeModel.start(3, outputs, (4, 5), additive, jax.random.key(seed))
    # A prior mean of zero, and equal variances, would hide mistakes.
    keys = jax.random.split(jax.random.key(seed + 1), 2)
    mean = jax.random.normal(keys[0], model.mean.shape)
    variance = model.log_variance + 0.1 * jax.random.normal(keys[1], model.log_variance.shape)
    return RidgeModel(model.weights, model.biases, mean, variance, model.log_noise, model.log_scale, additive)


def rows(count, seed=3):
    x = jax.random.normal(jax.random.key(seed), (count, 3))
    return x, jnp.sin(x[:, :1]) + 0.5 * x[:, 1:2]


@pytest.mark.parametrize("additive", [True, False])
def test_the_adapted_layer_minimises_the_ridge_objective(additive):
    with jax.enable_x64(True):
        model, (x, y) = model_of(additive), rows(6)

        def objective(v):
            rest = y - model.features(x) @ v
            return jnp.sum(rest**2) / model.noise + jnp.sum((v - model.mean) ** 2 / model.variance[:, None])

        found = model.adapt(x, y, jnp.ones(6)).mean
        # The relative part of the ridge, 3e-6 of the Gram matrix's diagonal, is all that is left.
        assert float(jnp.linalg.norm(jax.grad(objective)(found))) < 1e-3 * float(
            jnp.linalg.norm(jax.grad(objective)(model.mean))
        )


def test_the_posterior_is_that_of_a_normal_distribution():
    """Conditioning the joint normal distribution of all rows, written out."""
    with jax.enable_x64(True):
        model, (x, y), (new, _) = model_of(), rows(5), rows(4, seed=7)
        phi, psi = model.features(x), model.features(new)
        prior = jnp.diag(model.variance)
        cover = phi @ prior @ phi.T + model.noise * jnp.eye(5)
        gain = psi @ prior @ phi.T @ jnp.linalg.inv(cover)
        mean = psi @ model.mean + gain @ (y - phi @ model.mean)
        spread = jnp.diag(psi @ prior @ psi.T - gain @ phi @ prior @ psi.T) + model.noise
        found = model.predict(model.adapt(x, y, jnp.ones(5)), new)
        np.testing.assert_allclose(found[0], mean, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[1], spread, rtol=1e-3)


def test_padding_and_no_support_rows():
    model, (x, y), (new, _) = model_of(), rows(4), rows(3, seed=9)
    padded = jnp.concatenate([x, 7 * jnp.ones((3, 3))]), jnp.concatenate([y, 9 * jnp.ones((3, 1))])
    mask = jnp.array([1.0, 1, 1, 1, 0, 0, 0])
    alone, filled = model.predict(model.adapt(x, y, jnp.ones(4)), new), model.predict(model.adapt(*padded, mask), new)
    np.testing.assert_allclose(filled[0], alone[0], rtol=1e-4, atol=1e-5)
    nothing = model.predict(model.adapt(*padded, jnp.zeros(7)), new)
    np.testing.assert_allclose(nothing[0], model.features(new) @ model.mean, rtol=1e-5)


def test_the_gradient_goes_through_the_solution():
    """Against central differences, in double precision."""
    with jax.enable_x64(True):
        way, model, (x, y), (new, target) = Ridge(True, (4, 5)), model_of(), rows(5), rows(4, seed=7)
        loss = way.problem(None, 1).loss

        def value(model):
            return loss(model, ((x, y[:, 0], jnp.ones(5)), (new, target[:, 0], jnp.ones(4))))

        gradient = jax.grad(value)(model)
        direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), model)
        step = 1e-5
        ahead, back = (jax.tree.map(lambda a, d, s=s: a + s * d, model, direction) for s in (step, -step))
        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose(slope, (value(ahead) - value(back)) / (2 * step), rtol=1e-6)


def test_the_loss_is_the_negative_log_likelihood():
    way, model, (x, y), (new, target) = Ridge(False, (4, 5)), model_of(False), rows(5), rows(4, seed=7)
    mask = jnp.array([1.0, 1, 0, 1])
    loss = way.problem(None, 1).loss(model, ((x, y[:, 0], jnp.ones(5)), (new, target[:, 0], mask)))
    mean, variance = model.predict(model.adapt(x, y, jnp.ones(5)), new)
    density = jax.scipy.stats.norm.logpdf(target[:, 0], mean[:, 0], jnp.sqrt(variance)) + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(loss, -jnp.sum(mask * density) / 3, rtol=1e-5)


def test_errors_of_rows():
    np.testing.assert_allclose(errors(jnp.array([[1.0], [3.0]]), jnp.array([2.0, 1.0])), [1, 2])
    logits = jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5]]))
    np.testing.assert_allclose(errors(logits, jnp.array([1, 0])), -np.log([0.8, 0.5]), rtol=1e-6)
