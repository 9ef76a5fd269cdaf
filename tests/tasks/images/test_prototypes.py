"""Prototypical networks: logits by hand, the gradient, training that helps, and refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax


class Affine(eqx.Module):
    """Features that are one affine map of the pixels."""

    weight: jax.Array

    def features(self, images):
        return images.reshape(len(images), -1) @ self.weight


@pytest.fixture
def data():
    """Eight classes of six noisy images of 4 x 4 pixels, told apart by the first pixels only."""
    random = np.random.default_rng(0)
    centres = np.zeros((8, 1, 4, 4, 1))
    centres[:, 0, 0, :, 0] = random.integers(0, 2, (8, 4)) * 120
    images = np.clip(centres + random.uniform(0, 130, (8, 6, 4, 4, 1)), 0, 255).astype(np.uint8)
    return ax.tasks.ImageClasses(images.reshape(48, 4, 4, 1), tuple("abcdefgh"), (6,) * 8)


def network(seed=0):
    return Affine(jnp.asarray(0.3 * np.random.default_rng(seed).normal(size=(16, 5)), jnp.float32))


def test_logits_are_distances_to_class_means(data):
    plain = ax.tasks.few_shot(data, 3, 2, 3, rotations=False)
    problem, key, net = ax.tasks.prototypical(plain), jax.random.key(0), network()
    task, same = plain.sample_task(key), problem.sample_task(key)
    assert jax.tree.all(jax.tree.map(np.array_equal, (task.support, task.target), same.target))
    (x, labels), (z, wanted) = (tuple(np.asarray(part, float) for part in pair) for pair in (task.support, task.target))
    weight = np.asarray(net.weight, float)
    f, g = x.reshape(len(x), -1) @ weight, z.reshape(len(z), -1) @ weight
    means = np.stack([f[labels == k].mean(0) for k in range(3)])
    distances = ((g[:, None] - means) ** 2).sum(-1)
    chances = np.exp(-distances) / np.exp(-distances).sum(1, keepdims=True)
    scores = problem.scores(net, same.target)
    assert float(scores["loss"]) == pytest.approx(-np.log(chances[np.arange(9), wanted.astype(int)]).mean(), rel=1e-4)
    assert float(scores["accuracy"]) == pytest.approx((distances.argmin(1) == wanted).mean())


@pytest.mark.slow
def test_training_without_inner_steps_helps(data):
    problem = ax.tasks.prototypical(ax.tasks.few_shot(data, 3, 1, 3, rotations=False))
    method, inner = ax.MetaGradient(ax.Inner(0, 1.0)), ax.Inner(0, 1.0)
    value, gradient, _ = method(problem, network(), task := problem.sample_task(jax.random.key(1)))
    expected = jax.value_and_grad(problem.loss)(network(), task.target)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient.weight, expected[1].weight, rtol=1e-4, atol=1e-7)

    def accuracy(net):
        return ax.evaluate(problem, net, inner, [0], 300).mean["accuracy"][0]

    state, _ = ax.train(problem, network(), method, optimizer=optax.adam(3e-2), steps=150, tasks_per_step=8)
    assert accuracy(state.params) > accuracy(network()) + 0.1


def test_refusals(data):
    with pytest.raises(ax.InputError, match="takes the problem that"):
        ax.tasks.prototypical(ax.tasks.sinusoid())
    problem = ax.tasks.prototypical(ax.tasks.few_shot(data, 3, 1, 3, rotations=False))
    with pytest.raises(ax.InputError, match=r"prototypical takes a network with a method features\(images\)"):
        problem.loss(lambda x: x, problem.sample_task(jax.random.key(0)).target)
