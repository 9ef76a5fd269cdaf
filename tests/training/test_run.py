import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Stop, stop_at

import adaptax as ax
from adaptax.training import loop
from adaptax.training.checkpoints import DamagedCheckpoint
from adaptax.training.run import Run


def contents(folder):
    """Every file and folder in a folder with its bytes and its time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture
def whole(tiny):
    return tiny.train(tiny.edge, evaluate_every=6, steps=12)


@pytest.fixture
def options(tiny, tmp_path):
    return {"method": tiny.edge, "out": tmp_path / "run", "checkpoint_every": 4, "evaluate_every": 6}


def same_run(tiny, one, other):
    return tiny.same(one[0], other[0]) and tiny.same_history(one[1], other[1])


@pytest.mark.parametrize("step", (3, 8, 11))
def test_an_interrupted_run_goes_on_bit_for_bit(tiny, options, whole, monkeypatch, step):
    # Before the first checkpoint, at one, and beyond the last.
    monkeypatch.setattr(loop, "_SECONDS", 0.0)
    with pytest.raises(Stop):
        tiny.train(**options, callback=stop_at(step))
    history = options["out"] / "history.jsonl"
    assert len(history.read_text().splitlines()) == step
    with open(history, "a") as file:
        file.write('{"step": 99, "lo')
    seen = []
    resumed = tiny.train(**options, resume=True, callback=lambda state, record: seen.append(int(state.step)))
    assert seen[0] == step // 4 * 4 + 1
    assert same_run(tiny, resumed, whole)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert [line["loss"] for line in lines] == whole[1]["loss"].tolist()
    evaluations = [json.loads(line) for line in (options["out"] / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in evaluations] == [6, 12]
    held_out = whole[1]["held_out"]
    assert [entry["loss"] for entry in evaluations] == [held_out[5], held_out[11]] and np.isnan(held_out).sum() == 10


def test_an_interrupted_run_on_host_tasks_skips_what_was_used(tiny, tmp_path):
    batches, options = tiny.batches(12), {"out": tmp_path / "run", "checkpoint_every": 4}
    expected = tiny.train(tasks=batches)
    with pytest.raises(Stop):
        tiny.train(**options, tasks=batches, callback=stop_at(6))
    assert same_run(tiny, tiny.train(**options, tasks=iter(batches), resume=True), expected)


def test_repeating_a_finished_run_changes_nothing(tiny, options, whole):
    assert same_run(tiny, tiny.train(**options), whole)
    before = contents(options["out"])
    assert {"config.json", "environment.json", "history.jsonl", "manifest.json", "checkpoints"} <= set(before)
    assert same_run(tiny, tiny.train(**options, resume=True), whole)
    assert contents(options["out"]) == before
    with pytest.raises(ax.InputError, match=r"holds this run already: pass resume=True"):
        tiny.train(**options)
    assert contents(options["out"]) == before


def test_another_configuration_is_refused_with_the_difference(tiny, options):
    tiny.train(**{**options, "steps": np.int64(4)}, seed=np.int64(0))
    before = contents(options["out"])
    for change, match in (
        ({"steps": 2}, r"steps is 4 there and 2 here"),
        ({"steps": 4, "seed": 1}, r"seed is 0 there and 1 here"),
        ({"steps": 4, "tasks_per_step": 3}, r"tasks_per_step is 5 there and 3 here"),
        ({"steps": 4, "method": ax.MetaGradient(ax.Inner(2))}, r"method is .*steps=3, .* there and .*steps=2, .* here"),
        ({"steps": 4, "config": {"steps": 4}}, r"seed is 0 there and None here"),
    ):
        with pytest.raises(ax.InputError, match=match):
            tiny.train(**{**options, **change}, resume=True)
    assert contents(options["out"]) == before


def test_another_model_or_optimiser_is_refused_and_the_checkpoints_are_kept(tiny, options):
    tiny.train(**{**options, "steps": 4})
    before = contents(options["out"] / "checkpoints")
    wide = ax.FiniteSum(lambda w, c: jnp.sum((w[:3] - c) ** 2), tiny.sample)
    for problem, params, optimizer in (
        (wide, jnp.ones(5), tiny.adam),
        (tiny.problem, tiny.start, optax.sgd(0.1)),
        (tiny.problem, tiny.start.astype(jnp.bfloat16), tiny.adam),
    ):
        with pytest.raises(ax.InputError, match=r"another configuration|state of another model, optimiser or number type"):
            ax.train(problem, params, **{**options, "steps": 4}, optimizer=optimizer, tasks_per_step=5, resume=True)
    assert contents(options["out"] / "checkpoints").keys() == before.keys()
    assert int(tiny.train(**{**options, "steps": 4}, resume=True)[0].step) == 4


def test_a_folder_that_is_no_run_is_left_alone(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    before = contents(tmp_path)
    for name in ("mine", "file"):
        for resume in (False, True):
            with pytest.raises(ax.InputError, match="is not a run folder: choose an empty or a new folder"):
                tiny.train(out=tmp_path / name, resume=resume)
    with pytest.raises(ax.InputError, match="cannot be written"):
        tiny.train(out=tmp_path / "file" / "run")
    assert contents(tmp_path) == before
    # An empty folder is welcome, as is one whose making was interrupted.
    for name, leftover in (("empty", None), ("begun", "environment.json"), ("torn", "config.json.part")):
        (tmp_path / name).mkdir()
        if leftover:
            (tmp_path / name / leftover).write_text("{")
        assert int(tiny.train(out=tmp_path / name, steps=1, resume=True)[0].step) == 1


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(255 - byte for byte in data[len(data) // 2 :])
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", (flip, truncate, lambda path: path.unlink()), ids=("flipped", "cut", "missing"))
def test_a_damaged_checkpoint_does_not_count(tiny, options, whole, damage):
    tiny.train(**options)
    for damaged, first in ((("12",), 9), (("8", "12"), 1)):
        for step in damaged:
            for path in (options["out"] / "checkpoints" / step / "default").rglob("*"):
                if path.is_file():
                    damage(path)
        seen = []
        with pytest.warns(DamagedCheckpoint, match="differs from its checksum"):
            resumed = tiny.train(**options, resume=True, callback=lambda state, _, seen=seen: seen.append(int(state.step)))
        assert seen[0] == first
        assert same_run(tiny, resumed, whole)


def test_a_checkpoint_that_the_manifest_does_not_name_is_removed(tiny, options, whole):
    tiny.train(**options)
    manifest = options["out"] / "manifest.json"
    entries = json.loads(manifest.read_text())
    assert sorted(entries) == ["12", "8"] == sorted(p.name for p in (options["out"] / "checkpoints").iterdir())
    manifest.write_text(json.dumps({"8": entries["8"]}))
    with pytest.raises(Stop):
        tiny.train(**options, resume=True, callback=stop_at(9))
    assert [p.name for p in (options["out"] / "checkpoints").iterdir()] == ["8"]
    assert same_run(tiny, tiny.train(**options, resume=True), whole)
    # A digest that does not match is a damaged checkpoint, too.
    entries = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**entries, "12": "0" * 64}))
    seen = []
    with pytest.warns(DamagedCheckpoint, match="differs from its checksum"):
        resumed = tiny.train(**options, resume=True, callback=lambda state, record: seen.append(int(state.step)))
    assert seen[0] == 9
    assert same_run(tiny, resumed, whole)


def test_a_damaged_manifest_is_refused_and_the_checkpoints_are_kept(tiny, options):
    tiny.train(**options)
    (options["out"] / "manifest.json").write_text('{"12": ')
    before = contents(options["out"])
    with pytest.raises(ax.InputError, match=r"manifest\.json that cannot be read"):
        tiny.train(**options, resume=True)
    assert contents(options["out"]) == before


def test_a_run_that_began_with_a_state_goes_on_without_it(tiny, options, whole):
    half, _ = tiny.train(tiny.edge, steps=3)
    with pytest.raises(Stop):
        tiny.train(**options, state=half, callback=stop_at(9))
    state, history = tiny.train(**options, resume=True)
    assert tiny.same(state, whole[0])
    assert tiny.same_history(history, {name: values[3:] for name, values in whole[1].items()})


def test_reading_a_run_changes_nothing(tiny, options, whole):
    tiny.train(**options)
    run = Run(options["out"])
    before = contents(options["out"])
    state = run.checkpoints.load(ax.make_step(tiny.problem, tiny.edge, tiny.adam, 5).init(jnp.zeros(3), seed=7))
    assert tiny.same(state, whole[0])
    assert run.history(12)["loss"] == whole[1]["loss"].tolist()
    assert contents(options["out"]) == before
    assert not Run.is_run(options["out"].parent)
    with pytest.raises(ax.InputError, match="is not a run folder"):
        Run(options["out"].parent).config()


def test_states_of_every_type_survive_the_folder(tiny, tmp_path):
    params = {"half": jnp.ones(3, jnp.bfloat16), "index": jnp.array(2), "n": 3, "empty": jnp.zeros((0,))}
    problem = ax.FiniteSum(lambda p, c: jnp.sum((p["half"] - c.astype(jnp.bfloat16)) ** 2), tiny.sample)
    method = ax.MetaGradient(ax.Inner(2, ax.stepsize.Learned(0.05, per="leaf"), adapt=lambda path: path == "half"))
    options = {"optimizer": optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1)), tiny.adam), "steps": 4}
    options |= {"tasks_per_step": 2}
    expected = ax.train(problem, params, method, **options)
    options |= {"out": tmp_path / "run", "checkpoint_every": 2}
    with pytest.raises(Stop):
        ax.train(problem, params, method, **options, callback=stop_at(2))
    assert same_run(tiny, ax.train(problem, params, method, **options, resume=True), expected)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    text = "".join(path.read_text() for path in (tmp_path / "run").glob("*.json"))
    assert str(tmp_path) not in text
