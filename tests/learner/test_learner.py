"""Learners: adaptation to a new case, predictions, and what they leave in a file."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MISSION

import adaptax as ax

X = np.linspace(-4, 4, 10)[:, None]


@pytest.fixture(scope="module")
def sine():
    """A learner of sinusoids, trained a little."""
    problem = ax.tasks.sinusoid()
    params = ax.models.mlp((1, 16, 16, 1), key=jax.random.key(0), activation=jax.nn.tanh)
    state, _ = ax.train(problem, params, ax.MetaGradient(ax.Inner(5)), steps=30, tasks_per_step=8)
    return ax.Learner(problem, state.params, state.inner, about={"steps": 30})


def classifier(ways=3, norm="batch", shared=True):
    start = ax.models.shared_head(ways) if shared else None
    inner = ax.Inner(60, 0.5, lambda path: path.startswith("head"), start=start)
    network = ax.models.conv4(1 if shared else ways, key=jax.random.key(1), channels=16, image=(16, 16, 1), norm=norm)
    data = ax.tasks.ImageClasses(np.zeros((9, 16, 16, 1), np.uint8), ("bee", "cat", "dog"), (3, 3, 3))
    return ax.Learner(ax.tasks.few_shot(data, ways=ways, queries=1), network, inner)


def images(classes, each=3, seed=0):
    """Noisy stripes of another direction or width for each class."""
    random, grid = np.random.default_rng(seed), np.arange(16) * 0.9
    patterns = [np.sin(k * grid)[:, None] + np.cos((k + 1) * grid)[None] for k in range(classes)]
    made = np.repeat(np.stack(patterns), each, 0)[..., None]
    return (made + 0.1 * random.normal(size=made.shape)).astype(np.float32), np.repeat(np.arange(classes), each)


def test_regression(sine):
    predictor = sine.adapt((X, 2 * np.sin(X)))
    expected = ax.adapt(sine.problem, sine.params, ax.Task((X, 2 * np.sin(X))), sine.inner)
    np.testing.assert_array_equal(predictor.predict(X), expected.params(X))
    assert predictor.losses.shape == (5,) and predictor.losses[-1] < predictor.losses[0]
    np.testing.assert_array_equal(sine.adapt(ax.Task((X, 2 * np.sin(X)))).losses, predictor.losses)
    curve = sine.evaluate(tasks=50)
    assert curve.steps.tolist() == [0, 1, 2, 3, 4, 5] and curve.mean["loss"][5] < curve.mean["loss"][0]
    with pytest.raises(ax.InputError, match="Only a classifier gives probabilities"):
        predictor.probabilities(X)


@pytest.mark.parametrize("classes", [3, *(pytest.param(classes, marks=MISSION) for classes in (2, 5))])
def test_any_number_of_classes_with_labels_of_any_kind(classes):
    learner, (x, y) = classifier(), images(classes)
    names = np.array(["ash", "birch", "cedar", "elm", "fir"])[y]
    predictor = learner.adapt((x, names))
    assert predictor.classes == tuple(np.unique(names))
    fresh, truth = images(classes, each=4, seed=1)
    probabilities = predictor.probabilities(fresh)
    assert probabilities.shape == (4 * classes, classes)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    right = predictor.predict(fresh) == np.array(["ash", "birch", "cedar", "elm", "fir"])[truth]
    assert right.mean() > 0.9
    # A prediction does not depend on what else is predicted.
    np.testing.assert_allclose(predictor(fresh[:1]), predictor(fresh)[:1], rtol=1e-4, atol=1e-5)


def test_the_support_set_normalises_where_batches_are_normalised():
    (x, y), inputs = images(3), images(3, seed=2)[0]
    batch, group = classifier(), classifier(norm="group")
    adapted = ax.adapt(batch.problem, batch.params, ax.Task((x, y)), batch.inner).params
    np.testing.assert_allclose(
        batch.adapt((x, y))(inputs), adapted(jnp.concatenate([x, inputs]), given=len(x))[len(x) :], rtol=1e-5
    )
    assert group.adapt((x, y)).support is None


@pytest.mark.parametrize(
    "support, message",
    [
        ((np.zeros((2, 16, 16, 1)), np.array([1, 1])), "has one class alone"),
        ((np.zeros((2, 16, 16, 1)), np.array([1, 1, 2])), r"pair \(inputs, labels\) of equal lengths"),
        (np.zeros((2, 16, 16, 1)), r"pair \(inputs, labels\)"),
        ((np.zeros((2, 16, 16, 1)), np.eye(2)), r"labels of shape \(n,\)"),
    ],
)
def test_support_sets_that_are_refused(support, message):
    with pytest.raises(ax.InputError, match=message):
        classifier().adapt(support)


def test_a_head_with_a_vector_for_each_class_keeps_their_number():
    learner = classifier(ways=3, shared=False)
    assert learner.adapt(images(3)).classes == (0, 1, 2)
    with pytest.raises(ax.InputError, match=r"has 2 classes, and this network has a class vector for each of 3.*shared_head"):
        learner.adapt(images(2))


def test_wrong_parts_are_refused(sine):
    with pytest.raises(ax.InputError, match="The problem must be"):
        ax.Learner(3, sine.params, sine.inner)
    with pytest.raises(ax.InputError, match=r"inner loop third, such as state\.inner, not MetaGradient"):
        ax.Learner(sine.problem, sine.params, ax.MetaGradient(sine.inner))
    with pytest.raises(ax.InputError, match=r"predict='x'.*must be a function"):
        ax.Learner(sine.problem, sine.params, sine.inner, predict="x")
    plain = ax.FiniteSum(lambda w, batch: jnp.sum((w - batch) ** 2), lambda key: None)
    with pytest.raises(ax.InputError, match="no function of inputs: give the learner predict="):
        ax.Learner(plain, jnp.zeros(2), ax.Inner(1, 0.1)).adapt(jnp.ones(2))(X)


def test_parameters_without_a_call_predict_by_a_function():
    problem = ax.FiniteSum(lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2), lambda key: None)
    learner = ax.Learner(problem, jnp.zeros(2), ax.Inner(50, 0.2), predict=lambda w, x: x @ w)
    x = jnp.eye(2).repeat(2, 0)
    np.testing.assert_allclose(learner.adapt((x, x @ jnp.array([1.0, -2.0]))).predict(np.eye(2)), [1, -2], atol=1e-3)


@pytest.mark.long
def test_learned_step_sizes_come_along():
    problem, params = ax.tasks.sinusoid(), ax.models.mlp((1, 8, 1), key=jax.random.key(0))
    inner = ax.Inner(3, ax.stepsize.Learned(0.01, per="leaf", per_step=True))
    state, _ = ax.train(problem, params, ax.MetaGradient(inner), optimizer=optax.adam(0.01), steps=5, tasks_per_step=2)
    learner = ax.Learner(problem, state.params, state.inner)
    expected = ax.adapt(problem, state.params, ax.Task((X, np.sin(X))), state.inner).losses
    np.testing.assert_allclose(learner.adapt((X, np.sin(X))).losses, expected, rtol=1e-6)


def test_a_policy_adapts_to_a_task():
    problem = ax.tasks.rl.navigation(horizon=5)
    policy = ax.tasks.rl.GaussianPolicy(ax.models.mlp((2, 4, 2), key=jax.random.key(0)), 2)
    learner = ax.Learner(problem, policy, ax.Inner(1, 0.1), samples=ax.Samples(3, 3, 3))
    adapted = learner.adapt(jnp.array([0.3, 0.1]), jax.random.key(1)).params
    assert adapted.sample(jnp.zeros((4, 2)), jax.random.key(2)).shape == (4, 2)


def test_predictions_are_compiled_and_exported(sine):
    predictor = sine.adapt((X, np.sin(X)))
    inputs = jnp.asarray(X[:4], jnp.float32)
    np.testing.assert_allclose(jax.jit(predictor)(inputs), predictor(inputs), rtol=1e-5, atol=1e-6)
    exported = jax.export.export(jax.jit(predictor))(jax.ShapeDtypeStruct((4, 1), jnp.float32))
    np.testing.assert_allclose(exported.call(inputs), predictor(inputs), rtol=1e-5, atol=1e-6)
    pytest.importorskip("flatbuffers", reason="jax.export writes bytes with flatbuffers, which is not installed")
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(inputs), predictor(inputs), rtol=1e-5, atol=1e-6)
