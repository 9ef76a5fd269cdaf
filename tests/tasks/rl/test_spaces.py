"""Every kind of gymnasium space is served as it is meant, as what is observed and as what is done, or refused by name."""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import adaptax as ax
from adaptax.errors import HostFailure
from adaptax.tasks import rl


class Recorder(gymnasium.Env):
    """Gives samples of its observation space, and keeps what it gave and what it was given."""

    task = 0.0

    def __init__(self, observation_space=None, action_space=None, log=None):
        self.observation_space = spaces.Box(-1, 1, (1,)) if observation_space is None else observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.log = log

    def observe(self):
        self.observation_space.seed(int(self.np_random.integers(1000)))
        value = self.observation_space.sample()
        if self.log is not None:
            self.log.append(value)
        return value

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        if self.log is not None:
            self.log.append(action)
        return self.observe(), 1.0, False, False, {}


class Constant(eqx.Module):
    """A network that gives the same numbers whatever is observed."""

    out: jax.Array

    def __call__(self, observations):
        return jnp.broadcast_to(self.out, (len(observations), len(self.out)))


def family_of(make, **options):
    return rl.gymnasium_family(make, lambda key: jnp.zeros(()), **{"horizon": 3, **options})


def episode(family, policy=None, seed=0, size=1):
    environment = family.draw.environment
    if policy is None:
        kind = rl.GaussianPolicy if environment.choices is None else rl.CategoricalPolicy
        policy = kind(Constant(jnp.zeros(environment.sizes[1])), environment.choices or environment.sizes[1])
    return family.draw(jnp.zeros(()), policy, jax.random.key(seed), size)


class Walk(gymnasium.Env):
    """x moves by the action, which is the reward's only part."""

    observation_space = spaces.Box(-100, 100, (1,))
    action_space = spaces.Discrete(3, start=-1)
    task = 1.0
    seen = set()  # noqa: RUF012

    def reset(self, seed=None, options=None):
        self.x = 0.0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.seen.add(action)
        self.x += action
        return np.float32([self.x]), float(self.x), False, False, {}


class Uniform(eqx.Module):
    w: jax.Array

    def sample(self, observations, key):
        return jax.random.randint(key, (len(observations),), 0, 3)

    def log_prob(self, observations, actions):
        return self.w * jnp.zeros(len(observations))


def test_discrete_actions_begin_at_their_start():
    returns = family_of(Walk, horizon=10).draw(jnp.ones(()), Uniform(jnp.ones(())), jax.random.key(0), 200).returns
    assert Walk.seen == {-1, 0, 1}
    # A step of variance 2/3 counts in all rewards that follow: 10, 9, ..., 1 times.
    deviation = np.sqrt(2 / 3 * sum(n**2 for n in range(1, 11)) / 200)
    assert abs(float(returns.mean())) < 4 * deviation
    np.testing.assert_allclose(float(returns.std()), deviation * np.sqrt(200), rtol=0.15)


@pytest.mark.parametrize(
    "space, made, dtype",
    [
        (
            spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[5, -1], [0, 7]]),
            lambda a: a.reshape(2, 2) + [[5, -1], [0, 7]],
            np.int64,
        ),
        (spaces.MultiDiscrete([3, 200], dtype=np.uint8), lambda a: a, np.uint8),
        (spaces.MultiBinary((2, 3)), lambda a: a.reshape(2, 3), np.int8),
        (spaces.Box(-1, 1, (2, 3), np.float64), lambda a: np.clip(a.astype(float), -1, 1).reshape(2, 3), np.float64),
        (spaces.Box(np.float16(-0.1), np.float16(0.1), (), np.float16), lambda a: np.clip(a[0], -0.1, 0.1), np.float16),
        (spaces.Box(np.float32([0, 2]), np.float32([1, 2])), lambda a: np.clip(a, [0, 2], [1, 2]), np.float32),
        (spaces.Box(-0.1, 0.1, (1,), np.float64), lambda a: np.clip(a.astype(float), -0.1, 0.1), np.float64),
    ],
)
def test_actions_are_what_the_policy_chose_in_the_types_of_the_space(space, made, dtype):
    log = []
    batch = episode(family_of(lambda: Recorder(action_space=space, log=log)))
    for given, chosen in zip(log[1::2], np.asarray(batch.actions[0]), strict=True):
        assert given.dtype == dtype and given.shape == space.shape
        np.testing.assert_allclose(given, made(chosen), rtol=1e-3 if dtype == np.float16 else 1e-7)


