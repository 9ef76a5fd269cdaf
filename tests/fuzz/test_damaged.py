"""Run folders and saved files whose bytes are damaged: a result, or one sentence; nothing is written anywhere else."""

import contextlib
import copy
import io
import json
import os
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptax as ax
from adaptax.cli.main import main

N = int(os.environ.get("ADAPTAX_FUZZ", "20"))
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MANY = settings(derandomize=True, deadline=None, max_examples=N, suppress_health_check=CHECKS)
# A command on a run compiles, which takes two seconds.
FEW = settings(MANY, max_examples=max(N // 5, 1))
SMALL = "--stepsize 0.01 --inner-steps 1 --tasks-per-step 2 --dim 3 --evaluation-tasks 4 --checkpoint-every 2"
TRAIN = ["train", "matrix", *SMALL.split(), "--evaluate-every", "2"]
# Small numbers, so that what is damaged does not ask for a year of work.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats(-2, 9)
    | st.sampled_from([float("nan"), "", "é", "a:b", "../x", "1e9"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "step", "8", "sha256"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def damage(draw):
    """A function from the bytes of a file to others, None for no file."""
    kind = draw(st.sampled_from(["cut", "flip", "put", "gone", "empty", "json"]))
    where, bit, part, value = draw(st.floats(0, 1)), draw(st.integers(0, 7)), draw(st.binary(max_size=8)), draw(JSON)
    key = draw(st.integers(0, 99))

    def damaged(data):
        at = int(where * max(len(data) - 1, 0))
        if kind == "flip" and data:
            return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        if kind == "json":
            with contextlib.suppress(ValueError):
                return json.dumps(mutated(json.loads(data), key, value)).encode()
        return {"gone": None, "empty": b"", "put": data[:at] + part + data[at:]}.get(kind, data[:at])

    return damaged


def mutated(tree, key, value):
    """A JSON value in which one part is another."""
    places = []

    def walk(part):
        for name in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, name))
            walk(part[name])

    walk(tree := copy.deepcopy(tree))
    if not places:
        return value
    part, name = places[key % len(places)]
    part[name] = value
    return tree


def called(arguments):
    """The exit code, the output and the errors of a command, which must not raise anything."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("ignore")
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def check(code, out, err):
    """A result, or one sentence."""
    assert code in (0, 1, 2) and "Traceback" not in err
    if code == 2:
        assert not out and err.count("\n") >= 1 and err.strip()[-1] in ".?", err
    return code


def files(folder, without):
    """When each file and folder was changed; links are those of pytest."""
    found = (path for path in folder.rglob("*") if without not in (path, *path.parents) and not path.is_symlink())
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "finished"
    assert main([*TRAIN, "--steps", "6", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("command", ["evaluate", pytest.param("resume", marks=pytest.mark.slow), "longer"])
def test_a_damaged_run_gets_a_result_or_a_sentence(finished, tmp_path, monkeypatch, command):
    names = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    monkeypatch.chdir(tmp_path)
    folder, beside = tmp_path / "run", files(tmp_path.parent, tmp_path)

    @FEW
    @given(st.lists(st.tuples(st.sampled_from(names), damage()), min_size=1, max_size=2))
    def damaged(parts):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, folder)
        for name, change in parts:
            path = folder / name
            if path.is_file():
                data = change(path.read_bytes())
                path.unlink() if data is None else path.write_bytes(data)
        steps = {"resume": "6", "longer": "8"}.get(command)
        asked = ["evaluate", folder] if steps is None else [*TRAIN, "--resume", "--steps", steps, "--out", folder]
        before = {} if steps is not None else files(folder, Path())
        check(*called(asked))
        # Nothing is written but in the run, and reading writes nothing at all.
        assert files(tmp_path, folder) == {} and files(tmp_path.parent, tmp_path) == beside
        assert steps is not None or files(folder, Path()) == before

    damaged()


def learner(path):
    network = ax.models.mlp((1, 4, 1), key=jax.random.key(0))
    about = {"evaluation": {"steps": [0, 1], "scores": {"loss": {"mean": [2.0, 1.0], "low": [1.5, 0.5], "high": [2.5, 1.5]}}}}
    ax.Learner(ax.tasks.sinusoid(), network, ax.Inner(1, 0.01), about=about).save(path)


def table(path):
    random = np.random.default_rng(0)
    groups, x = np.repeat(np.arange(12), 6), random.normal(size=(72, 2))
    y = x[:, 0] + groups % 3
    model = ax.MetaRegressor(support=2, model="ridge", max_steps=2).fit(x, y, groups=groups)
    said = {"features": ["a", "b"], "target": "y", "group": "g", "order": None}
    model.save(path, {"table": said, "gain": [0.1, 0.05], "report": "a report"})


@pytest.fixture(scope="module", params=["learner", "table"])
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / f"{request.param}.npz"
    {"learner": learner, "table": table}[request.param](path)
    return path


@pytest.fixture
def rows(tmp_path):
    """Rows to adapt to, for a curve and for a table."""
    (tmp_path / "few.csv").write_text("a,b,g,y\n" + "".join(f"{i},{i * i % 5},u,{i / 2}\n" for i in range(6)))
    (tmp_path / "curve.csv").write_text("x,y\n" + "".join(f"{i},{i / 2}\n" for i in range(6)))
    return tmp_path


def test_damaged_files_of_learners_and_tables_get_a_result_or_a_sentence(saved, rows, monkeypatch):
    monkeypatch.chdir(rows)
    data, beside = saved.read_bytes(), files(rows, rows / "predictions.csv")
    with np.load(saved) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays.pop("header").tobytes())
    csv = rows / ("few.csv" if saved.stem == "table" else "curve.csv")
    asked = ["adapt", rows / "it.npz", "--support", csv, "--predict", csv, "--explain"]

    @MANY
    @given(
        st.one_of(damage(), st.tuples(st.integers(0, 99), JSON), st.tuples(st.sampled_from(sorted(arrays)), st.integers(0, 4)))
    )
    def damaged(change):
        if callable(change):
            bad = change(data)
        else:
            # Files that are whole, and say something else.
            changed, said = dict(arrays), header
            if isinstance(change[0], int):
                said = mutated(header, *change)
            elif change[1] == 0:
                del changed[change[0]]
            else:
                changed[change[0]] = np.zeros(change[1], np.float32)
            written = io.BytesIO()
            np.savez(written, header=np.frombuffer(json.dumps(said).encode(), np.uint8), **changed)
            bad = written.getvalue()
        if bad is None:
            (rows / "it.npz").unlink(missing_ok=True)
        else:
            (rows / "it.npz").write_bytes(bad)
        check(*called(asked))
        (rows / "it.npz").unlink(missing_ok=True)
        assert files(rows, rows / "predictions.csv") == beside

    (rows / "it.npz").write_bytes(data)
    assert check(*called(asked)) == 0
    damaged()
