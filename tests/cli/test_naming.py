"""Messages on the command line name options as they are typed, and the file or run that they come from."""

import json
import re
import warnings
from dataclasses import fields
from typing import Literal, get_args, get_origin

import pytest

from adaptax.cli import options
from adaptax.cli.commands import COMMANDS
from adaptax.cli.naming import as_typed, told
from adaptax.cli.parse import Group, _plain
from adaptax.training.stability import StabilityWarning


def every_option(group, *prefix):
    for name, member in group.members.items():
        if isinstance(member, Group):
            yield from every_option(member, *prefix, name)
        else:
            for option, hint in options.hints(member).items():
                yield [*prefix, name], member, option, hint


def bad_values(hint):
    """Values that this option cannot take, by its annotation alone."""
    plain, bounds = _plain(hint), [note for note in options.notes(hint) if hasattr(note, "check")]
    if plain is bool:
        return ["maybe"]
    if get_origin(plain) is Literal:
        return ["quux", ""]
    number = {int: int, float: float}.get(get_args(plain)[0] if get_origin(plain) is tuple else plain)
    found = ["many"] if number else []
    if number is int:
        found.append("2.5")
    for bound in bounds:
        if isinstance(bound, options.Whole):
            found += [str(bound.least - 1), *([] if bound.most is None else [str(bound.most + 1)])]
        elif isinstance(bound, options.Real):
            ends = (bound.least - 1, bound.above, bound.most + 1, bound.below)
            found += ["nan", "inf", *(repr(end) for end in ends if abs(end) < 1e300)]
        elif isinstance(bound, options.StepSizeText):
            found += ["0", "edge:-1", "sharp"]
        elif isinstance(bound, options.NetworkText):
            found += ["quux", "networks:", "a:b:c"]
        elif isinstance(bound, options.NewFolder):
            found.append("file/under")
    return found


CASES = [
    (command, kind, name, value)
    for command, kind, name, hint in every_option(COMMANDS)
    if name not in ("run", "resume")
    for value in bad_values(hint)
]
# Each option with each value once; at length in every command that has it.
ONCE = {(name, value): case for case in CASES for _, _, name, value in [case]}
PARAMETERS = [pytest.param(*case, marks=() if ONCE[case[2:]] is case else pytest.mark.slow) for case in CASES]


def arguments(command, name, value):
    run = ["RUN"] if command[0] in ("adapt", "evaluate", "measure", "video") else []
    run += ["--support=file", "--predict=file"] if command[0] == "adapt" else []
    return [*command, *run, f"{options.flag(name)}={value}"]


@pytest.mark.parametrize("command, kind, name, value", PARAMETERS, ids=[" ".join(arguments(c, n, v)) for c, _, n, v in CASES])
def test_a_bad_value_is_refused_by_the_option(run, tmp_path, monkeypatch, command, kind, name, value):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("keep")
    sentence = run(*arguments(command, name, value)).sentence
    assert options.flag(name) in sentence
    assert not re.search(r"\b[A-Za-z_]+=", sentence)


def test_there_is_a_bad_value_for_nearly_every_option():
    free = {name for _, _, name, hint in every_option(COMMANDS) if not bad_values(hint)}
    assert free == {
        "run", "config", "data", "test_data", "split", "test_split", "validation", "cache", "constants", "measure", "out",
        "group", "target", "order", "features", "support", "predict", "coordinator",
    }  # fmt: skip


@pytest.mark.parametrize(
    "message, sentence",
    [
        ("few_shot(ways=7) must be even: change ways=.", "--ways 7 must be even: change --ways."),
        ("tasks_per_step=2.5 is odd: change tasks_per_step=.", "--tasks-per-step 2.5 is odd: change --tasks-per-step."),
        ("mlp(sizes[1]=0) must be a whole number: change sizes[1]=.", "--hidden 0 must be a whole number: change --hidden."),
        ("few_shot(flips=2) must be True or False: change flips=.", "--flips 2 must be True or False: change --flips."),
        ("give rotations=True with it, or flips=False.", "give --rotations with it, or --no-flips."),
        ("'a.zip' has no split='test': leave out split=.", "'a.zip' has no --split test: leave out --split."),
        ("Samples(step=0) must be at least 1: change step=.", "--trajectories 0 must be at least 1: change --trajectories."),
        ("hidden=(3, 4) is wide", "--hidden 3 4 is wide"),
        ("use a smaller step, or ax.stepsize.Edge() (--stepsize edge).", "use a smaller step, or --stepsize edge."),
        ("lower gamma= of Edge (edge:0.5), or let it measure more often (every=).", "lower --stepsize of Edge (edge:0.5)."),
        ("pass resume=True, or another folder.", "pass --resume, or another folder."),
        ("start Python with MUJOCO_GL=egl.", "start Python with MUJOCO_GL=egl."),
        ("a line x = 3, and 1 == 1", "a line x = 3, and 1 == 1"),
    ],
)  # fmt: skip
def test_arguments_become_options(message, sentence):
    names = ["ways", "tasks_per_step", "hidden", "flips", "rotations", "split", "trajectories", "stepsize", "resume"]
    assert told(message, {name: options.flag(name) for name in names}) == sentence


