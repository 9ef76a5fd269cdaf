"""Implicit MAML: the meta-gradient at a stationary point of the proximal inner problem."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._checks import check_whole, is_traced
from adaptax._cost import Cost
from adaptax._keys import CURVATURE
from adaptax._second_order import hessian_product
from adaptax.errors import InputError
from adaptax.inner import Info, Inner
from adaptax.methods.base import AbstractMethod, check_parts
from adaptax.problem import Samples
from adaptax.sequential import refuse_sequence
from adaptax.stepsize.learned import Learned


class Implicit(AbstractMethod):
    r"""$(I + \tfrac1\lambda\nabla^2 l_S(w^*))^{-1}\nabla l_T(w^*)$ at $w^*$, the least of $l_S(w) + \tfrac\lambda2\|w-w_0\|^2$.

    The inner loop, with its proximal term $\lambda$, is taken to have found $w^*$: the result is the exact derivative to
    the extent that it has, and does not depend on how. Neither memory nor Hessian-vector products grow with N. The system
    is solved by conjugate gradients, which need $\nabla^2 l_S + \lambda I$ to be positive definite.

    Arguments:
        inner: the inner loop, with `proximal` above 0.
        iterations: of conjugate gradients at most, at least 1 (default 10).
        samples: sample sizes S, D, T of a resampling problem.

    Errors: `InputError` without a proximal term, or with learned step sizes, which get no derivative from it.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> method = ax.Implicit(ax.Inner(steps=50, stepsize=0.4, proximal=1.0))
        >>> grad = method(problem, jnp.zeros(2), ax.Task(jnp.ones(2), jnp.ones(2)))[1]
        >>> [round(float(g), 4) for g in grad]  # w* = 1/2, gradient (1 + 1)^-1 (w* - 1)
        [-0.25, -0.25]

    Source: Rajeswaran, Finn, Kakade, Levine (2019), Meta-learning with implicit gradients, arXiv 1909.04630.
    """

    inner: Inner
    iterations: int = eqx.field(static=True)
    samples: Samples

    def __init__(self, inner: Inner, *, iterations: int = 10, samples: Samples = Samples()):  # noqa: B008
        check_parts("Implicit", inner, samples)
        strength = inner.proximal
        if strength is None or not (is_traced(strength) or strength > 0):
            raise InputError("Implicit needs the strength of the proximal term: make it ax.Inner(..., proximal=1.0).")
        if isinstance(inner.stepsize, Learned):
            raise InputError("Implicit gives no derivative by step sizes: use a number or a rule, or ax.MetaGradient.")
        self.inner, self.iterations, self.samples = inner, check_whole("Implicit", "iterations", iterations), samples

    @property
    def stochastic(self):
        return self.inner.gradients.stochastic

    def check(self, problem, key):
        super().check(problem, key)
        refuse_sequence(problem, "Implicit", "use ax.MetaGradient(inner)")

    def cost(self):
        """One product for each iteration (fewer if they converge), one for the start, and one for the frozen parameters."""
        gradient = self.inner.gradients.cost()
        return gradient.times(self.inner.steps + 1).plus(Cost(hessian_vector_products=self.iterations + 2))

    def products(self, path):
        final = path.walk()[0]
        product = self._hessian(path, final)(path.target_gradient(final, path.rest)[1][0])
        return jnp.zeros(path.steps + 1).at[-1].set(jnp.where(_tree.all_finite(product), 0, 2))

    def _hessian(self, path, final):
        """u -> the Hessian at w_N times u, with the rows of the frozen parameters."""
        curved = path.loss_on(CURVATURE, self.samples.curvature)
        steps: Any = self.inner.steps

        def product(u):
            return hessian_product(lambda w, rest: curved(w, rest, steps), final, path.rest, u)[1]

        return product

    def one_task(self, problem, params, task, key) -> tuple[Array, PyTree, Info]:
        path = self.path(problem, params, task, key)
        final, losses = path.walk()
        value, (g, g_frozen) = path.target_gradient(final, path.rest)
        product = self._hessian(path, final)
        strength: Any = self.inner.proximal

        def damped(u):
            u = optax.tree.cast_like(u, g)
            return _tree.wide(_tree.shift(product(u)[0], strength, u))

        # Until only rounding is left. (lineax's conjugate gradients give NaN from about 1e5 parameters on in single precision:
        # they take a direction of curvature below 100 times precision times size for a breakdown.)
        wide = _tree.wide(g)
        precision = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(wide))).eps)
        u = optax.tree.cast_like(jax.scipy.sparse.linalg.cg(damped, wide, tol=precision, maxiter=self.iterations)[0], g)
        at_u = product(u)
        # Where products are not finite the conjugate gradients stop and leave zero, which is no meta-gradient.
        u = jax.tree.map(lambda leaf: jnp.where(_tree.all_finite(at_u), leaf, jnp.nan), u)
        by_w, by_frozen = _tree.scale(strength, u), optax.tree.sub(g_frozen, at_u[1])
        return value, path.outer_gradient(by_w, by_frozen), path.info(losses, value)
