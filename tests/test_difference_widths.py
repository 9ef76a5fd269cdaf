"""The search for a width of `FiniteDifference`: right on losses with kinks, exact in its count, and honest at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative

import adaptax as ax
from adaptax import _tree
from adaptax._cost import Cost
from adaptax._smoothing import average
from adaptax.curvature import LocalLoss

SEARCH = ax.curvature.FiniteDifference()


def network(kind):
    """Loss and parameters of a small network with kinks."""
    keys = jax.random.split(jax.random.key(0), 4)
    if kind == "max pool":
        w = {"in": jax.random.normal(keys[0], (9, 12)) / 3, "out": jax.random.normal(keys[1], (6,))}
        apply = lambda w, x: jnp.max((x @ w["in"]).reshape(-1, 6, 2), -1) @ w["out"]  # noqa: E731
    else:
        sizes = ((9, 64), (64, 64), (64, 1))
        w = [jax.random.normal(key, size) / size[0] ** 0.5 for key, size in zip(keys, sizes, strict=False)]

        def apply(w, x):
            for weight in w[:-1]:
                x = jax.nn.relu(x @ weight)
            return (x @ w[-1])[:, 0]

    return lambda w, batch: jnp.mean((apply(w, batch[0]) - batch[1]) ** 2) + 0.1 * jnp.mean(jnp.tanh(apply(w, batch[0]))), w


def errors(kind, strategy, count=40):
    loss, w = network(kind)

    @jax.jit
    @jax.vmap
    def one(key):
        a, b, c = jax.random.split(key, 3)
        batch = jax.random.normal(a, (64, 9)), jax.random.normal(b, (64,))
        v = jax.tree.map(lambda leaf: jax.random.normal(jax.random.fold_in(c, leaf.size), leaf.shape), w)
        local = LocalLoss(lambda w, _: loss(w, batch), w)
        exact, found = (s.product(local, v)[1][0] for s in (ax.curvature.Exact(), strategy))
        gap = jax.tree.map(jnp.subtract, found, exact)
        return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(gap)) / sum(jnp.sum(x**2) for x in jax.tree.leaves(exact)))

    return np.asarray(one(jax.random.split(jax.random.key(1), count)))


@pytest.mark.parametrize(("kind", "wide"), [("relu", 1e-3), ("max pool", 0.1)])
def test_it_is_right_on_networks_with_kinks_where_a_wide_difference_is_not(kind, wide):
    found = errors(kind, SEARCH)
    assert np.median(found) < 0.02 and found.max() < 0.5
    assert errors(kind, ax.curvature.FiniteDifference(delta=wide)).max() > 0.5


def test_a_kink_between_the_points_is_told_from_the_jump_of_the_gradient(x64):
    """One relu whose kink lies at a distance t beside w: every t is met on one side, and the other side serves."""

    def local(t):
        return LocalLoss(lambda w, _: 0.5 * jnp.sum(w**2) + 50 * jax.nn.relu(w[0] - 1 - t), jnp.ones(3))

    v = jnp.array([2.0, 1.0, -1.0])
    for t in (0.0, 1e-12, 1e-10, 1e-9, 1e-8, -1e-9, -1e-12):
        assert relative(SEARCH.product(local(t), v)[1][0], v) < 1e-5
    assert relative(ax.curvature.FiniteDifference(delta=1e-7).product(local(1e-9), v)[1][0], v) > 10


def test_smooth_losses_take_three_gradients_and_others_no_more_than_thirteen():
    calls = []

    def counted(w, batch):
        jax.debug.callback(lambda: calls.append(1))
        return batch(w)

    def gradients(loss):
        calls.clear()
        jax.block_until_ready(SEARCH.product(LocalLoss(lambda w, _: counted(w, loss), jnp.ones(4)), jnp.ones(4)))
        jax.effects_barrier()
        return len(calls)

    assert gradients(lambda w: jnp.sum(w**4)) == 3
    assert 3 < gradients(lambda w: jnp.sum(jnp.sin(1e9 * w))) <= 13


def test_limits():
    flat = LocalLoss(lambda w, _: jnp.sum(w), jnp.ones(3))
    assert float(jnp.max(jnp.abs(SEARCH.product(flat, jnp.ones(3))[1][0]))) < 1e-2
    square = LocalLoss(lambda w, _: jnp.sum(w**2), jnp.ones(3))
    assert not jnp.any(SEARCH.product(square, jnp.zeros(3))[1][0])
    assert relative(SEARCH.product(square, jnp.ones(3))[1][0], 2 * jnp.ones(3)) < 1e-3
    broken = LocalLoss(lambda w, _: jnp.sum(jnp.sqrt(w)), -jnp.ones(3))
    assert not jnp.any(jnp.isfinite(SEARCH.product(broken, jnp.ones(3))[1][0]))


@pytest.mark.parametrize("kind", ["relu", "max pool"])
def test_smoothing_by_default_is_right_along_each_direction(kind):
    """Near the mean over the same directions with exact products, where one width for all is not."""
    loss, w = network(kind)
    batch = jax.random.normal(jax.random.key(2), (64, 9)), jax.random.normal(jax.random.key(3), (64,))
    local = LocalLoss(lambda w, _: loss(w, batch), w)
    v = jax.grad(lambda w: loss(w, batch))(w)

    @jax.jit
    def both(key):
        def term(u):
            return _tree.scale(_tree.dot(u, v), ax.curvature.Exact().product(local, u)[1][0])

        default, wide = (
            ax.curvature.GaussianSmoothing(samples=20, delta=delta).product(local, v, key)[1][0] for delta in (None, 0.03)
        )
        return default, wide, average(term, w, 20, key)

    found = [both(jax.random.key(i)) for i in range(5)]
    assert np.median([relative(a, c) for a, _, c in found]) < 0.02
    assert np.median([relative(b, c) for _, b, c in found]) > 0.1


def test_smoothing_takes_an_antithetic_form_for_a_width_of_ones_own_alone():
    with pytest.raises(ax.InputError, match="pass delta="):
        ax.curvature.GaussianSmoothing(antithetic=True)
    costs = [ax.curvature.GaussianSmoothing(samples=4, **more).cost(Cost(gradients=1)).gradients for more in
             ({}, {"delta": 1e-3}, {"delta": 1e-3, "antithetic": True})]  # fmt: skip
    assert costs == [9, 5, 8]
