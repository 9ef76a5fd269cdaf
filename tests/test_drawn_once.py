"""Numbers that a function draws outside JAX are warned of, once; functions of their arguments alone are not."""

import itertools
import random
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.errors import DrawnOnce

W = jnp.zeros(2)
INNER = ax.Inner(1, 0.1)
METHOD = ax.MetaGradient(INNER)
RULE = ax.MetaGradient(ax.Inner(1, ax.stepsize.Edge()))
GENERATOR = np.random.default_rng(0)


def loss(w, c):
    return 0.5 * jnp.sum((w - c) ** 2)


def around(key, scale):
    """A task that depends on its key, and on a number that may not be of it."""
    c = scale + jax.random.normal(key, (2,))
    return ax.Task(c, c)


def counter():
    numbers = itertools.count(1.0)
    return lambda key: around(key, next(numbers))


def of_an_iterator():
    drawn = iter([1.0, 5.0, 2.0, 3.0] * 10)
    return lambda key: around(key, next(drawn))


def jitted():
    inside = jax.jit(lambda key: around(key, np.random.uniform()))  # noqa: NPY002
    inside(jax.random.key(0))  # as a user tries it, so that JAX remembers what is inside
    return inside


def in_a_loop():
    def sample(key):
        noise = lambda c, _: (c + GENERATOR.normal(size=2), None)  # noqa: E731
        c = jax.lax.scan(noise, jax.random.normal(key, (2,)), length=2)[0]
        return ax.Task(c, c)

    return sample


class Sampler(eqx.Module):
    centre: jax.Array

    def __call__(self, key):
        return around(key, random.random() + self.centre)


OUTSIDE = {
    "NumPy": (lambda: lambda key: around(key, np.random.uniform(0.1, 5)), "NumPy's random numbers"),  # noqa: NPY002
    "random": (lambda: lambda key: around(key, random.random()), "Python's random numbers"),
    "a choice": (lambda: lambda key: around(key, random.choice([1.0, 2.0])), "Python's random numbers"),
    "a generator": (lambda: lambda key: around(key, GENERATOR.normal()), "something other than JAX"),
    "a fresh generator": (lambda: lambda key: around(key, np.random.default_rng().normal()), "something other than JAX"),
    "the clock": (lambda: lambda key: around(key, time.perf_counter() % 1), "something other than JAX"),
    "a counter": (counter, "something other than JAX"),
    "an iterator": (of_an_iterator, "something other than JAX"),
    "jit": (jitted, "NumPy's random numbers"),
    "a loop": (in_a_loop, "something other than JAX"),
    "a module": (lambda: Sampler(jnp.ones(2)), "Python's random numbers"),
}


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if issubclass(each.category, DrawnOnce)]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_task_that_is_not_of_its_key_alone_is_warned_of_once(name):
    make, who = OUTSIDE[name]
    problem = ax.FiniteSum(loss, make())
    (text,) = warned(lambda: ax.evaluate(problem, W, INNER, steps=[0], tasks=8))
    assert text.startswith("sample_task (") and f"takes numbers from {who}, which are drawn once" in text
    assert text.endswith("use jax.random with the key, or pass tasks made on the host as tasks=.")
    assert warned(lambda: ax.evaluate(problem, W, INNER, steps=[1], tasks=9)) == []


ENTRIES = {
    "train": lambda problem: ax.train(problem, W, METHOD, steps=1, tasks_per_step=2),
    "a rule": lambda problem: ax.make_step(problem, RULE, optax.adam(1e-3), 2).init(W),
    "constants": lambda problem: ax.measure.constants(problem, W, INNER, tasks=4),
    "stationarity": lambda problem: ax.measure.stationarity(problem, W, METHOD, tasks=8),
}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_in_looks(entry):
    problem = ax.FiniteSum(loss, lambda key: around(key, np.random.uniform()))  # noqa: NPY002
    assert len(warned(lambda: ENTRIES[entry](problem))) == 1


