"""First order at the beginning of training, second order later (derivative-order annealing)."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from adaptax._checks import check_whole
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
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**2), jnp.ones(2))
        >>> strategy = ax.curvature.Annealed(first_order_steps=100)
        >>> [float(strategy.at(step).product(local, jnp.ones(2))[1][0][0]) for step in (99, 100)]
        [0.0, 2.0]

    Source: Antoniou et al. (2019), MAML++, arXiv 1810.09502.
    """

    first_order_steps: int = eqx.field(static=True)
    then: AbstractCurvature = Exact()
    step: Any = eqx.field(default=0, kw_only=True)
    gives_gradient: ClassVar[bool] = False

    def __post_init__(self):
        self.first_order_steps = check_whole("Annealed", "first_order_steps", self.first_order_steps, 0)
        if not isinstance(self.then, AbstractCurvature):
            raise InputError("Annealed(then=...) must be a strategy such as ax.curvature.Exact().")

    @property
    def stochastic(self):
        return self.then.stochastic

    def product(self, local, v, key=None):
        def second_order(v):
            return self.then.product(local, v, key)[1]

        def first_order(v):
            return optax.tree.zeros_like((local.w, local.rest))

        late = jnp.asarray(self.step) >= self.first_order_steps
        return None, jax.lax.cond(late, second_order, first_order, v)

    def cost(self, gradient):
        """The cost of the strategy afterwards."""
        return self.then.cost(gradient)

    def at(self, step):
        return dataclasses.replace(self, then=self.then.at(step), step=jnp.asarray(step))
