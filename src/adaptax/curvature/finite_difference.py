"""Hessian-vector products from differences of gradients (HF-MAML)."""

import functools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from adaptax import _tree
from adaptax._smoothing import check_smoothing, radius
from adaptax.curvature.base import AbstractCurvature, LocalLoss

# Widths are divided by this from one to the next, of which there are so many; secants that agree so well end the search.
_NARROWER, _WIDTHS, _AGREE = 4.0, 6, 0.05
# Points are on one line if they leave it by so many times the noise, or by this share of their distance.
_NOISES, _SHARE = 3.0, 0.01


class _Search(NamedTuple):
    """Where the search for a width stands.

    Arguments:
        tried: how many widths were tried.
        pieces: the changes of the gradient from each point on the line to the next, in the direction of the line: above w from
            the outermost piece to the innermost, then the same below; zeros for pieces there are not yet.
        weights: those of the pieces in the mean slope of the pair that agrees best.
        apart: how far apart the slopes of that pair are.
        agrees: whether that is little.
    """

    tried: Array
    pieces: PyTree
    weights: Float[Array, " 2W"]
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
    these points is an estimate, and a jump spoils one of them alone. The pair of secants that differs least ends the search
    when it agrees within 5 %; six widths end it too. Points whose gradients lie on one line of about that slope, up to the
    noise, have no jump between them: the product is the least-squares slope of all such groups of points, each with an
    intercept of its own. Smooth losses take 3 gradients a product (the central difference), others up to 13, all of which are
    kept.

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
    """The Hessian times a unit direction, by points on the line whose gradients have no jump between them."""
    widest = radius(None, local.w, 1 / 2) * sum(leaf.size for leaf in jax.tree.leaves(local.w)) ** 0.25
    pieces = jax.tree.map(lambda leaf: jnp.zeros((2 * _WIDTHS, *leaf.shape), leaf.dtype), here)
    none = jnp.zeros_like(_products(pieces)[0])
    numbers = jnp.arange(_WIDTHS)
    widths = widest.astype(none.dtype) * _NARROWER ** -numbers.astype(none.dtype)

    def lengths(tried):
        """The lengths of the pieces; 0 of those there are not yet."""
        last = numbers == tried - 1
        side = jnp.where(last, widths, jnp.where(numbers < tried - 1, (1 - 1 / _NARROWER) * widths, 0))
        return jnp.concatenate([side, side])

    def with_ends(pieces, tried):
        """The pieces with the points of the next width, which cut the two innermost pieces."""
        width = widths[tried]
        above = optax.tree.sub(local.gradient(_tree.shift(local.w, width, unit)), here)
        below = optax.tree.sub(here, local.gradient(_tree.shift(local.w, -width, unit)))

        def cut(pieces, above, below):
            for start, new in ((0, above), (_WIDTHS, below)):
                # Before the first width this takes from a piece that is written over.
                pieces = pieces.at[start + jnp.maximum(tried - 1, 0)].add(-new)
                pieces = pieces.at[start + tried].set(new)
            return pieces

        return jax.tree.map(cut, pieces, above, below)

    def narrower(search):
        tried = search.tried + 1
        pieces, length = with_ends(search.pieces, search.tried), lengths(tried)
        # A slope over a piece that is cut is one over both of its parts.
        before = jnp.maximum(search.tried - 1, 0)
        known = search.weights
        for start in (0, _WIDTHS):
            known = known.at[start + search.tried].set(known[start + before])
        products = _products(pieces)
        weights, apart = _best_pair(products, length)
        better = apart < search.apart
        weights, apart = jnp.where(better, weights, known), jnp.where(better, apart, search.apart)
        return _Search(tried, pieces, weights, apart, apart <= _AGREE * _norm(products, weights))

    def more(search):
        return (search.tried < _WIDTHS) & ~search.agrees

    start = _Search(jnp.array(0), pieces, none, jnp.full_like(none[0], jnp.inf), jnp.array(False))
    found = jax.lax.while_loop(more, narrower, start)
    weights = _on_lines(_products(found.pieces), found, widths)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1, precision="highest"), found.pieces)


def _products(pieces: PyTree) -> Float[Array, "2W 2W"]:
    """Inner products of all pieces with each other."""

    def one(leaf):
        flat = leaf.reshape(leaf.shape[0], -1)
        return jnp.matmul(flat, flat.T, precision="highest", preferred_element_type=jnp.promote_types(leaf.dtype, jnp.float32))

    return functools.reduce(jnp.add, map(one, jax.tree.leaves(pieces)))


def _norm(products: Array, weights: Array) -> Array:
    """The norm of a weighted sum of pieces."""
    return jnp.sqrt(jnp.maximum(weights @ products @ weights, 0))


def _distances(products: Array) -> Array:
    """Distances between vectors with these inner products, none below what rounding leaves of them."""
    products, squares = (products + products.T) / 2, jnp.maximum(jnp.diag(products), 0)
    both = squares[:, None] + squares[None]
    return jnp.sqrt(jnp.maximum(both - 2 * products, 100 * jnp.finfo(products.dtype).eps * both))


def _best_pair(products: Array, lengths: Array) -> tuple[Array, Array]:
    """The weights of the mean slope of the two pieces whose slopes are least apart, and how far apart they are."""
    there = lengths > 0
    slopes = 1 / jnp.where(there, lengths, 1)
    apart = _distances(products * slopes[:, None] * slopes[None])
    apart = jnp.where(there[:, None] & there[None] & ~jnp.eye(len(lengths), dtype=bool), apart, jnp.inf)
    pair = jnp.array(jnp.unravel_index(jnp.argmin(apart), apart.shape))
    return jnp.zeros_like(lengths).at[pair].set(1 / jnp.sum(lengths[pair])), jnp.min(apart)


def _on_lines(products: Array, found: _Search, widths: Array) -> Array:
    """The weights of the pieces in the least-squares slope of the groups of points that lie on lines of one slope."""
    tried = jnp.arange(_WIDTHS) < found.tried
    there = jnp.concatenate([tried, tried, jnp.array([True])])
    places = jnp.where(there, jnp.concatenate([widths, -widths, jnp.zeros_like(widths[:1])]), 0)
    # Each point's gradient, less that at w, as a sum of pieces.
    sums = jnp.triu(jnp.ones((_WIDTHS, _WIDTHS), products.dtype))
    sums = jnp.zeros((2 * _WIDTHS + 1, 2 * _WIDTHS), products.dtype).at[:-1].set(jax.scipy.linalg.block_diag(sums, -sums))
    slope = _norm(products, found.weights)
    residual = sums - places[:, None] * found.weights[None]
    apart = _distances(residual @ products @ residual.T)
    pairs = jnp.triu(jnp.ones_like(apart, bool), 1) & there[:, None] & there[None]
    noise = jnp.sort(jnp.where(pairs, apart, jnp.inf), axis=None)[1]
    near = apart <= jnp.maximum(_NOISES * noise, _SHARE * jnp.abs(places[:, None] - places[None]) * slope)
    group = (near | jnp.eye(len(places), dtype=bool)) & there[:, None] & there[None]
    for _ in range(4):  # neighbours of neighbours, over all 13 points
        group = (group.astype(jnp.float32) @ group.astype(jnp.float32)) > 0
    members = jnp.maximum(jnp.sum(group, axis=1), 1)
    centred = jnp.where(there, places - group.astype(places.dtype) @ places / members, 0)
    return centred @ sums / jnp.sum(centred**2)