def test_nested_actions_take_the_parts_one_after_another():
    log = []
    space = spaces.Dict(
        {"turn": spaces.Discrete(3, start=-1), "lamps": spaces.Tuple([spaces.MultiBinary(2), spaces.Discrete(2)])}
    )
    batch = episode(family_of(lambda: Recorder(action_space=space, log=log)), size=1)
    for given, chosen in zip(log[1::2], np.asarray(batch.actions[0]).tolist(), strict=True):
        lamps, last = given["lamps"]
        assert [*lamps.tolist(), last, given["turn"] + 1] == chosen  # gymnasium sorts the keys


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"b": spaces.Box(-1, 1, (2, 2)), "a": spaces.Discrete(3, start=4), "c": spaces.MultiBinary((2, 2))}),
        spaces.Tuple(
            [spaces.MultiDiscrete([[2, 3]], start=[[1, 1]]), spaces.Dict({"x": spaces.Box(0, 255, (1, 2), np.uint8)})]
        ),
        spaces.MultiDiscrete([4, 2]),
        spaces.MultiBinary([3, 2]),
    ],
)
def test_nested_and_multiple_observations_are_flattened_as_gymnasium_flattens_them(space):
    log = []
    family = family_of(lambda: Recorder(space, log=log))
    batch = episode(family)
    assert family.draw.environment.sizes[0] == spaces.flatdim(space) == batch.observations.shape[-1]
    for seen, value in zip(batch.observations[0], log[::2], strict=True):
        np.testing.assert_allclose(seen, spaces.flatten(space, value), rtol=1e-6)


@pytest.mark.parametrize(
    "space, shape",
    [
        (spaces.Box(0, 255, (4, 5, 3), np.uint8), (4, 5, 3)),
        (spaces.Box(-np.inf, np.inf, ()), (1,)),
        (spaces.Box(np.float64(-np.inf), 1.0, (2,), np.float64), (2,)),
        (spaces.Box(7, 7, (1,), np.int64), (1,)),
        (spaces.Box(0, 1, (3,), np.bool_), (3,)),
    ],
)
def test_boxes_are_observed_as_they_are(space, shape):
    log = []
    batch = episode(family_of(lambda: Recorder(space, log=log)))
    assert batch.observations.shape == (1, 4, *shape) and batch.observations.dtype == jnp.float32
    for seen, value in zip(batch.observations[0], log[::2], strict=True):
        np.testing.assert_allclose(seen, np.reshape(value, shape).astype(np.float32), rtol=1e-6)


def test_wide_numbers_stay_exact_in_double_precision():
    with jax.enable_x64(True):
        space = spaces.Box(2**40, 2**40 + 9, (1,), np.int64)
        log = []
        batch = episode(family_of(lambda: Recorder(space, log=log)))
        np.testing.assert_array_equal(batch.observations[0], np.asarray(log[::2], np.float64))


def test_a_discrete_observation_is_the_index_of_a_table():
    log = []
    family = family_of(lambda: Recorder(spaces.Discrete(4, start=10), log=log))
    assert family.draw.environment.sizes == (4, 2)
    batch = episode(family, rl.SoftmaxPolicy(jnp.zeros((4, 2))))
    assert batch.observations.dtype == jnp.int32
    np.testing.assert_array_equal(batch.observations[0] + 10, log[::2])


