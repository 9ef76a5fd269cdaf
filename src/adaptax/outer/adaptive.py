"""The outer step size of the convergence theorems, as an optax transformation."""

import warnings
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.smoothness import smoothness

_MEASURED = (
    "AdaptiveOuter() without constants measures L, rho and b as training goes: these are lower estimates of suprema, so that "
    "the theorem's proof does not cover the run. Where they are known, pass constants=ax.theory.Constants(L=..., rho=..., ...)."
)


class SmoothnessConstants(eqx.Module):
    """L, rho and b, as known or as measured at the current parameters."""

    L: Array
    rho: Array
    b: Array


class HasInitialGradients(Protocol):
    r"""The `initial_gradients` that the training step hands to optimisers; it computes only what is asked of it.

    `alpha` and `steps` are those of the inner loop; `finite_sum` says which case it is; `gradient_norm(tasks, samples)` is the
    mean of $\|\nabla l_i(w; D_L)\|$ over `tasks` tasks that are independent of the meta-step's, and `measure(tasks, samples)`
    gives L, rho and b on the same tasks.
    """

    @property
    def alpha(self) -> Array: ...
    @property
    def steps(self) -> int: ...
    @property
    def finite_sum(self) -> bool: ...
    def gradient_norm(self, tasks: int, samples: int) -> Array: ...
    def measure(self, tasks: int, samples: int) -> SmoothnessConstants: ...


class AdaptiveState(eqx.Module):
    r"""State of `AdaptiveOuter`.

    Arguments:
        beta: the last $\beta_k$ (0 before the first step).
        smoothness: the last $\hat L_k$.
        constants: L, rho and b in use.
        step: k.
    """

    beta: Array
    smoothness: Array
    constants: SmoothnessConstants
    step: Array


class AdaptiveOuter(optax.GradientTransformationExtraArgs):
    r"""The outer step $w \leftarrow w - \beta_k\hat g$ of the convergence theorems, $\beta_k = 1/(C_\beta\hat L_k)$.

    Here $\hat L_k = G + C_L\,\frac1{B'}\sum_i\|\nabla l_i(w_k; D_L)\|$. $C_L$ and G come from L, rho, b and the inner step size
    in use (`ax.theory.smoothness_slope`, `smoothness_floor`). The mean of norms is over tasks and samples that are independent
    of the meta-step's, at the parameters before adaptation (finite-sum: of target losses); `ax.train` and `ax.make_step` hand
    them over. The inner loop must be plain gradient descent on all parameters with one step size for all of them.

    Arguments:
        constants: `ax.theory.Constants`, whose L, rho and b are used. Default: they are measured every `every` meta-steps on
            the same tasks, at w and at the ends of the inner paths; they rise at once and fall by at most the factor 0.8. Then
            the run follows the theorem's recipe without its proof, and a warning says so.
        C_beta: $C_\beta$, positive (default 2).
        tasks: B' (default 8).
        samples: $D_L$ of a resampling problem (default 20).
        every: meta-steps between measurements, without constants (default 10).

    The state has `beta`, `smoothness` and `constants`.

    Errors: `InputError` for numbers out of range, for an inner loop that the theorem does not know, and in a loop that does not
    feed it.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> cosine = ax.tasks.cosine(dim=3)
        >>> method = ax.MetaGradient(ax.Inner(steps=2, stepsize=0.05))
        >>> outer = ax.outer.AdaptiveOuter(cosine.constants)
        >>> state, _ = ax.train(cosine.finite_sum, jnp.ones(3), method, optimizer=outer, steps=5)
        >>> bool(state.opt_state.beta <= 1 / (2 * cosine.constants.L))
        True

    Source: docs/theory.md, section 6; cf. Ji, Yang, Liang (2022), JMLR 23.
    """

    def __new__(
        cls,
        constants: Constants | None = None,
        C_beta: float = 2.0,
        tasks: int = 8,
        *,
        samples: int = 20,
        every: int = 10,
    ):
        if constants is not None and not isinstance(constants, Constants):
            raise InputError(
                f"AdaptiveOuter(constants=...) must be ax.theory.Constants or None, not {type(constants).__name__}."
            )
        C_beta = check_real("AdaptiveOuter", "C_beta", C_beta, above=0)
        given = (("tasks", tasks), ("samples", samples), ("every", every))
        tasks, samples, every = (check_whole("AdaptiveOuter", name, value) for name, value in given)
        if constants is None:
            warnings.warn(_MEASURED, UserWarning, stacklevel=2)

        def init(params: Any) -> Any:
            zero = jnp.zeros(())
            known = constants if constants is not None else Constants(1.0, 0.0, 0.0)
            given = SmoothnessConstants(*(jnp.asarray(x, zero.dtype) for x in (known.L, known.rho, known.b)))
            return AdaptiveState(zero, zero, given, jnp.zeros((), jnp.int32))

        def update(
            updates: Any, state: Any, params: Any = None, *, initial_gradients: HasInitialGradients | None = None, **extra: Any
        ) -> Any:
            if initial_gradients is None:
                raise InputError(
                    "AdaptiveOuter needs gradients before adaptation, which ax.train and ax.make_step hand to it: use it "
                    "there, or pass initial_gradients= to update."
                )
            known = constants is not None
            found = state.constants if known else _follow(state, initial_gradients, tasks, samples, every)
            path = Expansion(initial_gradients.alpha, found.L, initial_gradients.steps)
            gap = found.b if initial_gradients.finite_sum else 0.0
            bend = smoothness(path, found.rho, initial_gradients.gradient_norm(tasks, samples), gap)
            beta = (1 / (C_beta * bend)).astype(state.beta.dtype)
            scaled = jax.tree.map(lambda g: (-beta * g).astype(g.dtype), updates)
            return scaled, AdaptiveState(beta, bend.astype(beta.dtype), found, state.step + 1)

        return super().__new__(cls, init, update)


def _follow(
    state: AdaptiveState, initial_gradients: HasInitialGradients, tasks: int, samples: int, every: int
) -> SmoothnessConstants:
    """The constants in use, measured anew every so many steps: they rise at once and fall slowly."""

    def measure(known: SmoothnessConstants) -> SmoothnessConstants:
        decay = jnp.where(state.step == 0, 0.0, 0.8)
        last = initial_gradients.measure(tasks, samples)
        # A measurement that is not finite changes nothing.
        return jax.tree.map(lambda new, old: jnp.fmax(new.astype(old.dtype), decay * old), last, known)

    return jax.lax.cond(state.step % every == 0, measure, lambda known: known, state.constants)
