"""Videos of policies in one task of a MuJoCo body, side by side, as animated GIFs."""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from adaptax._checks import check_whole
from adaptax._tree import first_line
from adaptax.errors import InputError
from adaptax.tasks.rl.locomotion import Locomotion
from adaptax.tasks.rl.physics import load_model

_CAPTION = 22
_COLOURS = 128


def video(
    environment: Locomotion, task: PyTree, policies: Mapping[str, Any], path: str | os.PathLike, key: Key[Array, ""], *,
    size: tuple[int, int] = (320, 240),
) -> dict[str, float]:  # fmt: skip
    r"""Record one episode of each policy, all with the same start and noise, side by side as an animated GIF.

    The camera follows the body, in real time. Each picture bears the policy's name, the return of the episode, and how far
    the body has come; it stands still once its episode has ended.

    Arguments:
        environment: the environment of a `cheetah` or `ant` problem, `problem.draw.environment`.
        task: the goal.
        policies: the policies to show, by name, such as `{"before": policy, "after 3 steps": adapted}`.
        path: the file to write, whose name ends in .gif; an existing file is replaced.
        key: decides the start and the noise.
        size: width and height of one picture in pixels, at most (640, 480) (default (320, 240)).

    Returns: the returns of the episodes, by name.

    Errors: `InputError` for another environment, no policies, a path or size that cannot be used, or if MuJoCo finds no
        graphics library to draw with.

    Example:
        >>> import adaptax as ax, jax
        >>> rl, key = ax.tasks.rl, jax.random.key(0)
        >>> problem = rl.cheetah(horizon=100)  # doctest: +SKIP
        >>> policy = rl.GaussianPolicy(ax.models.mlp((17, 64, 64, 6), key=key), 6)
        >>> task, inner = problem.sample_task(key), ax.Inner(3, 0.1)  # doctest: +SKIP
        >>> adapted = ax.adapt(problem, policy, task, inner, key).params  # doctest: +SKIP
        >>> policies = {"before": policy, "after 3 steps": adapted}  # doctest: +SKIP
        >>> returns = rl.video(problem.draw.environment, task, policies, "video.gif", key)  # doctest: +SKIP
    """
    if not isinstance(environment, Locomotion):
        raise InputError(
            f"video draws the bodies of MuJoCo, not {type(environment).__name__}: give it problem.draw.environment of "
            "ax.tasks.rl.cheetah or ant."
        )
    if not isinstance(policies, Mapping) or not policies:
        raise InputError('There is nothing to show: give policies by name, such as {"before": policy}.')
    for name, policy in policies.items():
        if not hasattr(policy, "sample"):
            raise InputError(f"policies[{name!r}] has no sample(observations, key): use a policy such as GaussianPolicy.")
    path = check_video_path(path)
    frames = _Frames(environment.physics.name, size)
    try:
        episodes = {str(name): _episode(environment, task, policy, key) for name, policy in policies.items()}
        names = [f"{name}: return {rewards.sum():.1f}" for name, (_, rewards) in episodes.items()]
        times = zip(*(positions for positions, _ in episodes.values()), strict=True)
        pictures = [frames.side_by_side(names, positions) for positions in times]
    finally:
        frames.close()
    _write(path, pictures, environment.physics.interval)
    return {name: float(rewards.sum()) for name, (_, rewards) in episodes.items()}


def check_video_path(path: str | os.PathLike) -> Path:
    """The path, if a GIF can be written there."""
    path = Path(path)
    if path.suffix.lower() != ".gif" or path.is_dir():
        raise InputError(f"The video cannot be written to '{path}': give a file whose name ends in .gif.")
    if not path.parent.is_dir():
        raise InputError(f"The video cannot be written to '{path}', because there is no folder {path.parent}: make it first.")
    return path


