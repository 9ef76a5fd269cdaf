"""The inner loop: how many steps, of what size, on which leaves."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.batching import check_batch, in_flight_for, map_tasks
from adaptax.errors import InputError
from adaptax.gradients import AbstractGradient, AutoDiff
from adaptax.objective import GRADIENT, RULE, STEP, check_key, check_problem, first, fold, plain, require_keys, step_loss
from adaptax.problem import AbstractProblem, Samples, as_callable
from adaptax.recursion import Descent, StepLoss
from adaptax.stepsize.estimate import along_path
from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.rates import Rates, Schedule, check_rates
from adaptax.stepsize.rules import AbstractRule, Estimate
from adaptax.update import Update, check_optimizer

# Products spent at w_0 when nothing is known yet.
_COLD_START = 12
_UNSET: Any = object()
_AUTODIFF = AutoDiff()


class Info(eqx.Module):
    """What one adaptation, or one meta-gradient, reports.

    Arguments:
        stepsize: the inner step size in use; the mean over steps and entries where there are several.
        losses: l(w_0), ..., l(w_{N-1}): the inner loss before each step, on that step's samples.
        value: the target loss at w_N (None for `ax.adapt`).
    """

    stepsize: Array
    losses: Array
    value: Array | None = None


class Split(NamedTuple):
    """Parameters in three parts of one structure, None where a leaf belongs to another part."""

    adapting: PyTree
    frozen: PyTree
    static: PyTree


class Inner(eqx.Module):
    r"""The inner loop $w_{j+1} = w_j - \alpha_j\nabla l(w_j)$, j = 0..N-1, or that of any optax optimiser.

    Arguments:
        steps: N, at least 0 (default 10).
        stepsize: $\alpha$ (default 0.01, with an optimiser 1): a positive number or array of shape () or (N,); a function
            from the Python integer j to a number; a rule (`ax.stepsize.Edge`, `ax.stepsize.Guaranteed`), estimated on the
            tasks at hand wherever it has not been resolved; or `ax.stepsize.Learned`.
        adapt: which leaves adapt (default: all that are floating-point): a prefix pytree of booleans, or a predicate on
            paths such as `lambda path: path.startswith("head")`, where a path joins the keys with dots. The other
            leaves stay fixed inside and still receive their full meta-gradient.
        optimizer: an optax optimiser with its own learning rate, for instance `optax.sgd(0.01, momentum=0.9)` or
            `optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01))`. The step is then $w_{j+1} = w_j + \alpha_j u_j$
            with its update $u_j$; its memory starts afresh for every task, and the meta-gradient goes through it exactly.
        gradients: how gradients are formed, in the inner steps and at the end of the path (default
            `ax.gradients.AutoDiff()`; `ax.gradients.Smoothed()` needs values of the loss alone).
        proximal: $\lambda \ge 0$ adds $\lambda(w_j - w_0)$ to every gradient: the inner loss becomes
            $l(w) + \tfrac\lambda2\|w - w_0\|^2$ (the losses reported stay those of l).
        start: a differentiable function from the outer problem's parameters to w_0 (default: w_0 is these parameters),
            such as `ax.models.shared_head(ways)`.

    Errors: `InputError` for N < 0, a step size that is not positive and finite, `adapt` that selects nothing, or an
    optimiser that is none or has no finite derivative where a parameter's gradient is zero (such as `optax.adam`
        without `eps_root`).

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
        if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 0:
            raise InputError(f"Inner(steps={steps!r}) must be a whole number of at least 0.")
        self.steps = int(steps)
        default = 0.01 if optimizer is None else 1.0
        self.stepsize = _as_stepsize(default if stepsize is _UNSET else stepsize)
        self.adapt = adapt if adapt is None or _tree.is_predicate(adapt) else _tree.Mask(adapt)
        if not isinstance(gradients, AbstractGradient):
            raise InputError("Inner(gradients=...) must be a strategy such as ax.gradients.AutoDiff().")
        if isinstance(self.stepsize, AbstractRule) and not isinstance(gradients, AutoDiff):
            raise InputError(
                f"{type(self.stepsize).__name__} measures curvature by differentiation, which "
                f"{type(gradients).__name__} does without: give a number for stepsize."
            )
        check_optimizer(optimizer)
        self.optimizer, self.gradients = optimizer, gradients
        self.proximal = None if proximal is None else _as_proximal(proximal)
        self.start = None if start is None else as_callable(start, "Inner(start=...)")

    @property
    def update(self) -> Update:
        """What a step makes of a gradient."""
        return Update(self.optimizer, self.proximal)

    def descent(self, loss: StepLoss, key: Key[Array, ""] | None) -> Descent:
        """One inner step on this loss; `key` is the task's."""

        def value_and_gradient(w, rest, j):
            return self.gradients.value_and_gradient(lambda w: loss(w, rest, j), w, fold(key, GRADIENT, j))

        return Descent(value_and_gradient, self.update)

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

    def pull_back(self, params: PyTree, bar: PyTree) -> PyTree:
        """The derivative by the outer problem's (plain) parameters, from that by w_0."""
        if self.start is None:
            return bar
        floats, others = eqx.partition(_tree.as_parameters(params), _tree.is_floating)
        start = lambda floats: eqx.filter(self.start(eqx.combine(floats, others)), _tree.is_floating)  # noqa: E731
        return jax.vjp(start, floats)[1](bar)[0]

    def split(self, params: PyTree) -> Split:
        """The leaves that adapt, the other floating-point leaves, and everything else."""
        params = _tree.as_parameters(params)
        adapting, others = eqx.partition(params, _tree.mask_tree(self.adapt, params))
        return Split(adapting, *eqx.partition(others, _tree.is_floating))

    def unpack(self, params: PyTree, steps: int | None = None) -> tuple[PyTree, Rates]:
        """w_0 and the step sizes of N (or `steps`) steps, out of the outer problem's parameters."""
        self.check_meta(params)
        stepsize = self.stepsize
        if isinstance(stepsize, AbstractRule):
            raise InputError(f"{type(stepsize).__name__} is not resolved: call inner.resolve(problem, params, tasks, keys).")
        if isinstance(stepsize, Learned):
            as_rate = lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, float))  # noqa: E731
            rates = Rates(jax.tree.map(as_rate, params.stepsize), per_step=stepsize.per_step)
        elif isinstance(stepsize, Schedule):
            rates = stepsize.rates(self.steps if steps is None else steps)
        else:
            rates = Rates(stepsize, per_step=stepsize.ndim == 1)
        params = self.initial(params)
        check_rates(rates, self.split(params).adapting)
        return params, rates

    def check_meta(self, params: PyTree) -> None:
        """Refuse learned step sizes without `ax.Meta`, and `ax.Meta` without learned step sizes."""
        learned = isinstance(self.stepsize, Learned)
        if learned and not isinstance(params, Meta):
            raise InputError("Learned step sizes need ax.Meta(params, learned.start(params, steps)) for parameters.")
        if not learned and isinstance(params, Meta):
            raise InputError("ax.Meta holds learned step sizes: use ax.stepsize.Learned, or pass its .params alone.")

    def first_estimate(self, params: PyTree) -> Estimate:
        """Nothing known: curvature 0 and a fixed pseudo-random direction."""
        return Estimate(jnp.zeros(()), _tree.normal_like(jax.random.key(0), self.split(self.initial(params)).adapting))

    def refresh(
        self,
        rule: AbstractRule,
        estimate: Estimate,
        problem: AbstractProblem,
        params: PyTree,
        tasks: PyTree,
        keys: Key[Array, " B"] | None,
        *,
        samples: Samples,
        cold: bool = False,
    ) -> Estimate:
        """The estimate after one more measurement on a batch of tasks."""
        params = self.initial(params)
        split = self.split(params)

        def one(inputs):
            task, key = inputs
            loss = step_loss(plain(problem, task, split.static), fold(key, RULE), STEP, samples.step)
            warmup = _COLD_START if cold else 0
            return along_path(loss, split.adapting, split.frozen, rule, self.steps, estimate, warmup, self.update)

        values, directions = map_tasks(one, (tasks, keys), in_flight_for(problem, params, tasks, keys, samples, None))
        worst = jnp.argmax(jnp.where(jnp.isfinite(values), values, -1))
        return rule.update(estimate, values[worst], jax.tree.map(lambda leaf: leaf[worst], directions))

    def with_stepsize(self, alpha: Array) -> "Inner":
        """The same inner loop with a given array for a step size."""
        return eqx.tree_at(lambda inner: inner.stepsize, self, alpha)

    def resolve(
        self,
        problem: AbstractProblem,
        params: PyTree,
        tasks: PyTree,
        keys: Key[Array, " B"] | None = None,
        *,
        samples: Samples = Samples(),  # noqa: B008
    ) -> "Inner":
        r"""Replace a step-size rule by the $\alpha$ it gives on these tasks; anything else is returned unchanged.

        Arguments:
            problem: the problem.
            params: parameters w.
            tasks: a batch of tasks, each leaf with a leading axis B; all are measured.
            keys: B keys, for a resampling problem.
            samples: sample sizes of a resampling problem.

        Returns: an `Inner` whose step size is a scalar array: a new value does not recompile anything.

        Errors: `InputError` if keys are missing or the tasks do not fit the loss.

        Example:
            >>> import adaptax as ax, jax.numpy as jnp
            >>> problem = ax.FiniteSum(lambda w, c: 2.0 * jnp.sum((w - c) ** 2), lambda key: None)
            >>> tasks = ax.Task(jnp.zeros((3, 2)), jnp.zeros((3, 2)))
            >>> inner = ax.Inner(5, ax.stepsize.Edge()).resolve(problem, jnp.ones(2), tasks)
            >>> round(float(inner.stepsize), 4)  # the Hessian is 4 I
            0.25

        Source: docs/theory.md, sections 5 and 8.
        """
        if not isinstance(self.stepsize, AbstractRule):
            return self
        require_keys(problem, keys)
        alpha = _resolve(self, problem, params, tasks, keys, samples)
        return self.with_stepsize(alpha)


@eqx.filter_jit
def _resolve(inner, problem, params, tasks, keys, samples):
    inner.check_meta(params)
    check_batch(tasks, keys)
    check_key(first(keys))
    check_problem(problem, inner.initial(params), first(tasks), samples, target=False)
    # A step size from a rule counts as a constant: nothing of the measurement is differentiated.
    rule, problem, params, tasks = _tree.constant((inner.stepsize, problem, params, tasks))
    estimate = inner.refresh(rule, inner.first_estimate(params), problem, params, tasks, keys, samples=samples, cold=True)
    return rule.alpha(estimate.curvature, inner.steps)


def _as_proximal(value: Any) -> Array:
    if isinstance(value, Tracer | jax.Array | np.generic | np.ndarray | int | float) and not isinstance(value, bool):
        number = jnp.asarray(value, jnp.result_type(float))
        if number.ndim == 0 and (isinstance(number, Tracer) or 0 <= float(number) < float("inf")):
            return number
    raise InputError(f"Inner(proximal={value!r}) must be a finite number of at least 0.")


def _as_stepsize(stepsize: Any) -> Any:
    if isinstance(stepsize, AbstractRule | Learned | Schedule):
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
