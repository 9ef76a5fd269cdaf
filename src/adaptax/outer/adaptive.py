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
from adaptax.theory.adapted import adapted_smoothness
from adaptax.theory.constants import Constants, Expansion
from adaptax.theory.powers import geometric
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


class TwoSidedConstants(eqx.Module):
    """L, rho, lam, mu and sigma_g, as known or as measured at the current parameters (sigma_g is not measured: 0)."""

    L: Array
    rho: Array
    lam: Array
    mu: Array
    sigma_g: Array


class HasInitialGradients(Protocol):
    r"""The `initial_gradients` that the training step hands to optimisers; it computes only what is asked of it.

    `alpha` and `steps` are those of the inner loop; `finite_sum` says which case it is. Over `tasks` tasks that are independent
    of the meta-step's, `gradient_norm(tasks, samples)` is the mean of $\|\nabla l_i(w; D_L)\|$, `adapted_norm(tasks, samples)`
    that of $\|\nabla l_i(w_N; D_L)\|$ at the ends of inner paths, `measure(tasks, samples)` gives L, rho and b, and
    `measure_two_sided(tasks, samples)` L, rho, lam and mu.
    """

    @property
    def alpha(self) -> Array: ...
    @property
    def steps(self) -> int: ...
    @property
    def finite_sum(self) -> bool: ...
    def gradient_norm(self, tasks: int, samples: int) -> Array: ...
    def adapted_norm(self, tasks: int, samples: int) -> Array: ...
    def measure(self, tasks: int, samples: int) -> SmoothnessConstants: ...
    def measure_two_sided(self, tasks: int, samples: int) -> TwoSidedConstants: ...


class AdaptiveState(eqx.Module):
    r"""State of `AdaptiveOuter`.

    Arguments:
        beta: the last $\beta_k$ (0 before the first step).
        smoothness: the last $\hat L_k$.
        constants: L, rho and b in use; with `smoothness="adapted"` L, rho, lam, mu and sigma_g.
        step: k.
    """

    beta: Array
    smoothness: Array
    constants: SmoothnessConstants | TwoSidedConstants
    step: Array


class AdaptiveOuter(optax.GradientTransformationExtraArgs):
    r"""The outer step $w \leftarrow w - \beta_k\hat g$ of the convergence theorems, $\beta_k = 1/(C_\beta\hat L_k)$.

    Here $\hat L_k = G + C_L\,\frac1{B'}\sum_i\|\nabla l_i(w_k; D_L)\|$. $C_L$ and G come from L, rho, b and the inner step size
    in use (`ax.theory.smoothness_slope`, `smoothness_floor`). The mean of norms is over tasks and samples that are independent
    of the meta-step's, at the parameters before adaptation (finite-sum: of target losses); `ax.train` and `ax.make_step` hand
    them over. The inner loop must be plain gradient descent on all parameters with one step size for all of them.

    With `smoothness="adapted"`, $\hat L_k = r^{2N}L + \alpha\rho r^{N-1}S_N\,\frac1{B'}\sum_i\|\nabla l_{T_i}(w_N^i)\|$ with
    $r = \max(1+\alpha\mu, \alpha\lambda-1)$ and $S_N = \sum_{j<N}r^j$ (`ax.theory.adapted_smoothness`): the mean is at the
    parameters **after** adaptation, of the same tasks apart. It needs no q < 2, stays moderate where losses are convex or
    $\mu \ll \lambda$, and costs B' inner paths a meta-step. Resampling: these paths have $D_L$ samples a step, and
    $\alpha(\sum_{j<N}r^{2j})^{1/2}L\sigma_g/\sqrt{D_L}$ is added to the mean for their error; sigma_g is not measured, so that
    without constants nothing is added. The theorem is `ax.theory.adapted_convergence`.

    Arguments:
        constants: `ax.theory.Constants`, whose L, rho and b are used, or L, rho, lam, mu and sigma_g. Default: they are
            measured every `every` meta-steps on the same tasks, at w and at the ends of the inner paths; they rise at once and
            fall by at most the factor 0.8. Then the run follows the theorem's recipe without its proof, and a warning says so.
        C_beta: $C_\beta$, positive (default 2).
        tasks: B' (default 8).
        samples: $D_L$ of a resampling problem (default 20).
        every: meta-steps between measurements, without constants (default 10).
        smoothness: "initial" (default), by gradients before adaptation, or "adapted", by those after it.

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

    Source: docs/theory.md, sections 6 and 6.1; cf. Ji, Yang, Liang (2022), JMLR 23.
    """

    def __new__(
        cls,
        constants: Constants | None = None,
        C_beta: float = 2.0,
        tasks: int = 8,
        *,
        samples: int = 20,
        every: int = 10,
        smoothness: str = "initial",
    ):
        if constants is not None and not isinstance(constants, Constants):
            raise InputError(
                f"AdaptiveOuter(constants=...) must be ax.theory.Constants or None, not {type(constants).__name__}."
            )
        C_beta = check_real("AdaptiveOuter", "C_beta", C_beta, above=0)
        given = (("tasks", tasks), ("samples", samples), ("every", every))
        tasks, samples, every = (check_whole("AdaptiveOuter", name, value) for name, value in given)
        if smoothness not in _FORMS:
            raise InputError(f'AdaptiveOuter(smoothness={smoothness!r}) must be "initial" or "adapted".')
        if constants is None:
            warnings.warn(_MEASURED, UserWarning, stacklevel=2)
        form, known = _FORMS[smoothness], Constants(1.0, 0.0, 0.0) if constants is None else constants

        def init(params: Any) -> Any:
            zero = jnp.zeros(())
            given = jax.tree.map(lambda x: jnp.asarray(x, zero.dtype), form.of(known))
            return AdaptiveState(zero, zero, given, jnp.zeros((), jnp.int32))

        def update(
            updates: Any, state: Any, params: Any = None, *, initial_gradients: HasInitialGradients | None = None, **extra: Any
        ) -> Any:
            if initial_gradients is None:
                raise InputError(
                    "AdaptiveOuter needs gradients before adaptation, which ax.train and ax.make_step hand to it: use it "
                    "there, or pass initial_gradients= to update."
                )
            found = state.constants if constants is not None else _follow(form, state, initial_gradients, tasks, samples, every)
            bend = form.bound(found, initial_gradients, tasks, samples)
            beta = (1 / (C_beta * bend)).astype(state.beta.dtype)
            scaled = jax.tree.map(lambda g: (-beta * g).astype(g.dtype), updates)
            return scaled, AdaptiveState(beta, bend.astype(beta.dtype), found, state.step + 1)

        return super().__new__(cls, init, update)


