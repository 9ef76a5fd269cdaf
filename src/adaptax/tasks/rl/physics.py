"""The engines that compiled programs simulate bodies with: MuJoCo's C engine on the host, or mujoco-mjx on the device."""

import abc
import contextlib
import functools
import importlib
import io
import os
import queue
import re
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Float

from adaptax._tree import first_line
from adaptax.errors import InputError

# The models, each with the number of physics steps that one control is held for.
FRAME_SKIP = {"half_cheetah": 5, "ant": 5}
_MISSING = "needs MuJoCo and the models of gymnasium: pip install 'adaptax[rl]'."


class Physics(eqx.Module):
    """An engine with a model. Its states are pytrees of arrays, from which `coordinates` takes positions and velocities.

    Arguments:
        name: "half_cheetah" or "ant", gymnasium's models (static).

    Every control is held for five physics steps, as in gymnasium.
    """

    name: str = eqx.field(static=True)
    # Whether `start` and `advance` call the host.
    host: eqx.AbstractClassVar[bool]

    def __check_init__(self):
        if self.name not in FRAME_SKIP:
            raise InputError(f"There is no model {self.name!r}: use {' or '.join(FRAME_SKIP)}.")
        load_model(self.name)

    @property
    def interval(self) -> float:
        """Seconds between two controls."""
        return float(load_model(self.name).opt.timestep) * FRAME_SKIP[self.name]

    @abc.abstractmethod
    def start(self, positions: Float[Array, " nq"], velocities: Float[Array, " nv"]) -> Any:
        """The state with these positions and velocities, and with everything else at rest."""

    @abc.abstractmethod
    def advance(self, state: Any, control: Float[Array, " nu"]) -> Any:
        """The state after one interval, over which the control is held."""

    @abc.abstractmethod
    def coordinates(self, state: Any) -> tuple[Float[Array, " nq"], Float[Array, " nv"]]:
        """Positions and velocities."""


class MuJoCo(Physics):
    """MuJoCo's C engine, in double precision: one call of the host advances all episodes of the batch, on all cores.

    A state is the engine's, bit for bit, beside a float32 copy, and every interval starts the constraint solver cold. So an
    episode depends on nothing but its own states, and is the same on any number of threads and devices.
    """

    host: ClassVar[bool] = True

    def start(self, positions, velocities):
        return self._call(_callback(_start, self.name, 1), positions, velocities)

    def advance(self, state, control):
        return self._call(_callback(_advance, self.name, jax.local_device_count()), state[0], control)

    def coordinates(self, state):
        nq, nv = load_model(self.name).nq, load_model(self.name).nv
        return state[1][1 : 1 + nq], state[1][1 + nq : 1 + nq + nv]

    def _call(self, function, *arguments):
        size = _state_size(self.name)
        shapes = jax.ShapeDtypeStruct((2 * size,), jnp.uint32), jax.ShapeDtypeStruct((size,), jnp.float32)
        call = buffer_callback(function, shapes, vmap_method="broadcast_all")
        return call(*map(jax.lax.stop_gradient, arguments))


class MJX(Physics):
    """mujoco-mjx, in the precision of the device: slower than the C engine on a CPU, made for large batches on accelerators.

    After one interval the half cheetah's positions differ from the C engine's by at most 8e-6, its velocities by 2e-4. The
    ant's differ by up to 0.01 and 1.1, because mujoco-mjx 3.17 turns the friction pyramid of a foot that stands within 30
    degrees of upright (docs/theory.md, section 10.4).
    """

    host: ClassVar[bool] = False

    def __check_init__(self):
        _mjx()

    def start(self, positions, velocities):
        return positions, velocities

    def advance(self, state, control):
        mjx, model = _mjx(), _device_model(self.name)
        data = mjx.make_data(load_model(self.name)).replace(qpos=state[0], qvel=state[1], ctrl=control)

        def step(data, _):
            return mjx.step(model, data), None

        data = jax.lax.scan(step, data, length=FRAME_SKIP[self.name])[0]
        return data.qpos, data.qvel

    def coordinates(self, state):
        return state


