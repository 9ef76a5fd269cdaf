"""The inner update: gradient descent, or any optax optimiser, with or without a proximal term."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax.stepsize.rates import multiply


class UpdateCotangents(NamedTuple):
    """Derivatives by the arguments of an update."""

    w: PyTree
    opt_state: PyTree
    gradient: PyTree
    anchor: PyTree
    rate: PyTree


class Update(eqx.Module):
    r"""$w_{j+1} = w_j - A_j \tilde g_j$ with $\tilde g_j = \nabla l(w_j) + \lambda(w_j - w_0)$; with an optimiser,
    $w_{j+1} = w_j + A_j u_j$, where $u_j$ is the update that it makes of $\tilde g_j$ and its state.

    Arguments:
        optimizer: an optax transformation, or None.
        proximal: $\lambda$, or None.

    Source: docs/theory.md, section 1.
    """

    optimizer: optax.GradientTransformation | None = eqx.field(static=True, default=None)
    proximal: Array | None = None

    @property
    def linear(self) -> bool:
        """Whether the derivative of the update by the gradient does not depend on the gradient."""
        return self.optimizer is None

    def init(self, w: PyTree) -> PyTree:
        """The optimiser's state at the start of the path."""
        return None if self.optimizer is None else jax.tree.map(jnp.asarray, self.optimizer.init(w))

    def __call__(self, w: PyTree, opt_state: PyTree, gradient: PyTree, anchor: PyTree, rate: PyTree) -> tuple[PyTree, PyTree]:
        """The next iterate and the optimiser's next state; `anchor` is w_0."""
        if self.proximal is not None:
            gradient = optax.tree.add(gradient, _tree.scale(self.proximal, optax.tree.sub(w, anchor)))
        if self.optimizer is None:
            return optax.tree.sub(w, multiply(rate, gradient)), opt_state
        updates, new = self.optimizer.update(gradient, opt_state, w)
        updates = multiply(rate, optax.tree.cast_like(updates, w))
        return optax.tree.add(w, updates), jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, opt_state)

    def pull(
        self, w: PyTree, opt_state: PyTree, gradient: PyTree, anchor: PyTree, rate: PyTree, cotangents: tuple[PyTree, PyTree]
    ) -> UpdateCotangents:
        """Derivatives by the arguments, from those by the next iterate and the floating-point part of the next state."""
        floats, others = eqx.partition(opt_state, _tree.is_floating)
        if self.optimizer is not None:
            gradient = _off_zero(gradient)

        def update(w, floats, gradient, anchor, rate):
            new, opt_state = self(w, eqx.combine(floats, others), gradient, anchor, rate)
            return new, eqx.filter(opt_state, _tree.is_floating)

        return UpdateCotangents(*jax.vjp(update, w, floats, gradient, anchor, rate)[1](cotangents))

    def pull_init(self, w: PyTree, cotangent: PyTree) -> PyTree:
        """The derivative by w_0 through the optimiser's initial state."""
        return jax.vjp(lambda w: eqx.filter(self.init(w), _tree.is_floating), w)[1](cotangent)[0]


def _off_zero(gradient: PyTree) -> PyTree:
    """The gradient, moved a little if it is zero as a whole: norms, such as clipping takes, have no derivative at zero."""
    zero = _tree.norm(gradient) == 0
    return jax.tree.map(lambda g: jnp.where(zero, jnp.asarray(jnp.finfo(g.dtype).eps, g.dtype), g), gradient)
