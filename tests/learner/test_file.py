"""The file of a learner, and learners from run folders."""

import json
import pickle
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import MISSION

import adaptax as ax
from adaptax.learner.networks import describe, shaped

X = np.linspace(-4, 4, 10)[:, None]
CASE = (X, np.sin(X))


def learner(network=None, inner=None, **options):
    network = ax.models.mlp((1, 8, 8, 1), key=jax.random.key(0)) if network is None else network
    return ax.Learner(ax.tasks.sinusoid(), network, ax.Inner(3, 0.01) if inner is None else inner, **options)


def same(one, other, case=CASE):
    a, b = one.adapt(case), other.adapt(case)
    np.testing.assert_array_equal(a.losses, b.losses)
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


def in_last_layer(path):
    return path.startswith("layers.2")


def rates(per, per_step, inner):
    rule = ax.stepsize.Auto(per=per, per_step=per_step)
    network = ax.models.mlp((1, 8, 8, 1), key=jax.random.key(0))
    method = ax.MetaGradient(ax.Inner(3, rule, **inner))
    state, _ = ax.train(ax.tasks.sinusoid(), network, method, steps=3, tasks_per_step=2)
    return learner(state.params, state.inner)


@pytest.mark.parametrize(
    "make",
    [
        learner,
        lambda: learner(inner=ax.Inner(3, jnp.array([0.01, 0.02, 0.03]), proximal=0.5)),
        lambda: learner(inner=ax.Inner(0, 0.1)),
        pytest.param(lambda: rates("parameter", False, {}), marks=MISSION),
        lambda: rates("leaf", True, {"adapt": in_last_layer}),
        pytest.param(lambda: rates("scalar", True, {}), marks=MISSION),
    ],
)
def test_what_is_saved_comes_back(make, tmp_path):
    one = make()
    one.save(tmp_path / "a.npz")
    again = ax.load(tmp_path / "a.npz")
    same(one, again)
    again.save(tmp_path / "b.npz")
    same(one, ax.load(tmp_path / "b.npz"))
    assert [path.name for path in tmp_path.iterdir()].count("a.npz.part") == 0


def test_number_types_come_back(tmp_path):
    network = ax.models.mlp((1, 4, 1), key=jax.random.key(0), dtype=jnp.bfloat16)
    one = learner(network, about={"who": "me"})
    one.save(tmp_path / "a.npz")
    again = ax.load(tmp_path / "a.npz")
    assert again.about == {"who": "me"} and again.params.layers[0].weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(again.params.layers[0].weight, network.layers[0].weight)


def test_classifiers_come_back(tmp_path):
    data = ax.tasks.ImageClasses(np.zeros((9, 16, 16, 1), np.uint8), ("bee", "cat", "dog"), (3, 3, 3))
    inner = ax.Inner(2, 0.1, lambda path: path.startswith("head"), start=ax.models.shared_head(3))
    network = ax.models.conv4(1, key=jax.random.key(1), channels=8, image=(16, 16, 1))
    one = ax.Learner(ax.tasks.few_shot(data, ways=3, queries=1), network, inner)
    one.save(tmp_path / "a.npz")
    random = np.random.default_rng(0)
    case = random.normal(size=(6, 16, 16, 1)).astype(np.float32), np.array(["x", "y", "x", "y", "z", "z"])
    same(one, ax.load(tmp_path / "a.npz"), case)
    assert ax.load(tmp_path / "a.npz").adapt(case).classes == ("x", "y", "z")
    with pytest.raises(ax.InputError, match=r"no tasks of its own: give evaluate\(problem\)"):
        ax.load(tmp_path / "a.npz").evaluate()


@pytest.mark.parametrize(
    "network",
    [
        lambda: ax.models.mlp((2, 3, 4), key=jax.random.key(0), activation=jnp.tanh),
        lambda: ax.models.conv4(5, key=jax.random.key(0), channels=16, image=(20, 16, 3), norm="group"),
        lambda: ax.models.resnet12(2, key=jax.random.key(0), channels=4, image=(16, 16, 1)),
        lambda: ax.tasks.rl.GaussianPolicy(ax.models.mlp((2, 3, 4), key=jax.random.key(0)), 4),
    ],
)
def test_descriptions_make_networks_of_the_same_structure(network):
    made = eqx.filter_eval_shape(network)
    again = shaped(json.loads(json.dumps(describe(made))))
    assert jax.tree.structure(again) == jax.tree.structure(made)
    assert [x.shape for x in jax.tree.leaves(again)] == [x.shape for x in jax.tree.leaves(made)]


