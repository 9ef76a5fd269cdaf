"""A number that is not finite is planted somewhere, and the sentence must name the place."""

import os
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from helpers import no_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptax as ax

N = int(os.environ.get("ADAPTAX_FUZZ", "20"))
STEPS, TASKS = 3, 4
KINDS = {"NaN": np.nan, "infinite": np.inf, "infinite ": -np.inf}
HOLD = {"NaN": "NaN", "infinite": "infinite values", "infinite ": "infinite values"}
fuzzed = settings(derandomize=True, deadline=None, max_examples=N)
some = st.sets(st.integers(0, TASKS - 1), min_size=1)
fold = jax.random.fold_in


def counts(bad, count=TASKS):
    """The beginning of the sentence: how many tasks, and the first."""
    if len(bad) == 1:
        return f"1 of {count:,} tasks was not finite, task {min(bad)}"
    return f"{len(bad)} of {count:,} tasks were not finite; the first is task {min(bad)}"


def tables(p, b):
    """Every entry of the data and the parameters takes part; the path stays small."""
    return jnp.mean(jnp.sin(p["a"] * b["x"][0] + jnp.sum(p["b"]) - b["x"][1]) * b["y"]) + jnp.mean(b["y"] * p["a"])


PARAMS = {"a": np.full(2, 0.3, np.float32), "b": np.full((3,), 0.1, np.float32)}
LEAVES = {"['x'][0]": (TASKS, 2), "['x'][1]": (TASKS, 2), "['y']": (TASKS, 2)}
TABLES = ax.FiniteSum(tables, no_tasks)
METHODS = {"method": ax.MetaGradient(ax.Inner(STEPS, 0.1)), "inner": ax.Inner(STEPS, 0.1)}


def batch(seed, spoilt=(), leaf="", entry=0, value=0.0):
    rng = np.random.default_rng(seed)
    leaves = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in LEAVES.items()}
    for index in spoilt:
        leaves[leaf][index, entry] = value
    return {"x": [leaves["['x'][0]"], leaves["['x'][1]"]], "y": leaves["['y']"]}


@fuzzed
@given(
    bad=some, part=st.sampled_from(["support", "target"]), leaf=st.sampled_from(sorted(LEAVES)), entry=st.integers(0, 1),
    kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99), asked=st.sampled_from(sorted(METHODS)),
)  # fmt: skip
def test_data(bad, part, leaf, entry, kind, seed, asked):
    spoilt = batch(seed, bad, leaf, entry, KINDS[kind])
    tasks = ax.Task(spoilt, batch(seed + 1)) if part == "support" else ax.Task(batch(seed + 1), spoilt)
    said = ax.diagnose(TABLES, PARAMS, METHODS[asked], tasks)
    if asked == "inner" and part == "target":
        assert said is None
        return
    where = "the loss at w_0 is " if part == "support" else f"the target loss at w_{STEPS} is "
    assert said.startswith(f"{counts(bad)}: {where}")
    assert said.endswith(f", since its data hold {HOLD[kind]} in task.{part}{leaf}: clean them, or leave such tasks out.")


@fuzzed
@given(
    leaf=st.sampled_from(sorted(PARAMS)), entry=st.integers(0, 1), kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99),
    asked=st.sampled_from(sorted(METHODS)),
)  # fmt: skip
def test_parameters(leaf, entry, kind, seed, asked):
    params = {name: value.copy() for name, value in PARAMS.items()}
    params[leaf][entry] = KINDS[kind]
    said = ax.diagnose(TABLES, params, METHODS[asked], ax.Task(batch(seed), batch(seed + 1)))
    assert said.startswith(f"{counts(range(TASKS))}: the loss at w_0 is ")
    assert said.endswith(
        f", since the parameters hold {HOLD[kind]} in params['{leaf}']: start from parameters that are finite."
    )