def test_cartpole_is_played_and_adapted_to_by_a_policy_of_the_library():
    """Wrapped as `gymnasium.make` wraps it, and told its task by a wrapper of the user's."""

    class Longer(gymnasium.Wrapper):
        def set_task(self, task):
            self.unwrapped.length = float(task)

    make = lambda: Longer(gymnasium.make("CartPole-v1", max_episode_steps=20))  # noqa: E731
    family = rl.gymnasium_family(make, lambda key: jax.random.uniform(key, minval=0.4, maxval=0.8))
    assert family.draw.environment.horizon == 20 and family.draw.environment.sizes == (4, 2)
    policy = rl.CategoricalPolicy(ax.models.mlp((4, 8, 2), key=jax.random.key(0)), family.draw.environment.choices)
    key = jax.random.key(1)
    batch = family.draw(jnp.asarray(0.7), policy, key, 2)
    seeds = jax.vmap(jax.random.bits)(jax.random.split(jax.random.split(key)[0], 2))
    for i in range(2):
        env = make()
        env.set_task(0.7)
        observation, _ = env.reset(seed=int(seeds[i]))
        for t in range(int(batch.mask[i].sum())):
            np.testing.assert_allclose(batch.observations[i, t], observation, rtol=1e-6)
            observation, *_ = env.step(int(batch.actions[i, t]))
        np.testing.assert_allclose(batch.observations[i, t + 1], observation, rtol=1e-6)
    adapted = ax.adapt(family, policy, jnp.asarray(0.7), ax.Inner(1, 0.1), key, samples=ax.Samples(4, 4, 4)).params
    pairs = zip(jax.tree.leaves(adapted), jax.tree.leaves(policy), strict=True)
    assert all(bool(jnp.all(jnp.isfinite(a)) & jnp.any(a != b)) for a, b in pairs)


class Quarter(spaces.Box):
    """A box of which only the part with positive entries belongs to the space."""

    def contains(self, x):
        return super().contains(x) and bool(np.all(x > 0))


class Own(spaces.Space):
    pass


class LikeABox:
    low, high, shape, dtype = -np.ones(1), np.ones(1), (1,), np.dtype(np.float32)


BOX = spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize("side", ["observation_space", "action_space"])
@pytest.mark.parametrize(
    "space, words",
    [
        (spaces.Text(5), r"is Text\(1, 5, charset=.*a kind that is not served: wrap the environment"),
        (spaces.Graph(BOX, None), r"is Graph\(.*a kind that is not served"),
        (spaces.Sequence(BOX), r"is Sequence\(.*a kind that is not served"),
        (spaces.OneOf([BOX, spaces.Discrete(2)]), r"is OneOf\(.*a kind that is not served"),
        (Own((1,), np.float32), r"is <.*Own object.*a kind that is not served"),
        (spaces.Dict({"a": spaces.Tuple([BOX, spaces.Text(3)])}), r"\['a'\]\[1\] is Text\("),
        (LikeABox(), r"is a .*LikeABox and not a gymnasium space: make it from gymnasium.spaces"),
        (None, "is a builtins.NoneType and not a gymnasium space"),
        (spaces.Dict({}), r"Dict\(\), holds no number: give it at least one"),
        (spaces.Box(0, 1, (0,)), "holds no number"),
        (spaces.Discrete(100, start=100, dtype=np.int8), r"ends beyond its type's 127: widen its dtype"),
    ],
)
def test_spaces_that_are_not_served_are_named_before_anything_runs(side, space, words):
    with pytest.raises(ax.InputError, match=f"^The environment's {side}.*{words}"):
        family_of(lambda: type("Env", (Recorder,), {side: property(lambda self: space, lambda self, _: None)})())


@pytest.mark.parametrize(
    "space, words",
    [
        (spaces.Box(-np.inf, np.inf, (2,)), r"bounds of the environment's action_space, Box\(-inf, inf.*must be finite"),
        (spaces.Box(0, np.inf, (2,)), "must be finite"),
        (spaces.Box(0, 255, (2,), np.uint8), r"Box\(0, 255, \(2,\), uint8\), holds no real numbers: make it a MultiDiscrete"),
        (spaces.Box(0, 1, (2,), np.bool_), "holds no real numbers: make it a MultiBinary"),
        (spaces.Tuple([BOX, spaces.Discrete(2)]), "mixes boxes with finitely many choices"),
    ],
)
def test_actions_that_no_policy_gives_are_named(space, words):
    with pytest.raises(ax.InputError, match=words):
        family_of(lambda: Recorder(action_space=space))


