"""Step sizes that are parameters of the outer problem (Meta-SGD, per-layer per-step rates)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from adaptax._tree import is_floating
from adaptax.errors import InputError


class Meta(eqx.Module):
    """Outer parameters when step sizes are learned: the initialisation and the step sizes.

    Arguments:
        params: the parameters that the inner loop adapts.
        stepsize: the tree of step sizes that `Learned.start` makes.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> float(ax.Meta(params=jnp.zeros(3), stepsize=jnp.array(0.5)).stepsize)
        0.5

    Source: docs/theory.md, section 1; Li et al. (2017), Meta-SGD, arXiv 1707.09835.
    """

    params: PyTree
    stepsize: PyTree


class Learned(eqx.Module):
    r"""Learned inner step sizes: outer parameters of their own, with the exact derivative
    $\partial\mathcal L_i/\partial a_j = -\nabla l(w_j)\odot v_{j+1}$ from the same recursion as the meta-gradient.

    The outer problem's parameters become `ax.Meta(params, stepsize)`; `ax.train` makes it when given plain parameters.
    Learned rates are not kept positive: as in Meta-SGD, the outer optimiser may change their sign.

    Arguments:
        init: the first value: a positive number, or a pytree (a prefix of the parameters) of arrays, used as it is.
        per: for a number, what shares one rate: "scalar" (everything), "leaf" (each array), "parameter" (each entry).
        per_step: whether each step has its own; a pytree must then have a leading axis of length N on every leaf.

    Errors: `InputError` if the first value is not positive and finite, or `per` is unknown.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> rates = ax.stepsize.Learned(0.1, per="leaf", per_step=True).start({"w": jnp.zeros((2, 3))}, steps=5)
        >>> rates["w"].shape
        (5,)

    Source: docs/theory.md, section 1; Li et al. (2017); Antoniou et al. (2019), MAML++, arXiv 1810.09502.
    """

    init: PyTree
    per: str = eqx.field(static=True)
    per_step: bool = eqx.field(static=True)

    def __init__(self, init, *, per="scalar", per_step=False):
        if per not in ("scalar", "leaf", "parameter"):
            raise InputError(f'Learned(per={per!r}) must be "scalar", "leaf" or "parameter".')
        try:
            self.init = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), init)
        except (TypeError, ValueError) as error:
            raise InputError(f"Learned(init={init!r}) must be a number or a pytree of numbers.") from error
        if not jax.tree.leaves(self.init):
            raise InputError("Learned(init) holds no step size: give a number, or a prefix of the parameters.")
        concrete = [leaf for leaf in jax.tree.leaves(self.init) if not isinstance(leaf, Tracer)]
        if not all(np.all(np.isfinite(leaf) & (np.asarray(leaf) > 0)) for leaf in concrete):
            raise InputError("Learned(init) must be positive and finite: start from a step size such as 0.01.")
        self.per, self.per_step = per, bool(per_step)

    def start(self, params: PyTree, steps: int) -> PyTree:
        """The tree of step sizes to put into `ax.Meta(params, stepsize)`, for an inner loop of `steps` steps."""
        if not (eqx.is_array(self.init) and self.init.ndim == 0):
            return self.init
        lead = (max(steps, 1),) if self.per_step else ()

        def fill(shape):
            return jnp.full(lead + shape, self.init)

        if self.per == "scalar":
            return fill(())
        by_leaf = self.per == "leaf"
        return jax.tree.map(lambda leaf: fill(() if by_leaf else jnp.shape(leaf)) if is_floating(leaf) else None, params)