@eqx.filter_jit
def _run(environment: Locomotion, task: PyTree, policy: Any, key: Key[Array, ""]) -> tuple[Array, Array]:
    """The positions at all H + 1 times, and the H rewards."""
    start_key, run_key = jax.random.split(key)

    def positions_of(state):
        return environment.physics.coordinates(state)[0]

    def step(carry, key):
        state, alive = carry
        act_key, move_key = jax.random.split(key)
        action = policy.sample(environment.observe(task, state)[None], act_key)[0]
        new, reward, done = environment.step(task, state, action, move_key)
        kept = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, state)
        return (kept, alive & ~done), (positions_of(kept), jnp.where(alive, reward, 0))

    state = environment.reset(task, start_key)
    keys = jax.random.split(run_key, environment.horizon)
    _, (positions, rewards) = jax.lax.scan(step, (state, jnp.array(True)), keys)
    return jnp.concatenate([positions_of(state)[None], positions]), rewards


def _episode(environment: Locomotion, task: PyTree, policy: Any, key: Key[Array, ""]) -> tuple[np.ndarray, np.ndarray]:
    positions, rewards = _run(environment, task, policy, key)
    return np.asarray(positions, np.float64), np.asarray(rewards)


class _Frames:
    """A renderer of a model at given positions."""

    def __init__(self, name: str, size: tuple[int, int]):
        import mujoco

        self.model: Any = load_model(name)
        most = int(self.model.vis.global_.offwidth), int(self.model.vis.global_.offheight)
        if not isinstance(size, tuple | list) or len(size) != 2:
            raise InputError(f"video(size={size!r}) must be a width and a height in pixels, such as (320, 240).")
        width, height = (check_whole("video", "size", n, 1, limit) for n, limit in zip(size, most, strict=True))
        self.data: Any = mujoco.MjData(self.model)  # type: ignore[attr-defined]
        self.forward: Any = mujoco.mj_forward  # type: ignore[attr-defined]
        try:
            with warnings.catch_warnings(action="ignore"):
                self.renderer: Any = mujoco.Renderer(self.model, height=height, width=width)  # type: ignore[attr-defined]
        except Exception as error:
            raise InputError(_cannot_draw(error)) from error
        self.close = self.renderer.close

    def side_by_side(self, names: list[str], positions: tuple[np.ndarray, ...]) -> Any:
        """One frame of the video, with a picture of the body for each name."""
        from PIL import Image, ImageDraw

        columns = [self._render(body) for body in positions]
        height, width = columns[0].shape[:2]
        picture = Image.new("RGB", (width * len(columns), height + _CAPTION), "white")
        pen = ImageDraw.Draw(picture)
        for i, (name, body, column) in enumerate(zip(names, positions, columns, strict=True)):
            picture.paste(Image.fromarray(column), (i * width, _CAPTION))
            pen.text((i * width + 6, 4), f"{name}, at {body[0]:.1f} m", "black", font_size=13)
        return picture

    def _render(self, positions: np.ndarray) -> np.ndarray:
        self.data.qpos[:] = positions
        self.forward(self.model, self.data)
        self.renderer.update_scene(self.data, camera="track")
        return self.renderer.render()


def _cannot_draw(error: Exception) -> str:
    chosen = os.environ.get("MUJOCO_GL")
    tried = "with MUJOCO_GL unset" if chosen is None else f"with MUJOCO_GL={chosen}"
    text = f"MuJoCo cannot draw {tried} ({first_line(error)})"
    if not sys.platform.startswith("linux"):
        return f"{text}: run this where there is a display."
    return f"{text}: start Python with MUJOCO_GL=egl or, with the library OSMesa, MUJOCO_GL=osmesa."


def _write(path: Path, pictures: list[Any], interval: float) -> None:
    from PIL import Image

    # One palette for all frames, made from the first and the last, takes a fraction of the space of one for each.
    sample = Image.new("RGB", (pictures[0].width, 2 * pictures[0].height))
    sample.paste(pictures[0], (0, 0))
    sample.paste(pictures[-1], (0, pictures[0].height))
    palette = sample.quantize(_COLOURS)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    partial = path.with_name(path.name + ".part")
    frames[0].save(partial, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 * interval), loop=0)
    os.replace(partial, path)
