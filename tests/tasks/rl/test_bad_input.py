"""One sentence that names the remedy."""

import jax
import jax.numpy as jnp
import pytest

import adaptax as ax
from adaptax.tasks import rl


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: rl.Navigation(0), r"Navigation\(horizon=0\) must be a whole number of at least 1"),
        (lambda: rl.Navigation(radius=-1.0), "radius=-1.0.*positive"),
        (lambda: rl.navigation("circle"), 'must be "square" or "semicircle"'),
        (lambda: rl.tabular(actions=1), "actions=1.*at least 2"),
        (lambda: rl.tabular(discount=1.5), "discount=1.5.*from 0 to 1"),
        (lambda: rl.DiCE(2.0), "discount=2.0.*from 0 to 1"),
        (lambda: rl.LVC(gae_lambda=-0.1), "gae_lambda=-0.1.*from 0 to 1"),
        (lambda: rl.LoadedDiCE(baseline=3.0), "baseline= must be a function"),
        (lambda: rl.LinearBaseline(ridge=0.0), "ridge=0.0.*positive"),
        (lambda: rl.NetworkBaseline((32, 0)), r"hidden=\(32, 0\).*positive whole numbers"),
        (lambda: rl.NetworkBaseline(32), "hidden=32.*positive whole numbers"),
        (lambda: rl.NetworkBaseline(steps=0), "steps=0.*at least 1"),
        (lambda: rl.NetworkBaseline(learning_rate=-1.0), "learning_rate=-1.0.*positive"),
        (lambda: rl.SoftmaxPolicy(jnp.zeros(3)), r"shape \(states, actions\), not \(3,\)"),
        (lambda: rl.GaussianPolicy(3, 2), "must be a network"),
        (lambda: rl.GaussianPolicy(jnp.tanh, 0), "size=0.*at least 1"),
        (lambda: rl.GaussianPolicy(jnp.tanh, 2, std=0.0), "std=0.0.*positive"),
        (lambda: rl.problem(3, None, None), "Environment, not int: subclass it"),
        (lambda: rl.environment_steps(ax.Reptile(ax.Inner(1, 0.1)), rl.navigation()), "of ax.MetaGradient, not of Reptile"),
        (lambda: rl.environment_steps(ax.MetaGradient(ax.Inner()), ax.tasks.sinusoid_resampling()), "needs a problem made by"),
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
