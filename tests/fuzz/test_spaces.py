"""Spaces of gymnasium, nested at random: values are those of its own `flatten` and `contains`, or refused in a sentence."""

import os

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adaptax as ax
from adaptax.tasks import rl
from adaptax.tasks.rl.spaces import Actions, Observations

N = int(os.environ.get("ADAPTAX_FUZZ", "20"))


def examples(count):
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(derandomize=True, deadline=None, max_examples=max(count, 2), suppress_health_check=slow)


class HalfBox(spaces.Box):
    """A box of which only the half with a positive sum belongs to the space."""

    def contains(self, x):
        return super().contains(x) and bool(np.sum(x) >= 0)


class Words(spaces.Space):
    """A space of a user's own."""

    def __init__(self):
        super().__init__(None, None)

    def sample(self, mask=None, probability=None):
        return "word"

    def contains(self, x):
        return isinstance(x, str)


SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
SEEDS = st.integers(0, 2**31 - 1)
INTS = st.sampled_from([np.int8, np.uint8, np.int32, np.int64])


@st.composite
def boxes(draw):
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64, np.float16, np.uint8, np.int64, np.int16, np.bool_]))
    shape = draw(st.sampled_from([(0,), (2, 0)]) if draw(st.integers(0, 9)) == 9 else SHAPES)
    if dtype == np.bool_:
        return spaces.Box(0, 1, shape, dtype)
    low, width = draw(st.integers(0, 100)), draw(st.integers(0, 100))
    if dtype == np.uint8:
        return spaces.Box(low, low + width, shape, dtype)
    low, high = low - 50, low - 50 + width
    if dtype in (np.float32, np.float64):
        low, high = draw(st.sampled_from([(low, high), (low / 3, high / 3), (low, high), (-np.inf, high), (low, np.inf)]))
    kind = HalfBox if draw(st.integers(0, 9)) == 9 and high > 0 else spaces.Box
    return kind(dtype(low), dtype(high), shape, dtype)


@st.composite
def finite(draw):
    dtype = draw(INTS)
    n, start = draw(st.integers(1, 5)), draw(st.integers(0 if dtype == np.uint8 else -60, 60))
    shape = draw(SHAPES)
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return spaces.Discrete(n, start=start, dtype=dtype)
    if kind == 1:
        rng = np.random.default_rng(draw(SEEDS))
        nvec = rng.integers(1, 5, shape or (2,))
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=rng.integers(0, 50, nvec.shape))
    return spaces.MultiBinary(shape or draw(st.integers(1, 4)))


OTHERS = st.sampled_from([
    lambda: spaces.Text(4), lambda: spaces.Sequence(spaces.Discrete(2)), lambda: spaces.OneOf([spaces.Discrete(2)]),
    lambda: spaces.Graph(spaces.Box(-1, 1, (2,)), None), Words,
]).map(lambda make: make())  # fmt: skip


def nested(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(spaces.Tuple),
            st.dictionaries(st.sampled_from(["a", "b", "it's", "z"]), inner, max_size=3).map(spaces.Dict),
        ),
        max_leaves=4,
    )


LEAVES = st.one_of(boxes(), boxes(), boxes(), finite(), finite(), finite(), OTHERS)
SPACES = nested(LEAVES)


def leaves_of(space):
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return [leaf for part in inner for leaf in leaves_of(part)]
    return [space]


def pairs(space, value):
    """The spaces within a space, each with its value."""
    if isinstance(space, spaces.Dict):
        return [pair for key, part in space.spaces.items() for pair in pairs(part, value[key])]
    if isinstance(space, spaces.Tuple):
        return [pair for part, x in zip(space.spaces, value, strict=True) for pair in pairs(part, x)]
    return [(space, value)]


def flat(space, value):
    """What gymnasium's `flatten` gives for all of them. (It fails itself where a part is an empty `Dict` or `Tuple`.)"""
    return np.concatenate([spaces.flatten(*pair).astype(np.float64) for pair in pairs(space, value)])


