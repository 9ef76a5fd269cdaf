"""The entry: help without JAX, versions, and bad input, which is refused in one sentence before anything is written."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from adaptax.cli.commands import COMMANDS, Demo
from adaptax.cli.main import main
from adaptax.cli.parse import _sentence, find, parse

# Arguments, and what the sentence must say: what is wrong, and what to change.
BAD_COMMANDS = [
    ("", "needs a command first: adaptax train|adapt|evaluate|measure|video|demo|plan"),
    ("trian sinusoid", "no command 'trian': did you mean train?"),
    ("foo", "no command 'foo': use adaptax train|adapt|evaluate|measure|video|demo|plan"),
    ("train", "needs a task first: adaptax train sinusoid|matrix|images"),
    ("train --steps 3 sinusoid", "needs a task first"),
    ("train sinusoids", "no task 'sinusoids': did you mean sinusoid?"),
    ("train quadratic", "no task 'quadratic': use adaptax train sinusoid|matrix|images"),
    ("evaluate", "needs a run folder: adaptax evaluate RUN"),
    ("evaluate RUN --format xml", "--format must be followed by table or json"),
    ("evaluate RUN more", "can do nothing with 'more': leave it out"),
    ("evaluate RUN", "There is no run in RUN: give the folder that adaptax train --out was given"),
    ("video", "needs a run folder: adaptax video RUN"),
    ("video RUN --goal left", "--goal must be followed by numbers"),
    ("video RUN", "There is no run in RUN: give the folder that adaptax train --out was given"),
    ("train navigation --curvature ggs", "--curvature ggs has no effect on --optimizer proximal"),
    ("train navigation --independent-curvature", "--independent-curvature has no effect on --optimizer proximal"),
    ("demo --steps 0", "--steps 0 must be a whole number of at least 1"),
    ("demo --seed -1", "--seed -1 must be a whole number from 0"),
    ("demo --out file", "--out file cannot be a folder, for file is a file: choose another one"),
    ("demo --out file/under", "--out file/under cannot be a folder, for file is a file: choose another one"),
]
OPTIONS = [
    ("--step 3", "train sinusoid has no option --step: did you mean --steps?"),
    ("--quux 3", "has no option --quux: see adaptax train sinusoid --help"),
    ("-x", "has no option -x: see"),
    ("--resum", "did you mean --resume?"),
    ("--no-resume", "has no option --no-resume"),
    ("more", "can do nothing with 'more': leave it out"),
    ("--shots 3 4", "can do nothing with '4': leave it out"),
    ("--steps", "--steps must be followed by a whole number"),
    ("--steps --seed 1", "--steps must be followed by a whole number"),
    ("--steps many", "--steps must be followed by a whole number"),
    ("--steps=many", "--steps must be followed by a whole number"),
    ("--hidden 4 wide", "--hidden must be followed by whole numbers"),
    ("--learning-rate fast", "--learning-rate must be followed by a number"),
    ("--optimizer lbfgs", "--optimizer must be followed by adam or sgd"),
    ("--inner-steps -1", "--inner-steps -1 must be a whole number of at least 0"),
    ("--stepsize 0", "--stepsize 0 must be positive and finite; without adaptation use --inner-steps 0"),
    ("--stepsize -0.1", "--stepsize -0.1 must be positive"),
    ("--stepsize nan", "--stepsize nan must be positive and finite"),
    ("--stepsize inf", "--stepsize inf must be positive and finite"),
    ("--stepsize big", "--stepsize big must be a number, auto, edge or guaranteed"),
    ("--stepsize edge:", "--stepsize edge: must be a number, auto, edge or guaranteed"),
    ("--stepsize edge:-1", "--stepsize edge:-1 must be positive"),
    ("--steps 0", "--steps 0 must be a whole number of at least 1"),
    ("--tasks-per-step 0", "--tasks-per-step 0 must be a whole number of at least 1"),
    ("--checkpoint-every 0", "--checkpoint-every 0 must be a whole number of at least 1"),
    ("--evaluate-every 0", "--evaluate-every 0 must be a whole number of at least 1"),
    ("--evaluation-tasks 1", "--evaluation-tasks 1 must be a whole number of at least 2"),
    ("--evaluation-steps -1", "--evaluation-steps -1 must be a whole number of at least 0"),
    ("--seed -1", "--seed -1 must be a whole number from 0 to 4294967295"),
    ("--seed 4294967296", "--seed 4294967296 must be a whole number from 0 to 4294967295"),
    ("--learning-rate 0", "--learning-rate 0.0 must be a finite number above 0"),
    ("--hidden 4 0", "--hidden 0 must be a whole number of at least 1"),
    ("--shots 0", "--shots 0 must be a whole number of at least 1"),
    ("--queries 0", "--queries 0 must be a whole number of at least 1"),
    ("--resume", "no run in out to go on with: leave out --resume"),
]
FILES = {
    "torn.json": ('{"steps": ', "torn.json is not valid JSON ( ... ): mend it"),
    "torn.toml": ("steps = ", "torn.toml is not valid TOML ( ... ): mend it"),
    "deep.json": ("[" * 100_000, "deep.json is not valid JSON"),
    "list.json": ("[1]", "list.json must hold values by name"),
    "misspelt.json": ('{"step": 3}', "misspelt.json: adaptax train sinusoid has no option --step: did you mean --steps?"),
    "unknown.json": ('{"quux": 3}', "has no option --quux: see adaptax train sinusoid --help"),
    "help.json": ('{"help": 3}', "has no option --help: see adaptax train sinusoid --help"),
    "text.json": ('{"steps": "many"}', "text.json: --steps must be followed by a whole number"),
    "true.json": ('{"steps": true}', "--steps must be followed by a whole number"),
    "null.json": ('{"steps": null}', "--steps must be followed by a whole number"),
    "half.json": ('{"hidden": [4.5]}', "--hidden must be followed by whole numbers"),
    "texts.json": ('{"hidden": ["--steps", "3"]}', "--hidden must be followed by whole numbers"),
    "several.json": ('{"steps": [3, 4]}', "several.json: --steps must be followed by a whole number"),
    "nest.json": ('{"out": {"a": 1}}', "--out must be followed by a path"),
    "huge.json": ('{"learning_rate": 1' + "0" * 400 + "}", "--learning-rate inf must be a finite number above 0"),
    "nul.json": ('{"out": "a\\u0000b"}', "--out must be followed by a path"),
    "sgd.json": ('{"optimizer": "lbfgs"}', "--optimizer must be followed by adam or sgd"),
    "task.json": ('{"task": "matrix"}', "is for the task 'matrix', not sinusoid: use adaptax train matrix"),
    "nested.json": ('{"config": "x.json"}', "sets 'config', which only the command line can: take it out"),
    "options.yaml": ("steps: 3", "options.yaml must be a .json or a .toml file"),
    "resume.toml": ("resume = true", "sets 'resume', which only the command line can: take it out"),
    "negative.json": ('{"seed": -1}', "--seed -1 must be"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, with a file; afterwards there must be nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("keep")
    return tmp_path


def only_the_file(folder):
    return [path.name for path in folder.rglob("*")] == ["file"] and (folder / "file").read_text() == "keep"


@pytest.mark.parametrize("arguments, sentence", BAD_COMMANDS, ids=[arguments or "nothing" for arguments, _ in BAD_COMMANDS])
def test_bad_commands(run, here, arguments, sentence):
    result = run(*arguments.split())
    assert sentence in result.sentence
    assert only_the_file(here)


@pytest.mark.parametrize("arguments, sentence", OPTIONS, ids=[arguments for arguments, _ in OPTIONS])
def test_bad_options(train, here, arguments, sentence):
    result = train("sinusoid", "--out", "out", *arguments.split())
    assert sentence in result.sentence
    assert only_the_file(here)


@pytest.mark.parametrize("name", ["file", "file/under", "."])
def test_an_output_folder_that_cannot_be_one(train, here, name):
    assert "choose" in train("sinusoid", "--out", name).sentence
    assert only_the_file(here)


@pytest.mark.parametrize("name", FILES)
def test_bad_files_of_options(train, here, tmp_path_factory, name):
    text, sentence = FILES[name]
    path = tmp_path_factory.mktemp("options") / name
    path.write_text(text)
    result = train("sinusoid", "--out", "out", "--config", path)
    assert all(part in result.sentence for part in sentence.split(" ... "))
    assert only_the_file(here)


def test_files_of_options_that_cannot_be_read(train, here):
    for name, reason in (("absent.json", "No such file"), (".json", "No such file"), ("file/x.json", "Not a directory")):
        sentence = train("sinusoid", "--config", name, "--out", "out").sentence
        assert reason in sentence or "must be a .json" in sentence
    assert only_the_file(here)


def test_resume_needs_a_folder(train):
    assert train("sinusoid", "--resume").sentence.endswith("add --out DIR.")


def test_matrix_has_options_of_its_own(train, here):
    assert train("matrix", "--out", "out", "--sigma", "0").sentence.startswith("--sigma 0.0 must be a finite number above 0")
    assert train("matrix", "--out", "out", "--dim", "0").sentence.startswith("--dim 0 must be")
    assert "no option --hidden" in train("matrix", "--out", "out", "--hidden", "3").sentence
    assert only_the_file(here)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            "train sinusoid --inner_steps 3 --hidden 4 5 --stepsize edge --seed=1 --resume --out x",
            {"inner_steps": 3, "hidden": (4, 5), "seed": 1, "resume": True, "out": Path("x")},
        ),
        ("train sinusoid --hidden", {"hidden": ()}),
        ("train images --no-rotations --distort --data x.zip --scale -0.5", {"rotations": False, "scale": -0.5}),
        ("train matrix --evaluate-every 3 --evaluate-every 4", {"evaluate_every": 4, "steps": 2000}),
        ("train cheetah-dir --gae-lambda 0.5", {"gae_lambda": 0.5}),
        ("evaluate RUN --format json --tasks 3 --inner-steps 2", {"run": Path("RUN"), "inner_steps": 2}),
        ("plan --inner-steps 7", {"inner_steps": 7}),
        ("plan --steps 7", {"inner_steps": 7}),
        ("video RUN", {"out": Path("video.gif")}),
    ],
)
def test_what_is_parsed(arguments, expected):
    prog, kind, rest = find(COMMANDS, arguments.split())
    assert prog == "adaptax " + " ".join(arguments.split()[: 1 + (arguments.split()[0] == "train")])
    options = parse(kind, rest, prog)
    assert {name: getattr(options, name) for name in expected} == expected


def test_what_was_not_foreseen_is_still_one_sentence():
    assert (
        _sentence("╭ Strange ╮\n│ It broke. │\n│ ───── │\n│ more │", Demo, "adaptax demo")
        == "It broke: see adaptax demo --help."
    )
    assert _sentence("", Demo, "adaptax demo") == "The arguments cannot be parsed: see adaptax demo --help."


def test_version(run):
    result = run("--version")
    assert result.code == 0 and result.out.startswith("adaptax ") and not result.err


@pytest.mark.parametrize("arguments", ["--help", "train --help", "train images --help", "evaluate -h", "reproduce -h"])
def test_help(run, arguments):
    result = run(*arguments.split())
    assert result.code == 0 and result.out.startswith("usage: adaptax") and not result.err


def test_help_does_not_import_jax():
    code = (
        "import sys; from adaptax.cli.main import main; code = main(['--help']) + main(['train', 'images', '--help']); "
        "print(sorted({'jax', 'jaxlib', 'equinox', 'optax', 'numpy', 'matplotlib'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]" and not done.stderr


def test_the_console_script():
    (script,) = entry_points(group="console_scripts", name="adaptax")
    assert script.load() is main


def test_an_interruption_says_how_to_go_on(run, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptax.cli.train.train", interrupted)
    for more, remedy in (((), "with --out DIR a run can go on"), (("--out", "x"), "the same command goes on from the last")):
        result = run("train", "sinusoid", *more)
        assert result.code == 130 and remedy in result.err and not result.out


def test_what_the_system_refuses_is_told_without_a_traceback(run, monkeypatch):
    def full(config):
        raise OSError(28, "No space left on device", "history.jsonl")

    monkeypatch.setattr("adaptax.cli.train.train", full)
    result = run("train", "sinusoid")
    assert result.code == 1 and result.err == "The system refused 'history.jsonl': No space left on device.\n"
