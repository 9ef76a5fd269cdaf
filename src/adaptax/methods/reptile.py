"""Reptile: the change of the parameters by adaptation, in place of a gradient."""

import optax
from jaxtyping import Array, PyTree

from adaptax._cost import Cost
from adaptax.errors import InputError
from adaptax.inner import Info, Inner
from adaptax.methods.base import AbstractMethod, check_parts
from adaptax.problem import Samples
from adaptax.stepsize.learned import Learned


class Reptile(AbstractMethod):
    r"""$w_0 - w_N$ in place of the meta-gradient: with `optax.sgd(eps)`, $w \leftarrow w + \epsilon(w_N - w)$.

    It needs no second derivatives, and the target set only for the value reported; its memory does not depend on N. It is
    not the gradient of the outer loss: to first order in the step size it is the sum of the gradients along the path.

    Arguments:
        inner: the inner loop. Frozen parameters have a gradient of zero.
        samples: sample sizes S and T of a resampling problem.

    Errors: `InputError` for learned step sizes, which get no derivative from it.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> method = ax.Reptile(ax.Inner(steps=2, stepsize=0.5))
        >>> method(problem, jnp.zeros(2), ax.Task(jnp.ones(2), jnp.ones(2)))[1]  # w_2 = 3/4
        Array([-0.75, -0.75], dtype=float32)

    Source: Nichol, Achiam, Schulman (2018), On first-order meta-learning algorithms, arXiv 1803.02999.
    """

    inner: Inner
    samples: Samples

    def __init__(self, inner: Inner, *, samples: Samples = Samples()):  # noqa: B008
        check_parts("Reptile", inner, samples)
        if isinstance(inner.stepsize, Learned):
            raise InputError("Reptile gives no derivative by step sizes: use a number or a rule, or ax.MetaGradient.")
        self.inner, self.samples = inner, samples

    @property
    def stochastic(self):
        return self.inner.gradients.stochastic

    def cost(self):
        return self.inner.gradients.cost().times(self.inner.steps).plus(Cost(losses=1))

    def one_task(self, problem, params, task, key) -> tuple[Array, PyTree, Info]:
        path = self.path(problem, params, task, key)
        last, losses = path.to_end()
        value = path.value(last, losses)
        change = optax.tree.sub(path.split.adapting, last.w)
        return value, path.outer_gradient(change, optax.tree.zeros_like(path.rest)), path.info(losses, value)