def is_numeric(space):
    kinds = spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary
    parts = leaves_of(space)
    return all(isinstance(part, kinds) for part in parts) and sum(map(spaces.flatdim, parts)) > 0


def seen(space, value):
    """What a policy sees, by gymnasium's flatten."""
    if isinstance(space, spaces.Box):
        return np.asarray(value).reshape(space.shape or (1,)).astype(np.float32)
    if isinstance(space, spaces.Discrete):
        return np.asarray(int(value) - int(space.start))
    return flat(space, value).astype(np.float32)


def refuses(make, *words):
    with pytest.raises(ax.InputError) as told:
        make()
    text = str(told.value)
    assert text.endswith(".") and "\n" not in text and ": " in text and all(word in text for word in words), text


def sample(space, seed):
    space.seed(seed)
    return space.sample()


@examples(N * 10)
@given(SPACES, SEEDS)
def test_observations_are_those_of_flatten_or_refused(space, seed):
    if not is_numeric(space):
        refuses(lambda: Observations(space), "observation_space")
        return
    observations, value = Observations(space), sample(space, seed)
    got = observations.read(value, "Echo", "in reset()")
    assert got.shape == observations.shape and got.dtype == observations.dtype
    np.testing.assert_array_equal(got.astype(np.float32), seen(space, value))
    assert observations.size == (int(space.n) if isinstance(space, spaces.Discrete) else got.size)