def test_looking_moves_no_state():
    def sample(key):
        return around(key, np.random.uniform() + random.random())  # noqa: NPY002

    def after(call):
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)
        call()
        return np.random.uniform(), random.random()  # noqa: NPY002

    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = after(lambda: jax.eval_shape(sample, key))
    from adaptax._drawn_once import traced as look

    untouched = after(lambda: None)
    with pytest.warns(DrawnOnce):
        assert after(lambda: look(sample, key, said="sample_task", remedy="no")) == untouched != traced


def frozen(say):
    noise = lambda *_: jnp.float32(np.random.normal())  # noqa: E731, NPY002
    centre = lambda key: around(key, 0.0)  # noqa: E731
    goal = lambda key: jax.random.normal(key, (2,))  # noqa: E731
    return {
        "loss": lambda: ax.FiniteSum(lambda w, c: loss(w, c) * noise(), centre),
        "target_loss": lambda: ax.FiniteSum(loss, centre, target_loss=lambda w, c: loss(w, c) + noise()),
        "metrics": lambda: ax.FiniteSum(loss, centre, metrics=lambda w, c: {"m": noise()}),
        "draw": lambda: ax.Resampling(
            lambda w, x: jnp.mean((w - x) ** 2), goal, lambda task, w, key, n: task + jax.random.normal(key, (n, 2)) * noise()
        ),
    }[say]()


@pytest.mark.parametrize("say", ["loss", "target_loss", "metrics", "draw"])
def test_noise_frozen_into_other_functions_is_warned_of(say):
    problem = frozen(say)
    (text,) = warned(lambda: ax.evaluate(problem, W, INNER, steps=[0], tasks=4))
    assert text.startswith(f"{say} (") and "NumPy's random numbers" in text


def test_one_task_for_all_keys_is_warned_of_where_tasks_are_drawn():
    same = ax.FiniteSum(loss, lambda key: ax.Task(jnp.ones(2), jnp.ones(2)))
    (text,) = warned(lambda: ax.train(same, W, METHOD, steps=1, tasks_per_step=2))
    assert text.startswith("sample_task(key) makes no use of its key") and text.endswith("ax.Pool([task]).")
    hard = ax.FiniteSum(loss, lambda key: around(jax.random.key(0), 1.0))  # a key of its own
    assert len(warned(lambda: ax.evaluate(hard, W, INNER, steps=[0], tasks=4))) == 1
    meant = ax.FiniteSum(loss, ax.Pool([ax.Task(jnp.ones(2), jnp.ones(2))]))
    assert warned(lambda: ax.evaluate(meant, W, INNER, steps=[0], tasks=4)) == []
    alone = ax.FiniteSum(loss, lambda key: ax.Task(jnp.ones(2), jnp.ones(2)))
    assert warned(lambda: ax.adapt(alone, W, ax.Task(jnp.ones(2)), INNER)) == []


def test_what_is_of_the_key_is_not_warned_of():
    grid, rng = jnp.linspace(-1, 1, 5)[:, None], np.random.default_rng(0)
    data = rng.normal(size=(50, 2)).astype(np.float32)

    def from_data(key):
        return ax.Task(*[jnp.asarray(data)[jax.random.randint(key, (), 0, 50)]] * 2)

    def fixed_inside(key):
        return around(key, np.random.default_rng(0).normal(size=2))

    def fixed_grid(key):
        c = jax.random.normal(key, ())
        return ax.Task((grid, c * grid), (grid, c * grid))

    problems = [
        (ax.FiniteSum(loss, from_data), W),
        (ax.FiniteSum(loss, fixed_inside), W),
        (ax.FiniteSum(loss, jax.jit(from_data)), W),
        (ax.FiniteSum(lambda w, b: jnp.mean((b[0] * w[0] - b[1]) ** 2), fixed_grid), W),
        (ax.tasks.cosine(dim=2).finite_sum, W),
        (ax.tasks.factorisation(2), ax.tasks.factorisation_init(jax.random.key(0), 2)),
        (ax.tasks.sinusoid(), ax.models.mlp((1, 4, 1), key=jax.random.key(0))),
    ]
    for problem, params in problems:
        assert warned(lambda problem=problem, params=params: ax.evaluate(problem, params, INNER, [1], 4)) == []
