"""Few-shot images from zips: held-out alphabets, accuracy with intervals, moved and changed data, bad zips."""

import json
import shutil
import zipfile

import equinox as eqx
import pytest

import adaptax as ax


class Flat(eqx.Module):
    """One affine map of the pixels: what is tested here does not depend on the network, and conv4 takes long to compile."""

    layers: ax.models.MLP

    def __call__(self, images):
        return self.layers(images.reshape(images.shape[0], -1))


@pytest.fixture(autouse=True)
def network(request, monkeypatch):
    """The affine map for conv4, save in the slow tests."""
    if "slow" not in request.keywords:
        flat = lambda ways, *, key, channels: Flat(ax.models.mlp((28 * 28, ways), key=key))  # noqa: E731
        monkeypatch.setattr(ax.models, "conv4", flat)


def check(result):
    """What an evaluation on the archives of `zips` must say, whatever the network."""
    assert result["left_out"] == ["Greek"] and result["judged_on"] == "6 characters of Tagalog"
    assert result["steps"] == [0, 1, 2] and set(result["scores"]) == {"loss", "accuracy"}
    accuracy = result["scores"]["accuracy"]
    assert all(low <= mean <= high for low, mean, high in zip(*(accuracy[n] for n in ("low", "mean", "high")), strict=True))
    assert all(0 <= mean <= 1 and mean * 100 == pytest.approx(round(mean * 100)) for mean in accuracy["mean"])


@pytest.mark.slow
def test_the_convolutional_network(train, run, zips, tmp_path):
    result = train("images", "--data", zips[0], "--test-data", zips[1], "--out", tmp_path / "run")
    assert result.code == 0 and "accuracy" in result.out
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    check(saved)
    assert json.loads(run("evaluate", tmp_path / "run", "--format", "json").out) == saved


@pytest.mark.slow
def test_one_class_vector_for_all(train, run, zips, tmp_path):
    result = train("images", "--head", "shared", "--data", zips[0], "--test-data", zips[1], "--out", tmp_path / "run")
    assert result.code == 0
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    check(saved)
    # Before adaptation all classes are alike, and each is right once in five.
    assert saved["scores"]["accuracy"]["mean"][0] == pytest.approx(0.2)
    assert json.loads(run("evaluate", tmp_path / "run", "--format", "json").out) == saved


def test_images(finished):
    folder = finished["images"]
    result = json.loads((folder / "evaluation.json").read_text())
    check(result)
    text = (folder / "evaluation.txt").read_text()
    assert "left out, being among the training characters too: Greek" in text and "95 % interval" in text
    assert text.splitlines()[-5].split()[:3] == ["inner", "steps", "accuracy"]
    config = json.loads((folder / "config.json").read_text())
    digests = {config["data_sha256"], config["test_data_sha256"]}
    assert len(digests) == 2 and {len(digest) for digest in digests} == {64}


def test_data_may_be_moved_and_may_not_be_changed(finished, zips, copied, run, train, tmp_path, contents):
    folder = copied("images")
    moved, test = (shutil.copy(path, tmp_path) for path in zips)
    before = contents(folder)
    again = train("images", "--data", moved, "--test-data", test, "--out", folder)
    assert again.code == 0 and "is finished: nothing was changed" in again.out
    first, second = (
        run("evaluate", folder, "--format", "json"),
        run("evaluate", folder, "--format", "json", "--data", moved, "--test-data", test),
    )
    assert first.code == 0 and first.out == second.out
    assert json.loads(first.out) == json.loads((folder / "evaluation.json").read_text())
    assert str(tmp_path) not in first.out and str(zips[0].parent) not in first.out
    with zipfile.ZipFile(moved, "a") as archive:
        archive.writestr("images/readme.txt", "changed")
    assert "data_sha256 is" in train("images", "--data", moved, "--test-data", test, "--out", folder).sentence
    assert "is not the file of this run" in run("evaluate", folder, "--data", moved).sentence
    assert "There is no file" in run("evaluate", folder, "--test-data", tmp_path / "absent.zip").sentence
    assert contents(folder) == before


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("", "nothing to train on: add --data PATH"),
        ("--data absent.zip", "There is no file 'absent.zip': give the path of an Omniglot zip"),
        ("--data file", "'file' is not a zip or is damaged: download it again"),
        ("--data .", "cannot be read (Is a directory): give the path"),
        ("--data TRAIN --test-data absent.zip", "There is no file 'absent.zip': give the path"),
        ("--data TRAIN --test-data file", "'file' is not a zip or is damaged"),
        ("--data TRAIN --test-data TRAIN", "alphabet"),
        ("--data TRAIN --ways 49", "There are only 48 classes"),
        ("--data TRAIN --test-data TEST --ways 7", "There are only 6 classes"),
        ("--data TRAIN --ways 1", "--ways 1 must be a whole number of at least 2"),
        ("--data TRAIN --shots 2", "shots + queries is 7: give fewer shots or queries"),
        ("--data TRAIN --channels 0", "--channels 0 must be a whole number of at least 1"),
        ("--data TRAIN --scale 1", "must be a number of at least 0 and below 1"),
    ],
)
def test_bad_data(train, zips, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no zip")
    arguments = options.replace("TRAIN", str(zips[0])).replace("TEST", str(zips[1])).split()
    assert sentence in train("images", *arguments, "--out", "out").sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_options_of_images_are_refused_for_other_runs(run, finished, zips):
    assert "--data is for runs on images: leave it out" in run("evaluate", finished["matrix"], "--data", zips[0]).sentence
