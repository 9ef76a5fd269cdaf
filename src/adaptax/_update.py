"""The inner update: gradient descent, or any optax optimiser, with or without a proximal term."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._tree import first_line
from adaptax.errors import InputError
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


def check_optimizer(optimizer: Any) -> None:
    """Refuse anything but an optax optimiser, and one with no derivative where some entries of the gradient are zero."""
    if optimizer is None:
        return
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(
            f"Inner(optimizer=...) must be an optax transformation such as optax.sgd(0.01, momentum=0.9), "
            f"not {type(optimizer).__name__}."
        )
    with jax.ensure_compile_time_eval():
        w, g = jnp.zeros(2), jnp.array([0.0, 1.0])
        try:
            opt_state = optimizer.init(w)
            slope = jax.grad(lambda g: jnp.sum(jnp.asarray(optimizer.update(g, opt_state, w)[0])))(g)
        except TypeError as error:
            if "missing" not in str(error):
                return
            text = f"The inner optimiser asks for more than gradients ({first_line(error)})"
            raise InputError(f"{text}: line searches cannot be used in the inner loop.") from error
        except Exception:  # an optimiser for parameters of a certain structure cannot be tried on a vector
            return
        if not np.all(np.isfinite(slope)):
            raise InputError(
                "The inner optimiser has no finite derivative where a parameter's gradient is zero (behind a dead relu, say), "
                "so meta-gradients would be NaN: give optax.adam and optimisers like it eps_root=1e-8."
            )
