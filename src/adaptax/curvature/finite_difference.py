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


class _Secant(NamedTuple):
    """The change of the gradient between two points on the line, over their distance, which is its width."""

    slope: PyTree
    width: Array


class _Search(NamedTuple):
    """Where the search for a width stands: how many were tried, the gradients at the last two points, the two secants between
    the last two widths, the mean of the pair of secants that agrees best, how far apart that pair is, and whether it agrees."""

    tried: Array
    ends: tuple[PyTree, PyTree]
    between: tuple[_Secant, _Secant]
    best: PyTree
    apart: Array
    agrees: Array


class FiniteDifference(AbstractCurvature):
    r"""$\hat H v = \|v\|\,\frac{\nabla l(w+\delta\hat v) - \nabla l(w-\delta\hat v)}{2\delta}$, $\hat v = v/\|v\|$; 0 at v = 0.

    The error is at most $\tfrac12\rho\delta\|v\|$ ($\tfrac16\nu\delta^2\|v\|$ where the third derivative is $\nu$-Lipschitz),
    and rounding adds about $\epsilon\|\nabla l\|\,\|v\|/\delta$. Nothing is differentiated twice.

    Without `delta` the width is found for each product. Where a relu or a max pool changes its branch between two points,
    their gradients jump, and the difference is wrong by the jump over their distance, however smooth the loss is beside it.
    So gradients are taken at $w$ and at $w\pm\delta_k\hat v$, with widths $\delta_k$ that fall by a factor of 4 from
    $\epsilon^{1/2}\|w\|/d^{1/4}$, d parameters of a number type of precision $\epsilon$. Each secant between neighbours among
    these points is an estimate, and a jump spoils one of them alone. The pair of secants that differs least is taken, by its
    mean weighted by width; it ends the search when it agrees within 5 %, or after six widths. Smooth losses take 3 gradients
    a product (the mean is then the central difference), others up to 13.

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
            return None, _tree.scale(length, searched(local, local.gradient(local.w), unit))
        delta = radius(self.delta, local.w, 1 / 2)
        difference = optax.tree.sub(
            local.gradient(_tree.shift(local.w, delta, unit)), local.gradient(_tree.shift(local.w, -delta, unit))
        )
        return None, _tree.scale(length / (2 * delta), difference)

    def cost(self, gradient):
        return gradient.times(3 if self.delta is None else 2)


def searched(local: LocalLoss, here: PyTree, unit: PyTree) -> PyTree:
    """The Hessian times a unit direction, by the pair of differences that agrees best."""
    widest = radius(None, local.w, 1 / 2) * sum(leaf.size for leaf in jax.tree.leaves(local.w)) ** 0.25

    def ends(width):
        return local.gradient(_tree.shift(local.w, width, unit)), local.gradient(_tree.shift(local.w, -width, unit))

    def secant(above, below, width):
        return _Secant(_tree.scale(1 / width, optax.tree.sub(above, below)), width)

    def inner(points, width):
        return secant(points[0], here, width), secant(here, points[1], width)

    def better(search, one, other):
        """The search with a pair of secants."""
        share = one.width / (one.width + other.width)
        mean = optax.tree.add(_tree.scale(share, one.slope), _tree.scale(1 - share, other.slope))
        apart = _tree.norm(optax.tree.sub(one.slope, other.slope))
        found = mean, apart, apart <= _AGREE * _tree.norm(mean)
        best = _tree.select(apart < search.apart, found, (search.best, search.apart, search.agrees))
        return _Search(search.tried, search.ends, search.between, *best)

    first = ends(widest)
    sides = inner(first, widest)
    middle = _tree.scale(0.5, optax.tree.add(sides[0].slope, sides[1].slope))
    # Distances to what there is not yet are NaN, and never the smallest.
    none = _Secant(jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), middle), widest)
    start = _Search(jnp.array(1), first, (none, none), middle, jnp.full_like(_tree.norm(middle), jnp.inf), jnp.array(False))

    def more(search):
        return (search.tried < _WIDTHS) & ~search.agrees

    def narrower(search):
        width = widest * _NARROWER ** -search.tried.astype(widest.dtype)
        new, (above, below) = ends(width), search.ends
        gap = (_NARROWER - 1) * width
        between = secant(above, new[0], gap), secant(new[1], below, gap)
        known, secants = search.between, (*between, *inner(new, width))
        for i, one in enumerate(secants):
            for other in (*secants[i + 1 :], *known):
                search = better(search, one, other)
        return search._replace(tried=search.tried + 1, ends=new, between=between)

    return jax.lax.while_loop(more, narrower, better(start, *sides)).best
