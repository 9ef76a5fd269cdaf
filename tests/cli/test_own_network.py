"""`adaptax train images --model MODULE:FUNCTION`: a network of the user's own."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from adaptax.cli.main import main

NETWORK = """
import equinox as eqx, jax, jax.numpy as jnp

class Plain(eqx.Module):
    head: eqx.nn.Linear
    def __call__(self, images):
        return jax.vmap(self.head)(images.reshape(images.shape[0], -1))

def plain(outputs, *, key, image):
    return Plain(eqx.nn.Linear(image[0] * image[1] * image[2], outputs, key=key))

def flat(outputs, *, key, image):
    return Plain(eqx.nn.Linear(7, outputs, key=key))

def single(outputs, *, key, image):
    return lambda images: jnp.zeros(3)

def picky(outputs):
    return None
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six classes of flat colours with a little noise, and a module of networks, in the working folder."""
    random = np.random.default_rng(0)
    for k in range(6):
        (tmp_path / "photos" / f"class{k}").mkdir(parents=True)
        for i in range(6):
            pixels = np.clip(40 * k + random.normal(0, 8, (16, 16)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class{k}" / f"{i}.png")
    (tmp_path / "my_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


OPTIONS = [
    "train", "images", "--data", "photos", "--size", "16", "--ways", "3", "--shots", "1", "--queries", "2",
    "--tasks-per-step", "2", "--inner-steps", "2", "--evaluation-tasks", "20", "--no-rotations", "--no-distort",
    "--head", "per-class", "--adapt", "everything", "--stepsize", "0.01",
]  # fmt: skip


@pytest.mark.long
def test_a_network_of_ones_own_is_trained_evaluated_and_resumed(folder, capsys):
    mine = [*OPTIONS, "--model", "my_networks:plain", "--out", "run"]
    assert main([*mine, "--steps", "6"]) == 0
    result = json.loads((folder / "run" / "evaluation.json").read_text())
    accuracy = result["scores"]["accuracy"]["mean"]
    assert len(accuracy) == 5 and accuracy[2] > 0.4 and set(result["scores"]) == {"loss", "accuracy"}
    assert main([*mine, "--resume", "--steps", "8"]) == 0
    assert json.loads((folder / "run" / "evaluation.json").read_text())["step"] == 8
    assert main(["evaluate", "run", "--tasks", "10", "--model", "my_networks:plain"]) == 0
    capsys.readouterr()
    # What was trained is used: it adapts to three classes, and tells their other pictures apart.
    for k in (1, 3, 5):
        (folder / "few" / f"class{k}").mkdir(parents=True)
        shutil.copy(folder / "photos" / f"class{k}" / "0.png", folder / "few" / f"class{k}")
    asked = ["adapt", "run", "--support", "few", "--predict", "photos/class3"]
    assert main(asked) == 2
    assert "has a network of your own: name its function, --model my_networks:plain" in capsys.readouterr().err
    assert main([*asked, "--model", "nothing_here:plain"]) == 2
    assert main([*asked, "--model", "my_networks:plain"]) == 0
    rows = (folder / "predictions.csv").read_text().splitlines()[1:]
    assert len(rows) == 6 and {row.split(",")[1] for row in rows} <= {"class1", "class3", "class5"}
    assert main(["adapt", "sinusoid", "--support", "few", "--predict", "few", "--model", "my_networks:plain"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_networks", "MODULE:FUNCTION"),
        ("nothing_here:plain", "cannot be imported"),
        ("my_networks:nothing", "has no nothing"),
        ("my_networks:flat", "fails on a batch of images"),
        ("my_networks:single", "one row for each image"),
        ("my_networks:picky", "the number of outputs, a key and the size"),
    ],
)
def test_bad_networks_get_one_sentence(folder, capsys, name, said):
    assert main([*OPTIONS, "--model", name, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (folder / "run").exists()


@pytest.mark.long
def test_the_run_of_another_imports_nothing_that_is_not_named(folder, capsys):
    assert main([*OPTIONS, "--model", "my_networks:plain", "--out", "run", "--steps", "2"]) == 0
    (folder / "theirs.py").write_text("from pathlib import Path\nPath('imported').touch()\n" + NETWORK)
    config = folder / "run" / "config.json"
    config.write_text(config.read_text().replace("my_networks:plain", "theirs:plain"))
    capsys.readouterr()
    for command in (["evaluate", "run"], ["measure", "run"], ["train", "images", "--resume", "--out", "run", "--steps", "4"]):
        assert main(command) == 2
        assert "has a network of your own: name its function, --model theirs:plain.\n" in capsys.readouterr().err
    assert not (folder / "imported").exists()
    assert main(["evaluate", "run", "--tasks", "10", "--model", "my_networks:plain"]) == 0
    assert main(["evaluate", "run", "--tasks", "10", "--model", "theirs:plain"]) == 0 and (folder / "imported").exists()