@fuzzed
@given(step=st.integers(0, STEPS - 1), kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 99))
def test_step_sizes(step, kind, seed):
    learned = ax.stepsize.Learned(0.1, per="leaf", per_step=True)
    rates = jax.tree.map(lambda leaf: np.array(leaf), learned.start(PARAMS, STEPS).tree)
    rates["b"][step] = KINDS[kind]
    method = ax.MetaGradient(ax.Inner(STEPS, learned))
    said = ax.diagnose(TABLES, ax.Meta(PARAMS, rates), method, ax.Task(batch(seed), batch(seed + 1)))
    assert said.startswith(
        f"{counts(range(TASKS))}: the parameters after step {step} are not finite, though the gradient is (w_"
    )
    assert f"in params['b']), since the parameters hold {HOLD[kind]} in params.stepsize['b']" in said


def planted(w, batch):
    """The mean of cos(w - x), and what the batch says: a value, a derivative or a second derivative that is not finite."""
    kind, x = batch["kind"][0], batch["x"]
    at_zero = w - jax.lax.stop_gradient(w)
    value = jnp.mean(jnp.cos(w - x)) + jnp.where(kind == 1, jnp.nan, 0.0) + jnp.where(kind == 2, -jnp.inf, 0.0)
    # Each has one more derivative that is finite than the one before.
    value += jax.lax.cond(kind == 3, jnp.linalg.norm, lambda z: jnp.sum(0 * z), at_zero)
    return value + jax.lax.cond(kind == 4, lambda z: jnp.sum(jnp.abs(z) ** 1.5), lambda z: jnp.sum(0 * z), at_zero)


def draw(task, w, key, size):
    here = jnp.all(jax.random.key_data(key) == task["key"])
    x = task["centre"] + jax.random.normal(key, (size, 2))
    return {"x": jnp.where(here & (task["kind"] == 5), jnp.nan, x), "kind": jnp.full(size, jnp.where(here, task["kind"], 0))}


DRAWN = ax.Resampling(planted, no_tasks, draw)
NOISY = ax.MetaGradient(ax.Inner(STEPS, 0.1), samples=ax.Samples(2, 3, 4))
PLANT = {1: "value", 2: "value", 3: "gradient", 4: "product", 5: "batch"}


