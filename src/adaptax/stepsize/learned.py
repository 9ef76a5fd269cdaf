"""Step sizes that are parameters of the outer problem (Meta-SGD, per-layer per-step rates)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from adaptax._checks import check_real, check_true_or_false
from adaptax._tree import is_floating, prefix_map
from adaptax.errors import InputError

# An outer step that moves a parameter by x moves the logarithm of a step size by SPEED x.
SPEED = 10.0


class LearnedRates(eqx.Module):
    r"""Step sizes in the coordinates in which an outer optimiser moves them: $a = a_0e^{s\theta}$, s = 10.

    A step of the optimiser is a relative change of a step size, whatever its size: an Adam step of 0.001 changes it by 1 %.
    With `signed`, $a = a_0(1 + s\theta)$, which may change its sign.

    Arguments:
        first: $a_0$, positive arrays, which stay as they are: one for all, or a prefix of the tree of $\theta$.
        free: the tree of $\theta$; zero at first.
        per_step: whether every leaf has a leading axis over the inner steps.
        signed: whether signs may change.
        most: training holds every $|a|$ below this multiple of $a_0$ (None: no bound).

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> ax.stepsize.LearnedRates.of(jnp.array([0.1, 0.2])).tree
        Array([0.1, 0.2], dtype=float32)

    Source: docs/theory.md, section 1; Li et al. (2017), Meta-SGD, arXiv 1707.09835.
    """

    first: PyTree
    free: PyTree
    per_step: bool = eqx.field(static=True, default=False)
    signed: bool = eqx.field(static=True, default=False)
    most: float | None = eqx.field(static=True, default=None)

    @classmethod
    def of(cls, tree: PyTree, per_step: bool = False, signed: bool = False, most: float | None = None) -> "LearnedRates":
        """The coordinates of these step sizes, a pytree of positive arrays."""
        return cls(tree, jax.tree.map(jnp.zeros_like, tree), per_step, signed, most)

    @property
    def tree(self) -> PyTree:
        """The step sizes."""
        factor = (lambda theta: 1 + SPEED * theta) if self.signed else (lambda theta: jnp.exp(SPEED * theta))
        return prefix_map(lambda first, theta: first * factor(theta), jax.lax.stop_gradient(self.first), self.free)

    @property
    def moved(self) -> "LearnedRates":
        """Which leaves an outer optimiser moves."""
        fixed, free = jax.tree.map(lambda _: False, self.first), jax.tree.map(lambda _: True, self.free)
        return LearnedRates(fixed, free, self.per_step, self.signed, self.most)

    def times(self, factors: PyTree) -> "LearnedRates":
        """Each step size times its own positive factor."""

        def scaled(theta, factor):
            new = ((1 + SPEED * theta) * factor - 1) / SPEED if self.signed else theta + jnp.log(factor) / SPEED
            return new.astype(theta.dtype)

        free = jax.tree.map(scaled, self.free, factors)
        return LearnedRates(self.first, free, self.per_step, self.signed, self.most)

    def within(self) -> "LearnedRates":
        """The nearest step sizes within the bound."""
        if self.most is None:
            return self
        low, high = (-np.inf, np.log(self.most)) if not self.signed else (-self.most - 1, self.most - 1)
        free = jax.tree.map(lambda theta: jnp.clip(theta, low / SPEED, high / SPEED), self.free)
        return LearnedRates(self.first, free, self.per_step, self.signed, self.most)


class Meta(eqx.Module):
    """Outer parameters when step sizes are learned: the initialisation and the step sizes.

    Arguments:
        params: the parameters that the inner loop adapts.
        stepsize: the `LearnedRates` that `Learned.start` makes, whose meta-gradient is that by their logarithms; or the step
            sizes themselves, a pytree of arrays, whose meta-gradient is that by the step sizes. `ax.train` and `ax.make_step`
            take either, and move logarithms.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> float(ax.Meta(params=jnp.zeros(3), stepsize=jnp.array(0.5)).stepsize)
        0.5

    Source: docs/theory.md, section 1; Li et al. (2017), Meta-SGD, arXiv 1707.09835.
    """

    params: PyTree
    stepsize: PyTree


class Learned(eqx.Module):
    r"""Learned inner step sizes: outer parameters of their own, with the exact derivative
    $\partial\mathcal L_i/\partial a_j = -\nabla l(w_j)\odot v_{j+1}$ from the same recursion as the meta-gradient.

    The outer problem's parameters become `ax.Meta(params, stepsize)`; `ax.train` makes it when given plain parameters. Step
    sizes are learned in their logarithm, so that they stay positive and the outer optimiser's step is a relative change: the
    same optimiser serves parameters and step sizes. `ax.stepsize.Auto` learns from a measured first value.

    Arguments:
        init: the first value: a positive number, or a pytree (a prefix of the parameters) of arrays, used as it is.
        per: for a number, what shares one rate: "scalar" (everything), "leaf" (each array), "parameter" (each entry).
        per_step: whether each step has its own; a pytree must then have a leading axis of length N on every leaf.
        signed: whether a step size may change its sign, as in Meta-SGD; then a factor of the first value is learned instead of
            the logarithm (default False).
        growth: training holds the step sizes below the edge of stability, $1 + c^{1/N}$ with c = `growth`, as `Auto` does
            (default 1000; None: it does not). Not with an inner optimiser, or losses without derivatives.

    Errors: `InputError` if the first value is not positive and finite, or `per` is unknown.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> rates = ax.stepsize.Learned(0.1, per="leaf", per_step=True).start({"w": jnp.zeros((2, 3))}, steps=5)
        >>> rates.tree["w"].shape
        (5,)

    Source: docs/theory.md, section 1; Li et al. (2017); Antoniou et al. (2019), MAML++, arXiv 1810.09502.
    """

    init: PyTree
    per: str = eqx.field(static=True)
    per_step: bool = eqx.field(static=True)
    signed: bool = eqx.field(static=True)
    growth: float | None = eqx.field(static=True)

    def __init__(self, init, *, per="scalar", per_step=False, signed=False, growth=1000.0):
        check_per("Learned", per)
        try:
            self.init = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), init)
        except (TypeError, ValueError) as error:
            raise InputError(f"Learned(init={init!r}) must be a number or a pytree of numbers.") from error
        if not jax.tree.leaves(self.init):
            raise InputError("Learned(init) holds no step size: give a number, or a prefix of the parameters.")
        concrete = [leaf for leaf in jax.tree.leaves(self.init) if not isinstance(leaf, Tracer)]
        if not all(np.all(np.isfinite(leaf) & (np.asarray(leaf) > 0)) for leaf in concrete):
            raise InputError("Learned(init) must be positive and finite: start from a step size such as 0.01.")
        self.per, self.per_step = per, bool(per_step)
        self.signed = check_true_or_false("Learned", "signed", signed)
        self.growth = None if growth is None else check_real("Learned", "growth", growth, above=0)

    def start(self, params: PyTree, steps: int) -> LearnedRates:
        """The step sizes to put into `ax.Meta(params, stepsize)`, for an inner loop of `steps` steps."""
        if eqx.is_array(self.init) and self.init.ndim == 0:
            free = zeros(params, self.per, max(steps, 1) if self.per_step else None)
            return LearnedRates(self.init, free, self.per_step, self.signed)
        return self.coordinates(self.init)

    def coordinates(self, stepsize: PyTree) -> LearnedRates:
        """What an outer optimiser moves, for these step sizes."""
        if isinstance(stepsize, LearnedRates):
            return stepsize
        return LearnedRates.of(stepsize, self.per_step, self.signed)


def check_per(where: str, per: str) -> None:
    """Refuse an unknown kind of sharing."""
    if per not in ("scalar", "leaf", "parameter"):
        raise InputError(f'{where}(per={per!r}) must be "scalar", "leaf" or "parameter".')


def zeros(params: PyTree, per: str, steps: int | None) -> PyTree:
    """$\\theta$ = 0 for these parameters, with a leading axis over the steps unless `steps` is None."""
    lead = () if steps is None else (steps,)
    if per == "scalar":
        return jnp.zeros(lead)
    by_leaf = per == "leaf"

    def fill(leaf):
        return jnp.zeros(lead + (() if by_leaf else jnp.shape(leaf))) if is_floating(leaf) else None

    return jax.tree.map(fill, params)
