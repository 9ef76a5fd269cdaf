"""Parameters that are cut over devices: the same results, less memory on each, runs that go on with other cuts, refusals."""

import importlib
import json
import socket
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import process_cases
import pytest
import shard_cases as cases

import adaptax as ax
from adaptax import _devices as dev

SECONDS = 1800


def train(name="fixed", shards=2, **options):
    return cases.train(name, shards, **{"devices": jax.devices()[:2], **options})


def check(a, b, tolerance=1e-4):
    """That the arrays of two trees are equal up to rounding, in norm, for Adam makes much of the smallest gradients."""
    for one, other in zip(cases.floats(a), cases.floats(b), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert np.linalg.norm(one - other) <= tolerance * (np.linalg.norm(other) + tolerance)


def share(leaf):
    """The part of an array that each device holds."""
    sizes = {shard.data.size for shard in leaf.addressable_shards}
    assert len(sizes) == 1
    return sizes.pop() / leaf.size


@pytest.mark.long
@pytest.mark.parametrize("name", cases.METHODS)
def test_the_run_is_that_of_whole_parameters(name):
    (cut, first), (whole, second) = (train(name, shards, steps=5) for shards in (2, 1))
    assert set(first) == set(second)
    for column, values in first.items():
        np.testing.assert_allclose(values, second[column], rtol=2e-5, err_msg=column)
    check((cut.params, cut.opt_state, cut.inner.stepsize), (whole.params, whole.opt_state, whole.inner.stepsize))
    # Learned step sizes, the curvature's direction and the optimiser's moments are cut as the parameters are.
    large = [leaf for leaf in cases.floats(cut) if leaf.size >= cases.ROWS * cases.COLUMNS]
    assert len(large) >= 3 and {share(leaf) for leaf in large} == {1 / 2}


def test_each_device_holds_its_part_and_programs_are_compiled_once():
    problem = ax.FiniteSum(cases.Wide.loss, cases.Wide.sample)
    seen = []
    state, _ = train(problem=problem, callback=lambda state, _: seen.append(state))
    before = cases.Wide.traces
    train(problem=problem, state=seen[0])
    assert len(seen) > 2 and cases.Wide.traces == before
    for one in (*seen, state):
        moments = one.opt_state[0]
        for tree in (one.params, moments.mu, moments.nu):
            assert share(tree["matrix"]) == 1 / 2 and share(tree["vector"]) == 1
        assert share(one.params["numbers"]) == 1
        assert one.params["matrix"].sharding.spec == jax.sharding.PartitionSpec(None, "parameters")


@pytest.mark.parametrize("shards", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_parameters_cut_otherwise(tmp_path, shards):
    options = {"out": tmp_path / "run", "evaluate_every": 2, "validation": cases.PROBLEM}
    train(shards=shards[0], steps=4, **options)
    state, history = train(shards=shards[1], resume=True, **options)
    straight, expected = train(shards=1, evaluate_every=2, validation=cases.PROBLEM)
    check(state, straight)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=2e-5)
    np.testing.assert_allclose(history["held_out"], expected["held_out"], rtol=2e-5)
    assert share(state.params["matrix"]) == 1 / shards[1]
    assert set(json.loads((tmp_path / "run" / "manifest.json").read_text())) == {"4", "8"}


def test_remembered_gradients_are_cut():
    tasks = jax.vmap(cases.Wide.sample)(jax.random.split(jax.random.key(1), 6))
    pool = ax.FiniteSum(cases.Wide.loss, ax.Pool(tasks))
    runs = [train(shards=shards, problem=pool, memory=ax.Memory(0.5)) for shards in (2, 1)]
    check(*[state.memory for state, _ in runs])
    assert share(runs[0][0].memory.rows["matrix"]) == 1 / 2


def test_batches_from_the_host():
    tasks = jax.vmap(cases.Wide.sample)(jax.random.split(jax.random.key(1), 6))
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 3], tasks) for i in (0, 1, 2, 3)] * 2
    check(*[train("edge", shards, tasks=batches)[0] for shards in (2, 1)])


def test_what_training_returns_can_be_evaluated_adapted_and_trained_on():
    (cut, _), (whole, _) = (train(shards=shards) for shards in (2, 1))
    curves = [
        ax.evaluate(
            cases.PROBLEM, state.params, state.inner, [0, 3], 20, devices=jax.devices()[:2], parameter_shards=shards
        )
        for state, shards in ((cut, 2), (cut, 1), (whole, 2), (whole, 1))
    ]  # fmt: skip
    for curve in curves[1:]:
        np.testing.assert_allclose(curve.mean["loss"], curves[0].mean["loss"], rtol=2e-5)
    task = cases.Wide.sample(jax.random.key(5))
    found = [ax.adapt(cases.PROBLEM, state.params, task, state.inner) for state in (cut, whole)]
    check(found[0].params, found[1].params)
    assert share(found[0].params["matrix"]) == 1 / 2
    tasks = [cases.Wide.sample(jax.random.key(i)) for i in range(2)]
    gradients = [cases.METHODS["fixed"].batch(cases.PROBLEM, state.params, tasks)[1] for state in (cut, whole)]
    check(*gradients)
    assert share(gradients[0]["matrix"]) == 1 / 2
    again, _ = train(shards=1, state=cut, steps=9)
    assert int(again.step) == 9 and share(again.params["matrix"]) == 1


