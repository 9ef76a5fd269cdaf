"""Hessian-vector products from differences of gradients (HF-MAML)."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._smoothing import check_smoothing, radius
from adaptax.curvature.base import AbstractCurvature, LocalLoss

# Widths are divided by this from one to the next, of which there are so many; differences that agree so well end the search.
_NARROWER, _WIDTHS, _AGREE = 4.0, 6, 0.05


class _Search(NamedTuple):
    """Where the search for a width stands: how many were tried, the last two differences, the mean of the best pair, how far
    apart that pair is, and whether it agrees."""

    tried: Array
    sides: PyTree
    best: PyTree
    apart: Array
    agrees: Array


class FiniteDifference(AbstractCurvature):
    r"""$\hat H v = \|v\|\,\frac{\nabla l(w+\delta\hat v) - \nabla l(w-\delta\hat v)}{2\delta}$, $\hat v = v/\|v\|$; 0 at v = 0.

    The error is at most $\tfrac12\rho\delta\|v\|$ ($\tfrac16\nu\delta^2\|v\|$ where the third derivative is $\nu$-Lipschitz),
    and rounding adds about $\epsilon\|\nabla l\|\,\|v\|/\delta$. Nothing is differentiated twice.

    Without `delta` the width is found for each product. Where a relu or a max pool changes its branch between two points,
    their gradients jump, and the difference is wrong by the jump over $\delta$, however smooth the loss is beside it. So the
    two sides $D_\pm = \pm(\nabla l(w\pm\delta\hat v)-\nabla l(w))/\delta$ are compared with each other and with those of the
    width before. A jump in one of two differences sets them far apart, so the pair that differs least is the estimate (its
    mean, weighted by width; of two sides of one width it is the central difference). Widths fall by a factor of 4 from
    $\epsilon^{1/2}\|w\|/d^{1/4}$, with d parameters of a number type of precision $\epsilon$, until a pair agrees within 5 %,
    or six were tried: 3 gradients a product on smooth losses, at most 13.

    Arguments:
        delta: $\delta$, an absolute distance, for central differences of that width by two gradients a product (default None:
            the search above).

    Errors: `InputError` if delta is not positive.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> local = ax.curvature.LocalLoss(lambda w, rest: jnp.sum(w**4) / 12, jnp.array([1.0, 2.0]))
        >>> _, (product, _) = ax.curvature.FiniteDifference().product(local, jnp.array([1.0, 1.0]))
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
        unit = _tree.scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), v)
        if self.delta is None:
            return None, _tree.scale(length, _searched(local, local.gradient(local.w), unit))
        delta = radius(self.delta, local.w, 1 / 2)
        difference = optax.tree.sub(
            local.gradient(_tree.shift(local.w, delta, unit)), local.gradient(_tree.shift(local.w, -delta, unit))
        )
        return None, _tree.scale(length / (2 * delta), difference)

    def cost(self, gradient):
        return gradient.times(3 if self.delta is None else 2)


def _searched(local: LocalLoss, here: PyTree, unit: PyTree) -> PyTree:
    """The Hessian times a unit direction, by the pair of differences that agrees best."""
    widest = radius(None, local.w, 1 / 2) * sum(leaf.size for leaf in jax.tree.leaves(local.w)) ** 0.25

    def sides(width):
        forward = optax.tree.sub(local.gradient(_tree.shift(local.w, width, unit)), here)
        backward = optax.tree.sub(here, local.gradient(_tree.shift(local.w, -width, unit)))
        return _tree.scale(1 / width, forward), _tree.scale(1 / width, backward)

    def better(search, one, other, share):
        """The search with a pair of differences, of which the first has this share in the mean."""
        mean = optax.tree.add(_tree.scale(share, one), _tree.scale(1 - share, other))
        apart = _tree.norm(optax.tree.sub(one, other))
        found = mean, apart, apart <= _AGREE * _tree.norm(mean)
        best = _tree.select(apart < search.apart, found, (search.best, search.apart, search.agrees))
        return _Search(search.tried, search.sides, *best)

    first = sides(widest)
    start = _tree.scale(0.5, optax.tree.add(*first))
    begun = _Search(jnp.array(1), first, start, jnp.full_like(_tree.norm(start), jnp.inf), jnp.array(False))

    def more(search):
        return (search.tried < _WIDTHS) & ~search.agrees

    def narrower(search):
        new = sides(widest * _NARROWER ** -search.tried.astype(widest.dtype))
        found = better(search._replace(tried=search.tried + 1), *new, 0.5)
        for before in search.sides:
            for now in new:
                found = better(found, before, now, _NARROWER / (1 + _NARROWER))
        return found._replace(sides=new)

    return jax.lax.while_loop(more, narrower, better(begun, *first, 0.5)).best
