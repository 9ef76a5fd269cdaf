"""The outer step of proximal meta-policy search: against a loop written plainly, on decision processes solved exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax
from adaptax.outer import Proximal
from adaptax.tasks import rl

ALPHA, B = 0.3, 2
SAMPLES = ax.Samples(4, 4, 5)


def setting(outer, steps):
    family = rl.tabular(2, 2, 2, B, discount=0.9)
    problem = family.resampling(rl.LVC(0.9))
    method = ax.MetaGradient(ax.Inner(steps, ALPHA), samples=SAMPLES, independent_curvature=False)
    return family, problem, ax.make_step(problem, method, outer, tasks_per_step=B)


def plainly(logits, problem, step, start, weight):
    """The objective of the first meta-step, with a Python loop over the inner steps."""
    keys = step.keys(start.key, start.step, jnp.arange(B))
    slope = jax.grad(lambda x, batch: problem.loss(rl.SoftmaxPolicy(x), batch))
    draw = lambda task, x, size, key: problem.draw(task, rl.SoftmaxPolicy(x), key, size)  # noqa: E731

    def one(task, key):
        key, old = jax.random.fold_in(key, 1), start.params.logits
        then, now, batches = old, logits, []
        for j in range(step.method.inner.steps):
            batches.append(draw(task, then, SAMPLES.step, jax.random.fold_in(jax.random.fold_in(key, 0), j)))
            then, now = (x - ALPHA * slope(x, batches[-1]) for x in (then, now))
        last = draw(task, then, SAMPLES.target, jax.random.fold_in(key, 2))
        # The objective of proximal policy optimisation in its plain form: the advantages are the returns to go.
        ratio, advantage = jnp.exp(last.log_ratios(rl.SoftmaxPolicy(now))), rl.returns_to_go(last, 0.9) * 0.9 ** jnp.arange(2)
        clipped = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        apart = rl.mean_kl(rl.SoftmaxPolicy(old), rl.SoftmaxPolicy(logits), batches[0])
        return weight * apart - jnp.mean(jnp.sum(clipped, axis=1))

    return jnp.mean(jax.vmap(one)(step.sample(keys), keys))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_epochs_are_those_of_a_plain_loop_and_the_exact_return_rises(x64, steps):
    weight, rate = 0.7, 0.5
    outer = Proximal(rl.Clipped(0.9), optax.sgd(rate), epochs=3, divergence=rl.mean_kl, weight=weight)
    family, problem, step = setting(outer, steps)
    start = step.init(family.policy(), seed=1)
    state, info = step(start)
    gradient = jax.jit(jax.grad(lambda logits: plainly(logits, problem, step, start, weight)))
    logits = start.params.logits
    first = gradient(logits)
    np.testing.assert_allclose(jnp.linalg.norm(first), info["grad_norm"], rtol=1e-9)
    for _ in range(3):
        logits = logits - rate * gradient(logits)
    np.testing.assert_allclose(state.params.logits, logits, rtol=1e-9)
    assert not info["skipped"] and np.abs(logits - start.params.logits + 3 * rate * first).max() > 0.02
    for _ in range(20):
        state, _ = step(state)
    exact = jax.jit(lambda params: jnp.mean(jax.vmap(lambda mdp: family.loss(params, mdp))(family.tasks)))
    assert exact(state.params) < exact(start.params) - 0.1


def test_a_ratio_outside_gives_no_gradient():
    one = jnp.ones((1, 1))
    zero = jnp.zeros((1, 1), int)

    @jax.jit
    def slopes(by, reward):
        batch = rl.Trajectories(jnp.zeros((1, 2), int), zero, reward * one, jnp.log(0.5) * one, one > 0, one < 0)
        loss = lambda by, surrogate: surrogate(rl.SoftmaxPolicy(jnp.array([[0.0, 0.0]]).at[0, 0].set(by)), batch)  # noqa: E731
        return [jax.grad(loss)(by, surrogate) for surrogate in (rl.Clipped(clip=0.2), rl.LVC())]

    # Ratios 1.1, 1.46, 0.54: inside; outside, where the advantage pushes on, and where it pulls back.
    for by, reward, cut in ((0.2, 1.0, False), (1.0, 1.0, True), (1.0, -1.0, False), (-1.0, -1.0, True), (-1.0, 1.0, False)):
        clipped, free = slopes(by, reward)
        assert clipped == (0 if cut else free) and free != 0


@pytest.mark.slow
def test_two_devices_take_the_steps_of_one():
    outer = Proximal(rl.Clipped(0.9), optax.adam(0.05), epochs=4, divergence=rl.mean_kl)
    family, problem, step = setting(outer, 1)
    options = {"optimizer": outer, "steps": 5, "tasks_per_step": 3}
    one, two = (
        ax.train(problem, family.policy(), step.method, devices=devices, **options)[0]
        for devices in (jax.devices()[:1], jax.devices()[:2])
    )
    np.testing.assert_allclose(one.params.logits, two.params.logits, rtol=1e-3, atol=1e-4)
    assert int(one.opt_state[0].count) == 20


@pytest.mark.slow
def test_steps_that_are_not_finite_are_not_taken():
    family, _, step = setting(Proximal(lambda policy, batch: jnp.nan * jnp.sum(policy.logits), optax.adam(0.1)), steps=0)
    start = step.init(family.policy())
    state, info = step(start)
    assert info["skipped"] and int(state.opt_state[0].count) == 0
    np.testing.assert_array_equal(state.params.logits, start.params.logits)


@pytest.mark.parametrize("radius, epochs", [(None, 9), (0.05, 2), (0.041, 2), (0.039, 1), (0.005, 1)])
def test_epochs_end_before_the_radius_and_the_first_is_taken(radius, epochs):
    # Each epoch moves both parameters by 0.1, and the inner loss is flat: D = 0.01 k^2 after k of them.
    problem = ax.FiniteSum(lambda w, x: 0.0 * jnp.sum(w), lambda key: ax.Task(jnp.ones(1), jnp.ones(1)))
    options = {"divergence": lambda old, new, x: 0.5 * jnp.sum((new - old) ** 2), "weight": 1e-9, "radius": radius}
    outer = Proximal(lambda w, x: jnp.sum(w), optax.adam(0.1), epochs=9, **options)
    step = ax.make_step(problem, ax.MetaGradient(ax.Inner(1, 0.1)), outer, tasks_per_step=B)
    state, info = step(step.init(jnp.zeros(2)))
    np.testing.assert_allclose(state.params, -0.1 * epochs, rtol=1e-4)
    assert int(state.opt_state[0].count) == epochs and not info["skipped"]


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: Proximal(3), r"loss=.*must be a function"),
        (lambda: Proximal(rl.Clipped(), "adam"), r"optimizer=.*must be an optax transformation"),
        (lambda: Proximal(rl.Clipped(), epochs=0), "Proximal.*epochs"),
        (lambda: Proximal(rl.Clipped(), weight=-1.0), "Proximal.*weight"),
        (lambda: Proximal(rl.Clipped(), radius=0.1), r"radius=.*needs a divergence"),
        (lambda: Proximal(rl.Clipped(), divergence=rl.mean_kl, radius=0.0), "Proximal.*radius"),
        (lambda: Proximal(rl.Clipped(), divergence=1.0), r"divergence=.*must be a function"),
        (lambda: Proximal(rl.Clipped()).update(jnp.ones(2), None, jnp.ones(2)), r"needs the adapted path, which ax\.train"),
        (lambda: rl.Clipped(clip=0.0), "clip=0.0.*must be a positive number"),
    ],
)
def test_mistakes(make, match):
    with pytest.raises(ax.InputError, match=match):
        make()
