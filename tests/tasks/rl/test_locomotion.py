"""HalfCheetah and Ant: the physics is gymnasium's own, step for step, on any number of threads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax._batching import Traced
from adaptax.tasks import rl
from adaptax.tasks.rl import physics

mujoco = pytest.importorskip("mujoco", reason="needs the extra rl: pip install 'adaptax[rl]'")
gymnasium = pytest.importorskip("gymnasium", reason="needs the extra rl: pip install 'adaptax[rl]'")
NAMES = {"half_cheetah": "HalfCheetah-v5", "ant": "Ant-v5"}


@pytest.mark.filterwarnings("ignore")
def real(name):
    env = gymnasium.make(NAMES[name]).unwrapped
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_gymnasium(name, capfd):
    env, engine, random = real(name), physics.MuJoCo(name), np.random.default_rng(0)
    assert engine.interval == env.dt
    state = engine.start(*(jnp.asarray(x, jnp.float32) for x in (env.data.qpos, env.data.qvel)))
    env.set_state(*(np.asarray(x, np.float64) for x in engine.coordinates(state)))
    advance, contacts = jax.jit(engine.advance), 0
    for _ in range(30):
        control = random.uniform(-1, 1, env.model.nu).astype(np.float32)
        # The engine starts the solver cold at every interval.
        env.data.qacc_warmstart[:] = 0
        env.do_simulation(control.astype(np.float64), env.frame_skip)
        contacts += env.data.ncon > 0
        state = advance(state, jnp.asarray(control))
        positions, velocities = engine.coordinates(state)
        np.testing.assert_array_equal(positions, env.data.qpos.astype(np.float32))
        np.testing.assert_array_equal(velocities, env.data.qvel.astype(np.float32))
    assert contacts > 5


@pytest.mark.slow
def test_one_call_for_many_episodes_gives_what_one_call_for_each_gives():
    problem = rl.cheetah("velocity", horizon=6)
    policy = rl.GaussianPolicy(ax.models.mlp((17, 8, 6), key=jax.random.key(0)), 6)
    tasks, keys = jnp.array([0.5, 1.5]), jax.random.split(jax.random.key(1), 2)

    def draw(task, key):
        return problem.draw(task, policy, key, 5)

    together = jax.jit(jax.vmap(draw))(tasks, keys)
    alone = [jax.jit(draw)(*pair) for pair in zip(tasks, keys, strict=True)]
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.observations[i], one.observations, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(together.rewards[i], one.rewards, rtol=1e-4, atol=1e-4)


def test_all_tasks_are_drawn_together_where_the_engine_is_called_on_the_host():
    problem, policy = rl.cheetah(horizon=3), rl.GaussianPolicy(ax.models.mlp((17, 8, 6), key=jax.random.key(0)), 6)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    traced = Traced(lambda x: problem.draw(x[0], policy, x[1], 2).rewards, (jax.ShapeDtypeStruct((8,), jnp.float32), keys))
    assert traced.host and traced.at_a_time(8) == 8


@pytest.mark.parametrize("goal, task", [("direction", -1.0), ("velocity", 1.5)])
def test_rewards_of_the_cheetah(goal, task):
    environment = rl.cheetah(goal).draw.environment
    state = environment.reset(jnp.asarray(task), jax.random.key(0))
    action = jnp.array([2.0, -0.5, 0.0, 0.0, 0.25, -3.0])
    new, reward, done = environment.step(jnp.asarray(task), state, action, jax.random.key(1))
    before, after = (float(environment.physics.coordinates(s)[0][0]) for s in (state, new))
    speed = (after - before) / 0.05
    gain = task * speed if goal == "direction" else -abs(speed - task)
    assert float(reward) == pytest.approx(gain - 0.05 * (1 + 0.25 + 0.0625 + 1), abs=1e-3)
    assert not done and environment.observe(task, new).shape == (17,)
    assert float(environment.observe(task, new)[0]) == float(environment.physics.coordinates(new)[0][1])


def test_rewards_and_ends_of_the_ant():
    walk, place = rl.ant("velocity").draw.environment, rl.ant("position").draw.environment
    goal = jnp.array([1.0, -2.0])
    state = place.reset(goal, jax.random.key(0))
    new, reward, done = place.step(goal, state, jnp.zeros(8), jax.random.key(1))
    at = place.physics.coordinates(new)[0]
    assert float(reward) == pytest.approx(-float(jnp.sum(jnp.abs(at[:2] - goal))), abs=1e-4) and not done
    assert (place.sizes, walk.sizes) == ((29, 8), (27, 8)) and place.observe(goal, new).shape == (29,)
    for height, ends in ((0.75, False), (0.19, True), (1.01, True)):
        bonus, end = walk.survival(at.at[2].set(height))
        assert bool(end) == ends and float(bonus) == pytest.approx(0.0 if ends else 0.05)
    assert not place.survival(at.at[2].set(0.1))[1]


def test_goals_are_spread_as_said():
    keys = jax.random.split(jax.random.key(0), 4000)
    problems = rl.cheetah(), rl.cheetah("velocity"), rl.ant("position")
    directions, speeds, places = (jax.vmap(problem.sample_task)(keys) for problem in problems)
    assert set(np.unique(directions)) == {-1.0, 1.0} and abs(float(directions.mean())) < 4 / 4000**0.5
    assert float(speeds.min()) >= 0 and float(speeds.max()) < 2 and abs(float(speeds.mean()) - 1) < 4 * 0.58 / 4000**0.5
    area = jnp.sum(places**2, axis=1) / 9
    assert float(area.max()) <= 1 and abs(float(area.mean()) - 0.5) < 4 * 0.29 / 4000**0.5


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: rl.cheetah("position"), r"HalfCheetah\(goal='position'\) must be 'direction' or 'velocity'"),
        (lambda: rl.ant(horizon=0), r"horizon=0 must be a whole number"),
        (lambda: rl.cheetah(physics="bullet"), "physics='bullet' must be \"mujoco\""),
        (
            lambda: rl.cheetah().draw(
                jnp.ones(()), rl.GaussianPolicy(ax.models.mlp((17, 4, 2), key=jax.random.key(0)), 2), jax.random.key(0), 2
            ),
            r"takes 6 torques, and the policy gives \(2,\)",
        ),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ax.InputError, match=match):
        make()


def test_without_mujoco_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mujoco", None)
    with pytest.raises(ax.InputError, match=r"needs MuJoCo and the models of gymnasium: pip install 'adaptax\[rl\]'"):
        physics.load_model.__wrapped__("ant")


@pytest.mark.slow
def test_a_run_is_decided_by_its_seed():
    problem = rl.cheetah(horizon=5)
    policy = rl.GaussianPolicy(ax.models.mlp((17, 8, 6), key=jax.random.key(0)), 6)
    method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(3, 3, 3))
    outer = ax.outer.TrustRegion(rl.mean_kl)
    runs = [ax.train(problem, policy, method, optimizer=outer, steps=3, tasks_per_step=2)[1]["loss"] for _ in range(2)]
    np.testing.assert_array_equal(*runs)
