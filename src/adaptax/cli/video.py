"""`adaptax video`: the policy of a run on a MuJoCo body, before and after adaptation to one goal."""

import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import adaptax as ax
from adaptax.cli.evaluate import load, of_run, open_run
from adaptax.cli.families import FAMILIES
from adaptax.cli.families.locomotion import Locomotion
from adaptax.cli.saved import from_saved
from adaptax.errors import InputError
from adaptax.tasks.rl.video import check_video_path

if TYPE_CHECKING:
    from adaptax.cli.commands import Video


def video(options: "Video") -> int:
    """Write the video, and print the returns."""
    run, saved = open_run(options.run)
    config = from_saved(saved, str(options.run))
    if not isinstance(config, Locomotion):
        *names, last = [name for name, family in FAMILIES.items() if issubclass(family, Locomotion)]
        bodies = f"{', '.join(names)} or {last}"
        raise InputError(f"adaptax video shows the bodies of MuJoCo: give it a run on {bodies}, not on {config.task}.")
    check_video_path(options.out)
    config.check_goal(options.goal)
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        # Read by MuJoCo when it is imported: without a display its own choice cannot draw.
        os.environ.setdefault("MUJOCO_GL", "egl")

    with of_run(config, options.run):
        built, state = load(run, saved, config)
    task_key, adapt_key, video_key = jax.random.split(jax.random.key(options.seed), 3)
    task = built.problem.sample_task(task_key)
    if options.goal:
        task = jnp.array(options.goal, jnp.float32).reshape(task.shape)
    steps = config.last_step() if options.inner_steps is None else options.inner_steps
    inner = dataclasses.replace(state.inner, steps=steps)
    adapted = ax.adapt(built.problem, state.params, task, inner, adapt_key, samples=built.method.samples).params
    policies = {"before": state.params, f"after {steps} step{'s' * (steps != 1)}": adapted}
    environment: Any = built.problem.draw.environment  # pyright: ignore[reportAttributeAccessIssue]
    returns = ax.tasks.rl.video(environment, task, policies, options.out, video_key)
    where = ", ".join(f"{x:.2f}" for x in jnp.ravel(task).tolist())
    print(f"goal {where}: {', '.join(f'return {value:.1f} {name}' for name, value in returns.items())}; {options.out}")
    return 0
