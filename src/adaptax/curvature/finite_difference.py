"""Hessian-vector products from two gradients (HF-MAML)."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from adaptax import _tree
from adaptax._smoothing import check_smoothing, radius
from adaptax.curvature.base import AbstractCurvature


class FiniteDifference(AbstractCurvature):
    r"""$\hat H v = \|v\|\,\frac{\nabla l(w+\delta\hat v) - \nabla l(w-\delta\hat v)}{2\delta}$, $\hat v = v/\|v\|$; 0 at v = 0.

    Two gradients a product, and an error of at most $\tfrac12\rho\delta\|v\|$ ($\tfrac16\nu\delta^2\|v\|$ where the third
    derivative is $\nu$-Lipschitz). Nothing is differentiated twice.

    Arguments:
        delta: $\delta$, an absolute distance; default: $\epsilon^{1/2}\|w\|/d^{1/4}$, with $\epsilon$ the precision of the
            number type of the d parameters: narrower than is best for smooth losses, where rounding leaves an error of about
            $\epsilon^{1/2}$. It is still far too wide where relu and max pool bend the loss sharply: for `ax.models.conv4`
            in single precision give about 1e-5, and compare with `Exact` (docs/benchmarks.md has measurements).

    Errors: `InputError` if delta is not positive.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**4) / 12, jnp.array([1.0, 2.0]))
        >>> _, (product, _) = ax.curvature.FiniteDifference(delta=0.01).product(local, jnp.array([1.0, 1.0]))
        >>> bool(jnp.allclose(product, jnp.array([1.0, 4.0]), rtol=1e-2))
        True

    Source: Fallah, Mokhtari, Ozdaglar (2020), HF-MAML, arXiv 1908.10400; docs/theory.md, section 7.
    """

    delta: Any = eqx.field(default=None, kw_only=True)
    stochastic: ClassVar[bool] = False
    gives_gradient: ClassVar[bool] = False

    def __check_init__(self):
        check_smoothing(self)

    def product(self, local, v, key=None):
        length = _tree.norm(v)
        delta = radius(self.delta, local.w, 1 / 2)
        if self.delta is None:
            delta = delta * sum(leaf.size for leaf in jax.tree.leaves(local.w)) ** 0.25
        unit = _tree.scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), v)
        difference = optax.tree.sub(
            local.gradient(_tree.shift(local.w, delta, unit)), local.gradient(_tree.shift(local.w, -delta, unit))
        )
        return None, _tree.scale(length / (2 * delta), difference)

    def cost(self, gradient):
        return gradient.times(2)
