"""Mistakes in reinforcement learning are refused in one sentence that names the remedy; NumPy's numbers are accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.tasks import rl


def large_images():
    """Pictures of 84 by 84 pixels in colour, without their memory."""
    yes = jnp.ones((20, 2), bool)
    pictures = jax.ShapeDtypeStruct((20, 3, 84, 84, 3), jnp.float32)
    return rl.Trajectories(pictures, yes, jnp.zeros((20, 2)), jnp.zeros((20, 2)), yes, ~yes)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: rl.Navigation(0), r"horizon=0 must be a whole number of at least 1"),
        (lambda: rl.Navigation(radius=-1.0), r"Navigation\(radius=-1.0\) must be a positive number"),
        (lambda: rl.navigation("circle"), 'must be "square" or "semicircle"'),
        (lambda: rl.tabular(actions=1), "actions=1.*at least 2"),
        (lambda: rl.tabular(discount=1.5), "discount=1.5.*at least 0 and at most 1"),
        (lambda: rl.DiCE(2.0), "discount=2.0.*at least 0 and at most 1"),
        (lambda: rl.LVC(gae_lambda=-0.1), "gae_lambda=-0.1.*at least 0 and at most 1"),
        (lambda: rl.LoadedDiCE(baseline=3.0), "baseline= must be a function"),
        (lambda: rl.LinearBaseline(ridge=0.0), r"ridge=0.0\) must be a positive number"),
        (lambda: rl.NetworkBaseline((32, 0)), r"NetworkBaseline\(hidden=0\) must be a whole number of at least 1"),
        (lambda: rl.NetworkBaseline(32), "hidden=32.*must be a tuple of widths"),
        (lambda: rl.NetworkBaseline(steps=0), "steps=0.*at least 1"),
        (lambda: rl.NetworkBaseline(learning_rate=-1.0), "learning_rate=-1.0.*must be a positive number"),
        (lambda: rl.SoftmaxPolicy(jnp.zeros(3)), r"shape \(states, actions\), not \(3,\)"),
        (lambda: rl.GaussianPolicy(3, 2), "must be a network"),
        (lambda: rl.GaussianPolicy(jnp.tanh, 0), "size=0.*at least 1"),
        (lambda: rl.GaussianPolicy(jnp.tanh, 2, std=0.0), "std=0.0.*must be a positive number"),
        (lambda: rl.CategoricalPolicy(3, 2), r"CategoricalPolicy\(logits=int\) must be a network"),
        (
            lambda: rl.CategoricalPolicy(jnp.tanh, (2, 0)),
            r"CategoricalPolicy\(choices=0\) must be a whole number of at least 1",
        ),
        (lambda: rl.CategoricalPolicy(jnp.tanh, ()), r"CategoricalPolicy\(choices=\(\)\) must be a whole number"),
        (lambda: rl.LinearBaseline()(large_images(), jnp.zeros((20, 2))), "takes 134 GiB to fit 20 .*: use baseline=.*Network"),
        (lambda: rl.problem(3, None, None), "Environment, not int: subclass it"),
        (lambda: rl.environment_steps(ax.Reptile(ax.Inner(1, 0.1)), rl.navigation()), "of ax.MetaGradient, not of Reptile"),
        (lambda: rl.environment_steps(ax.MetaGradient(ax.Inner()), ax.tasks.sinusoid_resampling()), "needs a problem made by"),
        (lambda: rl.environment_steps(ax.MetaGradient(ax.Inner()), rl.navigation(), 0.5), "tasks=0.5.*whole number"),
        (lambda: rl.Navigation(sparse=1), "sparse=1.*True or False"),
        (lambda: rl.LVC(normalise="yes"), "normalise='yes' must be True or False"),
        (lambda: rl.navigation().draw(jnp.zeros(2), jnp.zeros(2), jax.random.key(0), 3), "must be a policy with sample"),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ax.InputError, match=match):
        make()


def test_a_policy_that_does_not_fit():
    policy = rl.GaussianPolicy(ax.models.mlp((2, 3), key=jax.random.key(0)), 2)
    with pytest.raises(ax.InputError, match=r"returns shape \(3, 3\) where the actions have \(3, 2\): change its outputs"):
        rl.navigation().draw(jnp.zeros(2), policy, jax.random.key(0), 3)


def test_too_many_trajectories():
    family = rl.tabular(5, 3, 5, 1)
    mdp = jax.tree.map(lambda leaf: leaf[0], family.tasks)
    with pytest.raises(ax.InputError, match="There are 3796875 trajectories: use fewer states"):
        family.enumerate(mdp, family.policy())


@pytest.mark.parametrize("whole, real, flag", [(np.int64, np.float64, np.bool_), (np.uint8, np.float32, np.array)])
def test_numbers_of_numpy_are_kept_as_those_of_python(whole, real, flag):
    """Static fields must be equal and hash alike, or programs would be compiled again."""
    for of_numpy, of_python in [
        (rl.Navigation(whole(7), flag(True), real(0.5), flag(True)), rl.Navigation(7, True, 0.5, True)),
        (rl.LVC(real(0.5), gae_lambda=real(0.25), normalise=flag(True)), rl.LVC(0.5, gae_lambda=0.25, normalise=True)),
        (rl.Clipped(clip=real(0.25)), rl.Clipped(clip=0.25)),
        (rl.LinearBaseline(real(0.5), flag(False)), rl.LinearBaseline(0.5, False)),
        (rl.NetworkBaseline([whole(8)], whole(3), real(0.5), whole(1)), rl.NetworkBaseline((8,), 3, 0.5, 1)),
        (rl.TabularEnvironment(whole(4)), rl.TabularEnvironment(4)),
    ]:
        assert jax.tree.structure(of_numpy) == jax.tree.structure(of_python)
        assert hash(jax.tree.structure(of_numpy)) == hash(jax.tree.structure(of_python))
        assert {type(value) for value in vars(of_numpy).values()} <= {int, float, bool, tuple, type(None)}
    assert rl.tabular(whole(2), whole(2), whole(2), whole(1), discount=real(0.5)).horizon == 2
    policy = rl.GaussianPolicy(ax.models.mlp((2, 2), key=jax.random.key(0)), whole(2), std=real(1))
    assert policy.log_std.shape == (2,)
    problem = rl.navigation(horizon=whole(2))
    assert problem.draw(jnp.zeros(2), policy, jax.random.key(0), whole(3)).rewards.shape == (3, 2)
    method = ax.MetaGradient(ax.Inner(1, 0.1), samples=ax.Samples(2, 2, 2))
    assert type(rl.environment_steps(method, problem, whole(3))) is int
