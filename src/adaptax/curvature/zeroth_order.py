"""Hessian-vector products from values of the loss alone."""

from typing import Any, ClassVar

import equinox as eqx
import optax

from adaptax import _tree
from adaptax._cost import Cost
from adaptax._smoothing import average, check_smoothing, radius
from adaptax.curvature.base import AbstractCurvature


class ZerothOrder(AbstractCurvature):
    r"""$\hat H v = \frac1Q\sum_u \frac{l(w+\delta u) + l(w-\delta u) - 2l(w)}{2\delta^2}\,(u(u^\top v) - v)$, $u \sim N(0, I)$.

    Unbiased as $\delta \to 0$. Earlier work leaves the $-v$ out (`stein=False`); that estimator tends to
    $Hv + \tfrac12\mathrm{tr}(H)\,v$, an error that no Q and no $\delta$ removes. The variance grows with the number of
    parameters d (docs/theory.md has it for quadratics): use it only where no gradient is to be had. Frozen parameters are
    moved too, since their rows of the Hessian are needed.

    Arguments:
        samples: Q, fresh directions for every product (default 10).
        delta: $\delta$, an absolute number; default: $\epsilon^{1/4}$ times the root mean square of the parameters, with
            $\epsilon$ the precision of their number type.
        stein: whether the estimator is corrected (default).

    Errors: `InputError` if samples is not a positive whole number or delta not a positive one.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**2), jnp.array([1.0, 2.0]))
        >>> strategy = ax.curvature.ZerothOrder(samples=10_000)
        >>> _, (product, _) = strategy.product(local, jnp.array([1.0, 1.0]), jax.random.key(0))
        >>> bool(jnp.allclose(product, 2.0, atol=0.4))
        True

    Source: Balasubramanian, Ghadimi (2022), Zeroth-order nonconvex stochastic optimization; Song et al. (2020), ES-MAML,
    arXiv 1910.01215; docs/theory.md, section 7.
    """

    samples: int = eqx.field(static=True, default=10, kw_only=True)
    delta: Any = eqx.field(default=None, kw_only=True)
    stein: bool = eqx.field(static=True, default=True, kw_only=True)
    stochastic: ClassVar[bool] = True
    gives_gradient: ClassVar[bool] = False

    def __check_init__(self):
        check_smoothing(self)

    def product(self, local, v, key=None):
        x = (local.w, local.rest)
        delta = radius(self.delta, x, 1 / 4)
        centre = local.loss(*x)
        direction = (v, optax.tree.zeros_like(local.rest))

        def term(u):
            ahead, behind = local.loss(*_tree.shift(x, delta, u)), local.loss(*_tree.shift(x, -delta, u))
            # Two small differences, each exact in floating point where the values are close, instead of a large sum.
            bend = ((ahead - centre) + (behind - centre)) / (2 * delta**2)
            outer = _tree.scale(_tree.dot(u[0], v), u)
            return _tree.scale(bend, optax.tree.sub(outer, direction) if self.stein else outer)

        return None, average(term, x, self.samples, key)

    def cost(self, gradient):
        return Cost(losses=2 * self.samples + 1)
