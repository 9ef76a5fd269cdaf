"""Runs of the command line in this process, small ones, some of which several tests share."""

import io
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adaptax.cli.main import main

SMALL = {
    "sinusoid": "--inner-steps 2 --steps 6 --tasks-per-step 4 --hidden 8 --evaluation-tasks 8 --checkpoint-every 2",
    # Plain descent at constant step sizes, which the convergence theorem covers.
    "matrix": "--stepsize 0.01 --optimizer sgd --learning-rate 0.003 --schedule constant --warm-up 0 --clip 0 --inner-steps 2 "
    "--steps 6 --tasks-per-step 4 --dim 5 --evaluation-tasks 8 --checkpoint-every 2",
    "images": "--head per-class --adapt everything --inner-steps 1 --steps 2 --tasks-per-step 2 --channels 4 "
    "--evaluation-tasks 4",
}
# Left out by name when they are both training and test data; Latin is only in the training data, Greek in both.
TRAINING, TEST = ("Greek", "Latin"), ("Greek", "Tagalog")


@dataclass
class Result:
    """The output and the exit code of a command."""

    code: int
    out: str
    err: str

    @property
    def sentence(self):
        """The one sentence of a command that refused its input."""
        assert self.code == 2 and not self.out
        assert self.err.count("\n") == 1 and self.err[-2] in ".?"
        return self.err.strip()


@pytest.fixture
def run(capsys):
    """A function that runs one command."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def small():
    """Options of a small run, by task."""
    return SMALL


@pytest.fixture
def train(run):
    """A function that trains a small run of a task; what is given comes after, and wins."""
    return lambda task, *more: run("train", task, *SMALL[task].split(), *more)


@pytest.fixture(scope="session")
def zips(tmp_path_factory):
    """Two archives of characters as Omniglot has them: six characters of each alphabet, six drawings of each."""
    folder, random = tmp_path_factory.mktemp("characters"), np.random.default_rng(0)

    def png():
        file = io.BytesIO()
        Image.fromarray(random.random((28, 28)) > 0.1).convert("1").save(file, "png")
        return file.getvalue()

    for name, alphabets in (("train.zip", TRAINING), ("test.zip", TEST)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for alphabet in alphabets:
                for character in range(1, 7):
                    for drawing in range(1, 7):
                        archive.writestr(f"images/{alphabet}/character{character:02}/{drawing:02}.png", png())
    return folder / "train.zip", folder / "test.zip"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, zips):
    """Finished runs by task; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    data = {"images": ["--data", str(zips[0]), "--test-data", str(zips[1])]}

    class Runs(dict):
        def __missing__(self, task):
            self[task] = folder / task
            assert main(["train", task, *SMALL[task].split(), *data.get(task, []), "--out", str(self[task])]) == 0
            return self[task]

    return Runs()


@pytest.fixture
def copied(finished, tmp_path):
    """A function from a task to a copy of its finished run, to be changed."""
    return lambda task: Path(shutil.copytree(finished[task], tmp_path / "copy"))


@pytest.fixture
def contents():
    """A function from a folder to every file and folder in it, with its bytes and its time."""
    return lambda folder: {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }
