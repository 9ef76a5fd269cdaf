"""Tasks as users bring them: each leaf is served as plain NumPy computes it, or refused by its path."""

import dataclasses
import datetime
import enum
import re
from collections import OrderedDict, namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import no_tasks

import adaptax as ax
from adaptax.stepsize import Edge, resolve

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, 2)).astype(np.float32), RNG.normal(size=3).astype(np.float32)
W = jnp.zeros(2)
INNER = ax.Inner(2, 0.1)
METHOD = ax.MetaGradient(INNER)
Pair = namedtuple("Pair", "x y")


def loss(w, batch):
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch.x, batch.y)
    return jnp.mean((jnp.asarray(x, w.dtype) @ w - jnp.asarray(y, w.dtype)) ** 2)


def two_steps(x=X, y=Y, alpha=0.1):
    """w_2 by plain NumPy."""
    x, y, w = np.asarray(x, np.float64), np.asarray(y, np.float64), np.zeros(2)
    for _ in range(2):
        w -= alpha * 2 / len(y) * x.T @ (x @ w - y)
    return w


def problem(sample=no_tasks):
    return ax.FiniteSum(loss, sample)


def batch(**more):
    return {"x": X, "y": Y, **more}


def task(**more):
    return ax.Task(batch(**more), batch(**more))


def adapted(support, inner=INNER):
    return ax.adapt(problem(), W, ax.Task(support), inner).params


