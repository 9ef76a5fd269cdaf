"""Low-rank adapters, and the selections of biases and normalisation parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import relative

import adaptax as ax
from adaptax import _tree

pytestmark = pytest.mark.usefixtures("x64")


def network():
    keys = jax.random.split(jax.random.key(0), 3)
    layers = {"stacked": jax.random.normal(keys[0], (2, 6, 6), float) / 3, "bias": jnp.zeros((2, 6))}
    return {"in": jax.random.normal(keys[1], (5, 6), float), "layers": layers, "out": jax.random.normal(keys[2], (6,), float)}


def apply(w, x):
    h = x @ w["in"]
    for weight, bias in zip(w["layers"]["stacked"], w["layers"]["bias"], strict=True):
        h = h + jnp.tanh(h @ weight + bias)
    return h @ w["out"]


def task(seed):
    x = jax.random.normal(jax.random.key(seed), (12, 5), float)
    y = jnp.sin(x[:, 0] * seed)
    return ax.Task((x[:6], y[:6]), (x[6:], y[6:]))


def loss(w, batch):
    return jnp.mean((apply(w.merged(), batch[0]) - batch[1]) ** 2)


PROBLEM = ax.FiniteSum(loss, lambda key: task(1))


def begun(**options):
    made = ax.models.lora(network(), 2, key=jax.random.key(1), scale=3.0, **options)
    moved = lambda a: a + 0.1 * jax.random.normal(jax.random.key(2), a.shape, float)  # noqa: E731
    return eqx.tree_at(lambda w: w.adapters, made, jax.tree.map(moved, made.adapters))


def test_merged_is_the_base_with_a_product_on_each_matrix():
    made, base = begun(), network()
    assert set(jax.tree.leaves(jax.tree.map(jnp.shape, made.adapters))) == {2, 5, 6}
    a, b = made.adapters["layers"]["stacked"]
    want = base["layers"]["stacked"] + 3.0 / 2 * jnp.einsum("lmr,lrn->lmn", a, b)
    assert relative(made.merged()["layers"]["stacked"], want) < 1e-14
    assert made.merged()["out"] is not None and relative(made.merged()["out"], base["out"]) == 0
    fresh = ax.models.lora(base, 2, key=jax.random.key(1))
    assert all(bool(jnp.all(x == y)) for x, y in zip(*map(jax.tree.leaves, (fresh.merged(), base)), strict=True))
    assert made.size == 2 * (5 + 6) + 2 * 2 * (6 + 6)


def test_the_meta_gradient_is_that_of_backpropagation_and_the_base_has_none():
    made, one, alpha = begun(), task(1), 0.1

    def by_hand(adapters):
        for _ in range(3):
            step = lambda a: loss(eqx.tree_at(lambda w: w.adapters, made, a), one.support)  # noqa: E731
            adapters = jax.tree.map(lambda a, g: a - alpha * g, adapters, jax.grad(step)(adapters))
        return loss(eqx.tree_at(lambda w: w.adapters, made, adapters), one.target)

    gradient = ax.MetaGradient(ax.Inner(3, alpha))(PROBLEM, made, one)[1]
    assert relative(gradient.adapters, jax.grad(by_hand)(made.adapters)) < 1e-11
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(gradient.base))


@pytest.mark.long
def test_training_and_adapting_move_adapters_alone_unless_the_base_is_free():
    trained = ax.train(PROBLEM, begun(), ax.MetaGradient(ax.Inner(3)), steps=3, tasks_per_step=2, seed=0)[0].params
    assert all(bool(jnp.all(x == y)) for x, y in zip(*map(jax.tree.leaves, (trained.base, network())), strict=True))
    assert relative(trained.adapters, begun().adapters) > 1e-4
    free, inner = begun(freeze=False), ax.Inner(3, 0.1, adapt=ax.models.adapters)
    adapted = ax.adapt(PROBLEM, free, task(1), inner).params
    assert relative(adapted.base, free.base) == 0 and relative(adapted.adapters, free.adapters) > 1e-4
    gradient = ax.MetaGradient(inner)(PROBLEM, free, task(1))[1]
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient.base))


def test_paths_of_other_libraries_are_known():
    paths = {
        "layers.0.bias": (True, False), "layers.0.weight": (False, False), "norm.weight": (False, True),
        "BatchNorm_0.scale": (False, True), "Dense_0.bias": (True, False), "batch_norm.scale": (False, True),
        "linear.b": (True, False), "block/layer_norm.offset": (True, True), "ln_1.bias": (True, True),
        "norm1.scale.value": (False, True), "first.bias.value": (True, False), "normal.kernel": (False, False),
    }  # fmt: skip
    assert {path: (ax.models.biases(path), ax.models.norms(path)) for path in paths} == paths


def test_real_networks_have_such_paths():
    conv = ax.models.conv4(5, key=jax.random.key(0), channels=8)
    paths = [_tree.path_name(p) for p, leaf in jax.tree_util.tree_leaves_with_path(conv) if _tree.is_floating(leaf)]
    assert any(map(ax.models.biases, paths)) and any(map(ax.models.norms, paths))
    assert not all(ax.models.biases(p) or ax.models.norms(p) for p in paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 9}, "no matrix"),
        ({"where": lambda path: path == "out"}, "no matrix with sides above"),
        ({"where": lambda path: False}, "select at least one"),
        ({"where": "in"}, "function of a leaf's path"),
        ({"scale": 0}, "scale"),
    ],
)
def test_bad_input_gets_one_sentence(options, message):
    with pytest.raises(ax.InputError, match=message):
        ax.models.lora(network(), key=jax.random.key(0), **options)
