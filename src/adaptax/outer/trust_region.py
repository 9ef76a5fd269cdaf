"""The outer step of trust-region policy optimisation, as an optax transformation."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError

# divergence(old, new, batch) -> scalar, zero and least where new is old.
Divergence = Callable[[PyTree, PyTree, PyTree], Array]


class Region(NamedTuple):
    """The mean target loss and divergence after adaptation, on the meta-step's own batches, held fixed.

    Arguments:
        evaluate: floating-point parameters -> (loss, divergence).
        product: v -> the Hessian of the divergence at the parameters of the meta-step, times v.
        gradient: (floating-point parameters, loss, weight) -> the gradient of the mean of loss(adapted parameters, target
            batch) + weight × the divergence of the parameters before adaptation on the first inner step's batch.
    """

    evaluate: Callable[[PyTree], tuple[Array, Array]]
    product: Callable[[PyTree], PyTree]
    gradient: Callable[[PyTree, Callable[[PyTree, PyTree], Array], float], PyTree]


class HasAdaptedPath(Protocol):
    """The `adapted_path` that the training step hands to optimisers; it computes only what is asked of it."""

    def region(self, divergence: Divergence, tasks: int | None = None) -> Region: ...


class TrustState(eqx.Module):
    """State of `TrustRegion`.

    Arguments:
        divergence: the divergence of the last step taken (0 if none was).
        backtracks: how often that step was shortened; the number of trials if none was taken.
    """

    divergence: Array
    backtracks: Array


class TrustRegion(optax.GradientTransformationExtraArgs):
    r"""The longest step along $-(F + cI)^{-1}\hat g$ that lowers the loss and keeps the adapted policies close.

    F is the Hessian at w of the mean divergence D from the adapted parameters $w_N(w_k)$ to $w_N(w)$, adaptation included:
    $J^\top F_N J$ with J the Jacobian of the inner path on its fixed batches. With $x = (F + cI)^{-1}\hat g$ by conjugate
    gradients the first trial is $-x\sqrt{2\delta/x^\top(F + cI)x}$; it is shortened until $D \le \delta$ and the target loss
    on the same batches falls, else no step is taken. `ax.train` and `ax.make_step` hand over the adapted path.

    Arguments:
        divergence: `divergence(old, new, batch) -> scalar` at adapted parameters, on the target batch of a task, such as
            `ax.tasks.rl.mean_kl`.
        radius: $\delta$ (default 1e-2).
        damping: c (default 1e-5).
        iterations: of the conjugate gradients (default 10).
        backtracks: trials (default 15).
        shrink: by which factor each trial is shorter than the last (default 0.8).
        tasks: F is the mean over the first so many tasks of the batch, rounded up to the same number on every device
            (default None: over all). Products with F are most of the work; loss and divergence of a trial are always those
            of all tasks.

    Errors: `InputError` for numbers out of range, and in a loop that does not feed it.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> cosine = ax.tasks.cosine(dim=3)
        >>> outer = ax.outer.TrustRegion(lambda old, new, batch: 0.5 * jnp.sum((new - old) ** 2), radius=0.02)
        >>> method = ax.MetaGradient(ax.Inner(steps=2, stepsize=0.05))
        >>> state, _ = ax.train(cosine.finite_sum, jnp.ones(3), method, optimizer=outer, steps=3)
        >>> bool(0 < state.opt_state.divergence <= 0.02)
        True

    Source: Schulman et al. (2015), TRPO, ICML; docs/theory.md, section 10.3.
    """

    # The training step then draws the batches once, for the meta-gradient too.
    on_adapted_path: ClassVar[bool] = True

    def __new__(
        cls, divergence: Divergence, radius: float = 1e-2, damping: float = 1e-5, *, iterations: int = 10,
        backtracks: int = 15, shrink: float = 0.8, tasks: int | None = None,
    ):  # fmt: skip
        if not callable(divergence):
            raise InputError("TrustRegion(divergence=...) must be a function such as ax.tasks.rl.mean_kl.")
        radius = check_real("TrustRegion", "radius", radius, above=0)
        damping = check_real("TrustRegion", "damping", damping, above=0)
        shrink = check_real("TrustRegion", "shrink", shrink, above=0, below=1)
        iterations = check_whole("TrustRegion", "iterations", iterations)
        backtracks = check_whole("TrustRegion", "backtracks", backtracks)
        tasks = None if tasks is None else check_whole("TrustRegion", "tasks", tasks)

        def init(params: Any) -> Any:
            return TrustState(jnp.zeros(()), jnp.zeros((), jnp.int32))

        def update(
            updates: Any, state: Any, params: Any = None, *, adapted_path: HasAdaptedPath | None = None, **extra: Any
        ) -> Any:
            region = region_of(adapted_path, params, "TrustRegion", divergence, tasks)

            def damped(v):
                return optax.tree.add(region.product(v), _tree.scale(damping, v))

            x = cg(damped, updates, maxiter=iterations)[0]
            # x.(F + c)x is formed, and not taken from g.x, since the conjugate gradients leave a residual.
            bend = _tree.dot(x, damped(x))
            length = jnp.where(bend > 0, jnp.sqrt(2 * radius / jnp.where(bend > 0, bend, 1)), 0)
            before, none = region.evaluate(params)

            def attempt(carry):
                trial, _, _ = carry
                loss, apart = region.evaluate(_tree.shift(params, -length * shrink**trial, x))
                return trial + 1, (loss < before) & (apart <= radius), apart

            start = (jnp.zeros((), jnp.int32), jnp.array(False), jnp.zeros_like(none))
            trials, taken, apart = jax.lax.while_loop(lambda carry: (carry[0] < backtracks) & ~carry[1], attempt, start)
            scale = jnp.where(taken, -length * shrink ** (trials - 1), 0)
            # Where products or the loss are not finite no step can be found, which is not the same as none being good enough.
            none_taken = jnp.where(jnp.isfinite(bend) & jnp.isfinite(before), 0, jnp.nan)
            step = jax.tree.map(
                lambda leaf: jnp.where(taken, scale.astype(leaf.dtype) * leaf, none_taken.astype(leaf.dtype)), x
            )
            apart = jnp.where(taken, apart, 0).astype(state.divergence.dtype)
            return step, TrustState(apart, jnp.where(taken, trials - 1, trials).astype(jnp.int32))

        return super().__new__(cls, init, update)


def region_of(
    adapted_path: HasAdaptedPath | None, params: Any, name: str, divergence: Divergence, tasks: int | None = None
) -> Region:
    """The region that an outer step works on, or a refusal where the loop hands over no adapted path."""
    if adapted_path is None or params is None:
        raise InputError(
            f"{name} needs the adapted path, which ax.train and ax.make_step hand to it: use it there, or pass "
            "adapted_path= to update."
        )
    return adapted_path.region(divergence, tasks)