def test_every_option_is_found_by_its_own_name():
    for kind in {kind for _, kind, _, _ in every_option(COMMANDS)}:
        known = {field.name: options.flag(field.name) for field in fields(kind)}
        for name, written in known.items():
            assert told(f"make({name}=3) is odd: change {name}=.", known) == f"{written} 3 is odd: change {written}."


FILE = '{"ways": 7, "seed": -1, "shots": 2, "queries": 5}'


@pytest.mark.parametrize("name", ["own.json", "own.toml"])
def test_a_value_out_of_a_file_is_named_with_the_file(run, tmp_path, name):
    path = tmp_path / name
    path.write_text(FILE if name.endswith("json") else "ways = 7\nseed = -1\nshots = 2\nqueries = 5\n")
    sentence = run("train", "images", "--config", path, "--data", "x.zip").sentence
    assert sentence == f"{path}: --seed -1 must be a whole number from 0 to 4294967295."
    # The same option typed is named alone.
    sentence = run("train", "images", "--config", path, "--data", "x.zip", "--seed", "-2").sentence
    assert sentence == "--seed -2 must be a whole number from 0 to 4294967295."


def test_the_librarys_refusals_name_file_and_option(run, zips, tmp_path):
    path = tmp_path / "few.toml"
    path.write_text("ways = 60\nrotations = false\n")
    common = ["train", "images", "--data", zips[0], "--inner-steps", 1]
    assert run(*common, "--config", path).sentence == f"{path}: There are only 12 classes: give --ways at most that."
    assert run(*common, "--no-rotations", "--ways", 60).sentence == "There are only 12 classes: give --ways at most that."
    path.write_text("queries = 9\n")
    assert run(*common, "--config", path).sentence.startswith(
        f"{path}: The class with the fewest images has 6, but --shots 1 and"
    )


def test_options_of_a_run_are_named_with_the_run(run, zips, tmp_path):
    (tmp_path / "run").mkdir()
    values = {"format": 2, "task": "images", "steps": 2, "data": str(zips[0]), "queries": 30}
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    sentence = run("evaluate", tmp_path / "run").sentence
    assert sentence.startswith(
        f"{tmp_path / 'run'}: The class with the fewest images has 6, but --shots 1 and --queries 30 ask"
    )


def test_a_split_of_the_test_data_is_named_by_its_option(run, tmp_path):
    from PIL import Image

    for name in "abcde":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (20, 20), 40 * "abcde".index(name) + 5 * i).save(tmp_path / "data" / name / f"{i}.png")
    common = ["train", "images", "--data", tmp_path / "data", "--size", 16]
    assert run(*common, "--test-split", "val").sentence.endswith("leave out --test-split.")
    assert run(*common, "--split", "val").sentence.endswith("leave out --split.")
    assert run(*common, "--validation", "val", "--evaluate-every", 5).sentence.endswith("leave out --validation.")


def test_warnings_are_sentences_that_name_options(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with as_typed(dict(every_kind())["sinusoid"]):
            warnings.warn("The step is long: lower gamma= of Edge (edge:0.5), or seed=3.", StabilityWarning, stacklevel=1)
    assert capsys.readouterr().err == "The step is long: lower --stepsize of Edge (edge:0.5), or --seed 3.\n"


def every_kind():
    return ((command[-1], kind) for command, kind, _, _ in every_option(COMMANDS) if command[0] == "train")


@pytest.mark.parametrize(
    "more", [["--colour=true"], ["--colour", "true"], ["--colour", "yes", "--seed", "1"], ["--no-colour=1"]]
)
def test_a_switch_takes_no_value(run, more):
    assert run("train", "images", *more).sentence == "--colour takes no value: give --colour or --no-colour alone."