@fuzzed
@given(
    bad=some,
    purpose=st.sampled_from([0, 1, 2]),
    step=st.integers(0, STEPS - 1),
    kind=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_places_along_the_path(bad, purpose, step, kind, seed):
    keys = jax.random.split(jax.random.key(seed), TASKS)
    # The draws by their keys: inner steps 0, Hessian factors 1, the target 2.
    at = [fold(fold(k, purpose), step) if purpose < 2 else fold(k, 2) for k in keys]
    where = np.stack([jax.random.key_data(k) if i in bad else np.zeros(2, np.uint32) for i, k in enumerate(at)])
    tasks = {"key": where, "kind": np.full(TASKS, kind), "centre": np.random.default_rng(seed).normal(size=(TASKS, 2))}
    said = ax.diagnose(DRAWN, np.zeros(2, np.float32), NOISY, tasks, keys)
    finite = np.asarray(NOISY.batch(DRAWN, np.zeros(2, np.float32), tasks, keys)[2].finite)
    plant, wrong = PLANT[kind], {1: "NaN", 2: "infinite"}.get(kind)
    if purpose == 2:
        place = {
            "value": f"the target loss at w_{STEPS} is {wrong}: ",
            "gradient": f"the gradient of the target loss at w_{STEPS}, where that loss is finite, is NaN: ",
            "batch": f"the target loss at w_{STEPS} is NaN, since the batch drawn for the target holds NaN in batch['x']: ",
        }.get(plant)
    elif purpose == 1:
        # A constant has no second derivative; of a norm it is NaN, as of |z|^1.5.
        product = f"a Hessian-vector product at w_{step} is not finite, though all losses and gradients are"
        place = {
            "gradient": f"{product}: ", "product": f"{product}: ",
            "batch": f"{product}, since the batch drawn for the product at w_{step} holds NaN in batch['x']: ",
        }.get(plant)  # fmt: skip
    else:
        place = {
            # A loss whose gradient is finite leaves the meta-gradient alone.
            "gradient": f"the gradient of the loss at w_{step}, where the loss is finite, is NaN: ",
            "batch": f"the loss at w_{step} is NaN, since the batch drawn for step {step} holds NaN in batch['x']: ",
        }.get(plant)
    if place is None:
        assert said is None and finite.all()
        return
    assert sorted(np.flatnonzero(~finite)) == sorted(bad)
    assert said.startswith(f"{counts(bad)}: {place}")


class Sampler(eqx.Module):
    """Centres, NaN for the keys that are spoilt."""

    spoilt: jax.Array

    def __call__(self, key):
        bad = jnp.any(jnp.all(jax.random.key_data(key) == self.spoilt, axis=1))
        c = jax.random.normal(key, (2,))
        return ax.Task(jnp.where(bad, jnp.nan, c), c)


def distances(w, c):
    return jnp.sum((w - c) ** 2)


def sampled(keys):
    """The problem where the tasks of these keys are spoilt."""
    data = np.stack([jax.random.key_data(k) for k in keys] or [np.zeros(2, np.uint32)])
    return ax.FiniteSum(distances, Sampler(np.resize(data, (12, 2))))


def again(said, problem):
    """The task of the code in a sentence."""
    start = said.index("problem.sample_task(")
    code = said[start : said.index("]))", start) + 3]
    return eval(code + (")" if code.count("(") > code.count(")") else ""), {"problem": problem, "jax": jax, "np": np})


@fuzzed
@given(places=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=12), seed=st.integers(0, 99))
def test_meta_steps(places, seed):
    key = jax.random.key(seed)
    problem = sampled([fold(fold(fold(key, step), task), 0) for step, task in sorted(places)])
    method, options = ax.MetaGradient(ax.Inner(1, 0.1)), {"steps": 5, "tasks_per_step": 3, "seed": seed}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = ax.train(problem, jnp.zeros(2), method, devices=jax.devices()[:1], **options)[1]
    lost = [[task for at, task in sorted(places) if at == step] for step in range(5)]
    assert history["not_finite"].tolist() == [len(tasks) for tasks in lost]
    assert history["skipped"].tolist() == [bool(tasks) for tasks in lost]
    texts, skipped = [str(warning.message) for warning in told], sum(map(bool, lost))
    assert len(texts) == min(skipped, 2)
    if texts:
        first = next(step for step, tasks in enumerate(lost) if tasks)
        assert texts[0].startswith(f"Meta-step {first} was skipped: {counts(lost[first], 3)} (problem.sample_task(")
        assert "the loss at w_0 is NaN, since its data hold NaN in task.support" in texts[0]
        task = problem.sample_task(fold(fold(fold(key, first), lost[first][0]), 0))
        np.testing.assert_array_equal(again(texts[0], problem).target, task.target)
    if skipped > 1:
        assert texts[1].startswith(f"{skipped} of 5 meta-steps were skipped") and f"meta-step {first} " in texts[1]


@fuzzed
@given(bad=st.sets(st.integers(0, 19), max_size=12), seed=st.integers(0, 99))
def test_evaluations(bad, seed):
    key = jax.random.key(seed)
    problem = sampled([fold(fold(key, index), 0) for index in sorted(bad)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        curve = ax.evaluate(problem, jnp.zeros(2), ax.Inner(1, 0.1), [0, 2], 20, seed, devices=jax.devices()[:1])
    assert curve.not_finite.tolist() == [0, len(bad)] and len(told) == bool(bad)
    assert np.isfinite(curve.mean["loss"]).tolist() == [True, not bad]
    if bad:
        said = str(told[0].message)
        assert said.startswith(f"After 2 inner steps {counts(bad, 20)} (problem.sample_task(")
        assert "the loss at w_0 is NaN, since its data hold NaN in task.support" in said
        task = problem.sample_task(fold(fold(key, min(bad)), 0))
        np.testing.assert_array_equal(again(said, problem).target, task.target)
