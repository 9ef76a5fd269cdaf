"""How many tasks are held at a time: by all that a task holds, in every program that goes over tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax import _batching
from adaptax._batching import Traced, map_tasks

MIB = 2**20


def held(function, *inputs):
    return Traced(lambda x: function(*x), jax.tree.map(lambda x: jnp.stack([x, x]), inputs)).held


def test_values_are_held_until_they_are_last_used():
    x = jnp.zeros(1000)
    assert held(lambda x: jnp.sin(x), x) == 4000
    # The first is freed once the second is there; two are held between.
    assert held(lambda x: jnp.sin(jnp.cos(jnp.exp(x))), x) == 8000
    # Both are needed at the end, beside the result.
    assert held(lambda x: jnp.add(jnp.sin(x), jnp.cos(x)), x) == 12_000
    # The square is never used.
    assert held(lambda x: (jnp.sin(x), x * x)[0], x) == 4000


def test_what_all_tasks_share_is_not_held_by_each():
    shared = jnp.ones((1000, 1000))
    assert held(lambda x: x @ (shared * 2), jnp.zeros(1000)) == 4000


def test_a_loop_holds_what_it_stacks_and_what_its_body_needs():
    def loop(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=10)

    # Ten stacked values, the last one, and the one that the body makes.
    assert held(loop, jnp.zeros(1000)) == 4000 * 12


@pytest.mark.parametrize("rows", [1000, 4000])
def test_copies_of_parameters_iterates_and_the_state_of_an_optimiser_count(rows):
    params = {"table": jnp.zeros((rows, 8)), "head": jnp.ones(8)}
    size = 32 * rows
    task = ax.Task(*[(jnp.zeros((2, 4), int), jnp.ones((2, 4)))] * 2)
    problem = ax.FiniteSum(lambda p, b: jnp.mean((p["table"][b[0]] @ p["head"] - b[1]) ** 2), lambda key: None)
    found = {}
    for name, inner, options in (
        ("plain", ax.Inner(4, 0.1), {}),
        ("longer", ax.Inner(8, 0.1), {}),
        ("sqrt", ax.Inner(64, 0.1), {"store": "sqrt"}),
        ("momentum", ax.Inner(4, optimizer=optax.sgd(0.1, momentum=0.9)), {}),
    ):
        method = ax.MetaGradient(inner, **options)
        traced = Traced(lambda pair, method=method: method.one_task(problem, params, *pair)[:2], (task, None))
        found[name] = traced.held / size
    assert 4 < found["plain"] < 10
    assert found["longer"] - found["plain"] == pytest.approx(4, abs=0.1)
    assert found["sqrt"] < 30
    assert found["momentum"] - found["plain"] > 4


def sizes_of(monkeypatch):
    sizes, original = [], Traced.at_a_time

    def noted(self, count, in_flight=None, **options):
        sizes.append(original(self, count, in_flight, **options))
        return sizes[-1]

    monkeypatch.setattr(Traced, "at_a_time", noted)
    return sizes


@pytest.mark.parametrize("what", ["batch", "train", "evaluate", "resolve"])
def test_large_parameters_are_adapted_a_task_at_a_time_and_small_ones_together(monkeypatch, what):
    def sample(key):
        return ax.Task(*[(jax.random.randint(key, (3,), 0, 9), jnp.ones(3))] * 2)

    problem = ax.FiniteSum(lambda p, b: jnp.mean((p["table"][b[0]] @ p["head"] - b[1]) ** 2), sample)
    tasks, inner = jax.vmap(sample)(jax.random.split(jax.random.key(0), 6)), ax.Inner(2, 0.1)
    for rows, expected in ((9, 6), (2 * _batching._SUMMED // 32, 1)):
        params, sizes = {"table": jnp.ones((rows, 8)), "head": jnp.ones(8)}, sizes_of(monkeypatch)
        if what == "batch":
            ax.MetaGradient(inner).batch(problem, params, tasks)
        elif what == "train":
            ax.train(problem, params, ax.MetaGradient(inner), steps=1, tasks_per_step=6, devices=jax.devices()[:1])
        elif what == "evaluate":
            ax.evaluate(problem, params, inner, [0, 2], tasks=6, devices=jax.devices()[:1])
        else:
            ax.stepsize.resolve(ax.Inner(2, ax.stepsize.Edge()), problem, params, tasks)
        assert set(sizes) == {expected}
        monkeypatch.undo()


def test_groups_are_full_where_a_size_near_the_largest_divides_the_count():
    traced = Traced(lambda x: jnp.sin(x), jnp.zeros((2, _batching._CACHE // 4 // 10)))
    assert [traced.at_a_time(count) for count in (3, 10, 12, 32, 35, 23)] == [3, 10, 6, 8, 7, 8]
    # Where results are summed the groups decide the rounding, and a small batch is one group.
    assert [traced.at_a_time(count, summed=True) for count in (25, 100)] == [25, 100]


def test_the_program_that_was_traced_gives_the_function_itself():
    def one(x):
        a, b = x
        return {"sum": jnp.sum(a["v"] * b), "none": None, "pair": (a["n"] + 1, jax.nn.relu(b))}

    inputs = ({"v": jnp.arange(12.0).reshape(4, 3), "n": jnp.arange(4)}, jnp.linspace(-1, 1, 4))
    expected = jax.vmap(one)(inputs)
    for size in (None, 1, 2, 3, 4):
        found = map_tasks(one, inputs, size)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_calls_the_host_is_stepped_for_all_tasks_together():
    def one(x):
        return jax.pure_callback(
            lambda x: np.asarray(x) + 1, jax.ShapeDtypeStruct((5 * MIB,), jnp.float32), x, vmap_method="expand_dims"
        )

    traced = Traced(lambda x: jax.lax.cond(x[0] > 0, one, lambda x: x, x), jax.ShapeDtypeStruct((3, 5 * MIB), jnp.float32))
    assert traced.host and traced.at_a_time(3) == 3 and traced.at_a_time(3, 2) == 2