@pytest.mark.parametrize(
    "space, policy, words",
    [
        (
            spaces.Discrete(3),
            rl.GaussianPolicy(Constant(jnp.zeros(1)), 1),
            r"shape \(\) that are whole numbers.*Categorical.*, 3\)",
        ),
        (spaces.MultiDiscrete([3, 4]), Uniform(jnp.ones(())), r"shape \(2,\).*gives \(\), int32: use .*\(network, \(3, 4\)\)"),
        (
            BOX,
            rl.CategoricalPolicy(Constant(jnp.zeros(2)), 2),
            r"are real numbers.*use ax.tasks.rl.GaussianPolicy\(network, 1\)",
        ),
        (
            spaces.Discrete(3),
            rl.CategoricalPolicy(Constant(jnp.zeros(4)), 4),
            "has 3 choices, and the policy 4: change choices=",
        ),
        (spaces.Discrete(2), rl.SoftmaxPolicy(jnp.zeros((1, 3))), r"a table for \(1, 3\) .* the environment has \(1, 2\)"),
        (
            spaces.Discrete(2),
            rl.SoftmaxPolicy(jnp.zeros((1, 2))),
            r"a table of states, and the observations are float32\[1, 1\]",
        ),
        (
            spaces.Discrete(2),
            rl.CategoricalPolicy(Constant(jnp.zeros(3)), 2),
            r"returns shape \(1, 3\) where the choices have \(1, 2\)",
        ),
    ],
)
def test_policies_that_do_not_fit_are_refused_with_the_one_that_does(space, policy, words):
    with pytest.raises(ax.InputError, match=words):
        episode(family_of(lambda: Recorder(action_space=space)), policy)


def test_a_policy_that_chooses_beyond_the_space_is_told():
    with pytest.raises(
        HostFailure, match=r"The policy gave the action \[2\].*indices up to \[1\], at step \d.*make it for 2 choices"
    ):
        episode(family_of(lambda: Recorder()), Uniform(jnp.ones(())), size=20)
    policy = rl.GaussianPolicy(Constant(jnp.full(1, jnp.nan)), 1)
    with pytest.raises(HostFailure, match=r"policy gave an action that is not finite \(\[nan\]\) at step 1.*smaller step size"):
        episode(family_of(lambda: Recorder(action_space=BOX)), policy)
    with pytest.raises(
        HostFailure, match=r"which its space, Quarter, does not contain, at step \d of an episode: use a space of gymnasium"
    ):
        episode(family_of(lambda: Recorder(action_space=Quarter(-1, 1, (1,)))), size=20)


def test_a_categorical_policy_has_the_probabilities_of_its_logits():
    logits = jnp.array([0.3, -1.0, 2.0, 0.5, 0.1])
    policy = rl.CategoricalPolicy(Constant(logits), (3, 2))
    first, second = (np.exp(part) / np.exp(part).sum() for part in np.split(np.asarray(logits, float), [3]))
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(2), indexing="ij"), -1).reshape(-1, 2)
    got = jnp.exp(policy.log_prob(jnp.zeros((6, 1)), pairs)).reshape(3, 2)
    np.testing.assert_allclose(got, first[:, None] * second, rtol=1e-5)
    drawn = policy.sample(jnp.zeros((20_000, 1)), jax.random.key(0))
    for column, p in zip(np.asarray(drawn).T, (first, second), strict=True):
        np.testing.assert_allclose(np.bincount(column, minlength=len(p)) / 20_000, p, atol=4 * 0.5 / np.sqrt(20_000))
    other = rl.CategoricalPolicy(Constant(jnp.zeros(5)), (3, 2))
    divergence = np.sum(first * np.log(3 * first)) + np.sum(second * np.log(2 * second))
    np.testing.assert_allclose(policy.divergence(other, jnp.zeros((2, 1))), divergence, rtol=1e-5)
    # The logarithm's gradient is the indicator less the probabilities.
    slope = eqx.filter_grad(lambda p: p.log_prob(jnp.zeros((1, 1)), jnp.array([[2, 0]]))[0])(policy).logits.out
    np.testing.assert_allclose(slope, np.array([0, 0, 1, 1, 0]) - np.concatenate([first, second]), rtol=1e-5)
