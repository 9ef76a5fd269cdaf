"""A run is resumed with what it was begun with, may be prolonged, and loses no checkpoint to a failing reader."""

import builtins
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.errors import CheckpointError
from adaptax.training import checkpoints as saved
from adaptax.training.checkpoints import DamagedCheckpoint
from adaptax.training.older import one_sided
from adaptax.training.resuming import NotCompared, describe, describe_run, fingerprint
from adaptax.training.run import Run

CENTRE = 0.5


def loss(w, c):
    return 0.5 * jnp.sum((w - c) ** 2)


def other_loss(w, c):
    return 0.5 * jnp.sum((w - 2 * c) ** 2)


def sample(key):
    return ax.Task(*jax.random.normal(key, (2, 3)))


PROBLEM = ax.FiniteSum(loss, sample)
METHOD = ax.MetaGradient(ax.Inner(2, 0.1))


def train(out, *, problem=PROBLEM, method=METHOD, optimizer=None, steps=4, **options):
    optimizer = optax.adam(0.05) if optimizer is None else optimizer
    options = {"tasks_per_step": 2, "checkpoint_every": 2, "devices": jax.devices()[:1], **options}
    return ax.train(problem, jnp.ones(3), method, optimizer=optimizer, steps=steps, out=out, **options)


def scheduled(value):
    return ax.Inner(2, lambda j: value)


ANOTHER = {
    "rate of the optimiser": {"optimizer": optax.adam(0.06)},
    "another optimiser": {"optimizer": optax.sgd(0.05)},
    "schedule of the optimiser": {"optimizer": optax.adam(optax.cosine_decay_schedule(0.05, 8))},
    "loss": {"problem": ax.FiniteSum(other_loss, sample)},
    "sampler": {"problem": ax.FiniteSum(loss, lambda key: ax.Task(*jax.random.uniform(key, (2, 3))))},
    "arrays of a pool": {"problem": ax.FiniteSum(loss, ax.Pool(ax.Task(jnp.ones((4, 3)), jnp.ones((4, 3)))))},
    "inner optimiser": {"method": ax.MetaGradient(ax.Inner(2, optimizer=optax.sgd(0.1)))},
    "number of inner steps": {"method": ax.MetaGradient(ax.Inner(3, 0.1))},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    train(folder)
    return folder


@pytest.mark.parametrize("change", ANOTHER)
def test_another_problem_method_or_optimiser_is_refused(begun, change):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(ax.InputError, match="holds a run with another configuration"):
        train(begun, **ANOTHER[change], resume=True)
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_the_same_made_anew_is_welcome(begun):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = train(begun, optimizer=optax.adam(0.05), problem=ax.FiniteSum(loss, sample), resume=True)
    assert int(state.step) == 4


@pytest.mark.parametrize(
    "one, other",
    [
        (optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.8)),
        (scheduled(0.1), scheduled(0.9)),
        (ax.Inner(2, optimizer=optax.sgd(0.1)), ax.Inner(2, optimizer=optax.sgd(0.9))),
        (ax.Inner(2, adapt=lambda path: path == "a"), ax.Inner(2, adapt=lambda path: path == "b")),
        (jnp.arange(100.0), jnp.arange(100.0).at[50].add(1)),
        (ax.FiniteSum(lambda w, c: jnp.sum(w) * 2, sample), ax.FiniteSum(lambda w, c: jnp.sum(w) * 3, sample)),
    ],
)
def test_a_checksum_tells_what_functions_close_over(one, other):
    assert fingerprint(one).code != fingerprint(other).code
    assert fingerprint(one) == fingerprint(one)


def test_a_checksum_follows_numbers_of_the_module(monkeypatch):
    def uses(w, c):
        return jnp.sum((w - CENTRE) ** 2)

    before = fingerprint(uses)
    monkeypatch.setitem(globals(), "CENTRE", 0.6)
    assert fingerprint(uses) != before


SETTINGS = {"scale": 2.0}


def helper(w):
    return jnp.sum(w**2)


@jax.jit
def jitted(w):
    return helper(w)


def by_helper(w, c):
    return helper(w - c)


def by_jit(w, c):
    return jitted(w - c)


def by_lambda(w, c):
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x: jnp.sum((x - CENTRE * c) ** 2), w))


def by_settings(w, c):
    return SETTINGS["scale"] * jnp.sum((w - c) ** 2)