def unbounded(space):
    """The same space with boxes of all numbers."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: unbounded(part) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([unbounded(part) for part in space.spaces])
    return spaces.Box(-np.inf, np.inf, space.shape, np.float64) if isinstance(space, spaces.Box) else space


def in_types(space, value):
    """The same numbers in the types of the space."""
    if isinstance(space, spaces.Dict):
        return {key: in_types(part, value[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(in_types(part, x) for part, x in zip(space.spaces, value, strict=True))
    return np.asarray(value, space.dtype) if space.shape else np.asarray(value).astype(space.dtype)[()]


def holds(space, value):
    if any(leaf.dtype == np.bool_ for leaf in leaves_of(space)):
        return False  # gymnasium turns whatever it is into a boolean first
    try:
        with np.errstate(invalid="ignore"):
            return space.contains(value)
    except (TypeError, ValueError):
        return False


def spoilt(value, choice):
    """A value of another kind made out of this one."""
    if isinstance(value, dict) and value and choice % 2:
        return {key: spoilt(x, choice // 2) if i == 0 else x for i, (key, x) in enumerate(value.items())}
    if isinstance(value, tuple) and value and choice % 2:
        return (spoilt(value[0], choice // 2), *value[1:])
    return [
        lambda: None, lambda: "text", lambda: np.nan, lambda: np.asarray(value, object), lambda: [value, value],
        lambda: np.asarray(value, float) + 0.5, lambda: np.asarray(value, float) + np.inf, lambda: {"b": value},
        lambda: np.asarray(value, float) + 100, lambda: np.asarray(value, complex), lambda: (),
        lambda: np.asarray(value, float),
    ][choice % 12]()  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*Casting input x")
@examples(N * 10)
@given(SPACES.filter(is_numeric), SPACES, SEEDS, st.integers(0, 1000))
def test_values_that_the_space_does_not_hold_are_refused(space, other, seed, choice):
    observations, value = Observations(space), sample(space if choice < 700 else other, seed)
    if choice < 700:
        try:
            value = spoilt(value, choice)
        except (TypeError, ValueError):
            return
    try:
        got = observations.read(value, "Echo", "at step 3 of an episode")
    except ax.InputError as error:
        text = str(error)
        # Gymnasium takes complex numbers and objects for binary, and casts what is infinite to whole numbers.
        lax = ("of type complex", "of type object", "that is not finite")
        assert not holds(space, value) or any(words in text for words in lax)
        assert text.startswith("Echo gave ") and "at step 3 of an episode: make its " in text and text.endswith("."), text
        return
    # Only bounds of boxes and number types may differ from those of the space.
    free = unbounded(space)
    value = in_types(free, value)
    assert free.contains(value)
    np.testing.assert_array_equal(got.astype(np.float32), seen(free, value))


def serves(space):
    parts = leaves_of(space)
    if not is_numeric(space):
        return False
    real = [part for part in parts if isinstance(part, spaces.Box)]
    bounded = all(part.dtype.kind == "f" and part.is_bounded() for part in real)
    return len(real) in (0, len(parts)) and bounded


ALIKE = st.one_of(nested(finite()), nested(boxes()), SPACES)


@examples(N * 10)
@given(ALIKE, SEEDS, st.booleans())
def test_actions_belong_to_the_space_and_are_those_chosen(space, seed, beyond):
    if not serves(space):
        refuses(lambda: Actions(space), "action_space")
        return
    actions, rng = Actions(space), np.random.default_rng(seed)
    if actions.choices is None:
        row = rng.normal(0, 60, actions.size).astype(np.float32)
        if not any(isinstance(part, HalfBox) for part in leaves_of(space)):
            made = actions.make(row, "at step 1")
            assert space.contains(made)
            bounds = (np.concatenate([getattr(part, side).ravel() for part in leaves_of(space)]) for side in ("low", "high"))
            np.testing.assert_allclose(flat(space, made), np.clip(row, *bounds), rtol=1e-3)
        row[rng.integers(row.size)] = np.nan
        refuses(lambda: actions.make(row, "at step 1"), "The policy gave an action that is not finite")
        return
    counts = np.atleast_1d(actions.choices)
    row = rng.integers(0, counts).astype(np.int32)
    if beyond:
        entry = rng.integers(row.size)
        row[entry] = rng.choice([-1, counts[entry], counts[entry] + 7])
        refuses(lambda: actions.make(row, "at step 1"), "The policy gave the action", "takes indices up to")
        return
    made = actions.make(row, "at step 1")
    assert space.contains(made) and len(row) == actions.size and actions.outputs == counts.sum()
    binary = isinstance(space, spaces.MultiBinary) or any(isinstance(part, spaces.MultiBinary) for part in leaves_of(space))
    if not binary:
        np.testing.assert_array_equal(np.flatnonzero(flat(space, made)), np.cumsum([0, *counts[:-1]]) + row)


class Echo(gymnasium.Env):
    """Gives samples of its observation space, and keeps its actions."""

    task = 0.0

    def __init__(self, observation_space, action_space, log):
        self.observation_space, self.action_space, self.log = observation_space, action_space, log

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.sample(), {}

    def sample(self):
        value = sample(self.observation_space, int(self.np_random.integers(2**31)))
        self.log.append(("observation", value))
        return value

    def step(self, action):
        self.log.append(("action", action))
        return self.sample(), 1, False, False, {}


@examples(N // 10)
@given(SPACES.filter(is_numeric), ALIKE.filter(serves), SEEDS)
def test_whole_episodes(observed, acted, seed):
    if any(isinstance(part, HalfBox) for part in leaves_of(acted)):
        return
    log = []
    family = rl.gymnasium_family(lambda: Echo(observed, acted, log), lambda key: jnp.zeros(()), horizon=2)
    environment = family.draw.environment
    _, outputs = environment.sizes
    # A network that only sees how many observations there are.
    network = ax.models.mlp((1, outputs), key=jax.random.key(seed))
    blind = Blind(network)
    policy = (
        rl.GaussianPolicy(blind, outputs) if environment.choices is None else rl.CategoricalPolicy(blind, environment.choices)
    )
    batch = family.draw(jnp.zeros(()), policy, jax.random.key(seed), 1)
    values = [value for kind, value in log if kind == "observation"]
    for got, value in zip(batch.observations[0], values, strict=True):
        np.testing.assert_allclose(got, seen(observed, value), rtol=1e-6)
    chosen = [value for kind, value in log if kind == "action"]
    assert len(chosen) == 2 and all(acted.contains(action) for action in chosen)
    assert float(batch.returns[0]) == 2


class Blind(eqx.Module):
    network: object

    def __call__(self, observations):
        return self.network(jnp.ones((len(observations), 1)))
