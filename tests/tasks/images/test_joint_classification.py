"""Joint classification: labels that name the class, a new head, and features that help."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax


class Flat(eqx.Module):
    """A fully connected network of the pixels."""

    layers: tuple

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def flat(outputs):
    return Flat(ax.models.mlp((16, 12, outputs), key=jax.random.key(0)).layers)


@pytest.fixture
def data():
    """Six classes of five images, whose first pixel says the class."""
    images = np.zeros((30, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.repeat(40 * np.arange(1, 7), 5)
    return ax.tasks.ImageClasses(images, tuple("abcdef"), (5,) * 6)


def test_labels_name_the_class_and_its_turn(data):
    problem = ax.tasks.joint_classification(ax.tasks.few_shot(data, 4, 1, 2, rotations=True))
    assert problem.loss.ways == 24
    corners, sample = {}, jax.jit(lambda key: problem.sample_task(key))
    for key in jax.random.split(jax.random.key(0), 40):
        images, labels = (np.asarray(part) for part in sample(key).target)
        assert images.shape == (12, 4, 4, 1)
        for image, label in zip(np.round(images[..., 0] * 255).astype(int), labels.tolist(), strict=True):
            assert image.max() == 40 * (label % 6 + 1)
            corners.setdefault(label // 6, set()).add(tuple(np.argwhere(image)[0].tolist()))
    # Each turn has one corner of its own.
    assert sorted(corners) == [0, 1, 2, 3] and all(len(places) == 1 for places in corners.values())
    assert len(set.union(*corners.values())) == 4


@pytest.mark.slow
def test_a_fresh_head_is_fine_tuned(data):
    few = ax.tasks.few_shot(data, 3, 2, 2, rotations=False)
    problem, plain = ax.tasks.joint_classification(few), ax.Inner(0, 1.0)
    options = {"optimizer": optax.adam(3e-2), "steps": 200, "tasks_per_step": 4}
    state, _ = ax.train(problem, flat(6), ax.MetaGradient(plain), **options)
    assert ax.evaluate(problem, state.params, plain, [0], 200).mean["accuracy"][0] > 0.9
    fresh = ax.models.fresh_head(state.params)
    assert fresh.layers[-1].weight.shape == (12, 1) and not jnp.any(fresh.layers[-1].weight)
    curve = ax.evaluate(few, fresh, ax.Inner(60, 0.1, start=ax.models.shared_head(3)), [0, 60], 200)
    # With no head all classes are alike; the features that were learned tell them apart.
    assert curve.mean["accuracy"][0] == pytest.approx(1 / 3, rel=1e-5) and curve.mean["accuracy"][1] > 0.8


def test_refusals():
    with pytest.raises(ax.InputError, match="joint_classification takes the problem that"):
        ax.tasks.joint_classification(ax.tasks.sinusoid())
    with pytest.raises(ax.InputError, match="fresh_head takes a network whose last layer is its head"):
        ax.models.fresh_head(jnp.ones(3))