class _Initial:
    """The smoothness by gradients before adaptation."""

    @staticmethod
    def of(c: Constants) -> SmoothnessConstants:
        return SmoothnessConstants(c.L, c.rho, c.b)  # type: ignore[arg-type]

    @staticmethod
    def measure(given: HasInitialGradients, tasks: int, samples: int) -> SmoothnessConstants:
        return given.measure(tasks, samples)

    @staticmethod
    def bound(c: SmoothnessConstants, given: HasInitialGradients, tasks: int, samples: int) -> Array:
        path = Expansion(given.alpha, c.L, given.steps)
        return smoothness(path, c.rho, given.gradient_norm(tasks, samples), c.b if given.finite_sum else 0.0)


class _Adapted:
    """The smoothness by gradients after adaptation."""

    @staticmethod
    def of(c: Constants) -> TwoSidedConstants:
        lam, mu = (c.L if x is None else x for x in (c.lam, c.mu))
        return TwoSidedConstants(c.L, c.rho, lam, mu, c.sigma_g)  # type: ignore[arg-type]

    @staticmethod
    def measure(given: HasInitialGradients, tasks: int, samples: int) -> TwoSidedConstants:
        return given.measure_two_sided(tasks, samples)

    @staticmethod
    def bound(c: TwoSidedConstants, given: HasInitialGradients, tasks: int, samples: int) -> Array:
        path = Expansion(given.alpha, c.L, given.steps, c.lam, c.mu)
        # The squares of r^j over the steps: r² - 1 is growth (2 + growth).
        squares = 0.0 if given.finite_sum else geometric(path.growth * (2 + path.growth), given.steps)
        strayed = path.alpha * squares**0.5 * c.L * c.sigma_g / samples**0.5
        return adapted_smoothness(path, c.rho, c.L, given.adapted_norm(tasks, samples) + strayed)


_FORMS: dict[str, Any] = {"initial": _Initial, "adapted": _Adapted}


def _follow(
    form: Any, state: AdaptiveState, initial_gradients: HasInitialGradients, tasks: int, samples: int, every: int
) -> SmoothnessConstants | TwoSidedConstants:
    """The constants in use, measured anew every so many steps: they rise at once and fall slowly."""

    def measure(known: Any) -> Any:
        last = form.measure(initial_gradients, tasks, samples)

        def follow(new, old):
            # mu may be negative, and then falls by the inverse of the factor.
            least = jnp.where(state.step == 0, -jnp.inf, jnp.minimum(0.8 * old, old / 0.8))
            return jnp.fmax(new.astype(old.dtype), least)

        return jax.tree.map(follow, last, known)

    return jax.lax.cond(state.step % every == 0, measure, lambda known: known, state.constants)
