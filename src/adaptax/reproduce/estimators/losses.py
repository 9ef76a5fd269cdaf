"""The losses on which products are measured, with their exact gradients, Hessians and products, in double precision."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

import adaptax as ax

QUADRATIC, TANH, RELU = "quadratic", "tanh network", "ReLU network"
# Losses whose second derivatives are continuous.
SMOOTH = (QUADRATIC, TANH)
DIM, HIDDEN = 20, (8, 8)


class Place(NamedTuple):
    """A loss of a flat vector, a point w, a unit direction v, and the gradient, the Hessian and Hv at w."""

    name: str
    loss: Callable[[Array], Array]
    w: Float[Array, " d"]
    v: Float[Array, " d"]
    gradient: Float[Array, " d"]
    h: Float[Array, "d d"]

    @property
    def hv(self) -> Float[Array, " d"]:
        return self.h @ self.v

    def local(self) -> ax.curvature.LocalLoss:
        """The loss as a curvature strategy takes it."""
        return ax.curvature.LocalLoss(lambda w, rest: self.loss(w), self.w)

    def model(self) -> ax.curvature.LocalLoss:
        r"""The quadratic model at w, as a function of the displacement: no truncation, hardly any rounding.

        With $\delta = 1$ and the same key a strategy draws the same directions here as on the loss itself, so the difference of
        the two products is the error that the width $\delta$ makes.
        """
        return ax.curvature.LocalLoss(
            lambda z, rest: jnp.vdot(self.gradient, z) + jnp.vdot(z, self.h @ z) / 2, jnp.zeros_like(self.w)
        )

    def third(self) -> Float[Array, ""]:
        r"""$\|\partial_\tau^2\,\nabla^2 l(w+\tau v)v\|$ at 0: the finite difference errs by $\delta^2/6$ times this."""

        def derivative(tau):
            return jax.grad(self.loss)(self.w + tau * self.v)

        for _ in range(3):
            derivative = jax.jacfwd(derivative)
        return jnp.linalg.norm(derivative(0.0))


def place_of(kind: str, seed: int) -> Place:
    """The place of one kind of loss for a seed."""
    return quadratic(seed) if kind == QUADRATIC else network(kind, seed)


def quadratic(seed: int, dim: int = DIM) -> Place:
    r"""$\tfrac12w^\top Aw + o^\top w$, A with the eigenvalues 1/d, 2/d, ..., 1 in random directions; w, o, v Gaussian."""
    keys = jax.random.split(jax.random.key(seed), 4)
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (dim, dim)))[0]
    a = (basis * jnp.arange(1, dim + 1) / dim) @ basis.T
    o, w, v = (jax.random.normal(key, (dim,)) for key in keys[1:])
    return _place(QUADRATIC, lambda x: jnp.vdot(x, a @ x) / 2 + jnp.vdot(o, x), w, v)


def network(name: str, seed: int, hidden: tuple[int, ...] = HIDDEN) -> Place:
    """The mean squared error of a network on the support of one sinusoid; v is the gradient on its target."""
    activation = {TANH: jnp.tanh, RELU: jax.nn.relu}[name]
    key, task_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    model = ax.models.mlp((1, *hidden, 1), key=key, activation=activation, dtype=jnp.float64)
    problem = ax.tasks.sinusoid()
    task = problem.sample_task(task_key)
    w, rebuild = ravel_pytree(model)

    def loss(x, batch=task.support):
        return problem.loss(rebuild(x), batch)

    return _place(name, loss, w, jax.grad(loss)(w, task.target))


def _place(name: str, loss: Callable[[Array], Array], w: Array, v: Array) -> Place:
    return Place(name, loss, w, v / jnp.linalg.norm(v), jax.grad(loss)(w), jax.hessian(loss)(w))
