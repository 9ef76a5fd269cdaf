"""Hessian-vector products by gradient-based Gaussian smoothing (GGS)."""

from typing import Any, ClassVar

import equinox as eqx
import optax

from adaptax import _tree
from adaptax._smoothing import average, check_smoothing, radius
from adaptax.curvature.base import AbstractCurvature
from adaptax.curvature.finite_difference import searched
from adaptax.errors import InputError


class GaussianSmoothing(AbstractCurvature):
    r"""$\hat H v = \frac1Q\sum_u \frac{\nabla l(w+\delta u) - \nabla l(w)}{\delta}\,(u^\top v)$, $u \sim N(0, I)$.

    Its mean is $E\nabla^2 l(w+\delta u)\,v$, within $\min(\rho\delta\sqrt d, \tfrac12\nu\delta^2 d)\|v\|$ of $Hv$; its
    variance on a quadratic $(\|H\|_F^2\|v\|^2 + \|Hv\|^2)/Q$. It has a lower mean square error than leaving the Hessian out
    only for $Q > 1 + \|H\|_F^2\|v\|^2/\|Hv\|^2$.

    Without `delta` differences are central, and each direction has a width of its own, found as in `FiniteDifference`. A fixed
    width that suits a smooth loss is too wide beside a relu or a max pool.

    Arguments:
        samples: Q, fresh directions for every product (default 10).
        delta: $\delta$, an absolute number, for Q + 1 gradients a product (default None: a search for each direction; 2Q + 1
            gradients where the loss is smooth, up to 12Q + 1 elsewhere).
        antithetic: with `delta`, use $\frac{\nabla l(w+\delta u) - \nabla l(w-\delta u)}{2\delta}$: 2Q gradients, the same
            mean, less variance away from quadratics.

    Errors: `InputError` if samples is not a positive whole number or delta not a positive one, and for antithetic=True
    without a delta.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**2), jnp.array([1.0, 2.0]))
        >>> strategy = ax.curvature.GaussianSmoothing(samples=10_000)
        >>> _, (product, _) = strategy.product(local, jnp.array([1.0, 1.0]), jax.random.key(0))
        >>> bool(jnp.allclose(product, 2.0, atol=0.2))
        True

    Source: Ji, Yang, Liang (2020), arXiv 2002.07836v1; docs/theory.md, section 7.
    """

    samples: int = eqx.field(static=True, default=10, kw_only=True)
    delta: Any = eqx.field(default=None, kw_only=True)
    antithetic: bool = eqx.field(static=True, default=False, kw_only=True)
    stochastic: ClassVar[bool] = True

    def __check_init__(self):
        check_smoothing(self)
        if self.antithetic and self.delta is None:
            raise InputError(
                "antithetic=True is for a width of your own: pass delta=, or leave it out (differences are central)."
            )

    @property
    def gives_gradient(self):
        return not self.antithetic

    def product(self, local, v, key=None):
        if self.delta is None:
            here = local.gradient(local.w)

            def along(u):
                length = _tree.norm(u)
                return _tree.scale(length * _tree.dot(u, v), searched(local, here, _tree.scale(1 / length, u)))

            return here, average(along, local.w, self.samples, key)
        delta = radius(self.delta, local.w, 1 / 2)
        centre = None if self.antithetic else local.gradient(local.w)

        def term(u):
            ahead = local.gradient(_tree.shift(local.w, delta, u))
            behind = local.gradient(_tree.shift(local.w, -delta, u)) if self.antithetic else centre
            width = 2 * delta if self.antithetic else delta
            return _tree.scale(_tree.dot(u, v) / width, optax.tree.sub(ahead, behind))

        return centre, average(term, local.w, self.samples, key)

    def cost(self, gradient):
        if self.delta is None:
            return gradient.times(2 * self.samples + 1)
        return gradient.times(2 * self.samples if self.antithetic else self.samples + 1)