def test_networks_and_losses_of_ones_own_are_asked_for(tmp_path):
    problem = ax.FiniteSum(lambda w, batch: jnp.mean((batch[0] * w["a"] - batch[1]) ** 2), lambda key: None)
    params, predict = {"a": jnp.array([2.0])}, lambda w, x: x * w["a"]
    one = ax.Learner(problem, params, ax.Inner(2, 0.1), predict=predict)
    one.save(tmp_path / "own.npz")
    with pytest.raises(ax.InputError, match=r"own\.npz holds the arrays of a network of your own: give load\(params=\)"):
        ax.load(tmp_path / "own.npz")
    with pytest.raises(ax.InputError, match=r"a loss of your own: give load\(problem=\)"):
        ax.load(tmp_path / "own.npz", params=params)
    with pytest.raises(ax.InputError, match=r"other parameters than these \(a of shape \(1,\) there and \(2,\) here\)"):
        ax.load(tmp_path / "own.npz", params={"a": jnp.zeros(2)}, problem=problem)
    again = ax.load(tmp_path / "own.npz", params={"a": jnp.zeros(1)}, problem=problem, predict=predict)
    same(one, again)
    np.testing.assert_array_equal(again.adapt(CASE).predict(X), one.adapt(CASE).predict(X))
    learner(ax.models.mlp((1, 4, 1), key=jax.random.key(0), activation=lambda x: x**2)).save(tmp_path / "odd.npz")
    with pytest.raises(ax.InputError, match="network of your own"):
        ax.load(tmp_path / "odd.npz")


@pytest.mark.parametrize(
    "inner, message",
    [
        (ax.Inner(2, 1.0, optimizer=optax.sgd(0.1)), "this inner loop has an optimizer of its own"),
        (ax.Inner(2, 0.1, start=lambda w: w), "a start of its own"),
        (ax.Inner(2), r"has Auto\(.*give state\.inner of a training"),
        (ax.Inner(2, gradients=ax.gradients.Smoothed()), "gradients that are not differentiated"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(inner, message, tmp_path):
    with pytest.raises(ax.InputError, match=message):
        learner(inner=inner).save(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def changed(path, **entries):
    """The same file with other entries in its header."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes()) | entries
    np.savez(path, **(arrays | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}))


def test_files_that_are_something_else_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    other = r"a\.npz is no learner of adaptax: give a file that save\(\) wrote"
    for write in (
        lambda: path.write_bytes(b"no file of NumPy"),
        lambda: path.write_bytes(pickle.dumps({"a": 1})),
        lambda: path.write_bytes(b"PK\x03\x04 torn"),
        lambda: path.write_bytes(b""),
        lambda: np.savez(path, weights=np.ones(3)),
        lambda: np.savez(path, header=np.array([{"code": "import os"}], dtype=object)),
        lambda: np.savez(path, header=np.frombuffer(b"{}", np.uint8)),
    ):
        write()
        with pytest.raises(ax.InputError, match=other):
            ax.load(path)
    learner().save(path)
    whole = path.read_bytes()
    changed(path, version=2, adaptax="9.9")
    with pytest.raises(ax.InputError, match=r"was saved by adaptax 9\.9, a later version: install it"):
        ax.load(path)
    path.write_bytes(whole)
    changed(path, network={"kind": "transformer"})
    with pytest.raises(ax.InputError, match="knows no network 'transformer'"):
        ax.load(path)
    path.write_bytes(whole)
    changed(path, dtypes={})
    with pytest.raises(ax.InputError, match="is not whole"):
        ax.load(path)
    with pytest.raises(ax.InputError, match=r"There is no file .*none\.npz"):
        ax.load(tmp_path / "none.npz")
    with pytest.raises(ax.InputError, match="There is no run in"):
        ax.load(tmp_path)
    with pytest.raises(ax.InputError, match="cannot be written"):
        learner().save(tmp_path / "nowhere" / "a.npz")


@pytest.mark.long
def test_a_run_begun_from_python(tmp_path):
    problem, params = ax.tasks.sinusoid(), ax.models.mlp((1, 8, 1), key=jax.random.key(0))
    method, folder = ax.MetaGradient(ax.Inner(2)), tmp_path / "run"
    options = {"steps": 6, "tasks_per_step": 2, "out": folder}
    state, _ = ax.train(problem, params, method, **options)
    loaded = ax.load(folder, problem=problem, params=params, method=method)
    same(ax.Learner(problem, state.params, state.inner), loaded)
    assert loaded.about == {"step": 6}
    loaded.save(tmp_path / "a.npz")
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    assert (tmp_path / "a.npz").stat().st_size < size
    with pytest.raises(ax.InputError, match=r"give load\(problem=, params=, method=\)"):
        ax.load(folder)
    best, _ = ax.train(
        problem, params, method, **(options | {"out": tmp_path / "best"}), evaluate_every=2, validation=ax.tasks.sinusoid()
    )
    loaded = ax.load(tmp_path / "best", problem=problem, params=params, method=method)
    assert loaded.about == {"step": int(best.step)}
    same(ax.Learner(problem, best.params, best.inner), loaded)
