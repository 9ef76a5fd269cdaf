"""Gradients by Gaussian smoothing, from values of the loss alone."""

from typing import Any, ClassVar

import equinox as eqx

from adaptax import _tree
from adaptax._cost import Cost
from adaptax._smoothing import average, check_smoothing, radius
from adaptax.gradients.base import AbstractGradient


class Smoothed(AbstractGradient):
    r"""$\frac1Q\sum_u \frac{l(x+\delta u) - l(x)}{\delta}\,u$, $u \sim N(0, I)$: nothing is differentiated.

    Its mean is the gradient of the smoothed loss $E\,l(x + \delta u)$, and on a linear loss its variance is
    $(d+1)\|\nabla l\|^2/Q$, d the number of parameters: it needs Q of the order of d to be accurate. Use it with
    `ax.curvature.ZerothOrder` or `FirstOrder`; a strategy that takes differences of such gradients divides their rounding
    errors by its own width once more, so give both widths then.

    Arguments:
        samples: Q, fresh directions at every use (default 10).
        delta: $\delta$, an absolute number; default: $\epsilon^{1/2}$ ($\epsilon^{1/3}$ if antithetic) times the root mean
            square of x, with $\epsilon$ the precision of its number type.
        antithetic: use $\frac{l(x+\delta u) - l(x-\delta u)}{2\delta}$, at 2Q + 1 values instead of Q + 1.

    Errors: `InputError` if samples is not a positive whole number or delta not a positive one.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> strategy = ax.gradients.Smoothed(samples=10_000)
        >>> value, gradient = strategy.value_and_gradient(lambda x: x**2, jnp.array(3.0), jax.random.key(0))
        >>> bool(abs(gradient - 6) < 0.3)
        True

    Source: Nesterov, Spokoiny (2017), Random gradient-free minimization of convex functions; docs/theory.md, section 7.
    """

    samples: int = eqx.field(static=True, default=10, kw_only=True)
    delta: Any = eqx.field(default=None, kw_only=True)
    antithetic: bool = eqx.field(static=True, default=False, kw_only=True)
    stochastic: ClassVar[bool] = True

    def __check_init__(self):
        check_smoothing(self)

    def value_and_gradient(self, loss, x, key):
        delta = radius(self.delta, x, 1 / 3 if self.antithetic else 1 / 2)
        value = loss(x)

        def term(u):
            if self.antithetic:
                slope = (loss(_tree.shift(x, delta, u)) - loss(_tree.shift(x, -delta, u))) / (2 * delta)
            else:
                slope = (loss(_tree.shift(x, delta, u)) - value) / delta
            return _tree.scale(slope, u)

        return value, average(term, x, self.samples, key)

    def cost(self):
        return Cost(losses=1 + self.samples * (2 if self.antithetic else 1))
