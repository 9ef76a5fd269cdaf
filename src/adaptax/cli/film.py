"""`adaptax film`: the newest checkpoint of a run on a MuJoCo body, before and after adaptation to one goal."""

import dataclasses
import math
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp

import adaptax as ax
from adaptax.cli import settings
from adaptax.cli.configs import Film
from adaptax.cli.environment_configs import AntDir, AntGoal, AntVel, CheetahDir, CheetahVel
from adaptax.cli.evaluate import load, open_run
from adaptax.errors import InputError
from adaptax.tasks.rl.video import check_video_path

_DIRECTIONS, _FILMED = CheetahDir | AntDir, CheetahDir | CheetahVel | AntDir | AntVel | AntGoal


def film(options: Film) -> int:
    """Write the film, and print the returns."""
    run, saved = open_run(options.run)
    config = settings.from_saved(saved, str(options.run))
    if not isinstance(config, _FILMED):
        names = "cheetah-dir, cheetah-vel, ant-dir, ant-vel or ant-goal"
        raise InputError(f"adaptax film draws the bodies of MuJoCo: give it a run on {names}, not on {config.task}.")
    settings.check_seed(options.seed)
    settings.check_count("--steps", options.steps, 0)
    check_video_path(options.out)
    goal = _goal(config, options.goal)
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        # Read by MuJoCo when it is imported: without a display its own choice cannot draw.
        os.environ.setdefault("MUJOCO_GL", "egl")

    built, state = load(run, saved, config)
    task_key, adapt_key, film_key = jax.random.split(jax.random.key(options.seed), 3)
    task = built.problem.sample_task(task_key) if goal is None else goal
    after = 2 * config.inner_steps if config.evaluation_steps is None else config.evaluation_steps
    steps = after if options.steps is None else options.steps
    inner = dataclasses.replace(state.inner, steps=steps)
    adapted = ax.adapt(built.problem, state.params, task, inner, adapt_key, samples=built.method.samples).params
    policies = {"before": state.params, f"after {steps} step{'s' * (steps != 1)}": adapted}
    environment: Any = built.problem.draw.environment  # pyright: ignore[reportAttributeAccessIssue]
    returns = ax.tasks.rl.video(environment, task, policies, options.out, film_key)
    where = ", ".join(f"{x:.2f}" for x in jnp.ravel(task).tolist())
    print(f"goal {where}: {', '.join(f'return {value:.1f} {name}' for name, value in returns.items())}; {options.out}")
    return 0


def _goal(config: Any, numbers: tuple[float, ...]) -> jax.Array | None:
    """The goal that was asked for, if any."""
    if not numbers:
        return None
    given = " ".join(f"{x:g}" for x in numbers)
    count = 2 if isinstance(config, AntGoal) else 1
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        wanted = "two finite numbers" if count == 2 else "one finite number"
        raise InputError(f"--goal {given} must be {wanted} for {config.task}.")
    if isinstance(config, _DIRECTIONS) and numbers[0] not in (-1, 1):
        raise InputError(f"--goal {given} must be a direction: -1 or 1.")
    return jnp.array(numbers if count == 2 else numbers[0], jnp.float32)