def test_a_meta_step_that_is_not_finite_is_explained():
    def sample(key):
        return jax.tree.map(lambda x: x * jnp.where(jax.random.uniform(key) < 0.2, jnp.inf, 1), cases.Wide.sample(key))

    said = []
    for shards in (2, 1):
        with pytest.warns(ax.NotFiniteWarning) as found:
            train(shards=shards, problem=ax.FiniteSum(cases.Wide.loss, sample))
        said.append([str(one.message) for one in found])
    assert said[0] == said[1]


def test_each_device_needs_a_part_of_the_memory():
    width = 512
    params = {name: jax.random.normal(jax.random.key(i), (width, width)) / width**0.5 for i, name in enumerate("ab")}

    def loss(w, batch):
        return jnp.mean((jnp.tanh(batch[0] @ w["a"]) @ w["b"] - batch[1]) ** 2)

    problem = ax.FiniteSum(loss, lambda key: ax.Task(*[tuple(jax.random.normal(key, (2, 4, width)))] * 2))
    bytes_of = cases.memory(problem, params, ax.MetaGradient(ax.Inner(4, 0.1)), (1, 2), 2)
    whole = sum(leaf.nbytes for leaf in params.values())
    assert bytes_of[1][0] > 2.9 * whole and bytes_of[1][1] > 4 * whole
    for one, other in zip(*bytes_of.values(), strict=True):
        assert other < 0.55 * one, bytes_of


class Counter(eqx.Module):
    index: eqx.nn.StateIndex = eqx.nn.StateIndex(jnp.zeros(()))


class Simulator(eqx.Module):
    """A draw that says that it calls the host."""

    host = True

    def __call__(self, task, params, key, size):
        return jax.random.normal(key, (size, cases.ROWS, cases.COLUMNS))


