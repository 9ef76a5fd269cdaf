"""`ax.MetaRegressor` and `ax.MetaClassifier`: the conventions of scikit-learn, adaptation to groups, intervals, files."""

import pickle
import warnings

import numpy as np
import pytest
from helpers import MISSION

import adaptax as ax

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

SMALL = {"support": 5, "max_steps": 150, "folds": 3}


def lines(groups, rows=14, seed=0, noise=0.0):
    """Groups that are lines with slopes and heights of their own, and a second column that means nothing."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (groups, rows, 2))
    height, slope = random.normal(size=(2, groups, 1))
    y = 10 + 3 * (height + slope * x[..., 0] + noise * random.normal(size=(groups, rows)))
    return x.reshape(-1, 2), y.ravel(), np.repeat(np.arange(groups), rows)


@pytest.fixture(scope="module")
def regressor():
    x, y, groups = lines(40)
    return ax.MetaRegressor(model="additive", **SMALL).fit(x, y, groups=groups)


@pytest.fixture(scope="module")
def classifier():
    x, y, groups = lines(40, seed=1)
    return ax.MetaClassifier(model="ridge", **SMALL).fit(x, np.where(y > 10, "high", "low"), groups=groups)


def test_it_adapts_to_a_new_group_from_a_few_rows(regressor):
    x, y, _ = lines(1, seed=5)
    predictor = regressor.adapt(x[:5], y[:5])
    before, after = np.abs(regressor.predict(x[5:]) - y[5:]).mean(), np.abs(predictor.predict(x[5:]) - y[5:]).mean()
    assert after < 0.2 < 0.5 < before
    assert regressor.predict(x[5:]).tolist() != predictor.predict(x[5:]).tolist()


def test_many_groups_at_once_are_as_one_by_one(regressor):
    x, y, groups = lines(12, seed=6)
    first = np.tile(np.arange(14) < 5, 12)
    names = np.array([f"patient {g}" for g in groups])
    together = regressor.adapt(x[first], y[first], names[first]).predict(x[~first], names[~first])
    for name in np.unique(names):
        own, rest = (names == name) & first, (names == name) & ~first
        alone = regressor.adapt(x[own], y[own]).predict(x[rest])
        np.testing.assert_allclose(together[names[~first] == name], alone, rtol=1e-4)


def test_a_group_without_support_rows_is_predicted_with_one_warning(regressor):
    x, y, _ = lines(1, seed=5)
    predictor = regressor.adapt(x[:5], y[:5], np.full(5, "known"))
    with pytest.warns(UserWarning, match=r"2 groups have no support rows.*adapt\(\) first") as caught:
        found = predictor.predict(x[5:9], np.array(["known", "other", "third", "other"]))
    assert len(caught) == 1
    np.testing.assert_allclose(found[1:], regressor.predict(x[6:9]), rtol=1e-5)


def test_groups_of_the_training_table_are_adapted_to(regressor):
    x, y, groups = lines(40)
    known = groups < 5
    assert np.abs(regressor.predict(x[known], groups[known]) - y[known]).mean() < 0.3


def test_a_score_with_groups_is_that_of_rows_not_adapted_to(regressor):
    x, y, groups = lines(15, seed=8)
    assert regressor.score(x, y, groups=groups) > 0.95 > 0.3 > regressor.score(x, y)


def test_a_classifier(classifier):
    x, y, groups = lines(30, seed=9)
    y = np.where(y > 10, "high", "low")
    # What a group always is says less than where its line crosses.
    assert classifier.score(x, y, groups=groups) > 0.85 > classifier.score(x, y)
    predictor = classifier.adapt(x[:5], y[:5])
    probabilities = predictor.predict_proba(x[5:14])
    assert probabilities.shape == (9, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (predictor.predict(x[5:14]) == classifier.classes_[probabilities.argmax(1)]).all()


@pytest.mark.slow
@pytest.mark.mission
def test_intervals_cover_as_often_as_they_say():
    x, y, groups = lines(150, noise=0.3, seed=2)
    model = ax.MetaRegressor(model="additive", **SMALL).fit(x, y, groups=groups)
    x, y, groups = lines(400, noise=0.3, seed=3)
    first = np.tile(np.arange(14) < 5, 400)
    predictor = model.adapt(x[first], y[first], groups[first])
    for coverage in (0.8, 0.9):
        low, high = predictor.predict_interval(x[~first], groups[~first], coverage)
        covered = ((low <= y[~first]) & (y[~first] <= high)).reshape(400, -1).mean(1)
        # The groups of the calibration are a sample too: 150 of them, and 400 to judge by.
        error = covered.std() * np.sqrt(1 / 150 + 1 / 400)
        assert abs(covered.mean() - coverage) < 3 * error + 0.01


def test_intervals_that_cannot_be_calibrated_are_refused(regressor):
    x, _, _ = lines(1, seed=5)
    with pytest.raises(ax.InputError, match=r"coverage 0\.99 need at least 99 groups.*there are 40"):
        regressor.predict_interval(x, coverage=0.99)
    assert regressor.can_give_intervals(0.9) and not regressor.can_give_intervals(0.99)
    with pytest.raises(ax.InputError, match="between 0 and 1"):
        regressor.predict_interval(x, coverage=1.5)


@pytest.mark.slow
@pytest.mark.mission
def test_an_order_adapts_to_the_first_rows():
    random = np.random.default_rng(0)
    time = np.tile(np.arange(12.0), 40)
    y = time * np.repeat(random.normal(size=40), 12)
    shuffled = random.permutation(480)
    x, y, groups = time[shuffled, None], y[shuffled], np.repeat(np.arange(40), 12)[shuffled]
    model = ax.MetaRegressor(support=3, order=0, model="additive", max_steps=150, folds=2).fit(x, y, groups=groups)
    first = model._supports.rows[0][0][:, 0] * model.x_scale_[0] + model.x_mean_[0]
    np.testing.assert_allclose(first, [0, 1, 2], atol=1e-5)
    assert model.score(x, y, groups=groups) > 0.9


def test_the_report_says_what_adaptation_gains(regressor):
    report = regressor.report_
    assert sorted(report["group"]) == list(range(40)) and set(report["rows"]) == {14}
    assert (report["low"] < report["error"]).all() and (report["error"] < report["high"]).all()
    np.testing.assert_allclose(regressor.gain_[0], (report["error_before"] - report["error"]).mean())
    assert 0 < regressor.gain_[1] < regressor.gain_[0]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("all", marks=MISSION),
        pytest.param("additive", marks=pytest.mark.slow),
        pytest.param("head", marks=pytest.mark.slow),
    ],
)
def test_every_model_learns_and_is_saved(model, tmp_path):
    x, y, groups = lines(20, rows=12)
    fitted = ax.MetaRegressor(model=model, support=4, max_steps=20, folds=2, inner_steps=2).fit(x, y, groups=groups)
    assert fitted.model_ == model and list(fitted.fitted_.tried) == [model]
    new, target, _ = lines(1, seed=5)
    fitted.save(tmp_path / "m.npz", {"made": "here"})
    again = ax.load(tmp_path / "m.npz")
    assert again.about_ == {"made": "here"} and again.get_params() == fitted.get_params()
    for one, other in ((fitted, again), (fitted.adapt(new[:4], target[:4]), again.adapt(new[:4], target[:4]))):
        np.testing.assert_allclose(one.predict(new), other.predict(new), rtol=1e-6)
    for ends in zip(fitted.predict_interval(new), again.predict_interval(new), strict=True):
        np.testing.assert_allclose(*ends, rtol=1e-6)


def test_a_saved_classifier(classifier, tmp_path):
    classifier.save(tmp_path / "c.npz")
    again, (x, _, _) = ax.load(tmp_path / "c.npz"), lines(1, seed=5)
    labels = np.array(["low", "high"] * 7)
    np.testing.assert_allclose(
        again.adapt(x[:4], labels[:4]).predict_proba(x), classifier.adapt(x[:4], labels[:4]).predict_proba(x), rtol=1e-6
    )


@pytest.mark.long
def test_conventions_of_scikit_learn(regressor):
    x, y, groups = lines(20, rows=12, seed=4)
    assert clone(regressor).get_params() == regressor.get_params()
    again = pickle.loads(pickle.dumps(regressor))
    np.testing.assert_array_equal(again.predict(x), regressor.predict(x))
    with sklearn.config_context(enable_metadata_routing=True):
        model = ax.MetaRegressor(model="ridge", support=4, max_steps=50, folds=2)
        model.set_fit_request(groups=True).set_score_request(groups=True)
        scores = cross_val_score(make_pipeline(StandardScaler(), model), x, y, cv=GroupKFold(2), params={"groups": groups})
        assert scores.shape == (2,) and np.isfinite(scores).all()
        search = GridSearchCV(model, {"max_steps": [10, 50]}, cv=GroupKFold(2)).fit(x, y, groups=groups)
        assert search.best_params_["max_steps"] in (10, 50)


@pytest.mark.long
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_categories_and_gaps_by_ordinary_preprocessing(library):
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder

    frames = pytest.importorskip(library)
    random = np.random.default_rng(0)
    groups, kind = np.repeat(np.arange(16), 8), random.choice(["a", "b"], 128)
    level = random.normal(size=16)[groups]
    frame = frames.DataFrame({"kind": kind, "x": np.where(random.random(128) < 0.1, np.nan, random.normal(size=128))})
    columns = make_column_transformer((OneHotEncoder(sparse_output=False), ["kind"]), (SimpleImputer(), ["x"]))
    model = make_pipeline(columns, ax.MetaRegressor(model="ridge", support=3, max_steps=50, folds=2))
    model.fit(frame, level + (kind == "a"), metaregressor__groups=groups)
    assert model.predict(frame[:5]).shape == (5,)
    # A frame without preprocessing: columns by name, and a refusal of another order of columns.
    plain = frames.DataFrame({"x": random.normal(size=128), "day": np.tile(np.arange(8.0), 16)})
    named = ax.MetaRegressor(model="ridge", order="day", support=3, max_steps=20, folds=2).fit(plain, level, groups=groups)
    assert named.order_column_ == 1
    with pytest.raises(ValueError, match="feature names"):
        named.predict(plain[["day", "x"]])


@pytest.mark.long
def test_one_seed_decides_the_model():
    x, y, groups = lines(12, rows=10)

    def predictions(seed):
        return (
            ax.MetaRegressor(model="ridge", support=3, max_steps=20, folds=2, random_state=seed)
            .fit(x, y, groups=groups)
            .predict(x)
        )

    np.testing.assert_array_equal(predictions(1), predictions(1))
    assert not np.array_equal(predictions(1), predictions(2))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": "best"}, "model='best' must be 'auto', 'additive', 'ridge', 'head', 'all'"),
        ({"order": "day"}, "order='day' is no column of X: it has 0, 1"),
        ({"support": (5, 2)}, "the smallest and the largest"),
        ({"support": 0}, "support"),
        ({"hidden": ()}, "hidden"),
        ({"folds": 0}, "folds"),
        ({"max_steps": -1}, "max_steps"),
    ],
)
def test_wrong_arguments_are_refused(change, said):
    x, y, groups = lines(6, rows=4)
    with pytest.raises(ax.InputError, match=said):
        ax.MetaRegressor(**change).fit(x, y, groups=groups)


def test_wrong_data_are_refused(regressor, classifier):
    x, y, groups = lines(3)
    with pytest.raises(ValueError, match=r"shape \(3,\) where there are 42 rows"):
        regressor.fit(x, y, groups=groups[:3])
    with pytest.raises(ValueError, match="NaN"):
        regressor.adapt(np.full((2, 2), np.nan), y[:2])
    with pytest.raises(ax.InputError, match="Class 'middle' was not in the targets of fit"):
        classifier.adapt(x[:2], np.array(["low", "middle"]))
    with pytest.raises(ax.InputError, match="one class alone"):
        ax.MetaClassifier().fit(x, np.zeros(len(x)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MetaRegressor", "MetaClassifier"])
def test_the_checks_of_scikit_learn(kind):
    from sklearn.utils.estimator_checks import estimator_checks_generator

    estimator = getattr(ax, kind)(model="ridge", max_steps=100, folds=2)
    with warnings.catch_warnings():
        # scikit-learn warns of checks that it leaves out.
        warnings.simplefilter("ignore")
        for instance, check in estimator_checks_generator(estimator):
            check(instance)
