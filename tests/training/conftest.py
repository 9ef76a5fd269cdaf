"""A tiny problem whose compiled programs the tests of this folder share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax

SCALES = (1.0, 2.0, 4.0)


class Tiny:
    """Quadratics 1/2 (w - c)' D (w - c) in three dimensions; c differs between support and target."""

    # Of the class, so that counting changes no attribute of the object whose method the loss is.
    traces = 0

    def __init__(self):
        self.problem = ax.FiniteSum(self.loss, self.sample)
        self.fixed = ax.MetaGradient(ax.Inner(3, 0.1))
        self.edge = ax.MetaGradient(ax.Inner(3, ax.stepsize.Edge(tasks=2, every=4, decay=0.5)))
        self.adam = optax.adam(0.05)
        self.start = jnp.array([1.0, -1.0, 0.5])
        self.one, self.two = jax.devices()[:1], jax.devices()[:2]

    def loss(self, w, c):
        type(self).traces += 1
        return 0.5 * jnp.sum(jnp.array(SCALES) * (w - c) ** 2)

    @staticmethod
    def sample(key):
        return ax.Task(*jax.random.normal(key, (2, 3)))

    def batches(self, count, size=5, seed=3):
        draws = np.random.default_rng(seed).normal(size=(count, 2, size, 3)).astype(np.float32)
        return [ax.Task(draw[0], draw[1]) for draw in draws]

    def train(self, method=None, problem=None, **options):
        options = {"steps": 12, "tasks_per_step": 5, "optimizer": self.adam, "devices": self.one, **options}
        problem, method = problem or self.problem, method or self.fixed
        return ax.train(problem, self.start, method, **options)

    @staticmethod
    def arrays(tree):
        """All arrays of a tree as NumPy ones, keys as numbers."""
        leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in leaves]

    def same(self, one, other):
        """Whether two trees of arrays are equal bit for bit."""
        one, other = self.arrays(one), self.arrays(other)
        return len(one) == len(other) and all(
            a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True)
        )

    @staticmethod
    def same_history(one, other):
        assert one.keys() == other.keys()
        return all(np.array_equal(one[k], other[k], equal_nan=one[k].dtype != bool) for k in one)


@pytest.fixture(scope="session")
def tiny():
    return Tiny()


@pytest.fixture(scope="module")
def alike(tiny):
    """The tiny problem with one centre for support and target, so that adaptation helps."""

    def sample(key):
        centre = jax.random.normal(key, (3,))
        return ax.Task(centre, centre)

    return ax.FiniteSum(tiny.loss, sample)