@pytest.mark.parametrize("function", [by_helper, by_jit])
def test_functions_of_the_module_are_compared_too(function, tmp_path, monkeypatch):
    train(tmp_path / "run", problem=ax.FiniteSum(function, sample))
    train(tmp_path / "run", problem=ax.FiniteSum(function, sample), resume=True)
    other = lambda w: 2 * jnp.sum(w**2)  # noqa: E731
    other.__module__ = __name__
    monkeypatch.setitem(globals(), "helper", other)
    with pytest.raises(ax.InputError, match="the functions or arrays of problem differ"):
        train(tmp_path / "run", problem=ax.FiniteSum(function, sample), resume=True)


def test_numbers_and_settings_of_the_module_are_compared_too(monkeypatch):
    before = fingerprint(by_lambda), fingerprint(by_settings)
    monkeypatch.setitem(globals(), "CENTRE", 0.6)
    monkeypatch.setitem(globals(), "SETTINGS", {"scale": 3.0})
    after = fingerprint(by_lambda), fingerprint(by_settings)
    assert [a.called != b.called for a, b in zip(before, after, strict=True)] == [True, False]
    assert [a.containers != b.containers for a, b in zip(before, after, strict=True)] == [False, True]
    # What earlier runs have saved is told as before.
    assert [a.code == b.code for a, b in zip(before, after, strict=True)] == [True, True]


def test_a_changed_setting_is_said(tmp_path, monkeypatch):
    train(tmp_path / "run", problem=ax.FiniteSum(by_settings, sample))
    monkeypatch.setitem(SETTINGS, "scale", 3.0)
    with pytest.warns(NotCompared, match="its problem holds or uses objects whose contents are others"):
        train(tmp_path / "run", problem=ax.FiniteSum(by_settings, sample), resume=True)


def test_runs_that_saved_fewer_checksums_go_on(tmp_path):
    train(tmp_path / "run", problem=ax.FiniteSum(by_helper, sample))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in ("called", "containers")}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert int(train(tmp_path / "run", problem=ax.FiniteSum(by_helper, sample), steps=6, resume=True)[0].step) == 6


