"""`adaptax adapt` on pictures and on curves, and what it refuses."""

import csv
import errno
import os
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

import adaptax as ax
from adaptax.cli.main import main
from adaptax.training import files

SIDE = 16


def draw(folder, name, stripes, seed):
    """A picture of stripes, upright or lying, with some noise."""
    random = np.random.default_rng(seed)
    lines = np.where(np.arange(SIDE) // 2 % 2, 40, 220)
    grey = np.broadcast_to(lines if stripes == "upright" else lines[:, None], (SIDE, SIDE))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((grey + random.integers(-20, 20, (SIDE, SIDE))).astype(np.uint8)).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(3):
        draw(folder / "support" / "upright", k, "upright", k)
        draw(folder / "support" / "lying", k, "lying", 10 + k)
        draw(folder / "new", f"a{k}", "upright", 20 + k)
        draw(folder / "new", f"b{k}", "lying", 30 + k)
    return folder


@pytest.fixture(scope="module")
def classifier(pictures):
    """A network as it is before training, whose head adapts: enough to tell stripes apart."""
    images = ax.tasks.read_images(pictures / "support", SIDE, 1)
    problem = ax.tasks.few_shot(images, 2, 1, 1, rotations=False)
    params = ax.models.conv4(1, key=jax.random.key(0), channels=4, image=(SIDE, SIDE, 1), norm="batch")
    inner = ax.Inner(20, 1.0, lambda path: path.startswith("head"), start=ax.models.shared_head(2))
    evaluation = {"steps": [0, 20], "scores": {"accuracy": {"mean": [0.5, 0.9], "low": [0.48, 0.88], "high": [0.52, 0.92]}}}
    about = {"images": {"size": SIDE, "channels": 1, "inverted": False}, "evaluation": evaluation}
    path = pictures / "learner.npz"
    ax.Learner(problem, params, inner, about=about).save(path)
    return path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_pictures_are_told_apart(classifier, pictures, capsys):
    out = pictures / "out.csv"
    command = ["adapt", str(classifier), "--support", str(pictures / "support"), "--out", str(out)]
    assert main([*command, "--predict", str(pictures / "new"), "--explain"]) == 0
    said = capsys.readouterr().out
    assert "6 pictures predicted after adaptation to 2 classes" in said
    assert "Loss on the support set before each of 20 steps: 0.693" in said
    assert "accuracy on held-out tasks of its training: 0.9 [0.88, 0.92], before adaptation 0.5" in said
    assert "Adaptation improves the accuracy by 0.4" in said
    rows = rows_of(out)
    assert [row["class"] for row in rows] == ["upright"] * 3 + ["lying"] * 3
    assert [row["file"].rpartition("/")[2] for row in rows] == ["a0.png", "a1.png", "a2.png", "b0.png", "b1.png", "b2.png"]
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)
    assert main([*command, "--predict", str(pictures / "new" / "b1.png")]) == 0
    assert [row["class"] for row in rows_of(out)] == ["lying"]
    assert "improves" not in capsys.readouterr().out


def test_it_says_so_where_adaptation_is_not_worth_it(classifier, pictures, capsys):
    learner = ax.load(classifier)
    for part in ("mean", "low", "high"):
        learner.about["evaluation"]["scores"]["accuracy"][part][1] -= 0.4
    path = pictures / "worthless.npz"
    learner.save(path)
    command = ["adapt", str(path), "--support", str(pictures / "support"), "--predict", str(pictures / "new")]
    assert main([*command, "--out", str(pictures / "o.csv")]) == 0
    assert "Adaptation is not worth it here" in capsys.readouterr().out


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    problem = ax.tasks.sinusoid()
    inner = ax.Inner(5, 0.01)
    ax.Learner(problem, ax.models.mlp((1, 8, 1), key=jax.random.key(0)), inner).save(folder / "sine.npz")
    (folder / "known.csv").write_text("x,y\n" + "".join(f"{x},{np.sin(x)}\n" for x in np.linspace(-3, 3, 8)))
    (folder / "asked.csv").write_text("x\n0.5\n1.5\n")
    return folder


def test_curves(curve, capsys, monkeypatch):
    command = ["adapt", str(curve / "sine.npz"), "--support", str(curve / "known.csv"), "--predict", str(curve / "asked.csv")]
    assert main([*command, "--out", str(curve / "out.csv"), "--explain"]) == 0
    assert "2 rows predicted after adaptation to 8 rows" in capsys.readouterr().out
    rows = rows_of(curve / "out.csv")
    x = np.linspace(-3, 3, 8)[:, None].astype(np.float32)
    wanted = ax.load(curve / "sine.npz").adapt((x, np.sin(x))).predict(np.array([[0.5], [1.5]], np.float32))
    np.testing.assert_allclose([float(row["y"]) for row in rows], wanted[:, 0], rtol=1e-4)
    assert main([*command, "--out", "/dev/stdout"]) == 0

    # A disk that is full leaves the predictions of before.
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (curve / "out.csv").read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    (curve / "asked.csv").write_text("x\n2.5\n")
    assert main([*command, "--out", str(curve / "out.csv")]) == 1
    assert "No space left" in capsys.readouterr().err and (curve / "out.csv").read_bytes() == before


@pytest.mark.parametrize(
    "support, predict, said",
    [
        ("nowhere.csv", "asked.csv", "There is no file"),
        ("asked.csv", "asked.csv", "asked.csv has one column alone"),
        ("known.csv", "empty.csv", "empty.csv is no table"),
        ("text.csv", "asked.csv", "Column 'x' is not of numbers"),
    ],
)
def test_wrong_tables_are_refused(curve, capsys, support, predict, said):
    (curve / "empty.csv").write_text("")
    (curve / "text.csv").write_text("x,y\na,1\nb,2\n")
    command = ["adapt", str(curve / "sine.npz"), "--support", str(curve / support), "--predict", str(curve / predict)]
    assert main([*command, "--out", str(curve / "none.csv")]) == 2
    assert said in capsys.readouterr().err and not (curve / "none.csv").exists()


def test_wrong_pictures_and_runs_are_refused(classifier, pictures, tmp_path, capsys):
    def refused(run, said, support="support", predict="new", out="o.csv"):
        command = ["adapt", str(run), "--support", str(pictures / support), "--predict", str(pictures / predict)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main([*command, "--out", str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    refused(classifier, "There are no pictures in", predict=tmp_path / "empty")
    refused(classifier, "is in a folder that is not there", out="nowhere/o.csv")
    refused(tmp_path / "empty", "There is no run in")
    refused(classifier, "There is no", support="nowhere")
    learner = ax.load(classifier)
    learner.about.pop("images")
    learner.save(tmp_path / "bare.npz")
    refused(tmp_path / "bare.npz", "does not say how its images were read")
