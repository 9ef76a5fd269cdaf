"""Gymnasium environments: told their task, stepped in order, the same for the same seed; a failure is told in one sentence."""

import time
from fractions import Fraction

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

import adaptax as ax
from adaptax.errors import HostFailure, forget_failures, raise_failure
from adaptax.tasks import rl
from adaptax.training.resuming import describe, fingerprint


class Slope:
    """x moves by the action and by noise; the reward is x times the task; an episode ends where x passes 1."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, trouble=None, at=3):
        self.trouble, self.at, self.task = trouble, at, None

    def reset(self, seed):
        self.random, self.x, self.steps = np.random.default_rng(seed), np.zeros(1), 0
        return self.x, {}

    def step(self, action):
        assert np.all(np.abs(action) <= 1)
        self.steps += 1
        self.x = self.x + action + 0.1 * self.random.normal(size=1)
        reward, cut = float(self.x[0] * self.task), False
        if self.steps == self.at:
            if self.trouble == "raises":
                raise ValueError("the arm fell off\nat once")
            if self.trouble == "hangs":
                time.sleep(20)
            reward, cut = (np.nan if self.trouble == "nan" else reward), self.trouble == "cuts"
        return self.x, reward, bool(self.x[0] > 1), cut, {}


def family(horizon=5, **options):
    return rl.gymnasium_family(lambda: Slope(**options), lambda key: jax.random.uniform(key, minval=1.0), horizon=horizon)


def family_of(make, horizon=3):
    return rl.gymnasium_family(make, lambda key: key, horizon=horizon)


def policy(outputs=1):
    return rl.GaussianPolicy(ax.models.mlp((1, 4, outputs), key=jax.random.key(0)), outputs)


def test_episodes_are_those_of_a_plain_loop():
    problem = family(horizon=12)
    task, params = jnp.asarray(1.5), policy()
    keys = jax.random.split(jax.random.key(3), 2)
    batch = jax.jit(jax.vmap(lambda key: problem.draw(task, params, key, 6)))(keys)
    assert bool(jnp.any(batch.terminated)) and not bool(jnp.all(jnp.any(batch.terminated, axis=-1)))
    mask, actions = np.asarray(batch.mask), np.asarray(batch.actions)
    for i, key in enumerate(keys):
        seeds = jax.vmap(jax.random.bits)(jax.random.split(jax.random.split(key)[0], 6))
        for n, seed in enumerate(seeds):
            env = Slope()
            env.task = 1.5
            env.reset(seed=int(seed))
            for t in range(12):
                if not mask[i, n, t]:
                    assert batch.rewards[i, n, t] == 0
                    continue
                x, reward, done, _, _ = env.step(np.clip(actions[i, n, t].astype(np.float32), -1, 1))
                np.testing.assert_allclose(batch.observations[i, n, t + 1], x, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(batch.rewards[i, n, t], reward, rtol=1e-5, atol=1e-6)
                assert bool(batch.terminated[i, n, t]) == done
    simulators = problem.draw.environment.simulators
    assert not simulators.running and len(simulators.idle) == 12


OUTER = optax.sgd(0.1)
METHOD = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(2, 2, 2))


def trained(problem, steps=3, **options):
    state, history = ax.train(
        problem, policy(), METHOD, optimizer=OUTER, steps=steps, tasks_per_step=2, **options
    )  # fmt: skip
    return jax.tree.leaves(state.params), history


@pytest.mark.long
def test_a_run_is_decided_by_its_seed_and_failures_are_told_with_the_state_saved(tmp_path):
    problem = family()
    first, again = trained(problem), trained(problem)
    for a, b in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    # The same environments, one of which fails in the third meta-step of 60 environment steps.
    step = Slope.step

    def limited(self, action):
        limited.calls += 1
        if limited.calls == 150:
            raise ValueError("the arm fell off\nat once")
        return step(self, action)

    limited.calls = 0
    Slope.step = limited
    try:
        with pytest.raises(
            HostFailure, match=r"raised ValueError in step\(\) at step \d of an episode \(the arm fell off"
        ) as told:
            trained(problem, out=tmp_path / "run", checkpoint_every=1)
    finally:
        Slope.step = step
    assert "\n" not in str(told.value)
    resumed = trained(problem, out=tmp_path / "run", checkpoint_every=1, resume=True)
    for a, b in zip(first[0], resumed[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"trouble": "nan"}, "reward of nan at step 3 of an episode: make its rewards finite"),
        ({"trouble": "cuts"}, "cut an episode off at step 3, before the horizon of 5: pass horizon=3"),
        ({"trouble": "hangs"}, r"did not answer step\(\) within 1 seconds"),
    ],
)
def test_failures_of_the_host(options, match):
    problem = rl.gymnasium_family(lambda: Slope(**options), lambda key: jnp.ones(()), horizon=5, timeout=1)
    forget_failures()
    rewards = jax.jit(lambda key: problem.draw(jnp.ones(()), policy(), key, 2).rewards)(jax.random.key(0))
    assert bool(jnp.any(jnp.isnan(rewards)))
    with pytest.raises(HostFailure, match=match):
        raise_failure()
    raise_failure()
    with pytest.raises(HostFailure, match=match):
        ax.evaluate(problem, policy(), METHOD.inner, [0], 2, samples=METHOD.samples)


def test_a_saved_run_knows_the_family_again():
    """Neither addresses nor the episodes that were played are part of what a run says of its problem."""
    problem = family()
    before = describe(problem), fingerprint(problem)
    jax.block_until_ready(jax.jit(lambda key: problem.draw(jnp.ones(()), policy(), key, 2).rewards)(jax.random.key(0)))
    assert (describe(problem), fingerprint(problem)) == before and " at 0x" not in before[0]
    assert fingerprint(family()) == before[1] != fingerprint(family(at=4))


class Odd(Slope):
    """An environment that gives something else than it should."""

    def __init__(self, at_reset=None, at_step=None):
        super().__init__()
        self.at_reset, self.at_step = at_reset, at_step

    def reset(self, seed):
        given = super().reset(seed)
        return given if self.at_reset is None else self.at_reset(*given)

    def step(self, action):
        given = super().step(action)
        return given if self.at_step is None else self.at_step(*given)


@pytest.mark.parametrize(
    "reset, step, match",
    [
        (lambda o, i: o, None, r"^Odd.reset\(\) returned a ndarray: return the pair \(observation, info\)"),
        (lambda o, i: (o, i, i), None, r"^Odd.reset\(\) returned a tuple of 3: return the pair"),
        (
            lambda o, i: (np.zeros(2), i),
            None,
            r"^Odd gave .* shape \(2,\) where observation_space has \(1,\) in reset\(\): make",
        ),
        (lambda o, i: (o * np.nan, i), None, r"^Odd gave .* not finite \(nan at \[0\] of observation_space\) in reset\(\)"),
        (lambda o, i: (None, i), None, r"^Odd gave an observation of type NoneType for observation_space, Box\(.*in reset\(\)"),
        (None, lambda o, r, d, c, i: (o, r, d, i), r"^Odd.step\(\) returned 4 values: return the five \(observation, reward,"),
        (None, lambda o, r, d, c, i: o, r"^Odd.step\(\) returned a ndarray: return the five"),
        (None, lambda o, r, d, c, i: (o[None], r, d, c, i), r"^Odd gave .* shape \(1, 1\) where .* \(1,\) at step 1 of"),
        (
            None,
            lambda o, r, d, c, i: (o + np.inf, r, d, c, i),
            r"^Odd gave an observation that is not finite .* at step 1 of",
        ),
        (None, lambda o, r, d, c, i: (o * 1e300, r, d, c, i), r"^Odd gave an observation that is not finite .* at step 1 of"),
        (
            None,
            lambda o, r, d, c, i: (o, np.ones(2), d, c, i),
            r"^Odd gave a reward of ndarray of shape \(2,\) at step 1 .*one number",
        ),
        (
            None,
            lambda o, r, d, c, i: (o, None, d, c, i),
            r"^Odd gave a reward of None at step 1 of an episode: return one number",
        ),
        (
            None,
            lambda o, r, d, c, i: (o, 1e300, d, c, i),
            r"^Odd gave a reward of 1e\+300 at step 1 of .*: make its rewards finite",
        ),
        (
            None,
            lambda o, r, d, c, i: (o, r, None, c, i),
            r"^Odd gave None for terminated at step 1 of .*: return True or False",
        ),
        (None, lambda o, r, d, c, i: (o, r, d, "no", i), r"^Odd gave 'no' for truncated at step 1"),
    ],
)
def test_what_an_environment_gives_otherwise_than_it_says_is_told(reset, step, match):
    """At once where the call was not within a compiled program."""
    problem = rl.gymnasium_family(lambda: Odd(reset, step), lambda key: jnp.ones(()), horizon=2)
    with np.errstate(all="ignore"), pytest.raises(HostFailure, match=match) as told:
        problem.draw(jnp.ones(()), policy(), jax.random.key(0), 2)
    assert str(told.value).endswith(".") and "\n" not in str(told.value)


def test_rewards_and_ends_may_be_numbers_of_any_kind():
    for kind in (np.float64, np.array, lambda r: np.array([r]), jnp.asarray, lambda r: Fraction(r)):
        problem = rl.gymnasium_family(
            lambda kind=kind: Odd(at_step=lambda o, r, d, c, i: (o, kind(0.5), np.bool_(False), 0, None)),
            lambda key: jnp.ones(()),
            horizon=2,
        )
        batch = problem.draw(jnp.ones(()), policy(), jax.random.key(0), 2)
        np.testing.assert_array_equal(batch.rewards, np.full((2, 2), 0.5))


def test_failures_are_raised_by_every_call_that_draws():
    problem = rl.gymnasium_family(lambda: Slope("nan", at=1), lambda key: jnp.ones(()), horizon=2)
    key, task = jax.random.key(0), jnp.ones(())
    method = ax.MetaGradient(ax.Inner(0, 0.1), samples=METHOD.samples)
    calls = [
        lambda: ax.adapt(problem, policy(), task, METHOD.inner, key, samples=METHOD.samples),
        lambda: method(problem, policy(), task, key),
        lambda: method.batch(problem, policy(), jnp.ones(1), jax.random.split(key, 1)),
    ]
    for call in calls:
        with pytest.raises(HostFailure, match="Slope gave a reward of nan at step 1"):
            call()


def test_a_time_limit_is_the_default_horizon_and_the_longest():
    def make():
        return gymnasium.wrappers.TimeLimit(Gym(), 4)

    assert rl.gymnasium_family(make, lambda key: key).draw.environment.horizon == 4
    assert rl.gymnasium_family(make, lambda key: key, horizon=3).draw.environment.horizon == 3
    with pytest.raises(ax.InputError, match="horizon=5 is longer than the environment's time limit of 4 steps: pass horizon=4"):
        rl.gymnasium_family(make, lambda key: key, horizon=5)


class Gym(gymnasium.Env):
    """Ends at once, and is told nothing itself."""

    observation_space, action_space = spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,))
    task = None

    def reset(self, seed=None, options=None):
        return np.full(1, self.task, np.float32), {}

    def step(self, action):
        return np.full(1, self.task, np.float32), 0, True, True, {}


class Teller(gymnasium.Wrapper):
    def set_task(self, task):
        self.unwrapped.task = 2 * task


def test_a_wrapper_may_be_told_the_task_and_an_end_at_the_limit_is_an_end():
    make = lambda: gymnasium.wrappers.TimeLimit(Teller(Gym()), 3)  # noqa: E731
    batch = rl.gymnasium_family(make, lambda key: key).draw(jnp.asarray(3.0), policy(), jax.random.key(0), 2)
    np.testing.assert_array_equal(batch.observations, np.full((2, 4, 1), 6))
    np.testing.assert_array_equal(batch.terminated, [[True, False, False]] * 2)
    assert not batch.timed_out.any()


class Deaf(Slope):
    __slots__ = ()

    def __init__(self):
        pass


class Old(Slope):
    def reset(self):
        return np.zeros(1)


def unlike():
    """A make() whose environments differ."""
    bounds = iter([1.0, 2.0])

    def make():
        env = Slope()
        env.action_space = spaces.Box(-1.0, next(bounds), (1,))
        return env

    return make


ONE = Slope()


class Boundless(Slope):
    action_space = spaces.Box(-np.inf, 1.0, (1,))


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: rl.gymnasium_family(3, None), "make must be a function"),
        (lambda: rl.gymnasium_family(Slope, None, timeout=0), "timeout=0.*must be a positive number"),
        (lambda: rl.gymnasium_family(Deaf, None), r"Deaf cannot be told its task: give it set_task\(task\)"),
        (lambda: rl.gymnasium_family(lambda: 3, None), "int has no reset"),
        (lambda: rl.gymnasium_family("Ant-v5", None), r"not str: pass one such as lambda: gymnasium.make\("),
        (lambda: family_of(lambda: gymnasium.make("Pendulums-v1")), r"make\(\) raised NameNotFound \(Environment `Pendulums`"),
        (lambda: family_of(lambda: 1 / 0), r"make\(\) raised ZeroDivisionError \(division by zero\): mend it"),
        (lambda: family_of(lambda: None), "NoneType has no reset"),
        (lambda: family_of(Old), r"Old.reset\(\) takes no seed: give it gymnasium's interface"),
        (lambda: family_of(lambda: ONE), "returned one Slope twice: let every"),
        (lambda: family_of(unlike()), "a Slope with another action_space than before"),
        (
            lambda: family_of(lambda: gymnasium.vector.SyncVectorEnv([Gym, Gym])),
            "SyncVectorEnv, which steps several environments",
        ),
        (lambda: family_of(Slope, horizon=0), "horizon=0 must be a whole number of at least 1"),
        (lambda: family_of(Slope, horizon=2.5), "horizon=2.5 must be a whole number"),
        (lambda: rl.gymnasium_family(Slope, lambda key: key), "no time limit of its own: pass horizon="),
        (lambda: rl.gymnasium_family(Boundless, lambda key: key, horizon=3), "bounds.*must be finite"),
        (lambda: family().draw(jnp.ones(()), policy(2), jax.random.key(0), 2), r"takes actions of shape \(1,\).*gives \(2,\)"),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ax.InputError, match=match):
        make()