class Tensor:
    """An array of another library, which NumPy can read."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class OnAnotherDevice:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Meta:
    user: int


@dataclasses.dataclass(frozen=True)
class Note:
    user: str


SERVED = {
    "float64": lambda: {"x": X.astype(np.float64), "y": Y},
    "big-endian": lambda: {"x": X.astype(">f4"), "y": Y.astype(">f8")},
    "long double": lambda: {"x": X.astype(np.longdouble), "y": Y},
    "another library": lambda: {"x": Tensor(X), "y": Tensor(Y)},
    "matrix": lambda: {"x": X.view(np.matrix), "y": Y},
    "no copies": lambda: {"x": X[::-1][::-1], "y": np.broadcast_to(Y, (3,))},
    "named tuple": lambda: Pair(X, Y),
    "ordered": lambda: OrderedDict(y=Y, x=X),
    "empty axis": lambda: batch(context=np.ones((3, 0), np.float32)),
    "none": lambda: batch(mask=None),
    "key": lambda: batch(key=jax.random.key(1)),
    "old key": lambda: batch(key=jax.random.PRNGKey(1)),
    "range": lambda: batch(user=range(3)),
    "number": lambda: batch(count=3, share=0.5, flag=True, z=1j),
    "complex": lambda: batch(z=np.ones(3, complex)),
    "half": lambda: batch(h=np.ones(3, np.float16)),
    "bytes of pixels": lambda: batch(image=np.ones((3, 4), np.uint8), on=np.ones(3, bool)),
    "brain float": lambda: batch(h=np.ones(3, jnp.bfloat16)),
    "small whole numbers": lambda: batch(user=np.array([7, 8, 9])),
    "traced device": lambda: {"x": jax.device_put(X, jax.devices()[1]), "y": jax.device_put(Y, jax.devices()[0])},
}
HELD = {
    "text": "u7",
    "bytes": b"u7",
    "enum": Colour.RED,
    "function": jnp.sin,
    "date": datetime.date(2020, 1, 1),
    "frozen": Note("u7"),
}


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("inner", [INNER, ax.Inner(2, Edge())], ids=["number", "rule"])
def test_what_holds_numbers_is_adapted_to(name, inner):
    support = SERVED[name]()
    alpha = 0.1 if inner is INNER else 1 / np.linalg.eigvalsh(2 * X.T.astype(float) @ X / 3)[-1]
    np.testing.assert_allclose(adapted(support, inner), two_steps(alpha=alpha), rtol=2e-3)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("inner", [INNER, ax.Inner(2, Edge())], ids=["number", "rule"])
def test_what_is_no_number_is_held_by_one_task(name, inner):
    plain = adapted(batch(), inner)
    np.testing.assert_allclose(adapted(batch(user=HELD[name]), inner), plain, rtol=1e-6)
    given = ax.MetaGradient(inner)(problem(), W, task(user=HELD[name]))
    np.testing.assert_allclose(given[1], ax.MetaGradient(inner)(problem(), W, task())[1], rtol=1e-6)


def test_a_rule_branches_on_text_as_adaptation_does():
    def chosen(w, batch):
        return loss(w, batch) * (2.0 if batch["user"] == "u7" else 1.0) * batch["times"]

    by_text = ax.FiniteSum(chosen, no_tasks)
    rates = {
        user: ax.adapt(by_text, W, ax.Task(batch(user=user, times=2)), ax.Inner(2, Edge())).info.stepsize
        for user in ("u7", "u8")
    }
    np.testing.assert_allclose(rates["u8"], 2 * rates["u7"], rtol=1e-3)


REFUSED = {
    "masked": (np.ma.masked_array([1.0, 2, 3], mask=[0, 1, 0]), "is a masked array, whose mask would be lost"),
    "texts": (np.array(["a", "b", "c"]), r"is text (an array [3] of it)"),
    "times": (np.array(["2020", "2021", "2022"], "M8[D]"), "holds times (datetime64[D])"),
    "durations": (np.array([1, 2, 3], "m8[s]"), "holds times (timedelta64[s])"),
    "fields": (np.zeros(3, [("a", "f4"), ("b", "i4")]), "has named fields (a, b): give each as a leaf of its own"),
    "ragged": (np.array([[1.0], [1.0, 2.0], [3.0]], object), "is ragged, with entries of different lengths: pad"),
    "objects": (np.array([1.0, None, 2.0], object), "is an array of objects (float): make it numbers"),
    "set": ({1, 2}, "is a set: leave it out of the task, or give it as an array"),
    "generator": ((i for i in range(3)), "is a generator: leave it out"),
    "type": (np.float32, "is a type (<class 'numpy.float32'>): leave it out"),
    "dtype": (np.dtype("f4"), "is a type (dtype('float32')): leave it out"),
    "object": (object(), "is an object of the class object: leave it out of the task, or make its class a pytree"),
    "dataclass": (Meta(7), "is an object of the class Meta"),
    "elsewhere": (OnAnotherDevice(), "is a OnAnotherDevice that NumPy cannot read (can't convert cuda:0"),
    "too large": (np.array([7, 2**40, 9]), "holds 1099511627776, which does not fit int32: number from 0"),
    "too large and unsigned": (np.array([7, 2**63], np.uint64), "which does not fit uint32"),
}
IN_A_BATCH = {
    "text": ("u7", "is text ('u7'): leave it out of the task, or give it as an integer."),
    "bytes": (b"u7", "is text (b'u7')"),
    "function": (jnp.sin, "is an object of the class"),
    "frozen": (Note("u7"), "is an object of the class Note"),
    "enum": (Colour.RED, "is an object of the class Colour"),
}
SENTENCE = re.compile(r"[.!?] [A-Z]")


def sentence(call):
    with pytest.raises(ax.InputError) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and not SENTENCE.search(message), message
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_by_its_path(name):
    leaf, text = REFUSED[name]
    for call in (lambda: adapted(batch(user=leaf)), lambda: METHOD(problem(), W, task(user=leaf))):
        message = sentence(call)
        assert message.startswith("task.support['user'] ") and text in message
    many = ax.Task(batch(user=leaf), batch())
    assert sentence(lambda: METHOD.batch(problem(), W, many)).startswith("tasks.support['user'] ")


@pytest.mark.parametrize("name", IN_A_BATCH)
def test_batches_and_drawn_tasks_hold_arrays_alone(name):
    leaf, text = IN_A_BATCH[name]
    drawn = problem(lambda key: task(user=leaf))
    rule = ax.Inner(2, Edge())
    calls = {
        "task.support['user']": (
            lambda: ax.train(drawn, W, METHOD, steps=1, tasks_per_step=2),
            lambda: ax.evaluate(drawn, W, INNER, tasks=4),
            lambda: ax.make_step(drawn, ax.MetaGradient(rule), optax.sgd(0.1), 2).init(W),
            lambda: ax.measure.constants(drawn, W, INNER, tasks=4),
            lambda: ax.measure.stationarity(drawn, W, METHOD, tasks=8),
        ),
        "tasks.support['user']": (
            lambda: METHOD.batch(problem(), W, task(user=leaf)),
            lambda: resolve(rule, problem(), W, task(user=leaf)),
            lambda: ax.evaluate(problem(), W, INNER, tasks=task(user=leaf)),
            lambda: ax.train(problem(), W, METHOD, steps=1, tasks_per_step=3, tasks=[task(user=leaf)]),
            lambda: ax.Pool(task(user=leaf)),
        ),
        "tasks[0].support['user']": (
            lambda: ax.Pool([task(user=leaf)] * 2),
            lambda: METHOD.batch(problem(), W, [task(user=leaf)] * 2),
        ),
    }
    for where, each in calls.items():
        for call in each:
            message = sentence(call)
            assert message.startswith(f"{where} ") and text in message, message


def several(count=4):
    """Tasks with data of their own, and what plain NumPy makes of each."""
    rng = np.random.default_rng(1)
    data = [(rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=3).astype(np.float32)) for _ in range(count)]
    return [ax.Task({"x": x, "y": y}, {"x": x, "y": y}) for x, y in data], [
        np.mean((x.astype(float) @ two_steps(x, y) - y) ** 2) for x, y in data
    ]


def test_lists_of_tasks_are_served_like_stacked_ones():
    tasks, expected = several()
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)
    for given in (tasks, tuple(tasks), stacked):
        np.testing.assert_allclose(METHOD.batch(problem(), W, given)[2].value, expected, rtol=1e-4)
        np.testing.assert_allclose(
            ax.evaluate(problem(), W, INNER, steps=[2], tasks=given).mean["loss"], np.mean(expected), rtol=1e-4
        )
        history = ax.train(problem(), W, METHOD, steps=1, tasks_per_step=4, tasks=iter([given]))[1]
        np.testing.assert_allclose(history["loss"], np.mean(expected), rtol=1e-4)
        alphas = [1 / np.linalg.eigvalsh(2 * t.support["x"].T @ t.support["x"] / 3)[-1] for t in tasks]
        assert abs(resolve(ax.Inner(2, Edge()), problem(), W, given).stepsize / min(alphas) - 1) < 0.02
        pool = ax.Pool(given)
        assert len(pool) == 4
        index = int(pool.index(jax.random.key(5)))
        np.testing.assert_array_equal(pool(jax.random.key(5)).support["x"], tasks[index].support["x"])


def test_what_a_list_means():
    two = jnp.ones(2)
    assert len(ax.Pool([ax.Task(X, Y), ax.Task(X, Y)])) == 2
    assert len(ax.Pool([{"goal": two}, {"goal": two}, {"goal": two}])) == 3
    assert len(ax.Pool([Pair(X, Y)])) == 1
    assert ax.Pool([0.1, 0.2, 0.3]).tasks.shape == (3,)
    # Parts of stacked tasks: always in a tuple, and in a list where they cannot be tasks.
    assert len(ax.Pool((X, X))) == 3 and len(ax.Pool([X, Y])) == 3
    assert "is a list of arrays, each of which may be a task or a part of all tasks" in sentence(lambda: ax.Pool([two, two]))


ONE = ax.Task({"x": X, "y": Y}, {"x": X, "y": Y})
MANY = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), ONE)
DRAWN = problem(lambda key: jax.tree.map(lambda leaf: leaf + jax.random.normal(key), ONE))
SHORT = ax.Task({"x": X[:2], "y": Y[:2]}, {"x": X, "y": Y})
MISTAKES = {
    "ragged tasks": (
        lambda: ax.Pool([ONE, SHORT]),
        "tasks[1].support['x'] has the shape [2, 2] and tasks[0].support['x'] the shape [3, 2]: cut or pad the tasks to one",
    ),
    "other parts": (lambda: ax.Pool([ONE, ax.Task(X)]), "tasks[1] is made up differently from tasks[0]"),
    "a class": (
        lambda: ax.adapt(problem(), W, ax.Task, INNER),
        "task is the class Task: call it, as in ax.Task(support, target).",
    ),
    "a class in a batch": (lambda: METHOD.batch(problem(), W, ax.Task), "tasks is the class Task: call it"),
    "a generator": (lambda: ax.evaluate(problem(), W, INNER, tasks=iter([ONE])), "tasks is a list_iterator: give list(tasks)."),
    "odd keys": (lambda: adapted({"x": X, 1: Y}), "task has a dict whose keys cannot be sorted"),
    "one task for a batch": (
        lambda: METHOD.batch(DRAWN, W, ONE),
        "tasks has the shape of one task of this problem: for a batch of tasks give a list, such as [task].",
    ),
    "one task to evaluate": (lambda: ax.evaluate(DRAWN, W, INNER, tasks=ONE), "tasks has the shape of one task"),
    "one task in a stream": (
        lambda: ax.train(DRAWN, W, METHOD, steps=1, tasks_per_step=3, tasks=[ONE]),
        "tasks has the shape of one task",
    ),
    "a batch for one task": (
        lambda: METHOD(DRAWN, W, MANY),
        "task is a batch of 4 tasks as this problem draws them: give one of them",
    ),
    "a batch to adapt to": (lambda: ax.adapt(DRAWN, W, MANY, INNER), "task is a batch of 4 tasks"),
    "unequal": (
        lambda: METHOD.batch(problem(), W, ax.Task(MANY.support, ONE.target)),
        "but found 3, 4 (3 in tasks.target['x']; 4 in tasks.support['x']): stack tasks along a first axis",
    ),
    "no axis": (
        lambda: METHOD.batch(problem(), W, ax.Task({"x": X, "y": Y, "n": 1.0})),
        "but found 3, none (3 in tasks.support['x']; none in tasks.support['n'])",
    ),
    "another number": (
        lambda: ax.train(problem(), W, METHOD, steps=1, tasks_per_step=3, tasks=iter([[ONE, ONE]])),
        "tasks= gave a batch of 2 tasks: make it tasks_per_step=3 tasks.",
    ),
    "swapped": (
        lambda: METHOD(ax.FiniteSum(loss, no_tasks, target_loss=lambda w, y: jnp.sum(y - 1)), W, ax.Task(X, {"x": X, "y": Y})),
        "loss(params, batch) fails on the support set",
    ),
    "no examples": (lambda: adapted({"x": X[:0], "y": Y[:0]}), "The support set is empty"),
    "no examples in one leaf": (
        lambda: adapted(batch(user=np.zeros(0))),
        "The support set has examples, and none in ['user'] (float32[0], float32[3, 2], float32[3]): give as many there",
    ),
    "not traceable": (
        lambda: ax.evaluate(problem(lambda key: ax.Task(np.asarray(key), 0)), W, INNER, tasks=4),
        "make it of JAX's operations, or pass tasks made on the host as tasks=.",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_a_sentence_that_holds(name):
    call, text = MISTAKES[name]
    assert text in sentence(call)


def test_drawn_numbers_become_arrays():
    drawn = problem(lambda key: ax.Task(batch(n=3, s=jax.random.normal(key)), batch(n=np.float64(2), s=0.5)))
    assert np.isfinite(ax.evaluate(drawn, W, INNER, steps=[2], tasks=4).mean["loss"]).all()


def test_tasks_on_another_device_are_brought_to_the_parameters():
    tasks, expected = several()
    away = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *tasks), jax.devices()[1])
    here = jax.device_put(W, jax.devices()[0])
    np.testing.assert_allclose(METHOD.batch(problem(), here, away)[2].value, expected, rtol=1e-4)
    np.testing.assert_allclose(ax.evaluate(problem(), here, INNER, [2], away).mean["loss"], np.mean(expected), rtol=1e-4)
    history = ax.train(problem(), here, METHOD, steps=2, tasks_per_step=4, tasks=[away, away])[1]
    np.testing.assert_allclose(history["loss"][0], np.mean(expected), rtol=1e-4)
