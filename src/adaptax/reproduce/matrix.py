"""Rank-one matrix factorisation: docs/theory.md, section 10.1."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

import adaptax as ax
from adaptax._checks import check_whole
from adaptax.reproduce import predictions as predict
from adaptax.reproduce.csv_rows import Row, Say, write_rows
from adaptax.reproduce.meta_training import (
    COLUMNS,
    GRADIENT_DESCENT,
    Experiment,
    StepSizes,
    check_sizes,
    initial_key,
    train_all,
)
from adaptax.reproduce.meta_training_page import publish
from adaptax.reproduce.strategies import EXACT, FIRST_ORDER, GGS, NAMES, STEIN, UNCORRECTED, strategies

# The step sizes of the paper, then larger inner ones.
SETTINGS = (StepSizes(1e-2, 3e-3, published=True), StepSizes(5e-2, 3e-3), StepSizes(1e-1, 3e-3))
DIM, ERROR_TASKS = 20, 400
# The number of parts of a curve along training.
_PARTS = 25


def experiment(steps: int) -> Experiment:
    """The factorisation with gradient descent outside, as it is trained for so many meta-steps."""
    return Experiment(
        title="Rank-one matrix factorisation",
        about=f"The loss is ¼‖ww^T − yy^T‖² for w in {DIM} dimensions; a task is a support vector y and a target vector y' "
        "([theory](../../theory.md), section 10.1).",
        problem=ax.tasks.factorisation(DIM),
        initial=lambda key: ax.tasks.factorisation_init(key, DIM),
        optimizer=GRADIENT_DESCENT,
        settings=SETTINGS,
        tasks_per_step=10,
        every=max(1, steps // _PARTS),
    )


def matrix(out: Path, seeds: int = 5, steps: int = 2000, say: Say = print, *, error_tasks: int = ERROR_TASKS) -> None:
    r"""Meta-train the factorisation with every method, and measure their meta-gradients' errors at $w_0$.

    Arguments:
        out: the folder for matrix.csv, the figures and README.md; made if it is not there.
        seeds: the number of seeds; a seed's initial parameters and tasks are the same for all methods.
        steps: meta-steps.
        say: called with a sentence about the progress (default: it is printed).
        error_tasks: tasks whose meta-gradients are compared with exact ones at the initial parameters of each seed.

    Errors: `InputError` for fewer than 2 seeds, more than 1000, fewer than one meta-step or fewer than one task.

    Example:
        >>> from pathlib import Path
        >>> matrix(Path("reproduced/matrix"), seeds=2, steps=10)  # doctest: +SKIP

    Source: the matrix factorisation of Ji, Yang, Liang (2020), arXiv 2002.07836v1; docs/theory.md, section 10.
    """
    seeds, steps = check_sizes(seeds, steps)
    error_tasks = check_whole("", "error_tasks", error_tasks)
    out.mkdir(parents=True, exist_ok=True)
    what = experiment(steps)
    rows = [row for setting in SETTINGS for seed in range(seeds) for row in gradient_errors(what, setting, seed, error_tasks)]
    say(f"errors of the meta-gradients at w_0 measured on {error_tasks} tasks of {seeds} seeds")
    rows += train_all(what, seeds, steps, say)
    write_rows(out / "matrix.csv", COLUMNS, rows)
    describe(out, what)


def describe(out: Path, what: Experiment) -> None:
    """Draw the figures and write README.md from matrix.csv."""
    publish(out, "matrix", what)


def gradient_errors(what: Experiment, setting: StepSizes, seed: int, tasks: int) -> list[Row]:
    r"""Medians over tasks of $\|\hat G_i - \nabla\mathcal L_i\| / \|\nabla\mathcal L_i\|$ at $w_0$, by method.

    $w_0$ is drawn as in training and scaled to $\|w_0\|^2 = 2d/(d+1)$, its mean. "predicted" is the root mean square of the
    error to first order in $\alpha$, from docs/theory.md, section 7: N biases and N independent noises of the products.
    """
    w = what.initial(initial_key(seed))
    w = w * jnp.sqrt(2 * DIM / (DIM + 1)) / jnp.linalg.norm(w)
    task_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**31))
    batch, keys = jax.vmap(what.problem.sample_task)(jax.random.split(task_key, tasks)), jax.random.split(key, tasks)
    found, expected = _errors(what, jnp.asarray(setting.alpha), w, batch, keys)
    rows = []
    for name in NAMES:
        row = {"part": "gradient error", "alpha": setting.alpha, "outer_stepsize": setting.outer, "method": name, "seed": seed}
        rows.append(row | {"value": float(found[name])})
        if name in expected:
            rows[-1]["predicted"] = float(expected[name])
    return rows


@eqx.filter_jit
def _errors(what: Experiment, alpha: Array, w: Array, tasks: ax.Task, keys: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """Median relative errors by method, and the predicted ones where there is a prediction."""
    known = strategies(what.samples, what.delta)

    def gradients(name):
        method = what.method(known[name], alpha)
        return jax.vmap(lambda task, key: method(what.problem, w, task, key)[1])(tasks, keys)

    exact = gradients(EXACT)
    length = jnp.linalg.norm(exact, axis=1)
    found = {name: jnp.median(jnp.linalg.norm(gradients(name) - exact, axis=1) / length) for name in known}
    expected = jax.vmap(lambda task: _predicted(what, alpha, w, task))(tasks)
    return found, {name: jnp.median(error / length) for name, error in expected.items()}


def _predicted(what: Experiment, alpha: Array, w: Array, task: ax.Task) -> dict[str, Array]:
    """The predicted errors of one task's meta-gradient, by method."""
    loss, steps, q = what.problem.loss, what.inner_steps, what.samples
    h = jax.hessian(loss)(w, task.support)
    v = jax.grad(loss)(ax.adapt(what.problem, w, task, ax.Inner(steps, alpha)).params, task.target)
    bias = steps * jnp.linalg.norm(predict.uncorrected_bias(h, v))

    def noise(variance):
        return steps * variance / q

    return {
        FIRST_ORDER: alpha * steps * jnp.linalg.norm(h @ v),
        GGS: alpha * jnp.sqrt(noise(predict.ggs_variance(h, v))),
        UNCORRECTED: alpha * jnp.sqrt(bias**2 + noise(predict.uncorrected_variance(h, v))),
        STEIN: alpha * jnp.sqrt(noise(predict.stein_variance(h, v))),
    }
