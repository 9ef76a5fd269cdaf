"""Products of few terms, written out in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax._small_products import unrolled

SHAPES = [(m, k, n) for m in (1, 3, 40) for k in (1, 2, 5, 6, 16, 17) for n in (1, 3, 40)]


def product(of_x, of_y):
    return lambda x, y: jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())))


def run(program, *args):
    return jax.jit(jax.extend.core.jaxpr_as_fun(program))(*args)


@pytest.mark.parametrize("of_x", [0, 1])
@pytest.mark.parametrize("of_y", [0, 1])
def test_products_are_the_same_up_to_the_order_of_sums(x64, of_x, of_y):
    one, rng = product(of_x, of_y), np.random.default_rng(0)
    pairs = [(rng.normal(size=(m, k) if of_x else (k, m)), rng.normal(size=(n, k) if of_y else (k, n))) for m, k, n in SHAPES]

    def all_products(pairs):
        return jax.lax.scan(lambda carry, _: (carry, [one(x, y) for x, y in pairs]), 0.0, length=1)[1]

    program = unrolled(jax.make_jaxpr(all_products)(pairs))
    assert 0 < str(program).count("dot_general[") < len(SHAPES)
    for found, (x, y) in zip(run(program, *jax.tree.leaves(pairs)), pairs, strict=True):
        np.testing.assert_allclose(found[0], np.tensordot(x, y, (of_x, of_y)), rtol=1e-12, atol=1e-12)


def test_products_inside_branches_and_functions_of_a_loop(x64):
    def step(w, x):
        w = jax.lax.cond(x.sum() > 0, lambda w: w + x.T @ x, lambda w: w - jax.jit(lambda x: x.T @ x)(x), w)
        return jax.lax.fori_loop(0, 3, lambda _, w: w + 0.1 * x.T @ (x @ w), w), None

    def loop(xs):
        return jax.lax.scan(step, jnp.eye(4), xs)[0]

    xs = jax.random.normal(jax.random.key(0), (6, 3, 4))
    program = jax.make_jaxpr(loop)(xs)
    rewritten = unrolled(program)
    assert (str(program).count("dot_general["), str(rewritten).count("dot_general[")) == (4, 0)
    np.testing.assert_allclose(run(rewritten, xs)[0], loop(xs), rtol=1e-12)
    two = jnp.stack([xs, -xs])
    np.testing.assert_allclose(jax.vmap(lambda xs: run(rewritten, xs)[0])(two), jax.vmap(loop)(two), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (jnp.ones((3, 4), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)),
        (jnp.ones((3, 4), int), jnp.ones((3, 4), int)),
        (jnp.ones((20, 4)), jnp.ones((20, 4))),
        (jnp.ones((6, 80)), jnp.ones((6, 80))),
    ],
    ids=["bfloat16", "integers", "many terms", "large"],
)
def test_other_products_stay(x, y):
    program = jax.make_jaxpr(lambda x, y: jax.lax.fori_loop(0, 2, lambda _, s: s + x.T @ y, x.T @ y))(x, y)
    assert str(unrolled(program)) == str(program)


def test_products_outside_loops_stay():
    program = jax.make_jaxpr(lambda x, y: x.T @ y)(jnp.ones((3, 4)), jnp.ones((3, 4)))
    assert str(unrolled(program)) == str(program)
