"""Few-shot images from zips: held-out alphabets, accuracy with intervals, moved and changed data, bad zips."""

import json
import math
import shutil
import zipfile

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import adaptax as ax
from adaptax.cli.families import Images
from adaptax.cli.families.image_data import load
from adaptax.tasks import Characters, ImageClasses


class Flat(eqx.Module):
    """One affine map of the pixels: what is tested here does not depend on the network, and conv4 takes long to compile."""

    layers: ax.models.MLP

    def __call__(self, images, given=None):
        return self.layers(images.reshape(images.shape[0], -1))


@pytest.fixture(autouse=True)
def network(request, monkeypatch):
    """The affine map for conv4, save in the slow tests."""

    def flat(ways, *, key, channels, image, norm):
        return Flat(ax.models.mlp((math.prod(image), ways), key=key))

    if "slow" not in request.keywords or "photos" in request.fixturenames:
        monkeypatch.setattr(ax.models, "conv4", flat)


def check(result):
    """Check the facts that hold of an evaluation on the archives of `zips`, whatever the network."""
    assert result["left_out"] == ["Greek"] and result["judged_on"] == "6 characters of Tagalog"
    usual = {"loss", "accuracy", "accuracy_nontransductive"}
    assert result["steps"] == [0, 1, 2] and set(result["scores"]) - {"accuracy_step_statistics"} == usual
    accuracy = result["scores"]["accuracy"]
    assert all(low <= mean <= high for low, mean, high in zip(*(accuracy[n] for n in ("low", "mean", "high")), strict=True))
    assert all(0 <= mean <= 1 and mean * 100 == pytest.approx(round(mean * 100)) for mean in accuracy["mean"])


@pytest.mark.slow
def test_the_convolutional_network(train, run, zips, tmp_path):
    result = train("images", "--data", zips[0], "--test-data", zips[1], "--out", tmp_path / "run")
    assert result.code == 0 and "accuracy" in result.out
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    check(saved)
    assert "accuracy_step_statistics" in saved["scores"]
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