@functools.cache
def load_model(name: str) -> Any:
    """The model, compiled by MuJoCo from gymnasium's description."""
    try:
        import gymnasium
        import mujoco
    except ImportError as error:
        raise InputError(f"The environment {name!r} {_MISSING}") from error
    except Exception as error:
        # The import loads the graphics library that MUJOCO_GL names, even if nothing is to be drawn, and fails without it.
        text = f"MuJoCo cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({first_line(error)})"
        raise InputError(
            f"{text}: unset MUJOCO_GL or, to draw, set it to egl or osmesa, whichever library is installed."
        ) from error
    path = os.path.join(os.path.dirname(gymnasium.__file__), "envs", "mujoco", "assets", f"{name}.xml")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    # The attribute settotalmass is deprecated; MuJoCo recommends mj_setTotalmass instead.
    mass = re.search(r'settotalmass="([\d.]+)"', text)
    model = mujoco.MjModel.from_xml_string(text if mass is None else text.replace(mass.group(0), ""))  # type: ignore[attr-defined]
    if mass is not None:
        mujoco.mj_setTotalmass(model, float(mass.group(1)))  # type: ignore[attr-defined]
        mujoco.mj_setConst(model, mujoco.MjData(model))  # type: ignore[attr-defined]
    return model


@functools.cache
def _device_model(name: str) -> Any:
    with jax.ensure_compile_time_eval():
        return _mjx().put_model(load_model(name))


def _mjx() -> Any:
    try:
        # The import prints to standard output, where only results belong, that another engine is missing.
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module("mujoco.mjx")
    except ImportError as error:
        raise InputError('physics="mjx" needs mujoco-mjx: pip install \'adaptax[rl]\', or use physics="mujoco".') from error


@functools.cache
def _state_size(name: str) -> int:
    import mujoco

    return mujoco.mj_stateSize(load_model(name), mujoco.mjtState.mjSTATE_FULLPHYSICS)  # type: ignore[attr-defined]


@functools.cache
def _callback(function: Any, name: str, devices: int) -> Any:
    """The callback, which writes into the program's buffers. It is cached so that programs are not compiled again."""

    def call(context: Any, out: Any, *arguments: Any) -> None:
        states = np.ascontiguousarray(function(name, devices, *map(np.asarray, arguments)))
        np.asarray(out[0])[...] = states.view(np.uint32)
        np.asarray(out[1])[...] = states

    return call


def _start(name: str, devices: int, positions: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    state = np.zeros((*positions.shape[:-1], _state_size(name)))
    nq = positions.shape[-1]
    state[..., 1 : 1 + nq] = positions
    state[..., 1 + nq : 1 + nq + velocities.shape[-1]] = velocities
    return state


def _advance(name: str, devices: int, bits: np.ndarray, control: np.ndarray) -> np.ndarray:
    model = load_model(name)
    states = np.ascontiguousarray(bits).view(np.float64)
    lead = states.shape[:-1]
    control = control.astype(np.float64).reshape(-1, 1, model.nu)
    held = np.broadcast_to(control, (len(control), FRAME_SKIP[name], model.nu))
    with _ThreadPool(name, max(1, _cores() // devices)) as (runner, data):
        path, _ = runner.rollout(model, data, states.reshape(len(control), -1), held)
    return path[:, -1].reshape(*lead, -1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _ThreadPool:
    """Threads with their scratch data, for one call at a time. Devices call at the same time, so each needs its own."""

    idle: ClassVar[dict[tuple[str, int], queue.LifoQueue]] = {}

    def __init__(self, name: str, threads: int):
        self.name, self.threads = name, threads
        self.queue = self.idle.setdefault((name, threads), queue.LifoQueue())

    def __enter__(self) -> tuple[Any, list]:
        import mujoco
        from mujoco import rollout

        try:
            self.lent = self.queue.get_nowait()
        except queue.Empty:
            data = [mujoco.MjData(load_model(self.name)) for _ in range(self.threads)]  # type: ignore[attr-defined]
            self.lent = rollout.Rollout(nthread=self.threads if self.threads > 1 else 0), data
        return self.lent

    def __exit__(self, *_: Any) -> None:
        self.queue.put(self.lent)
