"""`adaptax demo`: the table, the two baselines, the figures and the picture."""

import json

import pytest
from PIL import Image


@pytest.mark.slow
def test_demo(run, tmp_path):
    out = tmp_path / "new" / "demo"
    result = run("demo", "--steps", "20", "--out", out)
    assert result.code == 0 and "Traceback" not in result.err
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "sinusoids.png"]
    figures = json.loads((out / "demo.json").read_text())
    assert figures["steps"] == [0, 1, 2, 5, 10, 20] and figures["meta_steps"] == 20
    names = ["meta-trained", "pre-trained on all tasks", "random"]
    assert [row["name"] for row in figures["methods"]] == names
    for row in figures["methods"]:
        assert all(0 < low < mean for low, mean in zip(row["loss"]["low"], row["loss"]["mean"], strict=True))
    trained, _, random = (row["loss"]["mean"] for row in figures["methods"])
    assert trained[1] < trained[0] and trained[0] != random[0]
    table = result.out.split("\n\n")[1].splitlines()
    assert all(name in table[0] for name in names)
    assert [line.split()[0] for line in table[2:8]] == ["0", "1", "2", "5", "10", "20"]
    with Image.open(out / "sinusoids.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(2**24)) > 50
    assert "meta-training: 20 of 20 meta-steps" in result.err
