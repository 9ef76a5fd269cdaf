"""What several tests share: errors between pytrees, central differences, and small problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax

# Long tests that CI runs too, beside the ordinary suite.
MISSION = (pytest.mark.slow, pytest.mark.mission)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


def relative(got, expected):
    """Relative error over all leaves, after a check that the structures agree."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    a, b = flat(got), flat(expected)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def normal_like(tree, seed):
    """Independent standard normal numbers in the shapes of the leaves."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [jax.random.normal(k, jnp.shape(leaf), jnp.result_type(leaf)) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)


def central(function, x, direction, width):
    """The derivative of `function` along `direction`, from four values: the error is of fourth order in `width`."""
    at = lambda t: float(function(jax.tree.map(lambda a, d: a + t * d, x, direction)))  # noqa: E731
    return (8 * (at(width) - at(-width)) - (at(2 * width) - at(-2 * width))) / (12 * width)


def no_tasks(key):
    raise AssertionError("tests give their tasks")


def squared(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


def cross_entropy(model, batch):
    images, labels = batch
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(model(images)), labels[:, None], axis=1))


def regression(dtype=None, sizes=(1, 8, 8, 1)):
    """A problem, a smooth network and a task with different support and target sets."""
    model = ax.models.mlp(sizes, key=jax.random.key(1), activation=jnp.tanh, dtype=dtype)
    x = jnp.linspace(-2, 2, 6, dtype=dtype)[:, None]
    task = ax.Task((x, jnp.sin(2 * x)), (x + 0.3, jnp.sin(2 * x + 0.6)))
    return ax.FiniteSum(squared, no_tasks), model, task


def images(ways=3, channels=8, side=16, shots=2):
    """A classification problem, a convolutional network and a task of random images."""
    model = ax.models.conv4(ways, key=jax.random.key(1), channels=channels, image=(side, side, 1))
    keys = jax.random.split(jax.random.key(2), 2)
    labels = jnp.tile(jnp.arange(ways), shots)
    support, target = (jax.random.normal(k, (ways * shots, side, side, 1)) for k in keys)
    return ax.FiniteSum(cross_entropy, no_tasks), model, ax.Task((support, labels), (target, labels))


class Stop(BaseException):
    """An interruption after which nothing is saved, as if the process had been killed."""


def stop_at(step):
    """A callback that interrupts training at a meta-step."""

    def callback(state, record):
        if int(state.step) >= step:
            raise Stop

    return callback
