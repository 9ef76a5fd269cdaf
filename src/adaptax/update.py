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


class Bars(NamedTuple):
    """Derivatives by what an update takes."""

    w: PyTree
    memory: PyTree
    gradient: PyTree
    anchor: PyTree
    rate: PyTree


class Update(eqx.Module):
    r"""$w_{j+1} = w_j - A_j \tilde g_j$ with $\tilde g_j = \nabla l(w_j) + \lambda(w_j - w_0)$; with an optimiser,
    $w_{j+1} = w_j + A_j u_j$, where $u_j$ is the update that it makes of $\tilde g_j$ and its memory.

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
        """The optimiser's memory at the start of the path."""
        return None if self.optimizer is None else jax.tree.map(jnp.asarray, self.optimizer.init(w))

    def __call__(self, w: PyTree, memory: PyTree, gradient: PyTree, anchor: PyTree, rate: PyTree) -> tuple[PyTree, PyTree]:
        """The next iterate and the next memory; `anchor` is w_0."""
        if self.proximal is not None:
            gradient = _tree.add(gradient, _tree.scale(self.proximal, _tree.subtract(w, anchor)))
        if self.optimizer is None:
            return _tree.subtract(w, multiply(rate, gradient)), memory
        updates, new = self.optimizer.update(gradient, memory, w)
        updates = multiply(rate, jax.tree.map(lambda u, leaf: u.astype(leaf.dtype), updates, w))
        return _tree.add(w, updates), jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, memory)

    def pull(
        self, w: PyTree, memory: PyTree, gradient: PyTree, anchor: PyTree, rate: PyTree, bars: tuple[PyTree, PyTree]
    ) -> Bars:
        """Derivatives by the arguments, from those by the next iterate and the floating-point part of the next memory."""
        floats, others = eqx.partition(memory, _tree.is_floating)
        if self.optimizer is not None:
            gradient = _off_zero(gradient)

        def update(w, floats, gradient, anchor, rate):
            new, memory = self(w, eqx.combine(floats, others), gradient, anchor, rate)
            return new, eqx.filter(memory, _tree.is_floating)

        return Bars(*jax.vjp(update, w, floats, gradient, anchor, rate)[1](bars))

    def pull_init(self, w: PyTree, bar: PyTree) -> PyTree:
        """The derivative by w_0 through the initial memory."""
        return jax.vjp(lambda w: eqx.filter(self.init(w), _tree.is_floating), w)[1](bar)[0]


def _off_zero(gradient: PyTree) -> PyTree:
    """A gradient that is zero as a whole, a little beside it: norms, as of clipping, have no derivative at zero."""
    zero = _tree.norm(gradient) == 0
    return jax.tree.map(lambda g: jnp.where(zero, jnp.asarray(jnp.finfo(g.dtype).eps, g.dtype), g), gradient)


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimiser, and one that cannot be differentiated where some entries of the gradient are zero."""
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
            memory = optimizer.init(w)
            slope = jax.grad(lambda g: jnp.sum(jnp.asarray(optimizer.update(g, memory, w)[0])))(g)
        except TypeError as error:
            if "missing" not in str(error):
                return
            text = f"The inner optimiser asks for more than gradients ({first_line(error)})"
            raise InputError(f"{text}: line searches and their kin cannot be used inside.") from error
        except Exception:  # it is made for a structure of its own and cannot be tried on a vector
            return
        if not np.all(np.isfinite(slope)):
            raise InputError(
                "The inner optimiser has no finite derivative where a parameter's gradient is zero (as of a dead relu), so "
                "meta-gradients would be NaN: give optax.adam and its kin eps_root=1e-8."
            )
