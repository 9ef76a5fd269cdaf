"""Hundreds of tasks of all kinds of leaves: adapted to as plain NumPy does, or refused in one sentence that names a leaf."""

import datetime
import os
import re
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import no_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptax as ax

N = int(os.environ.get("ADAPTAX_FUZZ", "20"))
W = jnp.zeros(2)
Pair = namedtuple("Pair", "x y")
DTYPES = ["?", "i1", "u1", "i2", "i4", "i8", "u4", "f2", "f4", "f8", ">f4", ">i2", "g"]


class Tensor:
    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Unreadable:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on another device")


# Leaves beside the data, which the loss does not use: whether one task may hold them, and whether a batch may.
BESIDE = {
    "text": (lambda n: "u7", True, False),
    "texts": (lambda n: np.array(["u7"] * n), False, False),
    "date": (lambda n: datetime.date(2020, 1, 1), True, False),
    "dates": (lambda n: np.array(["2020"] * n, "M8[D]"), False, False),
    "none": (lambda n: None, True, True),
    "number": (lambda n: 3, True, False),
    "key": (lambda n: jax.random.split(jax.random.key(0), n), True, True),
    "no features": (lambda n: np.zeros((n, 0), np.float32), True, True),
    "complex": (lambda n: np.ones(n, complex), True, True),
    "object": (lambda n: object(), False, False),
    "objects": (lambda n: np.array([None] * n), False, False),
    "ragged": (lambda n: np.array([np.zeros(i + 1) for i in range(n)], object) if n > 1 else {1}, False, False),
    "masked": (lambda n: np.ma.masked_array(np.ones(n)), False, False),
    "fields": (lambda n: np.zeros(n, [("a", "f4")]), False, False),
    "set": (lambda n: {1, 2}, False, False),
    "generator": (lambda n: (i for i in range(n)), False, False),
    "large": (lambda n: np.full(n, 2**40), False, False),
    "unreadable": (lambda n: Unreadable(), False, False),
    "function": (lambda n: jnp.sin, True, False),
}
DATA = {
    "numpy": lambda array: array,
    "jax": jnp.asarray,
    "other": Tensor,
    "device": lambda array: jax.device_put(jnp.asarray(array), jax.devices()[1]),
    "column": np.asfortranarray,
}
SHAPE = {
    "dict": lambda x, y, more: {"x": x, "y": y, **more},
    "pair": lambda x, y, more: Pair(x, (y, more)),
    "tuple": lambda x, y, more: (x, y, more),
    "list": lambda x, y, more: [x, [y], more],
}


def parts(batch):
    """x and y out of any of the shapes above."""
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch[0], batch[1])
    while isinstance(y, tuple | list):
        y = y[0]
    return x, y


def loss(w, batch):
    x, y = parts(batch)
    return jnp.mean((x.astype(w.dtype) @ w - y.astype(w.dtype)) ** 2)


PROBLEM = ax.FiniteSum(loss, no_tasks)


@st.composite
def drawn(draw):
    n, seed = draw(st.integers(1, 4)), draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(0, 4, size).astype(draw(st.sampled_from(DTYPES))) for size in ((n, 2), (n,)))
    beside = draw(st.lists(st.sampled_from(sorted(BESIDE)), max_size=2, unique=True))
    return x, y, beside, draw(st.sampled_from(sorted(DATA))), draw(st.sampled_from(sorted(SHAPE)))


def made(x, y, beside, data, shape):
    # JAX itself takes no numbers of foreign byte order or more than 64 bits.
    convert = (
        DATA[data] if x.dtype.isnative and x.dtype.char != "g" and y.dtype.isnative and y.dtype.char != "g" else DATA["numpy"]
    )
    more = {name: BESIDE[name][0](len(y)) for name in beside}
    return SHAPE[shape](convert(x), convert(y), more)


def one_step(x, y, alpha=0.05):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return alpha * 2 / len(y) * x.T @ y


def outcome(call):
    try:
        return np.asarray(call()), None
    except ax.InputError as error:
        message = str(error)
        assert message.endswith(".") and "\n" not in message and not re.search(r"[.!?] [A-Z]", message), message
        return None, message


@settings(derandomize=True, deadline=None, max_examples=2 * N)
@given(drawn())
def test_one_task_is_adapted_to_or_refused_by_its_leaf(task):
    x, y, beside, _, _ = task
    with jax.disable_jit():
        found, message = outcome(lambda: ax.adapt(PROBLEM, W, ax.Task(made(*task)), ax.Inner(1, 0.05)).params)
    if all(BESIDE[name][1] for name in beside):
        np.testing.assert_allclose(found, one_step(x, y), rtol=1e-3, atol=1e-6, err_msg=str(message))
    else:
        assert message is not None and message.startswith("task.support") and any(name in message for name in beside), message


@settings(derandomize=True, deadline=None, max_examples=2 * N)
@given(drawn(), st.integers(1, 3), st.sampled_from(["list", "tuple", "stacked", "short", "class"]))
def test_batches_are_stacked_or_refused_by_their_leaf(task, count, form):
    x, y, beside, data, shape = task
    one = ax.Task(made(*task), made(*task))
    tasks = [one] * count
    if form == "tuple":
        tasks = tuple(tasks)
    elif form == "class":
        tasks = ax.Task
    elif form == "short":
        tasks = [one, ax.Task(made(x[:0], y[:0], beside, data, shape), made(*task))]
    elif form == "stacked":
        if not all(BESIDE[name][2] for name in beside) or data == "other":
            return
        stack = lambda *leaves: (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)  # noqa: E731
        tasks = jax.tree.map(stack, *tasks)
    _, message = outcome(lambda: len(ax.Pool(tasks)))
    served = all(BESIDE[name][2] or name == "number" for name in beside)
    if form in ("short", "class") or not served:
        # A single example cut to none is still a batch of another shape.
        assert message is not None and (form != "class" or "is the class Task" in message), message
        assert form in ("short", "class") or any(name in message for name in beside), message
        return
    assert message is None and len(ax.Pool(tasks)) == count, message
    a, b = parts(ax.Pool(tasks)(jax.random.key(0)).support)
    np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(b, np.float64), np.asarray(y, np.float64))


METHOD = ax.MetaGradient(ax.Inner(1, 0.05))


@settings(derandomize=True, deadline=None, max_examples=max(N // 4, 3))
@given(drawn(), st.integers(1, 3))
def test_values_of_a_batch_are_those_of_plain_numpy(task, count):
    x, y, beside, _, _ = task
    one = ax.Task(made(*task), made(*task))
    found, message = outcome(lambda: METHOD.batch(PROBLEM, W, [one] * count)[2].value)
    if all(BESIDE[name][2] or name == "number" for name in beside):
        w = one_step(x, y)
        value = np.mean((np.asarray(x, np.float64) @ w - np.asarray(y, np.float64)) ** 2)
        np.testing.assert_allclose(found, [value] * count, rtol=2e-3, atol=1e-5, err_msg=str(message))
    else:
        assert message is not None and message.startswith("tasks[0].support") and any(name in message for name in beside), (
            message
        )
