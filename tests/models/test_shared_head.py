"""One class vector for all classes: the start of the inner loop and its derivative."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cross_entropy, no_tasks, relative

import adaptax as ax

WAYS = 3


def network(outputs):
    """A network with one hidden layer."""
    return ax.models.mlp((2, 6, outputs), key=jax.random.key(1), activation=jnp.tanh)


@pytest.fixture
def shared(x64):
    """A problem of three classes, a network with one output, a task, and the inner loop that spreads the output."""
    labels = jnp.tile(jnp.arange(WAYS), 2)
    support, target = jax.random.normal(jax.random.key(2), (2, 2 * WAYS, 2))
    task = ax.Task((support, labels), (target, labels))
    return ax.FiniteSum(cross_entropy, no_tasks), network(1), task, ax.Inner(2, 0.2, start=ax.models.shared_head(WAYS))


def test_the_derivative_is_that_of_backpropagation_and_of_a_network_with_equal_heads(shared):
    problem, model, task, inner = shared
    value, grad, _ = ax.MetaGradient(inner)(problem, model, task)
    assert relative(grad, ax.MetaGradient(inner, mode="backprop")(problem, model, task)[1]) < 1e-10
    through = jax.grad(lambda model: problem.loss(ax.adapt(problem, model, task, inner).params, task.target))(model)
    assert relative(grad, through) < 1e-10
    # A network with three equal class vectors has the same value, and its head's gradient is summed over classes.
    spread = inner.initial(model)
    other_value, other, _ = ax.MetaGradient(ax.Inner(2, 0.2))(problem, spread, task)
    assert abs(value - other_value) < 1e-12
    last = other.layers[-1]
    sums = last.weight.sum(1, keepdims=True), last.bias.sum(keepdims=True)
    summed = eqx.tree_at(lambda m: (m.layers[-1].weight, m.layers[-1].bias), other, sums)
    assert relative(grad, summed) < 1e-10


def test_the_numbering_of_the_classes_does_not_matter(shared):
    problem, model, task, inner = shared
    renumbered = ax.Task(*((images, (labels + 1) % WAYS) for images, labels in (task.support, task.target)))
    method = ax.MetaGradient(inner)
    same, other = method(problem, model, task), method(problem, model, renumbered)
    assert abs(same[0] - other[0]) < 1e-12
    assert relative(same[1], other[1]) < 1e-10
    # With a vector for each class it does.
    plain = ax.MetaGradient(ax.Inner(2, 0.2))
    model = network(WAYS)
    assert abs(plain(problem, model, task)[0] - plain(problem, model, renumbered)[0]) > 1e-4


def test_training_and_evaluation_keep_one_output(shared):
    problem, model, task, inner = shared
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), task)
    problem = ax.FiniteSum(problem.loss, lambda key: task)
    state, history = ax.train(problem, model, ax.MetaGradient(inner), steps=3, tasks_per_step=2)
    assert state.params.layers[-1].weight.shape == (6, 1)
    assert np.all(np.isfinite(history["loss"]))
    curve = ax.evaluate(problem, model, inner, [0, 2], tasks)
    # All outputs are equal before adaptation.
    np.testing.assert_allclose(curve.mean["loss"][0], np.log(WAYS))
    assert abs(curve.mean["loss"][1] - ax.MetaGradient(inner)(problem, model, task)[0]) < 1e-10


def test_works_on_the_last_layer_of_an_mlp():
    model = ax.models.mlp((2, 4, 1), key=jax.random.key(0))
    assert ax.models.shared_head(5)(model)(jnp.ones((3, 2))).shape == (3, 5)


@pytest.mark.parametrize("ways", [1, 2.0, True])
def test_refuses_numbers_of_classes(ways):
    with pytest.raises(ax.InputError, match="whole number of at least 2"):
        ax.models.shared_head(ways)


def test_refuses_networks_with_several_outputs():
    with pytest.raises(ax.InputError, match="one output of a network"):
        ax.models.shared_head(5)(ax.models.mlp((2, 4, 5), key=jax.random.key(0)))
    with pytest.raises(ax.InputError, match="shared_head takes a network whose last layer is its head"):
        ax.models.shared_head(5)(jnp.ones(3))


def test_learned_rates_have_the_shapes_of_what_is_spread():
    model = ax.models.mlp((2, 4, 1), key=jax.random.key(0))
    batch = (jnp.ones((3, 2)), jnp.arange(3))
    problem = ax.FiniteSum(cross_entropy, lambda key: ax.Task(batch, batch))
    inner = ax.Inner(2, ax.stepsize.Learned(0.1, per="parameter"), start=ax.models.shared_head(3))
    state, history = ax.train(problem, model, ax.MetaGradient(inner), steps=2, tasks_per_step=1)
    assert state.params.params.layers[-1].weight.shape == (4, 1)
    assert state.params.stepsize.tree.layers[-1].weight.shape == (4, 3)
    assert np.all(np.isfinite(history["loss"]))
