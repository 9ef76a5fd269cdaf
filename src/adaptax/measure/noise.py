"""The noise of single samples: the variance of gradients, and of Hessians in their worst direction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax._batching import map_tasks
from adaptax._keys import CHOOSE, DRAW, fold
from adaptax._lanczos import extremes
from adaptax._second_order import hessian_product
from adaptax._tree import ravel, unraveller
from adaptax.inner_path import TaskPath


def loss_of_sample(path: TaskPath) -> Callable:
    """`loss(w, key)`: the inner loss at the vector w of adapting parameters, on the one sample that the key draws."""
    unravel = unraveller(path.split.adapting)

    def loss(w, key):
        params = path.params(unravel(w))
        return path.problem.loss(params, path.problem.step_batch(path.task, params, key, 1))

    return loss


def at_point(loss: Callable, adapting: PyTree, key: Key[Array, ""], draws: int, iterations: int) -> tuple[Array, Array, Array]:
    r"""The mean gradient of a task, and unbiased estimates of $E\|\nabla l(w;\tau) - \nabla l(w)\|^2$ and of
    $E\|(\nabla^2 l(w;\tau) - \nabla^2 l(w))u\|^2$ for one u.

    u is the top eigenvector of the second moment of one half of the samples, and judged on the other half: its value is
    below the supremum over u in expectation, where judging on the same samples would exceed it.
    """
    w = ravel(adapting)
    keys: Any = jax.vmap(lambda k: fold(key, DRAW, k))(jnp.arange(draws))

    def over(one, *inputs):
        return map_tasks(lambda x: one(*x), inputs)

    def product(k, v):
        return hessian_product(lambda w, _: loss(w, k), w, None, v)[1][0]

    mean = jnp.mean(over(lambda k: jax.grad(loss)(w, k), keys), axis=0)
    gradient = jnp.sum(over(lambda k: jnp.sum((jax.grad(loss)(w, k) - mean) ** 2), keys)) / (draws - 1)

    half = draws // 2

    def centred(keys, u):
        each = over(lambda k: product(k, u), keys)
        return each - jnp.mean(each, axis=0)

    def second_moment(u):
        # The mean Hessian drops out of the outer product, since the vectors that it is applied to sum to zero.
        return jnp.sum(over(product, keys[:half], centred(keys[:half], u)), axis=0) / (half - 1)

    choose: Any = fold(key, CHOOSE)
    start = jax.random.normal(choose, w.shape, w.dtype)
    u = extremes(second_moment, start, iterations)[2]
    hessian = jnp.sum(centred(keys[half : 2 * half], u) ** 2) / (half - 1)
    return mean, gradient, hessian
