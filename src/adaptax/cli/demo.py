"""`adaptax demo`: sinusoids, meta-trained with ten inner steps, beside two baselines that adapt in the same way."""

import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import adaptax as ax
from adaptax.cli.building import initial_key, mean_stepsize
from adaptax.cli.evaluate import SEED, scores
from adaptax.cli.progress import Progress
from adaptax.errors import NotFiniteWarning
from adaptax.report import drawing, tables
from adaptax.training.files import write_text

if TYPE_CHECKING:
    from adaptax.cli.commands import Demo

INNER_STEPS, TASKS_PER_STEP, HIDDEN = 10, 25, (40, 40)
JUDGED_AFTER, HELD_OUT, DRAWN = (0, 1, 2, 5, 10, 20), 1000, 3
# Baselines choose among these step sizes on validation tasks, which are not those that judge.
STEP_SIZES, VALIDATION = tuple(float(f"{10.0 ** (k / 3):.2g}") for k in range(-12, -3)), 1000


def demo(options: "Demo") -> int:
    """Train, judge, print, draw."""
    began = time.perf_counter()
    # Before the work, so that a disk that refuses costs none.
    options.out.mkdir(parents=True, exist_ok=True)
    problem = ax.tasks.sinusoid()
    initial = ax.models.mlp((1, *HIDDEN, 1), key=initial_key(options.seed))
    with ThreadPoolExecutor(1) as beside:
        # Most of the demo's time goes into compiling, which takes one core: the baselines are made on the other meanwhile.
        baselines = beside.submit(_baselines, problem, initial, options)
        with Progress("meta-training", options.steps, TASKS_PER_STEP) as progress:
            state = _train(problem, initial, ax.MetaGradient(ax.Inner(INNER_STEPS)), options, callback=progress)
        candidates = {"meta-trained": (state.params, state.inner), **baselines.result()}
    rows = []
    for name, (params, inner) in candidates.items():
        curve = ax.evaluate(problem, params, inner, JUDGED_AFTER, HELD_OUT, SEED)
        rows.append({"name": name, "stepsize": mean_stepsize(inner), "loss": scores(curve)["loss"]})
    result = {
        "task": "sinusoid",
        "inner_steps": INNER_STEPS,
        "stepsize_rule": "auto",
        "meta_steps": options.steps,
        "tasks_per_step": TASKS_PER_STEP,
        "seed": options.seed,
        "held_out_tasks": HELD_OUT,
        "steps": list(JUDGED_AFTER),
        "methods": rows,
    }
    drawings = {name: _curves(problem, *candidate) for name, candidate in candidates.items()}
    drawing.draw_adaptation(options.out / "sinusoids.png", drawings, INNER_STEPS)
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_text(options.out / "demo.json", json.dumps(result, indent=2) + "\n")
    print(_text(result))
    print(f"\n{result['seconds']:.0f} s; figures and picture: {options.out / 'demo.json'}, {options.out / 'sinusoids.png'}")
    return 0


def _train(problem: ax.FiniteSum, params: Any, method: ax.MetaGradient, options: "Demo", **more: Any) -> ax.State:
    return ax.train(
        problem, params, method, steps=options.steps, tasks_per_step=TASKS_PER_STEP, seed=options.seed, **more
    )[0]  # fmt: skip


def _baselines(problem: ax.FiniteSum, initial: Any, options: "Demo") -> dict[str, tuple[Any, ax.Inner]]:
    """Parameters and inner loops of the baselines, by name; they take one device."""
    # The same tasks and as many meta-steps, but one network for all: support and target are data alike, N is 0.
    one = jax.devices()[-1:]
    pooled = _train(_pooled(problem), initial, ax.MetaGradient(ax.Inner(0, 1.0)), options, devices=one)
    params = jax.device_put(pooled.params, jax.devices()[0])
    return {
        "pre-trained on all tasks": (params, _tuned(problem, params)),
        "random": (initial, _tuned(problem, initial)),
    }


def _pooled(problem: ax.FiniteSum) -> ax.FiniteSum:
    """The same tasks, with support and target together as the target set."""

    def sample_task(key):
        task = problem.sample_task(key)
        return ax.Task(task.support, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.target))

    return ax.FiniteSum(problem.loss, sample_task)


def _tuned(problem: ax.FiniteSum, params: Any) -> ax.Inner:
    """The inner loop of a baseline, with the step size that is best on validation tasks."""

    def loss(inner):
        # The largest steps may diverge, and are not chosen then.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotFiniteWarning)
            found = ax.evaluate(
                problem, params, inner, JUDGED_AFTER[-2:], VALIDATION, SEED + 2, devices=jax.devices()[-1:]
            ).mean["loss"]  # fmt: skip
        return found[0] if np.isfinite(found).all() else np.inf

    return min((ax.Inner(INNER_STEPS, alpha) for alpha in STEP_SIZES), key=loss)


def _curves(problem: ax.FiniteSum, params: Any, inner: ax.Inner) -> list[drawing.Curves]:
    """The first held-out tasks of the seed after that of the evaluation, before and after N steps."""
    x = np.linspace(-5, 5, 200)
    curves = []
    for index in range(DRAWN):
        task = problem.sample_task(jax.random.fold_in(jax.random.key(SEED + 1), index))
        points = [np.asarray(part).ravel() for part in task.support]
        # A sinusoid is a sin x + b cos x, and its points carry no noise.
        truth = _waves(x) @ np.linalg.lstsq(_waves(points[0]), points[1])[0]
        adapted = ax.adapt(problem, params, task, inner).params
        before, after = (np.asarray(model(jnp.asarray(x[:, None], jnp.float32))).ravel() for model in (params, adapted))
        curves.append(drawing.Curves(x, truth, before, after, np.stack(points, axis=1)))
    return curves


def _waves(x: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(x), np.cos(x)], axis=1)


def _text(result: dict[str, Any]) -> str:
    title = (
        f"Sinusoids from 10 points: mean squared error on {result['held_out_tasks']} held-out tasks [95 % interval],\n"
        f"after {result['meta_steps']} meta-steps with N = {result['inner_steps']}. The meta-trained network adapts "
        f"with the step sizes\nthat it learned (their mean is shown); the baselines with the best of {len(STEP_SIZES)} on "
        f"{VALIDATION} validation tasks."
    )
    return f"{title}\n\n{tables.comparison(result)}"
