"""The toys of CONTRIBUTING.md work as they stand: an estimator, a method, a family, an option, a model, a measurement."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_contract
from helpers import normal_like, relative

import adaptax as ax
from adaptax.cli.families import FAMILIES
from adaptax.cli.main import main
from adaptax.models.protocol import HasFeatures, offers

DOCUMENT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def blocks(heading, language="python"):
    """The code blocks below a heading of the document."""
    section = re.search(rf"^### {heading}.*?\n(.*?)(?=^### |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    return re.findall(rf"```{language}\n(.*?)```", section[1], re.DOTALL)


def run(code, **names):
    """The names after a program that may use these names."""
    names = {"__name__": "toy", **names}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return names


def module(code, path, monkeypatch):
    """The names of a module with this code; the command line reads help from a file's text."""
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, path.stem, found := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(found)
    return vars(found)


def patched(text, diff):
    """The text after a diff, whose parts are separated by lines of @@."""
    for part in diff.split("@@\n"):
        lines = part.splitlines()
        before, after = ("".join(f"{x[1:]}\n" for x in lines if x[0] in (" ", sign)) for sign in "-+")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def test_an_estimator_is_one_file_and_one_row(x64, monkeypatch):
    estimator, row = blocks("An estimator")
    names = run(estimator)
    rows = dict(contract.ROWS)
    monkeypatch.setattr(test_contract, "ROWS", rows)
    run(row, **names, ROWS=rows, Row=contract.Row, gradient=contract.gradient)
    (added,) = rows.keys() - contract.ROWS.keys()
    test_contract.test_agrees_with_backpropagation_within_its_error(None, added)
    test_contract.test_costs_what_it_says(added)
    test_contract.test_structure_and_types_are_those_of_the_parameters(added)
    # The contract sees a wrong factor.
    rows["wrong"] = contract.Row(contract.gradient(names["OneSidedDifference"](delta=0.3)), rows[added].error)
    with pytest.raises(AssertionError):
        test_contract.test_agrees_with_backpropagation_within_its_error(None, "wrong")


@pytest.mark.long
def test_a_method_is_twenty_lines():
    (code,) = blocks("A method")
    method = run(code)["FirstOrderMAML"](ax.Inner(3, 0.1))
    body = code[code.index("class ") :].strip().splitlines()
    assert len(body) <= 20
    known = ax.MetaGradient(ax.Inner(3, 0.1), ax.curvature.FirstOrder())
    params, problem = ax.models.mlp((1, 8, 1), key=jax.random.key(0)), ax.tasks.sinusoid()
    task = problem.sample_task(jax.random.key(1))
    assert relative(method(problem, params, task)[1], known(problem, params, task)[1]) < 1e-6
    assert method.cost() == known.cost()
    frozen = {"inner": ax.Inner(2, 0.1, adapt=ax.models.head_only(params))}
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(2), 3))
    two = [type(method)(**frozen), ax.MetaGradient(*frozen.values(), ax.curvature.FirstOrder())]
    assert relative(*[one.batch(problem, params, tasks)[1] for one in two]) < 1e-6
    _, history = ax.train(problem, params, type(method)(ax.Inner(3, ax.stepsize.Edge())), steps=2, tasks_per_step=3)
    assert np.all(np.isfinite(history["loss"]))


def test_a_family_is_one_class_and_an_option_one_field(monkeypatch, tmp_path, capsys):
    (code,), (diff,) = blocks("A task family"), blocks("An option", "diff")
    monkeypatch.setitem(FAMILIES, "points", module(code, tmp_path / "points_toy.py", monkeypatch)["Points"])
    options = ["train", "points", "--inner-steps", "1", "--tasks-per-step", "2", "--evaluation-tasks", "4", "--dim", "2"]
    options += ["--out", str(tmp_path / "run"), "--stepsize", "0.1"]
    assert main([*options, "--steps", "2"]) == 0 and "new points" in capsys.readouterr().out
    assert main([*options, "--steps", "2", "--spread", "2"]) == 2 and "--spread" in capsys.readouterr().err

    # The run that was saved before the option goes on with its default, and is refused with another value.
    monkeypatch.setitem(FAMILIES, "points", module(patched(code, diff), tmp_path / "spread_toy.py", monkeypatch)["Points"])
    assert main([*options, "--steps", "3", "--spread", "2"]) == 2 and "--spread is 1.0 there" in capsys.readouterr().err
    assert main([*options, "--steps", "3", "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 3
    assert main(["train", "points", "--help"]) == 0 and "Standard deviation of the centres" in capsys.readouterr().out


def test_a_model_is_one_class():
    (code,) = blocks("A model")
    make = run(code)["TwoLayers"]
    images, labels = jax.random.normal(jax.random.key(0), (6, 4, 4, 1)), jnp.arange(6) % 3
    model = make(16, 8, 1, key=jax.random.key(1))
    assert offers(model, HasFeatures)
    inner = ax.Inner(2, 0.1, adapt=ax.models.head_only(model), start=ax.models.shared_head(3))

    def loss(model, batch):
        scores = jax.nn.log_softmax(model(batch[0]))
        return -jnp.mean(jnp.take_along_axis(scores, batch[1][:, None], axis=1))

    problem, task = ax.FiniteSum(loss, lambda key: None), ax.Task((images, labels), (images[::-1], labels[::-1]))
    grads = [ax.MetaGradient(inner, mode=mode)(problem, model, task)[1] for mode in ("recursion", "backprop")]
    assert relative(*grads) < 1e-5
    adapted = ax.adapt(problem, model, task, inner).params
    assert adapted.head.weight.shape == (3, 8) and jnp.array_equal(adapted.body.weight, model.body.weight)


def test_a_measurement_is_one_class(tmp_path):
    (code,) = blocks("A periodic measurement")
    callback = run(code)["LargestWeight"](every=2)
    problem = ax.FiniteSum(lambda w, c: jnp.sum((w - c) ** 2), lambda key: ax.Task(*[jax.random.normal(key, (3,))] * 2))
    options = {"steps": 4, "tasks_per_step": 2, "callbacks": [callback], "out": tmp_path / "run"}
    state, history = ax.train(problem, normal_like(jnp.zeros(3), 0), ax.MetaGradient(ax.Inner(1, 0.1)), **options)
    values = history["largest_weight.value"]
    assert np.isnan(values[[0, 2]]).all() and values[3] == pytest.approx(float(jnp.max(jnp.abs(state.params))))
    lines = [json.loads(line) for line in (tmp_path / "run" / "largest_weight.jsonl").read_text().splitlines()]
    assert [(line["step"], line["value"]) for line in lines] == [(2, values[1]), (4, values[3])]
