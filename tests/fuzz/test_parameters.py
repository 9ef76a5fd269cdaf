"""Trees of parameters of any kind: each leaf is trained as documented, by plain NumPy, or refused in one sentence."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptax as ax
from adaptax.errors import NotTrained

EXAMPLES = int(os.environ.get("ADAPTAX_FUZZ", "20"))
ALPHA, BETA, DECAY, TARGET = 0.25, 0.5, 0.125, 3.0
SHARED = jnp.linspace(-1, 1, 2)
TRAINED = ("float", "numpy", "scalar", "shared", "half", "dead")
FLOATING = (*TRAINED, "statistic", "left out", "unused")
SETTINGS = ("number", "integer", "flag", "text", "nothing", "indices", "mask", "key", "function")
KINDS = (*FLOATING, *SETTINGS, "complex", "complex constant")


def leaf_of(kind, number):
    """A leaf of this kind; `number` is a small whole number that the values depend on."""
    return {
        "float": jnp.arange(3.0) + number,
        "numpy": np.full((2, 1), float(number), np.float32),
        "scalar": jnp.asarray(float(number)),
        "shared": SHARED,
        "half": jnp.asarray([1.0, number], jnp.bfloat16),
        "dead": jnp.full(2, float(number)),
        "statistic": jnp.arange(2.0) + number,
        "left out": jnp.arange(2.0) - number,
        "unused": jnp.full(2, float(number)),
        "number": 0.5 * number,
        "integer": number,
        "flag": number > 2,
        "text": f"name {number}",
        "nothing": None,
        "indices": jnp.arange(number),
        "mask": np.array([True, False]),
        "key": jax.random.key(number),
        "function": jnp.tanh,
        "complex": jnp.asarray([1.0 + number * 1j]),
        "complex constant": jnp.asarray([1.0 - number * 1j]),
    }[kind]


@st.composite
def trees(draw):
    """A nested tree of leaves, and the kind of each by its path."""
    entries = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 4), st.booleans()), min_size=1, max_size=6))
    tree, kinds = {"inside": [], "left_out": {}}, {}
    for place, (kind, number, inside) in enumerate(entries):
        leaf = leaf_of(kind, number)
        if kind == "left out":
            tree["left_out"][f"x{place}"] = leaf
            kinds[f"left_out.x{place}"] = kind
        elif inside:
            kinds[f"inside.{len(tree['inside'])}.x"] = kind
            tree["inside"].append({"x": leaf})
        else:
            tree[f"x{place}"] = leaf
            kinds[f"x{place}"] = kind
    return tree, kinds


def at(tree, path):
    for name in path.split("."):
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    return tree


def problem_of(kinds):
    """The sum of half the squared distances to the task's target over the leaves that the loss uses."""

    def loss(params, target):
        total = jnp.zeros(())
        for path, kind in kinds.items():
            leaf = at(params, path)
            if kind in ("float", "numpy", "scalar", "shared", "half", "left out", "complex"):
                total += jnp.sum(0.5 * (jnp.real(leaf).astype(jnp.float32) - target) ** 2)
            elif kind in ("statistic", "complex constant"):
                total += jnp.sum(jnp.abs(jax.lax.stop_gradient(leaf)))
            elif kind == "dead":
                total += jnp.sum(jax.nn.relu(leaf - 100.0))
            elif kind == "number":
                total += 1.0 if leaf > 1 else 0.0
            elif kind == "function":
                total += leaf(1.0)
        return total

    target = jnp.asarray(TARGET)
    return ax.FiniteSum(loss, lambda key: ax.Task(target, target), trainable=lambda path: "left_out" not in path)


def expected(kind, leaf, outer):
    """The leaf after an inner step with decay, or after an outer step with decay of the meta-gradient of one plain step."""
    if kind not in TRAINED:
        return leaf
    w = np.asarray(leaf, np.float64)
    pull = np.zeros_like(w) if kind == "dead" else w - TARGET
    if outer:
        # The meta-gradient of 0.5 |w_1 - target|^2 with w_1 = w - alpha (w - target).
        return w - BETA * ((1 - ALPHA) ** 2 * pull + DECAY * w)
    return w - ALPHA * (pull + DECAY * w)


@given(trees(), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=EXAMPLES)
@pytest.mark.filterwarnings("ignore:sample_task")
def test_every_leaf_is_trained_as_documented_or_refused(pair, outer):
    tree, kinds = pair
    problem, task = problem_of(kinds), ax.Task(*[jnp.asarray(TARGET)] * 2)
    decaying = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(1.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", NotTrained)
        try:
            if outer:
                method, step = ax.MetaGradient(ax.Inner(1, ALPHA)), optax.chain(decaying, optax.scale(BETA))
                found = ax.train(problem, tree, method, optimizer=step, steps=1, tasks_per_step=1, devices=jax.devices()[:1])
                found = found[0].params
            else:
                found = ax.adapt(problem, tree, task, ax.Inner(1, ALPHA, optimizer=decaying)).params
        except ax.InputError as error:
            sentence = str(error).split("\n")[0]
            assert sentence.endswith(".") and len(sentence) < 400
            nothing = not any(kind in (*TRAINED, "complex") for kind in kinds.values())
            assert ("is complex" in sentence and "complex" in kinds.values()) or nothing, sentence
            return
    assert "complex" not in kinds.values()
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    numbers = {path for path, kind in kinds.items() if kind == "number"}
    assert numbers == {path for path in kinds if any(f"parameter {path} is" in str(entry.message) for entry in said)}
    for path, kind in kinds.items():
        before, after = at(tree, path), at(found, path)
        if kind == "key":
            before, after = jax.random.key_data(before), jax.random.key_data(after)
        if kind in SETTINGS and kind not in ("indices", "mask", "key"):
            assert after is before or (after == before and type(after) is type(before))
            continue
        rtol = 2e-2 if kind == "half" else 1e-5
        np.testing.assert_allclose(np.asarray(after, np.complex128), expected(kind, before, outer), rtol=rtol, atol=1e-6)
        assert jnp.asarray(before).dtype == after.dtype
