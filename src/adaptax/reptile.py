"""Reptile: the way that adaptation goes, as a gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax.cost import Cost
from adaptax.errors import InputError
from adaptax.inner import Info, Inner
from adaptax.method import AbstractMethod, check_parts
from adaptax.objective import STEP, TARGET, fold, plain, step_loss
from adaptax.problem import Samples
from adaptax.recursion import stepper
from adaptax.stepsize.learned import Learned


class Reptile(AbstractMethod):
    r"""$w_0 - w_N$ in place of the meta-gradient: with `optax.sgd(eps)`, $w \leftarrow w + \epsilon(w_N - w)$.

    It needs no target set but for the value reported, and no second derivatives; memory does not depend on N. It is not
    the gradient of the outer loss: to first order in the step size it is the sum of the gradients along the path.

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
        inner, given = self.inner, params
        params, rates = inner.unpack(params)
        split = inner.split(params)
        rebuild = plain(problem, task, split.static)
        descent = inner.descent(step_loss(rebuild, key, STEP, self.samples.step), key)
        start = (split.adapting, descent.update.init(split.adapting))
        xs = {"j": jnp.arange(inner.steps), "rate": rates.stacked(inner.steps)}
        (final, _), losses = jax.lax.scan(stepper(descent, split.adapting, split.frozen, rates), start, xs)
        _, _, adapted = rebuild(final, split.frozen)
        batch = problem.target_batch(task, adapted, fold(key, TARGET), self.samples.target)
        value = problem.target_loss(adapted, batch)
        grad = eqx.combine(_tree.subtract(split.adapting, final), _tree.zeros_like(split.frozen))
        return value, inner.pull_back(given, grad), Info(rates.mean(), losses, value)
