"""The models that come with the package: their cards, and the figures on them."""

import numpy as np
import pytest

import adaptax as ax
from adaptax.learner.load import WEIGHTS

NAMES = ["omniglot-conv4-32", "parkinsons", "sinusoid"]


def test_each_has_a_card():
    assert sorted(path.stem for path in WEIGHTS.glob("*.npz")) == NAMES
    for name in NAMES:
        loaded = ax.load(name)
        about = loaded.about if isinstance(loaded, ax.Learner) else loaded.about_
        card = about["card"]
        assert card.keys() == {"about", "data", "licence", "command", "seed"}
        assert card["command"].startswith("adaptax train ") and "/" not in card["command"]
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.npz")) < 1_000_000


def test_other_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ax.InputError, match="no model of this name in the package: it has omniglot-conv4-32, parkinsons"):
        ax.load("cosine")
    # What lies in the folder goes before the package.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sinusoid").write_bytes(b"something else")
    with pytest.raises(ax.InputError, match="sinusoid is no learner"):
        ax.load("sinusoid")


def same(learner, curve, name, step):
    """The score at this step is that of the card, within three standard errors of both."""
    evaluation = learner.about["evaluation"]
    score, at = evaluation["scores"][name], evaluation["steps"].index(step)
    errors = [
        (high - low) / 3.92 for low, high in ((score["low"][at], score["high"][at]), (curve.low[name][0], curve.high[name][0]))
    ]
    assert abs(curve.mean[name][0] - score["mean"][at]) < 3 * np.hypot(*errors)


def test_the_figure_of_the_sinusoids():
    learner = ax.load("sinusoid")
    curve = learner.evaluate(ax.tasks.sinusoid(), [10], tasks=300, seed=5)
    same(learner, curve, "loss", 10)
    assert curve.mean["loss"][0] < 0.1


@pytest.mark.slow
def test_the_figure_of_the_characters(data):
    folder = data / "omniglot"
    train, test = (ax.tasks.read_characters(folder / f"images_background_small{i}.zip") for i in (1, 2))
    problem = ax.tasks.both_accuracies(ax.tasks.few_shot(ax.tasks.held_out(test, train)[0], 5, 1, 5, rotations=False))
    learner = ax.load("omniglot-conv4-32")
    curve = learner.evaluate(problem, [10], tasks=200, seed=5)
    same(learner, curve, "accuracy", 10)
    assert curve.mean["accuracy"][0] > 0.92


def test_the_figure_of_the_patients(data):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(data / "parkinsons" / "parkinsons_updrs.data").sort_values(["subject#", "test_time"])
    model = ax.load("parkinsons")
    known = frame.groupby("subject#").cumcount() < 10
    names = model.about_["table"]["features"]
    x, y, groups = frame[names].to_numpy(), frame["motor_UPDRS"].to_numpy(), frame["subject#"].to_numpy()
    found = model.adapt(x[known], y[known], groups[known]).predict(x[~known], groups[~known])
    # Trained on these patients, it does better than the groups that were held out, and than no adaptation.
    error = np.abs(found - y[~known]).mean()
    before, after = (model.y_scale_ * getattr(model.fitted_, part).mean() for part in ("before", "error"))
    assert error < after < 0.3 * before