@pytest.mark.long
def test_images(finished):
    folder = finished["images"]
    result = json.loads((folder / "evaluation.json").read_text())
    check(result)
    text = (folder / "evaluation.txt").read_text()
    assert "left out, being in the training data too: Greek" in text and "95 % interval" in text
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
    assert (
        "--data has another checksum there" in train("images", "--data", moved, "--test-data", test, "--out", folder).sentence
    )
    assert "is not the file of this run" in run("evaluate", folder, "--data", moved).sentence
    assert "There is no file" in run("evaluate", folder, "--test-data", tmp_path / "absent.zip").sentence
    assert contents(folder) == before


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("", "nothing to train on: add --data PATH"),
        ("--data absent.zip", "There is no file 'absent.zip': give the path of an Omniglot zip"),
        ("--data file", "'file' is not a zip or is damaged: download it again"),
        ("--data .", "'.' holds no images in class folders: give class/image.png"),
        ("--data absent.npz", "There is no 'absent.npz': give the path of a folder, zip, tar or npz"),
        ("--data file --size 28", "'file' cannot be read (File is not a zip file): give a folder, zip, tar or npz"),
        ("--data TRAIN --size 15", "--size 15 must be a whole number from 16 to 1024"),
        ("--data TRAIN --size 1025", "--size 1025 must be a whole number from 16 to 1024"),
        ("--data TRAIN --split train", "has no folder 'train' with class folders in it: choose from Greek, Latin"),
        ("--data TRAIN --test-data TRAIN --size 28", "Every class of the test data"),
        ("--data TRAIN --test-data absent.zip", "There is no file 'absent.zip': give the path"),
        ("--data TRAIN --test-data file", "'file' is not a zip or is damaged"),
        ("--data TRAIN --test-data TRAIN", "alphabet"),
        ("--data TRAIN --ways 49", "There are only 48 classes"),
        ("--data TRAIN --test-data TEST --ways 7", "There are only 6 classes"),
        ("--data TRAIN --ways 1", "--ways 1 must be a whole number of at least 2"),
        ("--data TRAIN --shots 2", "has 6, but --shots 2 and --queries 5 ask for 7: give fewer --shots or --queries"),
        ("--data TRAIN --method prototypical", "--method prototypical takes no inner steps: add --inner-steps 0."),
        ("--data TRAIN --method pretrain --head shared --stepsize edge", "give --stepsize a number such as 0.1"),
        (
            "--data TRAIN --method pretrain --stepsize 0.1 --head shared --validation 1 --evaluate-every 1",
            "leave out --validation",
        ),
        ("--data TRAIN --method prototypical --inner-steps 0 --head per-class", "--head per-class is for --method maml"),
        ("--data TRAIN --method prototypical --head shared --inner-steps 0", "--method prototypical adapts nothing"),
        ("--data TRAIN --validation 1", "--validation needs --evaluate-every"),
        ("--data TRAIN --evaluate-every 1 --validation 2", "--validation 2 must leave some of 2 alphabets to train on"),
        ("--data TRAIN --evaluate-every 1 --validation Klingon", "must be a number, or one of Greek, Latin."),
        ("--data TRAIN --channels 0", "--channels 0 must be a whole number of at least 1"),
        ("--data TRAIN --scale 1", "--scale 1.0 must be a finite number of at least 0 and below 1"),
    ],
)
def test_bad_data(train, zips, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no zip")
    arguments = options.replace("TRAIN", str(zips[0])).replace("TEST", str(zips[1])).split()
    assert sentence in train("images", *arguments, "--out", "out").sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_options_of_images_are_refused_for_other_runs(run, finished, zips):
    assert (
        "--data is for runs that read data from files: leave it out for matrix"
        in run("evaluate", finished["matrix"], "--data", zips[0]).sentence
    )


@pytest.fixture
def photos(tmp_path):
    """Colour images of seven classes to train on and six to judge by, as folders below train and test."""
    random = np.random.default_rng(0)
    for i in range(13):
        for j in range(6 + i % 3):
            path = tmp_path / "photos" / ("train" if i < 7 else "test") / f"class{i:02}" / f"{j}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_folder_of_class_folders(train, run, photos, tmp_path):
    options = ("--size", 16, "--colour", "--split", "train", "--test-split", "test", "--out", tmp_path / "run")
    result = train("images", "--data", photos, *options, "--cache", tmp_path / "cache", "--flips", "--no-rotations")
    assert result.code == 0 and "6 classes with 42 images" in result.out
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert saved["judged_on"] == "6 classes with 42 images" and saved["left_out"] == []
    entries = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert len(entries) == 2 and all(name.startswith("photos-") for name in entries)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["size"] == 16 and config["colour"] and config["flips"] and "cache" not in {*config, *config["defaults"]}
    moved = shutil.copytree(photos, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    assert json.loads(run("evaluate", tmp_path / "run", "--format", "json", "--data", moved).out) == saved
    (moved / "test" / "class08" / "0.png").unlink()
    assert "is not the file of this run" in run("evaluate", tmp_path / "run", "--data", moved).sentence


@pytest.mark.slow
def test_an_npz_is_read_as_grey_images(train, tmp_path):
    labels = np.repeat(np.arange(6), 6)
    np.savez(tmp_path / "small.npz", images=np.random.default_rng(0).integers(0, 256, (36, 8, 8), np.uint8), labels=labels)
    result = train("images", "--data", tmp_path / "small.npz", "--size", 16)
    assert result.code == 0 and "the training classes, for want of --test-data" in result.out


def test_what_is_read(photos, zips, tmp_path):
    train, _, test, left_out = load(Images(data=photos, size=16, colour=True, split="train", test_split="test"))
    assert isinstance(train, ImageClasses) and train.images.shape[1:] == (16, 16, 3) and left_out == ()
    assert len(train) == 7 and len(test) == 6 and not set(train.names) & set(test.names)
    train, _, test, left_out = load(Images(data=photos / "train", test_data=photos, cache=tmp_path / "cache"))
    # `train/class00` of the test data is `class00` of the training data.
    assert train.images.shape[1:] == (84, 84, 1) and len(test) == 6
    assert left_out == tuple(f"train/class{i:02}" for i in range(7))
    one, _, two, left_out = load(Images(data=zips[0], test_data=zips[1]))
    assert isinstance(one, Characters) and isinstance(two, Characters) and left_out == ("Greek",)
    one, _, two, left_out = load(Images(data=zips[0], test_data=zips[1], size=28))
    assert isinstance(one, ImageClasses) and len(two) == 6 and left_out == tuple(f"Greek/character{i:02}" for i in range(1, 7))
    one, chosen_by, two, _ = load(Images(data=zips[0]))
    assert one is two and chosen_by is None


def test_what_is_kept_for_validation(photos, zips):
    kept = {"data": zips[0], "test_data": zips[1], "evaluate_every": 1}
    train, chosen_by, test, left_out = load(Images(**kept, validation="1"))
    assert isinstance(chosen_by, Characters) and len(chosen_by.alphabets) == 1
    # Greek is in both archives: whichever alphabet is kept, nothing is judged on it.
    assert sorted(train.alphabets + chosen_by.alphabets) == ["Greek", "Latin"] and test.alphabets == ("Tagalog",)
    assert left_out == ("Greek",)
    assert {load(Images(**kept, validation="1", seed=seed)).validation.alphabets for seed in range(8)} == {
        ("Greek",),
        ("Latin",),
    }
    assert load(Images(**kept, validation="Latin")).train.alphabets == ("Greek",)
    general = {"data": photos, "size": 16, "split": "train", "evaluate_every": 1}
    train, chosen_by, test, _ = load(Images(**general, validation="2", test_split="test"))
    assert (len(train), len(chosen_by), len(test)) == (5, 2, 6) and not set(train.names) & set(chosen_by.names)
    train, chosen_by, _, _ = load(Images(**general, validation="test"))
    assert len(train) == 7 and len(chosen_by) == 6 and not set(train.names) & set(chosen_by.names)


@pytest.mark.slow
def test_validation_chooses_the_network(train, run, zips, tmp_path):
    options = (
        "--data",
        zips[0],
        "--test-data",
        zips[1],
        "--validation",
        "Latin",
        "--evaluate-every",
        1,
        "--out",
        tmp_path / "run",
    )
    result = train("images", *options)
    assert result.code == 0 and "(the best on validation tasks of 2)" in result.out
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    accuracies = [json.loads(line)["accuracy"] for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert saved["trained"] == 2 and saved["step"] == 1 + int(np.argmax(accuracies))
    assert json.loads(run("evaluate", tmp_path / "run", "--format", "json").out) == saved
    assert "is finished: nothing was changed" in train("images", *options).out


def test_the_last_layer_adapts_unless_everything_is_to(zips):
    chosen = Images(data=zips[0]).build().method.inner.adapt
    assert chosen("head.weight") and not chosen("blocks.0.weight")
    assert Images(data=zips[0], adapt="everything").build().method.inner.adapt is None


def test_the_outer_step_size_falls(zips):
    gradient, moved = jnp.ones(()), {}
    for schedule in ("cosine", "constant"):
        optimizer = Images(data=zips[0], optimizer="sgd", learning_rate=1.0, steps=4, schedule=schedule).build().optimizer
        state, moved[schedule] = optimizer.init(gradient), []
        for _ in range(5):
            step, state = optimizer.update(gradient, state)
            moved[schedule].append(-float(step))
    np.testing.assert_allclose(moved["constant"], np.ones(5))
    np.testing.assert_allclose(moved["cosine"], (1 + np.cos(np.pi * np.arange(5) / 4)) / 2, atol=1e-6)


@pytest.mark.slow
def test_prototypical_networks_in_the_same_command(train, run, zips, tmp_path):
    plain = ("--head", "shared", "--adapt", "head", "--norm", "layer", "--out", tmp_path / "run")
    options = ("--method", "prototypical", "--inner-steps", 0, *plain)
    result = train("images", "--data", zips[0], "--test-data", zips[1], *options)
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result.code == 0 and saved["steps"] == [0] and 0 < saved["scores"]["accuracy"]["mean"][0] <= 1
    assert "loss" in result.err and "step size" not in result.err and "curvature" not in result.err
    assert json.loads(run("evaluate", tmp_path / "run", "--format", "json").out) == saved


@pytest.mark.slow
@pytest.mark.parametrize("part", ["everything", "head"])
def test_pretrained_networks_in_the_same_command(train, run, zips, tmp_path, part):
    options = ("--method", "pretrain", "--stepsize", 0.1, "--head", "shared", "--adapt", part, "--out", tmp_path / "run")
    result = train("images", "--data", zips[0], "--test-data", zips[1], *options)
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result.code == 0
    check(saved)
    # With the new head all classes are alike.
    assert saved["scores"]["accuracy"]["mean"][0] == pytest.approx(0.2)
    assert json.loads(run("evaluate", tmp_path / "run", "--format", "json").out) == saved


@pytest.mark.parametrize("head, per", [("shared", "leaf"), ("per-class", None)])
def test_classes_that_share_a_vector_share_step_sizes(zips, head, per):
    built = Images(data=zips[0], test_data=zips[1], head=head).build()
    stepsize = built.method.inner.stepsize
    assert isinstance(stepsize, ax.stepsize.Auto) and stepsize.per == per
    assert built.reading == {"images": {"size": 28, "channels": 1, "inverted": True}}
