"""The bounds of docs/theory.md, section 6, on processes solved exactly: the estimator's moments by listing all inner paths.

Policies over two states and two actions have two degrees of freedom, so that the constants are suprema over all of them, found
on a grid.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax import theory
from adaptax.tasks import rl

pytestmark = pytest.mark.usefixtures("x64")

FAMILY = functools.partial(rl.tabular, 2, 2, 2, 3, discount=0.9)
DICE = rl.DiCE(0.9)
# The logits at which the constants are measured; beyond them every derivative vanishes.
GRID = np.linspace(-9, 9, 61)
CIRCLE = np.stack([np.cos(angles := np.linspace(0, np.pi, 48, endpoint=False)), np.sin(angles)], 1)
CASES = [
    (1, 0.5, 0),
    (2, 0.25, 1),
    pytest.param(3, 0.5, 2, marks=pytest.mark.slow),
    pytest.param(3, 0.1, 0, marks=pytest.mark.slow),
]


def samples(family, mdp, w):
    """Gradient and Hessian of the loss on each trajectory, drawn at w, and the probabilities."""
    batch, probability = family.enumerate(mdp, policy(w))

    def losses(x):
        return DICE.per_episode(policy(x), batch)

    return jax.jacrev(losses)(w), jax.jacfwd(jax.jacrev(losses))(w), probability


def policy(w):
    """A policy with logits ±w/√2 in both states. Policies depend on these differences of logits alone."""
    return rl.SoftmaxPolicy(jnp.stack([w, -w], axis=1) / np.sqrt(2))


def exact(family, mdp):
    return lambda w: family.loss(policy(w), mdp)


def constants(family, mdp):
    """L, rho, sigma_g and sigma_H."""
    loss = exact(family, mdp)

    def at(w):
        grads, hessians, p = samples(family, mdp, w)
        off = hessians - jax.hessian(loss)(w)
        third = jax.jacfwd(jax.hessian(loss))(w)
        return (
            jnp.linalg.norm(jax.hessian(loss)(w), 2),
            # A symmetric form is largest where all its arguments are equal.
            jnp.max(jnp.abs(jnp.einsum("ijk,ai,aj,ak->a", third, CIRCLE, CIRCLE, CIRCLE))),
            jnp.sqrt(p @ jnp.sum((grads - jax.grad(loss)(w)) ** 2, axis=1)),
            jnp.sqrt(jnp.linalg.norm(jnp.einsum("n,nij,njk->ik", p, off, off), 2)),
        )

    grid = jnp.stack(jnp.meshgrid(GRID, GRID), -1).reshape(-1, 2)
    L, rho, sigma_g, sigma_H = (1.01 * float(x.max()) for x in jax.jit(jax.vmap(at))(grid))
    return theory.Constants(L=L, rho=rho, sigma=0.0, sigma_g=sigma_g, sigma_H=sigma_H)


def moments(family, mdp, w, alpha, steps):
    """The estimator's mean and second moment and the iterates' mean square errors, for one sample at every use."""
    loss = exact(family, mdp)
    exact_path = [w]
    for _ in range(steps):
        exact_path.append(exact_path[-1] - alpha * jax.grad(loss)(exact_path[-1]))

    def below(w, depth):
        error = jnp.sum((w - exact_path[depth]) ** 2)
        grads, hessians, p = samples(family, mdp, w)
        if depth == steps:
            return jax.grad(loss)(w), jnp.einsum("n,ni,nj->ij", p, grads, grads), (error,)
        later = jax.vmap(lambda g: below(w - alpha * g, depth + 1))(grads)
        mean, square, errors = jax.tree.map(lambda x: jnp.tensordot(p, x, 1), later)
        factors = jnp.eye(2) - alpha * hessians
        mean = mean - alpha * jax.hessian(loss)(w) @ mean
        return mean, jnp.einsum("n,nij,jk,nlk->il", p, factors, square, factors), (error, *errors)

    mean, square, errors = below(w, 0)
    gradient = jax.grad(lambda w: loss(functools.reduce(lambda x, _: x - alpha * jax.grad(loss)(x), range(steps), w)))(w)
    return mean, jnp.trace(square), jnp.stack(errors), gradient, jax.grad(loss)(w)


@pytest.mark.long
@pytest.mark.parametrize("steps, gamma, which", CASES)
def test_the_estimator_stays_within_the_bounds(steps, gamma, which):
    family = FAMILY(seed=which)
    mdp = jax.tree.map(lambda leaf: leaf[which], family.tasks)
    c = constants(family, mdp)
    path = theory.Expansion(gamma / (steps * c.L), c.L, steps)
    starts = jnp.asarray(np.random.default_rng(which).normal(size=(6, 2)))
    run = jax.jit(jax.vmap(lambda w: moments(family, mdp, w, path.alpha, steps)))
    for mean, second, errors, meta_gradient, gradient in zip(*map(np.asarray, run(starts)), strict=True):
        before = float(np.linalg.norm(gradient))
        bounds = [theory.path_error(path, c, j, 1) for j in range(steps + 1)]
        assert np.all(np.sqrt(errors) <= np.array(bounds) + 1e-12) and errors[1] > 0
        # One sample leaves a bias that is not rounding, and never more than the bound.
        bias = float(np.linalg.norm(mean - meta_gradient))
        assert 1e-6 < bias <= theory.bias(path, c, before, 1)
        assert float(mean @ mean) < second <= theory.second_moment(path, c, before, 1, 1, 1)
