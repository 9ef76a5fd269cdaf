"""`adaptax reproduce`: the options reach the experiment, and bad ones are refused before anything is computed."""

import pytest

from adaptax.reproduce import estimators, matrix, navigation, rates, sinusoid

BAD = [
    ("", "adaptax reproduce needs an experiment first: adaptax reproduce hessian-estimators|matrix|sinusoid|rates|navigation"),
    ("matrices", "no experiment 'matrices': did you mean matrix?"),
    ("matrix --seeds 1", "--seeds 1 must be a whole number of at least 2"),
    ("sinusoid --seeds 0", "--seeds 0 must be a whole number of at least 2"),
    ("matrix --steps 0", "--steps 0 must be a whole number of at least 1"),
    ("matrix --step 3", "adaptax reproduce matrix has no option --step: did you mean --steps?"),
    ("hessian-estimators --repeats 9", "--repeats 9 must be a whole number of at least 10"),
    ("hessian-estimators --seed -1", "--seed -1 must be a whole number from 0"),
    ("hessian-estimators --seeds 3", "has no option --seeds: did you mean --seed?"),
    ("rates --seeds 1", "--seeds 1 must be a whole number of at least 2"),
    ("navigation --seeds 1", "--seeds 1 must be a whole number of at least 2"),
    ("navigation --processes 0", "--processes 0 must be a whole number of at least 1"),
    ("navigation --steps 0", "--steps 0 must be a whole number of at least 1"),
    ("rates --scale 0", "--scale 0.0 must be a finite number above 0"),
    ("matrix --out file", "--out file cannot be a folder, for file is a file: choose another one"),
]


@pytest.mark.parametrize("arguments, sentence", BAD)
def test_bad_options(run, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("keep")
    assert sentence in run("reproduce", *arguments.split()).sentence
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.mark.parametrize(
    "module, name, options, expected",
    [
        (matrix, "matrix", "--seeds 3 --steps 7", (3, 7)),
        (sinusoid, "sinusoid", "--seeds 2", (2, 3000)),
        (navigation, "navigation", "--steps 7 --processes 3", (5, 7, 3)),
        (rates, "rates", "--seeds 3 --scale 0.5", (3, 0.5)),
        (estimators, "hessian-estimators", "--repeats 20 --seed 4", (20, 4)),
    ],
)
def test_options_reach_the_experiment(run, tmp_path, monkeypatch, module, name, options, expected):
    monkeypatch.chdir(tmp_path)
    seen = []

    def stand_in(out, *sizes, **options):
        *sizes, say = sizes
        sizes += options.values()
        say("half-way")
        seen.append((str(out), *sizes))

    monkeypatch.setattr(module, name.replace("-", "_"), stand_in)
    result = run("reproduce", name, *options.split())
    assert result.code == 0 and result.err == "half-way\n"
    assert seen == [(f"reproduced/{name}", *expected)]
    assert result.out == f"The results are described in reproduced/{name}/README.md.\n"
