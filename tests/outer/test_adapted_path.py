"""The batches of a meta-step: drawn once, for the meta-gradient and for the outer steps that are taken on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptax as ax

B, N = 3, 2
SAMPLES = ax.Samples(4, 5, 6)


def apart(old, new, batch):
    return 0.5 * jnp.sum((new - old) ** 2)


OUTER = {
    "trust": lambda: ax.outer.TrustRegion(apart, 0.01),
    "proximal": lambda: ax.outer.Proximal(lambda w, x: jnp.mean(jnp.cosh(w - x)), optax.sgd(0.1), epochs=3),
}


def problem_that_counts(drawn):
    """Samples around a centre that depend on the parameters, as episodes do; `drawn` gets the size of every draw."""

    def draw(task, w, key, size):
        jax.debug.callback(lambda _: drawn.append(size), jnp.sum(w))
        return task + 0.1 * jnp.sin(w) + jax.random.normal(key, (size, 2))

    return ax.Resampling(lambda w, x: jnp.mean(jnp.cosh(w - x)), lambda key: jax.random.normal(key, (2,)), draw)


def one_step(outer, method):
    drawn = []
    step = ax.make_step(problem_that_counts(drawn), method, outer, B)
    state = step.init(jnp.array([0.3, -0.4]))
    drawn.clear()
    state, info = step(state)
    jax.effects_barrier()
    return state, info, [drawn.count(size) for size in (SAMPLES.step, SAMPLES.curvature, SAMPLES.target)]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", OUTER)
def test_batches_are_drawn_once_and_are_those_of_the_method(x64, name, independent):
    method = ax.MetaGradient(ax.Inner(N, 0.2), samples=SAMPLES, independent_curvature=independent)
    outer = OUTER[name]()
    state, info, counts = one_step(outer, method)
    assert counts == [B * N, B * N * independent, B]
    # In a chain the step does not know that the optimiser goes on the adapted path.
    other, same, more = one_step(optax.chain(outer), method)
    assert more[0] >= 2 * B * N and more[2] == 2 * B
    np.testing.assert_allclose(state.params, other.params, rtol=1e-9)
    np.testing.assert_allclose([info["loss"], info["grad_norm"]], [same["loss"], same["grad_norm"]], rtol=1e-9)
    assert np.all(np.asarray(state.params) != [0.3, -0.4])


def test_strategies_that_ask_for_other_samples_get_them(x64):
    method = ax.MetaGradient(ax.Inner(N, 0.2), ax.curvature.FiniteDifference(delta=0.01), samples=SAMPLES)
    assert not method.keeps_draws and not ax.Reptile(ax.Inner(N, 0.2)).keeps_draws
    _, _, counts = one_step(OUTER["proximal"](), method)
    # Each product differs gradients at two shifted parameters.
    assert counts == [2 * B * N, 2 * B * N, 2 * B]