SIMULATED = ax.Resampling(cases.Wide.loss, cases.Wide.sample, Simulator())
WITH_STATE = ax.Sequential(cases.Wide.loss, cases.Wide.sample, state=eqx.nn.State(Counter()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shards": 3}, r"parameter_shards=3 must divide the number of devices, which is 2: take one of 1, 2\."),
        ({"shards": 0}, "parameter_shards=0 must be a whole number of at least 1"),
        ({"shards": 1.5}, "parameter_shards=1.5 must be a whole number of at least 1"),
        ({"problem": SIMULATED}, "parameter_shards=2 needs tasks .* that are drawn on the devices"),
        ({"problem": WITH_STATE, "devices": None}, "equinox.nn.State cannot be spread .* leave parameter_shards= out"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_computed(options, sentence, tmp_path):
    before = cases.Wide.traces
    with pytest.raises(ax.InputError, match=sentence):
        train(out=tmp_path / "run", **options)
    more = {"devices": options.get("devices", jax.devices()[:2]), "parameter_shards": options.get("shards", 2)}
    with pytest.raises(ax.InputError, match=sentence):
        ax.evaluate(options.get("problem", cases.PROBLEM), cases.START, ax.Inner(1, 0.1), [1], 4, **more)
    assert cases.Wide.traces == before and not (tmp_path / "run").exists()


def test_the_longest_axis_that_can_be_cut_is():
    mesh = dev.mesh_of(jax.devices()[:2], 1, shards=2)
    assert dict(mesh.shape) == {"tasks": 1, "parameters": 2}
    second = (None, "parameters")
    shapes = {(40, 40): ("parameters",), (33, 62): second, (63, 33): (), (2, 511): (), (2, 512): second}
    for shape, expected in shapes.items():
        assert tuple(dev.place(mesh, jnp.zeros(shape)).sharding.spec) == expected, shape
    assert dev.place(mesh, jax.random.key(0)).sharding.spec == jax.sharding.PartitionSpec()
    # Arrays of the host go to the devices in parts.
    assert share(dev.place(mesh, np.zeros((40, 40)))) == 1 / 2


def run(work, count, devices, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    programs = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return process_cases.run(f"shard_cases.{work}", count, devices, port, folder, SECONDS, programs)


@pytest.mark.slow
def test_two_processes_with_cut_parameters_are_one_with_whole_ones(tmp_path):
    devices = jax.devices()[:2]
    cases.everything(1, devices, steps=4, out=tmp_path / "by one")
    found, told = run("in_two", 2, 2, tmp_path)
    alone = cases.everything(1, devices)
    assert not (tmp_path / "unseen").exists()
    for process in found:
        for name in ("everything", "resumed"):
            for key, value in alone.items():
                np.testing.assert_allclose(process[f"{name}/{key}"], value, rtol=1e-3, atol=1e-4, err_msg=key)
    assert [entry["held"] for entry in told] == ["{0}", "{1}"]
    first, second = told
    for name, sentence in {
        "too many": "parameter_shards=4 must divide the number of devices of process 0, which is 2: take one of 1, 2, or start",
        "another": "Process 1 was started with another parameter_shards than process 0",
    }.items():
        assert first[name] == second[name] and first[name].startswith(f"InputError: {sentence}")
    # One process reads what two have written.
    again = cases.everything(1, devices, steps=9, out=tmp_path / "by two", resume=True)
    np.testing.assert_allclose(again["loss"][:8], alone["loss"], rtol=1e-3)


@pytest.mark.slow
def test_a_wide_network_needs_a_part_of_the_memory_on_each_device(tmp_path):
    found = {name.removeprefix("wide_network/"): value for name, value in run("wide_network", 1, 4, tmp_path)[0][0].items()}
    for name, needs in found.items():
        print(name, *[f"{number / 2**20:.3g} MiB" for number in needs])
        method, shards = name.split("/")
        assert (needs < 1.05 / int(shards) * found[f"{method}/1"]).all()


def convolutions():
    """Conv4, whose convolutions are primitives of the library, on prototypes with noise."""

    def sample(key):
        prototypes, noise = jax.random.normal(key, (3, 16, 16, 1)), jax.random.fold_in(key, 1)
        images = jnp.repeat(prototypes, 2, 0) + jax.random.normal(noise, (2, 6, 16, 16, 1)) / 2
        labels = jnp.repeat(jnp.arange(3), 2)
        return ax.Task((images[0], labels), (images[1], labels))

    def loss(network, batch):
        return optax.softmax_cross_entropy_with_integer_labels(network(batch[0]), batch[1]).mean()

    return loss, sample, ax.models.conv4(3, key=jax.random.key(0), channels=32, image=(16, 16, 1))


def transformer():
    """The transformer of the benchmarks, on random letters."""
    text = importlib.import_module("byte_transformer")
    params = text.initial(jax.random.key(0), width=32, layers=2)
    return text.loss, lambda key: ax.Task(*jax.random.randint(key, (2, 2, 16), 0, text.LETTERS)), params


@pytest.mark.slow
@pytest.mark.parametrize("network", [convolutions, transformer])
def test_other_networks_do_not_depend_on_the_cut_in_double_precision(network, monkeypatch, x64):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    loss, sample, params = network()
    problem, method = ax.FiniteSum(loss, sample), ax.MetaGradient(ax.Inner(2, 0.05))
    options = {"optimizer": optax.sgd(0.1), "steps": 2, "tasks_per_step": 4, "devices": jax.devices()[:2]}
    (cut, first), (whole, second) = (ax.train(problem, params, method, parameter_shards=k, **options) for k in (2, 1))
    flat = [np.concatenate([np.ravel(leaf) for leaf in cases.floats(tree)]) for tree in (cut.params, whole.params, params)]
    moved = np.linalg.norm(flat[1] - flat[2])
    print(network.__name__, np.linalg.norm(flat[0] - flat[1]) / moved, np.abs(first["loss"] / second["loss"] - 1).max())
    assert {share(leaf) for leaf in cases.floats(cut.params)} == {1, 1 / 2}
    assert flat[0].dtype == np.float64 and np.linalg.norm(flat[0] - flat[1]) <= 1e-10 * moved
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-10)


# docs/scale.md states it.
TOLERANCE = 1e-5


@pytest.mark.slow
def test_sinusoids_do_not_depend_on_the_cut_beyond_rounding(tmp_path):
    found = {name.removeprefix("sinusoids/"): value for name, value in run("sinusoids", 1, 4, tmp_path)[0][0].items()}
    assert str(found["callback"]).startswith("InputError: parameter_shards=2 needs a program without calls of the host")
    size = len(found["start"])
    for name in cases.SINUSOIDS:
        whole = found[f"{name}/1/params"]
        moved = np.linalg.norm(whole[:size] - found["start"])
        assert moved > 0.1
        for shards in (2, 4):
            far = np.linalg.norm(found[f"{name}/{shards}/params"] - whole)
            print(name, shards, far / moved, found[f"{name}/{shards}/mean"] / found[f"{name}/1/mean"] - 1)
            assert found[f"{name}/{shards}/part"].tolist() == [[40 // shards, 40]]
            assert far <= TOLERANCE * moved, (name, shards)
            for key in ("loss", "mean", "low"):
                values, expected = found[f"{name}/{shards}/{key}"], found[f"{name}/1/{key}"]
                np.testing.assert_allclose(values, expected, rtol=TOLERANCE, err_msg=f"{name} {shards} {key}")
