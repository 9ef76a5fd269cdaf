"""`ax.tasks.table`: tasks from groups of rows, whose support and target sets share no row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.tasks.distinct import distinct

FRAME = {
    "shop": np.array(["b"] * 4 + ["a"] * 7 + ["c"]),
    "day": np.array([3.0, 1, 2, 0, 6, 5, 4, 3, 2, 1, 0, 9]),
    "sales": np.arange(12.0),
}


def problem(**changes):
    options = {"group": "shop", "target": "sales", "support": 3, "queries": 5} | changes
    return ax.tasks.table(FRAME, **options)


def tasks_of(problem, count=300):
    return jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(0), count))


def rows_of(batch, i):
    """The targets of the rows of one task, which tell the rows apart."""
    _, y, mask = batch
    return [float(v) for v, there in zip(y[i], mask[i], strict=True) if there]


@pytest.mark.parametrize("order", [None, "day"])
def test_a_task_is_one_group_and_its_sets_share_no_row(order):
    tasks, groups = tasks_of(problem(order=order)), {"b": set(range(4)), "a": set(range(4, 11))}
    for i in range(300):
        support, target = rows_of(tasks.support, i), rows_of(tasks.target, i)
        (members,) = [rows for rows in groups.values() if support[0] in rows]
        assert set(support) | set(target) <= members and not set(support) & set(target)
        assert len(support) == len(set(support)) == 3
        assert len(target) == len(set(target)) == min(5, len(members) - 3)


def test_with_an_order_the_support_set_is_the_first_rows():
    tasks = tasks_of(problem(order="day"))
    firsts = {tuple(rows_of(tasks.support, i)) for i in range(300)}
    assert firsts == {(3.0, 1.0, 2.0), (10.0, 9.0, 8.0)}


def test_groups_and_rows_are_drawn_with_equal_probability():
    count = 6000
    tasks = tasks_of(problem(), count)
    in_a = np.asarray(tasks.support[1][:, 0]) >= 4
    assert abs(in_a.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    first = np.asarray(tasks.support[1][:, 0])[in_a]
    shares = np.bincount(first.astype(int), minlength=11)[4:] / len(first)
    assert np.all(np.abs(shares - 1 / 7) < 4 * np.sqrt(6 / 49 / len(first)))


def test_numbers_of_support_rows_are_drawn_between_two():
    tasks = tasks_of(problem(support=(1, 6)))
    sizes = np.asarray(tasks.support[2]).sum(1)
    in_a = np.asarray(tasks.support[1][:, 0]) >= 4
    assert set(sizes[in_a]) == {1, 2, 3, 4, 5, 6}
    assert set(sizes[~in_a]) == {1, 2, 3}  # one of four rows is left to predict


def test_a_shuffle_draws_every_order_equally_often():
    count = 12000
    drawn = jax.vmap(lambda key: distinct(key, jnp.asarray(3), 5)[:3])(jax.random.split(jax.random.key(1), count))
    _, times = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    assert len(times) == 6
    assert np.all(np.abs(times / count - 1 / 6) < 4 * np.sqrt(5 / 36 / count))


def test_padding_changes_no_loss():
    frame = {"g": np.repeat([0, 1], [3, 9]), "x": np.arange(12.0), "y": np.arange(12.0) ** 2}
    task = ax.tasks.table(frame, group="g", target="y", support=8, queries=2)
    model = ax.models.mlp((1, 4, 1), key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(2), 20)
    for drawn in map(task.sample_task, keys):
        x, y, mask = drawn.support
        kept = np.asarray(mask) > 0
        plain = np.mean((np.asarray(model(x))[kept, 0] - np.asarray(y)[kept]) ** 2)
        np.testing.assert_allclose(task.loss(model, drawn.support), plain, rtol=1e-5)


@pytest.mark.slow
def test_training_on_a_table_adapts():
    random = np.random.default_rng(0)
    slopes = random.normal(size=40)
    x = random.uniform(-1, 1, (40, 16))
    frame = {"g": np.repeat(np.arange(40), 16), "x": x.ravel(), "y": (slopes[:, None] * x).ravel()}
    tasks = ax.tasks.table(frame, group="g", target="y", support=8)
    params = ax.models.mlp((1, 16, 1), key=jax.random.key(0))
    state, _ = ax.train(tasks, params, ax.MetaGradient(ax.Inner(5)), steps=200)
    curve = ax.evaluate(tasks, state.params, state.inner, [0, 5], 200)
    assert curve.mean["loss"][1] < 0.1 * curve.mean["loss"][0]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"group": "town"}, "no column 'town': it has 'shop', 'day', 'sales'"),
        ({"target": "shop", "group": "day"}, "Column 'shop' is not of numbers"),
        ({"order": "hour"}, "no column 'hour'"),
        ({"group": "sales", "target": "day", "features": ["day"]}, "Every group has a single row"),
        ({"support": (4, 2)}, "smallest number of rows, then the largest"),
        ({"support": 0}, "support"),
        ({"queries": 0}, "queries"),
        ({"features": []}, "no column of features"),
    ],
)
def test_wrong_tables_are_refused(change, said):
    with pytest.raises(ax.InputError, match=said):
        problem(**change)


def test_gaps_are_refused():
    with pytest.raises(ax.InputError, match="'day' has 1 missing or infinite values: fill them in"):
        ax.tasks.table(FRAME | {"day": np.where(FRAME["day"] == 9, np.nan, FRAME["day"])}, group="shop", target="sales")
    with pytest.raises(ax.InputError, match="A table is a DataFrame of pandas or polars"):
        ax.tasks.table([1, 2], group="shop", target="sales")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_pandas_and_polars(library):
    frame = pytest.importorskip(library).DataFrame(FRAME)
    given = ax.tasks.table(frame, group="shop", target="sales", support=3, queries=5)
    for a, b in zip(jax.tree.leaves(tasks_of(given, 5)), jax.tree.leaves(tasks_of(problem(), 5)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_from_sources():
    """A list of rows, and a dataset with columns, are the same table as a mapping of columns."""
    frame = {"g": np.repeat([0, 1], 6), "x": np.arange(12.0), "y": np.arange(12.0) ** 2}

    class Dataset:
        column_names = tuple(frame)

        def __getitem__(self, name):
            return frame[name].tolist()

    rows = [{name: column[i].item() for name, column in frame.items()} for i in range(12)]
    key = jax.random.key(0)
    tasks = [ax.tasks.table(source, group="g", target="y", support=2).sample_task(key) for source in (frame, rows, Dataset())]
    for task in tasks[1:]:
        jax.tree.map(np.testing.assert_array_equal, task, tasks[0])
    with pytest.raises(ax.InputError, match="Row 3 has the names 'g', and row 0 others"):
        ax.tasks.table([*rows[:3], {"g": 1}], group="g", target="y")
