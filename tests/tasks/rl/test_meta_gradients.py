"""Estimated meta-gradients of small processes against the exact ones: which are unbiased given the path, and which not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax as ax
from adaptax.tasks import rl

pytestmark = pytest.mark.usefixtures("x64")

DISCOUNT, ALPHA = 0.9, 0.5
# Each use of samples has a size of its own, by which the draw recognises it.
SIZES = ax.Samples(step=1, curvature=2, target=3)


def setting():
    family = rl.tabular(2, 2, 3, 4, discount=DISCOUNT, terminal=False, seed=3)
    return family, jax.tree.map(lambda leaf: leaf[1], family.tasks), family.policy(4)


def draw_episodes(family, exact_steps):
    """A draw of episodes with weights. With `exact_steps` the inner steps get all trajectories, so that the path is exact."""

    def draw(mdp, policy, key, size):
        if exact_steps and size == SIZES.step:
            return family.enumerate(mdp, policy)
        return rl.rollout(family.environment, mdp, policy, key, size), jnp.full(size, 1 / size)

    return draw


def z_scores(surrogate, steps, count, reference=None, exact_steps=True, **options):
    """How many standard errors the mean over many keys lies from the exact meta-gradient."""
    family, mdp, policy = setting()
    inner = ax.Inner(steps, ALPHA)

    def loss(policy, batch):
        return batch[1] @ surrogate.per_episode(policy, batch[0])

    problem = ax.Resampling(loss, ax.Pool(family.tasks), draw_episodes(family, exact_steps))
    method = ax.MetaGradient(inner, samples=SIZES, **options)
    keys = jax.random.split(jax.random.key(2), count)
    run = jax.vmap(lambda policy, mdp, key: method(problem, policy, mdp, key)[1].logits, (None, None, 0))
    grads = np.asarray(jax.jit(run)(policy, mdp, keys))
    if reference is None:
        reference = ax.MetaGradient(inner)(family.exact, policy, ax.Task(mdp, mdp))[1].logits
    return (grads.mean(0) - reference) / (grads.std(0, ddof=1) / np.sqrt(count))


def some_values(trajectories, returns):
    return jnp.sin(trajectories.observations + 1.0)


UNBIASED = [rl.DiCE(DISCOUNT), rl.LoadedDiCE(DISCOUNT, baseline=some_values)]
BIASED = [rl.LikelihoodRatio(DISCOUNT), rl.LVC(DISCOUNT)]


@pytest.mark.slow
@pytest.mark.mission
def test_loaded_dice_is_unbiased_given_the_path():
    assert np.max(np.abs(z_scores(UNBIASED[1], 2, 5_000))) < 4


@pytest.mark.slow
@pytest.mark.mission
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("surrogate", UNBIASED)
def test_independent_samples_are_unbiased_given_the_path(surrogate, steps):
    assert np.max(np.abs(z_scores(surrogate, steps, 100_000))) < 4


@pytest.mark.slow
@pytest.mark.mission
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("surrogate", BIASED)
def test_surrogates_with_a_wrong_hessian_are_biased_given_the_path(surrogate, steps):
    assert np.max(np.abs(z_scores(surrogate, steps, 100_000))) > 10


def sampled_path_mean():
    """For N = 1 and S = 1: the mean over all sampled paths of the exact product along the path."""
    family, mdp, policy = setting()
    batch, probability = family.enumerate(mdp, policy)

    def exact(logits):
        return family.loss(rl.SoftmaxPolicy(logits), mdp)

    one = jax.tree.map(lambda leaf: leaf[:, None], batch)
    steps = jax.vmap(lambda b: jax.grad(lambda x: rl.DiCE(DISCOUNT)(rl.SoftmaxPolicy(x), b))(policy.logits))(one)
    last = jnp.einsum("n,nsa->sa", probability, jax.vmap(jax.grad(exact))(policy.logits - ALPHA * steps))
    product = jax.jvp(jax.grad(exact), (policy.logits,), (last,))[1]
    return last - ALPHA * product


@pytest.mark.slow
@pytest.mark.mission
def test_reused_samples_are_biased_and_fresh_ones_are_not():
    reference = sampled_path_mean()
    fresh = z_scores(rl.DiCE(DISCOUNT), 1, 100_000, reference, exact_steps=False)
    reused = z_scores(rl.DiCE(DISCOUNT), 1, 100_000, reference, exact_steps=False, independent_curvature=False)
    assert np.max(np.abs(fresh)) < 4 and np.max(np.abs(reused)) > 10


@pytest.mark.slow
@pytest.mark.mission
def test_exact_problem_is_solved_by_every_method():
    family, mdp, policy = setting()
    task, inner = ax.Task(mdp, mdp), ax.Inner(3, ALPHA)
    recursion = ax.MetaGradient(inner)(family.exact, policy, task)[1].logits
    through = ax.MetaGradient(inner, mode="backprop")(family.exact, policy, task)[1].logits
    np.testing.assert_allclose(recursion, through, rtol=1e-12)
