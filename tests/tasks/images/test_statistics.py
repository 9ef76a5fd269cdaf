"""Fixed statistics for batch normalisation: what they are, and what is judged with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.models.protocol import Moments
from adaptax.tasks.images.statistics import StepStatistics

SIDE = 16
INNER = ax.Inner(2, 0.5, lambda path: path.startswith("head"))


@pytest.fixture(scope="module")
def problem():
    pixels = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 1), np.uint8)
    return ax.tasks.few_shot(ax.tasks.ImageClasses(pixels, ("a", "b", "c"), (4, 4, 4)), ways=2, queries=3, rotations=False)


@pytest.fixture(scope="module")
def model():
    return ax.models.conv4(2, key=jax.random.key(0), channels=3, image=(SIDE, SIDE, 1))


@pytest.mark.parametrize("image", [(16, 16, 1), (18, 21, 2)], ids=["even", "odd"])
@pytest.mark.parametrize(
    "make",
    [pytest.param(ax.models.conv4, id="conv4"), pytest.param(ax.models.resnet12, id="resnet12", marks=pytest.mark.slow)],
)
def test_a_batchs_own_statistics_change_nothing(make, image):
    network = make(3, key=jax.random.key(1), channels=4, image=image)
    images = jax.random.normal(jax.random.key(2), (5, *image))
    found = network.moments(images)
    np.testing.assert_allclose(network(images, given=found), network(images), rtol=1e-4, atol=1e-5)
    # A prediction then depends on the image alone.
    np.testing.assert_allclose(network(images[:1], given=found), network(images)[:1], rtol=1e-4, atol=1e-5)


def test_images_normalised_alone_have_no_statistics():
    network = ax.models.conv4(2, key=jax.random.key(0), channels=2, image=(16, 16, 1), norm="layer")
    with pytest.raises(ax.InputError, match="leave them out"):
        network.moments(jnp.zeros((1, 16, 16, 1)))


@pytest.mark.long
def test_the_first_units_statistics_are_those_of_all_target_images(problem, model):
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(3), 5))
    found = ax.training.step_statistics(problem, model, INNER, [0, 2], tasks)
    together = model.blocks[0].moments(tasks.target[0].reshape(-1, SIDE, SIDE, 1))
    for steps in (0, 2):
        mean, variance = found.at(steps)[0]
        np.testing.assert_allclose(mean, together.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(variance, together.variance, rtol=1e-4)


@pytest.mark.long
def test_they_follow_the_adapted_parameters(problem, model):
    inner = ax.Inner(2, 0.5)
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(3), 2))
    found = ax.training.step_statistics(problem, model, inner, [1], tasks)
    each = []
    for i in range(2):
        task = jax.tree.map(lambda leaf, i=i: leaf[i], tasks)
        adapted = ax.adapt(problem, model, task, ax.Inner(1, 0.5)).params
        each.append(adapted.moments(task.target[0])[3])
    mean = (each[0].mean + each[1].mean) / 2
    variance = sum(m.variance + m.mean**2 for m in each) / 2 - mean**2
    np.testing.assert_allclose(found.at(1)[3].mean, mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.at(1)[3].variance, variance, rtol=1e-3)


@pytest.mark.long
def test_those_of_a_problem_with_both_accuracies_are_of_the_target_images_too(problem, model):
    one, two = (ax.training.step_statistics(p, model, INNER, [0], 2) for p in (problem, ax.tasks.both_accuracies(problem)))
    for plain, both in zip(one.at(0), two.at(0), strict=True):
        np.testing.assert_allclose(both.mean, plain.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(both.variance, plain.variance, rtol=1e-4, atol=1e-6)


def test_the_nearest_number_of_steps_above_counts():
    statistics = StepStatistics(jnp.array([0, 2, 5]), jnp.array([10.0, 20.0, 30.0]))
    assert [float(statistics.at(n)) for n in (0, 1, 2, 3, 5, 9)] == [10, 20, 20, 30, 30, 30]


@pytest.mark.long
@pytest.mark.parametrize("both", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_accuracy_under_them(problem, model, both):
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(4), 3))
    judged = ax.tasks.both_accuracies(problem) if both else problem
    given = ax.Task(tasks.support, (tasks.support, tasks.target)) if both else tasks
    # Statistics of one number of steps are far off, so that a mix-up shows.
    right = ax.training.step_statistics(problem, model, INNER, [0, 2], tasks)
    moved = jax.tree.map(lambda leaf: leaf.at[0].add(100.0), right.given)
    judged = ax.tasks.with_statistics(judged, StepStatistics(right.steps, moved))
    curve = ax.evaluate(judged, model, INNER, [2], given)
    hits = []
    for i in range(3):
        task = jax.tree.map(lambda leaf, i=i: leaf[i], tasks)
        adapted = ax.adapt(problem, model, task, INNER).params
        logits = adapted(task.target[0], given=right.at(2))
        hits.append(np.mean(np.argmax(logits, 1) == task.target[1]))
    assert curve.mean["accuracy_step_statistics"][0] == pytest.approx(np.mean(hits), abs=1e-6)
    assert ("accuracy_nontransductive" in curve.mean) == both


def test_bad_input(problem, model):
    flat = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.zeros((SIDE**2, 2)))
    with pytest.raises(ax.InputError, match=r"step_statistics takes a network with a method moments\(images\)"):
        ax.training.step_statistics(problem, flat, ax.Inner(0, 1.0), [0], 2)
    # A network without `given` has no accuracy under fixed statistics.
    judged = ax.tasks.with_statistics(problem, StepStatistics(jnp.array([0]), Moments(jnp.zeros((1, 1)), jnp.ones((1, 1)))))
    with pytest.raises(ax.InputError, match=r"with_statistics takes a network that is called as model\(images, given=n\)"):
        ax.evaluate(judged, flat, ax.Inner(0, 1.0), [0], 2)
    plain = ax.FiniteSum(lambda w, batch: jnp.sum(w), lambda key: None)
    with pytest.raises(ax.InputError, match="few_shot"):
        ax.tasks.with_statistics(plain, StepStatistics(jnp.array([0]), Moments(jnp.zeros(1), jnp.zeros(1))))
