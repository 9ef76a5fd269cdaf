"""The inner loop as the user declares it: how many steps, of what size, on which leaves."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from adaptax import _tree
from adaptax._checks import check_real, check_whole
from adaptax._optimizers import check_is_optimizer
from adaptax._update import Update
from adaptax.errors import InputError
from adaptax.gradients import AbstractGradient, AutoDiff
from adaptax.problem import as_callable
from adaptax.stepsize.auto import Auto
from adaptax.stepsize.learned import Learned, LearnedRates, Meta
from adaptax.stepsize.rates import Rates, Schedule, check_rates
from adaptax.stepsize.rules import AbstractRule

_UNSET: Any = object()
_AUTODIFF = AutoDiff()


class Info(eqx.Module):
    """The report of one adaptation, or of one meta-gradient.

    Arguments:
        stepsize: the inner step size in use; the mean over steps and entries where there are several.
        losses: l(w_0), ..., l(w_{N-1}), the inner loss before each step, on that step's samples.
        value: the target loss at w_N (None for `ax.adapt`).
        finite: whether the value and the meta-gradient are finite; for `ax.adapt`, w_N and the losses.
    """

    stepsize: Array
    losses: Array
    value: Array | None = None
    finite: Array | None = None


class Split(NamedTuple):
    """Parameters in three parts of one structure, None where a leaf belongs to another part: those that adapt, the other
    floating-point parameters, and everything else."""

    adapting: PyTree
    frozen: PyTree
    static: PyTree


class Inner(eqx.Module):
    r"""The inner loop $w_{j+1} = w_j - \alpha_j\nabla l(w_j)$, j = 0..N-1, or that of any optax optimiser.

    Arguments:
        steps: N, at least 0 (default 10).
        stepsize: $\alpha$ (default `ax.stepsize.Auto()`, which measures it and learns from there; 1 with an optimiser, and 0.01
            with `gradients`): a positive number or array of shape () or (N,); a function from the Python integer j to a number;
            a rule (`ax.stepsize.Auto`, `Edge`, `Guaranteed`), which is measured on the tasks at hand unless
            `ax.stepsize.resolve` has replaced it by a number; `ax.stepsize.Learned`; or `ax.stepsize.LearnedRates`.
        adapt: which leaves adapt (default: all that are floating-point): a prefix pytree of booleans, or a predicate on
            paths such as `lambda path: path.startswith("head")`, where a path joins the keys with dots. The other
            leaves stay fixed inside and still receive their full meta-gradient.
        optimizer: an optax optimiser with its own learning rate, for instance `optax.sgd(0.01, momentum=0.9)` or
            `optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01))`. The step is then $w_{j+1} = w_j + \alpha_j u_j$
            with its update $u_j$; its state starts afresh for every task, and the meta-gradient goes through it exactly.
        gradients: how gradients are formed, in the inner steps and at the end of the path (default
            `ax.gradients.AutoDiff()`; `ax.gradients.Smoothed()` needs values of the loss alone).
        proximal: $\lambda \ge 0$ adds $\lambda(w_j - w_0)$ to every gradient: the inner loss becomes
            $l(w) + \tfrac\lambda2\|w - w_0\|^2$ (the losses reported stay those of l).
        start: a differentiable function from the outer problem's parameters to w_0 (default: w_0 is these parameters),
            such as `ax.models.shared_head(ways)`.

    Errors: `InputError` for N < 0, a step size that is not positive and finite, `adapt` that selects nothing, or an `optimizer`
        that is no optax optimiser or needs more than gradients. Where a meta-gradient is asked for, also an optimiser without a
        finite derivative: it is tried on parameters of the same structure, with gradients that have zeros in them (`optax.adam`
        fails without `eps_root`, as the root of a sum of squares has no derivative at zero).

    Example:
        >>> import adaptax as ax
        >>> ax.Inner(steps=5, stepsize=ax.stepsize.Edge()).steps
        5

    Source: docs/theory.md, sections 1 and 5.
    """

    steps: int = eqx.field(static=True)
    stepsize: Any
    adapt: Any = eqx.field(static=True)
    optimizer: Any = eqx.field(static=True)
    gradients: AbstractGradient
    proximal: Array | None
    start: Any

    def __init__(
        self, steps=10, stepsize: Any = _UNSET, adapt=None, *, optimizer=None, gradients=_AUTODIFF, proximal=None, start=None,
    ):  # fmt: skip
        self.steps = check_whole("Inner", "steps", steps, 0)
        if stepsize is _UNSET:
            # Curvature is measured by differentiation, and says nothing of an optimiser's own steps.
            stepsize = 1.0 if optimizer is not None else Auto() if isinstance(gradients, AutoDiff) else 0.01
        self.stepsize = _as_stepsize(stepsize)
        self.adapt = _tree.as_selection("adapt", adapt)
        if not isinstance(gradients, AbstractGradient):
            raise InputError("Inner(gradients=...) must be a strategy such as ax.gradients.AutoDiff().")
        if isinstance(self.stepsize, AbstractRule) and not isinstance(gradients, AutoDiff):
            raise InputError(
                f"{type(self.stepsize).__name__} measures curvature by differentiation, and {type(gradients).__name__} "
                "is for losses that cannot be differentiated: give a number for stepsize."
            )
        check_is_optimizer(optimizer)
        self.optimizer, self.gradients = optimizer, gradients
        self.proximal = None if proximal is None else _as_proximal(proximal)
        self.start = None if start is None else as_callable(start, "Inner(start=...)")

    @property
    def learns(self) -> bool:
        """Whether the step sizes may be parameters of the outer problem."""
        return isinstance(self.stepsize, Learned) or (
            isinstance(self.stepsize, Auto) and self.stepsize.learn is not False and self.steps > 0
        )

    @property
    def update(self) -> Update:
        """How a step moves the parameters, given the gradient."""
        return Update(self.optimizer, self.proximal)

    def initial(self, params: PyTree) -> PyTree:
        """w_0, out of the outer problem's parameters."""
        params = params.params if isinstance(params, Meta) else params
        if self.start is None:
            return params
        try:
            return self.start(_tree.as_parameters(params))
        except InputError:
            raise
        except Exception as error:
            text = f"Inner(start=...) fails ({_tree.first_line(error)}) on parameters of {_tree.describe(params)}"
            raise InputError(f"{text}: let it take the outer problem's parameters to w_0.") from error

    def pull_back(self, params: PyTree, by_w: PyTree) -> PyTree:
        """The derivative by the outer problem's (plain) parameters, from that by w_0."""
        if self.start is None:
            return by_w
        floats, others = eqx.partition(_tree.as_parameters(params), _tree.is_floating)
        taken = jax.tree.map(eqx.is_array, by_w)

        def start(floats):
            return eqx.filter(self.start(eqx.combine(floats, others)), taken)

        return jax.vjp(start, floats)[1](by_w)[0]

    def rates(self, params: PyTree, adapting: PyTree, steps: int) -> Rates:
        """The step sizes of `steps` steps, out of the outer problem's parameters, checked against those that adapt."""
        stepsize = params.stepsize if isinstance(params, Meta) else self.stepsize
        if isinstance(stepsize, AbstractRule):
            name = type(stepsize).__name__
            raise InputError(f"{name} is not resolved: call ax.stepsize.resolve(inner, problem, params, tasks, keys) first.")
        if isinstance(stepsize, LearnedRates):
            rates = Rates(stepsize.tree, stepsize.per_step)
        elif isinstance(params, Meta):
            tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, float)), stepsize)
            rates = Rates(tree, per_step=self.stepsize.per_step)
        elif isinstance(stepsize, Schedule):
            rates = stepsize.rates(steps)
        else:
            rates = Rates(stepsize, per_step=stepsize.ndim == 1)
        check_rates(rates, adapting)
        return rates

    def check_meta(self, params: PyTree) -> None:
        """Refuse learned step sizes without `ax.Meta`, and `ax.Meta` without learned step sizes."""
        if isinstance(self.stepsize, Learned) and not isinstance(params, Meta):
            raise InputError("Learned step sizes need ax.Meta(params, learned.start(params, steps)) for parameters.")
        if not self.learns and isinstance(params, Meta):
            raise InputError("ax.Meta holds learned step sizes: use ax.stepsize.Learned, or pass its .params alone.")

    def with_stepsize(self, alpha: Array) -> "Inner":
        """The same inner loop with a given array for a step size."""
        return eqx.tree_at(lambda inner: inner.stepsize, self, alpha)


def _as_proximal(value: Any) -> Array:
    return jnp.asarray(check_real("Inner", "proximal", value, least=0), jnp.result_type(float))


def _as_stepsize(stepsize: Any) -> Any:
    if isinstance(stepsize, AbstractRule | Learned | LearnedRates | Schedule):
        return stepsize
    if isinstance(stepsize, type):
        raise InputError(f"stepsize={stepsize.__name__} is a class: call it, as in {stepsize.__name__}().")
    if callable(stepsize):
        return Schedule(stepsize)
    try:
        alpha = jnp.asarray(stepsize, jnp.result_type(float))
    except (TypeError, ValueError) as error:
        raise InputError(f"stepsize={stepsize!r} must be a number, a function of j, a rule or Learned.") from error
    if alpha.ndim > 1 or alpha.size == 0:
        raise InputError(f"stepsize has shape {alpha.shape}: give a number, N numbers, or Learned for anything finer.")
    if not isinstance(alpha, Tracer) and not np.all(np.isfinite(alpha) & (np.asarray(alpha) > 0)):
        raise InputError(f"stepsize={stepsize!r} must be positive and finite; without adaptation use steps=0.")
    return alpha
