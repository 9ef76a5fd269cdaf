"""mujoco-mjx moves both bodies as the C engine does.

Largest differences after one interval (five steps) from 100 states that random torques led to, half of them in contact,
with mujoco 4.0.0 and mujoco-mjx 3.17.0, in metres and radians, and those per second:

| | positions | velocities |
|---|---|---|
| half cheetah, float32 | 8e-6 | 2.4e-4 |
| half cheetah, float64 | 1e-14 | 3e-13 |
| ant, float32 and float64 | 0.010 | 1.1 |
| ant with the elliptic cone, float32 and float64 | 8e-4 | 0.08 |

So the cheetah's are rounding, and the ant's are not. mujoco-mjx turns the friction pyramid of a capsule that stands on the
plane within 30 degrees of upright, where the C engine aligns it with the capsule; an elliptic cone, which has no corners to
turn, takes that away. The rest is the engine's Runge-Kutta step, which is not quite the textbook's (5e-4 in one step).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.tasks import rl
from adaptax.tasks.rl import physics

pytestmark = pytest.mark.slow
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")

# For each body the index of its height among the positions, and the positions at rest.
BODIES = {"half_cheetah": (1, np.zeros(9)), "ant": (2, np.array([0, 0, 0.75, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1.0]))}


@pytest.fixture
def elliptic():
    """The ant with an elliptic friction cone, for one test."""
    model = physics.load_model("ant")
    before = model.opt.cone
    physics._device_model.cache_clear()
    model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    yield
    model.opt.cone = before
    physics._device_model.cache_clear()


def states_of(name, model):
    """50 states in contact and 50 out of it, as float32 has them, each after up to 2 s of random torques."""
    random, data, (height, rest) = np.random.default_rng(0), mujoco.MjData(model), BODIES[name]
    found = {True: [], False: []}
    while min(map(len, found.values())) < 50:
        mujoco.mj_resetData(model, data)
        data.qpos[:] = rest + random.uniform(-0.1, 0.1, model.nq)
        data.qvel[:] = 0.1 * random.normal(size=model.nv)
        data.qpos[height] += 2 * (random.random() < 0.5)
        for _ in range(random.integers(1, 40)):
            data.ctrl[:] = random.uniform(-1, 1, model.nu)
            mujoco.mj_step(model, data, 5)
        mujoco.mj_forward(model, data)
        found[data.ncon > 0].append(np.concatenate([data.qpos, data.qvel]))
    states = np.array(found[True][:50] + found[False][:50], np.float32)
    return states, random.uniform(-1, 1, (100, model.nu)).astype(np.float32)


def largest_differences(name):
    """The largest differences in positions and in velocities after one interval; the bodies must move far more than that."""
    model = physics.load_model(name)
    states, torques = states_of(name, model)
    data, expected = mujoco.MjData(model), []
    for state, torque in zip(states, torques, strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = state[: model.nq], state[model.nq :], torque
        mujoco.mj_step(model, data, physics.FRAME_SKIP[name])
        expected.append(np.concatenate([data.qpos, data.qvel]))
    kind = jnp.result_type(float)
    start = jnp.asarray(states[:, : model.nq], kind), jnp.asarray(states[:, model.nq :], kind)
    engine = physics.MJX(name)
    moved = jnp.concatenate(jax.jit(jax.vmap(engine.advance))(start, jnp.asarray(torques, kind)), axis=1)
    off, change = (np.max(np.abs(x - np.array(expected)), axis=0) for x in (np.asarray(moved), states))
    assert np.all([np.max(change[: model.nq]) > 0.1, np.max(change[model.nq :]) > 1])
    return np.max(off[: model.nq]), np.max(off[model.nq :])


def test_the_half_cheetah_in_single_precision():
    positions, velocities = largest_differences("half_cheetah")
    assert positions < 2e-5 and velocities < 6e-4


def test_the_half_cheetah_in_double_precision(x64):
    physics._device_model.cache_clear()
    positions, velocities = largest_differences("half_cheetah")
    physics._device_model.cache_clear()
    assert positions < 3e-14 and velocities < 8e-13


def test_the_ant():
    positions, velocities = largest_differences("ant")
    assert positions < 0.03 and velocities < 3


def test_the_ant_without_corners_of_friction(elliptic):
    positions, velocities = largest_differences("ant")
    assert positions < 2e-3 and velocities < 0.2


def test_a_rollout_on_the_device():
    problem = rl.cheetah(horizon=3, physics="mjx")
    policy = rl.GaussianPolicy(ax.models.mlp((17, 4, 6), key=jax.random.key(0)), 6)
    ours, engine = (
        jax.jit(each.draw, static_argnums=3)(jnp.array(1.0), policy, jax.random.key(2), 4)
        for each in (problem, rl.cheetah(horizon=3, physics="mujoco"))
    )
    assert ours.observations.shape == (4, 4, 17) and bool(jnp.all(ours.mask))
    # The same start, noise and torques, up to what one interval adds each time.
    np.testing.assert_allclose(ours.observations, engine.observations, rtol=0, atol=3 * 6e-4)
    np.testing.assert_allclose(ours.rewards, engine.rewards, rtol=0, atol=1e-3)
