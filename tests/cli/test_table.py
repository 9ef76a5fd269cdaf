"""`adaptax train table` and `adaptax adapt` on tables."""

import json

import numpy as np
import pytest

import adaptax as ax
from adaptax.cli.main import main

pandas = pytest.importorskip("pandas")
pytest.importorskip("sklearn")


def table(groups, rows=10, seed=0):
    random = np.random.default_rng(seed)
    day = np.tile(np.arange(rows), groups)
    slope = np.repeat(random.uniform(-1, 1, groups), rows)
    return pandas.DataFrame(
        {"site": [f"s{i}" for i in np.repeat(np.arange(groups), rows)], "day": day, "size": random.normal(size=len(day)),
         "load": 5 + slope * day, "state": np.where(slope * day > 0, "up", "down")}
    )  # fmt: skip


COMMON = ["--group", "site", "--order", "day", "--support", "3", "--max-steps", "100", "--features", "day", "size"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    table(30).to_csv(folder / "old.csv", index=False)
    run = str(folder / "run")
    assert main(["train", "table", "--data", str(folder / "old.csv"), "--target", "load", *COMMON, "--model", "additive",
                 "--out", run]) == 0  # fmt: skip
    return folder


def test_from_a_table_to_predictions_for_new_groups(trained, capsys):
    new = table(3, seed=7)
    known = new["day"] < 3
    new[known].to_csv(trained / "support.csv", index=False)
    new[~known].drop(columns=["load", "state"]).to_csv(trained / "rows.csv", index=False)
    out = trained / "predictions.csv"
    command = ["adapt", str(trained / "run"), "--support", str(trained / "support.csv"), "--predict", str(trained / "rows.csv")]
    assert main([*command, "--out", str(out), "--explain"]) == 0
    said = capsys.readouterr().out
    assert "21 rows predicted after adaptation to 3 groups" in said and "Adaptation lowers the error by" in said
    assert "mean absolute error of load on 30 groups" in said and "after adaptation" in said
    found = pandas.read_csv(out)
    assert list(found.columns) == ["site", "day", "size", "prediction", "low", "high"]
    assert np.abs(found["prediction"] - new[~known]["load"].to_numpy()).mean() < 0.6
    assert (found["low"] < found["prediction"]).all() and (found["prediction"] < found["high"]).all()


def test_one_new_group_needs_no_column_of_groups(trained, capsys):
    new = table(1, seed=8)
    columns = ["day", "size", "load"]
    new[columns][:3].to_csv(trained / "one.csv", index=False)
    new[columns][3:].to_csv(trained / "later.csv", index=False)
    command = ["adapt", str(trained / "run"), "--support", str(trained / "one.csv"), "--predict", str(trained / "later.csv")]
    assert main([*command, "--out", str(trained / "one-out.csv")]) == 0
    assert "7 rows predicted after adaptation to 1 group:" in capsys.readouterr().out


def test_the_folder_says_what_was_trained_and_holds_no_rows(trained):
    report = json.loads((trained / "run" / "report.json").read_text())
    assert report["table"] == {"group": "site", "target": "load", "order": "day", "features": ["day", "size"]}
    assert sorted(report["groups"]["group"]) == sorted(f"s{i}" for i in range(30))
    model = ax.load(trained / "run")
    assert isinstance(model, ax.MetaRegressor) and len(model._supports.rows) == 1
    assert "after adaptation" in (trained / "run" / "report.txt").read_text()


@pytest.mark.long
def test_classes(trained, capsys):
    run = str(trained / "classes")
    assert main(["train", "table", "--data", str(trained / "old.csv"), "--target", "state", "--classes", *COMMON,
                 "--model", "ridge", "--out", run]) == 0  # fmt: skip
    assert "log loss on 30 groups" in capsys.readouterr().out
    new = table(2, seed=9)
    new[new["day"] < 3].to_csv(trained / "c.csv", index=False)
    new[new["day"] >= 3].to_csv(trained / "d.csv", index=False)
    out = trained / "classes.csv"
    assert (
        main(["adapt", run, "--support", str(trained / "c.csv"), "--predict", str(trained / "d.csv"), "--out", str(out)]) == 0
    )
    found = pandas.read_csv(out)
    assert set(found["class"]) <= {"up", "down"} and found["probability"].between(0.5, 1).all()


@pytest.mark.parametrize(
    "change, said",
    [
        (["--group", "town"], "old.csv has no column 'town'"),
        (["--target", "state"], "Column 'state' is not of numbers"),
        (["--order", "load"], "--order load must be one of the features"),
        (["--features", "day", "load"], "--features has the group or the target"),
        (["--group", "load"], "--group and --target are both load"),
        (["--data", "nowhere.csv"], "There is no file nowhere.csv"),
        (["--features", "state"], "Column 'state' is not of numbers"),
    ],
)
def test_wrong_commands_are_refused(trained, capsys, change, said):
    start = ["train", "table", "--data", str(trained / "old.csv"), "--target", "load", "--group", "site"]
    assert main([*start, *change]) == 2
    assert said in capsys.readouterr().err


def test_wrong_tables_are_refused(trained, tmp_path, capsys):
    def refused(frame, said, *more):
        path = tmp_path / "t.csv"
        frame.to_csv(path, index=False)
        assert main(["train", "table", "--data", str(path), "--target", "load", *COMMON, *more]) == 2
        assert said in capsys.readouterr().err

    good = table(3)
    refused(good.assign(day=good["day"].where(good["day"] != 4)), "Column 'day' has 3 missing or infinite values")
    refused(good.assign(load=good["load"].where(good["day"] != 4)), "Column 'load' has 3 missing or infinite values")
    refused(good.assign(site=range(30)), "Every group of t.csv has a single row")
    refused(good.assign(site=good["site"].where(good["day"] > 0)), "rows without a group")
    (tmp_path / "t.bin").write_bytes(bytes(range(256)))
    assert main(["train", "table", "--data", str(tmp_path / "t.bin"), "--target", "load", *COMMON]) == 2
    assert "t.bin is no table" in capsys.readouterr().err


def test_a_folder_with_a_model_is_kept(trained, capsys):
    start = ["train", "table", "--data", str(trained / "old.csv"), "--target", "load", "--group", "site"]
    before = (trained / "run" / "table.npz").read_bytes()
    assert main([*start, "--out", str(trained / "run")]) == 2
    assert "has a model already: choose another --out" in capsys.readouterr().err
    assert (trained / "run" / "table.npz").read_bytes() == before
