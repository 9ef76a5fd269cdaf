"""Accuracies of target images that come together, and of target images that come one by one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax


@pytest.fixture(scope="module")
def problem():
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), np.uint8)
    return ax.tasks.few_shot(ax.tasks.ImageClasses(images, tuple("abcd"), (6,) * 4), 3, 2, 2, rotations=False)


@pytest.mark.parametrize("make, channels", [(ax.models.conv4, 3), pytest.param(ax.models.resnet12, 2, marks=pytest.mark.slow)])
def test_statistics_of_the_first_images(make, channels):
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(7, 16, 16, 1)), jnp.float32)
    model = jax.jit(lambda key: make(3, key=key, channels=channels, image=(16, 16, 1)))(jax.random.key(0))
    all_of, seven, four, fewer = jax.jit(lambda m, x: (m(x), m(x, 7), m(x, 4), m(x[:6], 4)))(model, images)
    np.testing.assert_allclose(seven, all_of, atol=1e-5)
    # Those after the first four depend on these and on themselves.
    np.testing.assert_allclose(fewer[4:], four[4:6], atol=1e-5)
    assert float(jnp.abs(all_of - four).max()) > 1e-3


class Centred(eqx.Module):
    """An affine map of the pixels less the mean over the images at hand, or over the first of them."""

    weight: jax.Array

    def __call__(self, images, given=None):
        return (images - images[:given].mean(0)).reshape(len(images), -1) @ self.weight


def test_both_accuracies(problem):
    both, key = ax.tasks.both_accuracies(problem), jax.random.key(3)
    model = Centred(jax.random.normal(key, (256, 3)))
    task, pair = problem.sample_task(key), both.sample_task(key).target
    found, plain = both.scores(model, pair), problem.scores(model, task.target)
    assert found["loss"] == plain["loss"] and found["accuracy"] == plain["accuracy"]
    (support, _), (images, labels) = task.support, task.target
    # One target image at a time behind the support set.
    logits = jnp.stack([model(jnp.concatenate([support, image[None]]), 6)[6] for image in images])
    assert float(found["accuracy_nontransductive"]) == pytest.approx(float(jnp.mean(jnp.argmax(logits, 1) == labels)))
    assert float(jnp.abs(logits - model(images)).max()) > 1e-3
    method = ax.MetaGradient(ax.Inner(1, 0.1))
    one, other = (method(p, model, p.sample_task(key))[1].weight for p in (both, problem))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_refusals(problem):
    both, weight = ax.tasks.both_accuracies(problem), jnp.zeros((256, 3))
    alone = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, weight)
    with pytest.raises(ax.InputError, match=r"both_accuracies takes a network that is called as model\(images, given=n\)"):
        both.scores(alone, both.sample_task(jax.random.key(0)).target)
    with pytest.raises(ax.InputError, match="both_accuracies takes the problem that"):
        ax.tasks.both_accuracies(ax.tasks.sinusoid())
