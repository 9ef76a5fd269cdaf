"""Surrogates against processes solved exactly: every claim of docs/theory.md, section 2.1, by listing all trajectories."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.tasks import rl

pytestmark = pytest.mark.usefixtures("x64")

DISCOUNT = 0.8
ENDS = [pytest.param(False, marks=pytest.mark.slow), True]


def listed(family, mdp, policy):
    return eqx.filter_jit(rl.Tabular.enumerate)(family, mdp, policy)


def setting(horizon=3, terminal=False, seed=0):
    family = rl.tabular(3, 2, horizon, 4, discount=DISCOUNT, terminal=terminal, seed=seed)
    mdp = jax.tree.map(lambda leaf: leaf[1], family.tasks)
    return family, mdp, family.policy(1)


def some_values(trajectories, returns):
    """A baseline that has nothing to do with the true values, and depends on the past as well as on the state."""
    o = trajectories.observations
    past = jnp.cumsum(jnp.pad(trajectories.rewards, ((0, 0), (1, 0))), axis=1)
    return jnp.cos(o + 1.0) + 0.3 * jnp.arange(o.shape[1]) + 0.2 * past


def mean_loss(family, mdp, policy, surrogate):
    """The expected loss at other logits, on trajectories of `policy`."""
    batch, probability = family.enumerate(mdp, policy)
    return lambda logits: probability @ surrogate.per_episode(rl.SoftmaxPolicy(logits), batch)


def derivatives(function, logits):
    def flat(x):
        return function(x.reshape(logits.shape))

    x = logits.ravel()
    return flat(x), jax.grad(flat)(x), jax.hessian(flat)(x)


@eqx.filter_jit
def both(family, mdp, policy, surrogate):
    """The derivatives of the expected loss, and those of the exact one."""
    got = derivatives(mean_loss(family, mdp, policy, surrogate), policy.logits)
    return got, derivatives(lambda logits: family.loss(rl.SoftmaxPolicy(logits), mdp), policy.logits)


@eqx.filter_jit
def elsewhere(family, mdp, policy, surrogate, logits):
    """The expected and the exact loss at other logits."""
    exact = jax.vmap(lambda x: family.loss(rl.SoftmaxPolicy(x), mdp))(logits)
    return jax.vmap(mean_loss(family, mdp, policy, surrogate))(logits), exact


def relative_errors(got, exact):
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, exact, strict=True)]


def errors(family, mdp, policy, surrogate):
    """Relative errors of the expected value, gradient and Hessian."""
    return relative_errors(*both(family, mdp, policy, surrogate))


@pytest.mark.parametrize("terminal", ENDS)
def test_listing_and_dynamic_programming_agree(terminal):
    family, mdp, policy = setting(terminal=terminal)
    batch, probability = listed(family, mdp, policy)
    assert abs(probability.sum() - 1) < 1e-12
    discounted = (batch.rewards * DISCOUNT ** np.arange(3)).sum(1)
    assert abs(probability @ discounted + family.loss(policy, mdp)) < 1e-12
    # Conditional means of returns to go are the values.
    to_go, values = jax.jit(lambda b: (rl.returns_to_go(b, DISCOUNT), family.values(policy, mdp)))(batch)
    batch, probability, to_go, values = jax.tree.map(np.asarray, (batch, probability, to_go, values))
    for t in range(3):
        for s in range(2 if terminal else 3):
            weight = probability * batch.mask[:, t] * (batch.observations[:, t] == s)
            if weight.sum() > 0:
                assert abs(weight @ to_go[:, t] / weight.sum() - values[t, s]) < 1e-12
    assert bool(batch.terminated.any()) == terminal


@pytest.mark.parametrize("terminal", ENDS)
def test_rollouts_have_the_listed_distribution(terminal):
    family, mdp, policy = setting(terminal=terminal)
    count = 40_000
    drawn = jax.jit(lambda key: rl.rollout(family.environment, mdp, policy, key, count))(jax.random.key(0))
    batch, probability = jax.tree.map(np.asarray, listed(family, mdp, policy))
    np.testing.assert_allclose(drawn.log_ratios(policy), 0, atol=1e-14)
    drawn = jax.tree.map(np.asarray, drawn)
    for of in (
        lambda b: b.rewards, lambda b: 1.0 * b.mask, lambda b: 1.0 * b.terminated, lambda b: np.where(b.mask, b.log_probs, 0),
        lambda b: b.observations, lambda b: b.rewards[:, :2] * b.rewards[:, 1:], lambda b: 1.0 * b.timed_out[:, None],
    ):  # fmt: skip
        mean = probability @ of(batch)
        live = np.asarray(of(drawn), float)
        error = np.sqrt((probability @ (of(batch) - mean) ** 2) / count) + 1e-12
        assert np.all(np.abs(live.mean(0) - mean) < 4.5 * error)
    assert not np.any(drawn.rewards[~drawn.mask])


UNBIASED = {
    "dice": rl.DiCE(DISCOUNT),
    "loaded": rl.LoadedDiCE(DISCOUNT),
    "loaded with a baseline": rl.LoadedDiCE(DISCOUNT, baseline=some_values),
}


@pytest.mark.parametrize("terminal", ENDS)
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("dice", "loaded")), "loaded with a baseline"]
)
def test_dice_is_the_objective_as_a_function(name, terminal):
    family, mdp, policy = setting(terminal=terminal)
    assert max(errors(family, mdp, policy, UNBIASED[name])) < 1e-10
    # The two agree at other parameters than those of the collection too, hence in all derivatives.
    others = jnp.stack([family.policy(seed, scale=2.0).logits for seed in (5, 6, 7)])
    np.testing.assert_allclose(*elsewhere(family, mdp, policy, UNBIASED[name], others), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("gae_lambda", [0.0, 0.6])
def test_other_lambdas_need_the_true_values(gae_lambda):
    family, mdp, policy = setting(terminal=True)
    true = family.exact_baseline(policy, mdp)
    assert max(errors(family, mdp, policy, rl.LoadedDiCE(DISCOUNT, baseline=true, gae_lambda=gae_lambda))) < 1e-10
    wrong = errors(family, mdp, policy, rl.LoadedDiCE(DISCOUNT, baseline=some_values, gae_lambda=gae_lambda))
    assert wrong[0] < 1e-10 and min(wrong[1:]) > 0.05


def test_dice_with_and_without_advantages_is_one_number():
    family, mdp, policy = setting(terminal=True)
    batch, _ = listed(family, mdp, policy)
    other = family.policy(9)
    one, two = (s.per_episode(other, batch) for s in (rl.DiCE(DISCOUNT), rl.LoadedDiCE(DISCOUNT)))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)
    for surrogate in (rl.DiCE(DISCOUNT, per_step=True), rl.LoadedDiCE(DISCOUNT, per_step=True)):
        np.testing.assert_allclose(surrogate.per_episode(other, batch), one / 3, rtol=0, atol=1e-12)


def visits(mdp, policy, horizon):
    """The probabilities of the states at each time, of episodes that have not ended."""
    s, a = jnp.indices(mdp.reward.shape)
    pi = jnp.exp(policy.log_prob(s.ravel(), a.ravel()).reshape(s.shape))
    d, all_d = mdp.start, []
    for _ in range(horizon):
        all_d.append(d)
        d = jnp.where(mdp.terminal, 0, jnp.einsum("s,sa,sat->t", d, pi, mdp.transition))
    return jnp.stack(all_d), pi


@eqx.filter_jit
def omitted(family, mdp, policy):
    """The terms of the Hessian of -J that LVC leaves out: derivatives of visits times those of the mean advantage."""
    values = family.values(policy, mdp)
    ahead = jnp.where(mdp.terminal, 0, values[1:])
    q = mdp.reward + DISCOUNT * jnp.einsum("sat,ht->hsa", mdp.transition, ahead)
    advantage = q - values[:-1, :, None]

    def at(x):
        return visits(mdp, rl.SoftmaxPolicy(x.reshape(policy.logits.shape)), family.horizon)

    slope_d, slope_pi = jax.jacobian(at)(policy.logits.ravel())
    h = jnp.einsum("sak,hsa->hsk", slope_pi, advantage)
    cross = jnp.einsum("h,hsk,hsl->kl", DISCOUNT ** jnp.arange(family.horizon), slope_d, h)
    return -(cross + cross.T)


@pytest.mark.parametrize("terminal", ENDS)
@pytest.mark.parametrize("baseline", [pytest.param(None, marks=pytest.mark.slow), some_values])
def test_lvc_leaves_out_exactly_what_the_theory_says(terminal, baseline):
    family, mdp, policy = setting(terminal=terminal)
    surrogate = rl.LVC(DISCOUNT, baseline=baseline)
    (value, grad, hessian), exact = both(family, mdp, policy, surrogate)
    assert abs(value - exact[0]) < 1e-10
    np.testing.assert_allclose(grad, exact[1], atol=1e-10)
    missing = omitted(family, mdp, policy)
    assert jnp.linalg.norm(missing) > 0.1 * jnp.linalg.norm(exact[2])
    np.testing.assert_allclose(hessian + missing, exact[2], atol=1e-10)


@pytest.mark.slow
def test_lvc_is_exact_where_no_action_has_a_sequel():
    family, mdp, policy = setting(horizon=1)
    assert max(errors(family, mdp, policy, rl.LVC(DISCOUNT))) < 1e-10
    # The plain surrogate lacks the scores' outer products times advantages even then.
    assert errors(family, mdp, policy, rl.LikelihoodRatio(DISCOUNT))[2] > 0.3


def test_the_plain_surrogate_has_the_gradient_alone():
    family, mdp, policy = setting()
    value, grad, hessian = errors(family, mdp, policy, rl.LikelihoodRatio(DISCOUNT))
    assert max(value, grad) < 1e-10 and hessian > 0.3


@eqx.filter_jit
def paired(family, mdp, policy, surrogate, other):
    """The expected gradient on batches of two episodes, by listing all pairs, and the expected loss elsewhere."""
    batch, probability = family.enumerate(mdp, policy)
    i, j = (x.ravel() for x in np.indices((len(probability),) * 2))
    pairs = jax.tree.map(lambda leaf: jnp.stack([leaf[i], leaf[j]], axis=1), batch)

    def mean(logits):
        return probability[i] * probability[j] @ jax.vmap(functools.partial(surrogate, rl.SoftmaxPolicy(logits)))(pairs)

    return jax.grad(mean)(policy.logits), mean(other.logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "baseline, biased",
    [
        (rl.LinearBaseline(ridge=0.1), False),
        (rl.LinearBaseline(ridge=0.1, leave_one_out=False), True),
        (rl.NetworkBaseline((3,), steps=5, learning_rate=0.1), False),
    ],
)
def test_a_baseline_fitted_to_the_other_episodes_has_no_bias(baseline, biased):
    family = rl.tabular(2, 2, 2, 1, discount=DISCOUNT)
    mdp, policy, other = jax.tree.map(lambda leaf: leaf[0], family.tasks), family.policy(1), family.policy(2)
    exact = jax.grad(lambda logits: family.loss(rl.SoftmaxPolicy(logits), mdp))(policy.logits), family.loss(other, mdp)
    off = relative_errors(paired(family, mdp, policy, rl.LoadedDiCE(DISCOUNT, baseline=baseline), other), exact)
    assert min(off) > 0.02 if biased else max(off) < 1e-10
