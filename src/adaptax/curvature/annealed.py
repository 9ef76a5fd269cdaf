"""First order at the beginning of training, second order later (derivative-order annealing)."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from adaptax.curvature.base import AbstractCurvature
from adaptax.curvature.exact import Exact
from adaptax.errors import InputError


class Annealed(AbstractCurvature):
    r"""$\hat H v = 0$ during the first meta-steps of training, then as another strategy forms it.

    The program holds both and takes one: the first meta-steps are as cheap as first-order ones. Outside `ax.train` and
    `ax.make_step` the strategy is that of meta-step 0; `method.at(step)` gives another's.

    Arguments:
        first_order_steps: how many meta-steps are first-order.
        then: the strategy afterwards (default `Exact()`).

    Errors: `InputError` if the number is negative.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> local = ax.curvature.Local(lambda w, rest: jnp.sum(w**2), jnp.ones(2))
        >>> strategy = ax.curvature.Annealed(first_order_steps=100)
        >>> [float(strategy.at(step).product(local, jnp.ones(2))[1][0][0]) for step in (99, 100)]
        [0.0, 2.0]

    Source: Antoniou et al. (2019), MAML++, arXiv 1810.09502.
    """

    first_order_steps: int = eqx.field(static=True)
    then: AbstractCurvature = Exact()
    step: Any = eqx.field(default=0, kw_only=True)
    gives_gradient: ClassVar[bool] = False

    def __check_init__(self):
        steps = self.first_order_steps
        if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 0:
            raise InputError(f"Annealed(first_order_steps={steps!r}) must be a whole number of at least 0.")
        if not isinstance(self.then, AbstractCurvature):
            raise InputError("Annealed(then=...) must be a strategy such as ax.curvature.Exact().")

    @property
    def stochastic(self):
        return self.then.stochastic

    def product(self, local, v, key=None):
        zeros = lambda v: jax.tree.map(jnp.zeros_like, (local.w, local.rest))  # noqa: E731
        late = jnp.asarray(self.step) >= self.first_order_steps
        return None, jax.lax.cond(late, lambda v: self.then.product(local, v, key)[1], zeros, v)

    def cost(self, gradient):
        """That of the strategy afterwards."""
        return self.then.cost(gradient)

    def at(self, step):
        return dataclasses.replace(self, then=self.then.at(step), step=jnp.asarray(step))