def test_a_run_is_prolonged_from_python(tmp_path):
    whole = train(tmp_path / "whole", steps=8)
    train(tmp_path / "run", steps=4)
    state, history = train(tmp_path / "run", steps=np.int64(8), resume=True)
    np.testing.assert_array_equal(state.params, whole[0].params)
    np.testing.assert_array_equal(history["loss"], whole[1]["loss"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 8
    with pytest.raises(ax.InputError, match="steps is 8 there and 6 here"):
        train(tmp_path / "run", steps=6, resume=True)


def test_a_schedule_that_changes_its_own_numbers_is_the_same(tmp_path):
    """That of optax turns a whole number of steps into a float when it is first called."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 4))
    before = fingerprint(optimizer)
    train(tmp_path / "run", optimizer=optimizer, steps=2)
    assert fingerprint(optimizer) == before
    assert int(train(tmp_path / "run", optimizer=optimizer, steps=4, resume=True)[0].step) == 4
    assert fingerprint(optax.adam(optax.cosine_decay_schedule(0.05, 5))) != before


def test_the_default_optimiser_is_scheduled_and_cannot_be_prolonged(tmp_path):
    options = {"tasks_per_step": 2, "out": tmp_path / "run"}
    ax.train(PROBLEM, jnp.ones(3), METHOD, steps=2, **options)
    with pytest.raises(ax.InputError, match="begun for steps=2, and its optimiser is scheduled over them"):
        ax.train(PROBLEM, jnp.ones(3), METHOD, steps=4, resume=True, **options)
    assert int(ax.train(PROBLEM, jnp.ones(3), METHOD, steps=2, resume=True, **options)[0].step) == 2


@pytest.mark.long
def test_a_run_of_guaranteed_from_before_it_told_signs_apart_goes_on(tmp_path):
    method = ax.MetaGradient(ax.Inner(2, ax.stepsize.Guaranteed(every=1, decay=0.5)))
    folder = tmp_path / "run"
    state, _ = train(folder, method=method)
    # As it was saved then: one number for all curvature, which is 1.
    shutil.rmtree(folder / "checkpoints")
    (folder / "manifest.json").unlink()
    Run(folder).save(one_sided(state))
    assert saved.Checkpoints(folder).load(state).estimate.negative is None
    resumed, history = train(folder, method=method, steps=8, resume=True)
    # It went with 1/(8 * 2), as if curvature of that size could be negative, which is given up no faster than the decay.
    np.testing.assert_allclose(history["stepsize"][4:], [1 / 8, 1 / 4, 1 / 2, 1], rtol=1e-3)
    assert float(resumed.estimate.negative) == pytest.approx(1 / 16)


def test_options_that_rules_had_not_are_described_where_they_are_used():
    rules = ax.stepsize.Guaranteed(), ax.stepsize.Guaranteed(gamma_plus=1.5)
    assert ["gamma_plus" in describe(rule) for rule in rules] == [False, True]
    assert fingerprint(rules[0]).code != fingerprint(rules[1]).code


def test_what_cannot_be_compared_is_said(tmp_path):
    train(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    described = describe_run(4, 2, 0, problem=PROBLEM, method=METHOD, optimizer=optax.adam(0.05))
    config = json.loads(path.read_text())
    assert config == described
    # As runs were described before problems and optimisers were.
    path.write_text(json.dumps({name: config[name] for name in ("steps", "tasks_per_step", "seed", "method")}))
    with pytest.warns(NotCompared, match="its optimizer, problem could not be compared, since it was begun before"):
        train(tmp_path / "old", optimizer=optax.adam(0.07), resume=True)
    # And as they were while checksums told 2 from 2.0.
    del config["checksums"], config["code"]["problem"]
    path.write_text(json.dumps(config))
    with pytest.warns(NotCompared, match="its method, optimizer, problem could not be compared, since it was begun before"):
        train(tmp_path / "old", optimizer=optax.adam(0.05), resume=True)
    # Under other versions functions are compared by their names alone.
    train(tmp_path / "moved")
    environment = tmp_path / "moved" / "environment.json"
    environment.write_text(environment.read_text().replace(jax.__version__, "0.0.1"))
    with pytest.warns(NotCompared, match="its optimizer could not be compared, since it began under other versions"):
        train(tmp_path / "moved", optimizer=optax.adam(0.07), resume=True)


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def loss(self, w, c):
        return 0.5 * self.scale * jnp.sum((w - c) ** 2)


def test_attributes_of_plain_objects_are_said(tmp_path):
    train(tmp_path / "run", problem=ax.FiniteSum(Scaled(1.0).loss, sample))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path / "run", problem=ax.FiniteSum(Scaled(1.0).loss, sample), resume=True)
    with pytest.warns(NotCompared, match="its problem holds or uses objects whose contents are others"):
        train(tmp_path / "run", problem=ax.FiniteSum(Scaled(2.0).loss, sample), resume=True)


@pytest.fixture
def run(tmp_path):
    train(tmp_path / "run", steps=6)
    return tmp_path / "run"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_error_of_the_system_deletes_nothing(run, monkeypatch):
    before, real, failing = contents(run), builtins.open, [True]

    def broken(path, *args, **options):
        if failing and "checkpoints" in str(path):
            raise OSError(5, "Input/output error")
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", broken)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"checkpoints/6 cannot be read \(Input/output error\); nothing was changed"):
            train(run, steps=8, resume=True)
    failing.clear()
    assert {name: data for name, data in contents(run).items() if name.parts[0] == "checkpoints"} == {
        name: data for name, data in before.items() if name.parts[0] == "checkpoints"
    }
    assert int(train(run, steps=8, resume=True)[0].step) == 8


def test_a_reader_that_does_not_know_the_layout_deletes_nothing(run, monkeypatch):
    before = contents(run / "checkpoints")
    with monkeypatch.context() as patched:
        patched.setattr(saved, "_read_arrays", lambda manager, step: (_ for _ in ()).throw(KeyError("layout 9")))
        with pytest.raises(CheckpointError, match=r"cannot be read by the installed orbax-checkpoint.*nothing was changed"):
            train(run, resume=True, steps=8)
    assert contents(run / "checkpoints") == before
    assert int(train(run, resume=True, steps=8)[0].step) == 8


def test_a_damaged_checkpoint_is_set_aside_and_said(run):
    newest = run / "checkpoints" / "6"
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[::-1])
    kept = contents(newest)
    seen = []
    with pytest.warns(
        DamagedCheckpoint, match=r"checkpoints/6 differs.*moved to damaged/6, and the run goes on from checkpoint 4"
    ):
        train(run, steps=8, resume=True, callback=lambda state, record: seen.append(int(state.step)))
    assert seen[0] == 5
    assert contents(run / "damaged" / "6") == kept


def test_reading_alone_changes_nothing_even_if_a_checkpoint_is_damaged(run):
    victim = next(path for path in (run / "checkpoints" / "6").rglob("*") if path.is_file())
    victim.write_bytes(b"")
    before = contents(run)
    like = ax.make_step(PROBLEM, METHOD, optax.adam(0.05), 2).init(jnp.ones(3))
    assert int(saved.Checkpoints(run).load(like).step) == 4
    assert contents(run) == before


def test_manifests_of_earlier_runs_are_read(run):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({step: entry["sha256"] for step, entry in manifest.items()}))
    assert int(train(run, steps=8, resume=True)[0].step) == 8
