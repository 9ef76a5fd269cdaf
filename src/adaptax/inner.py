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
from adaptax.objective import RULE, STEP, check_key, check_problem, first, plain, require_keys, step_loss
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.estimate import along_path
from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.rates import Rates, Schedule, check_rates
from adaptax.stepsize.rules import AbstractRule, Estimate

# Products spent at w_0 when nothing is known yet.
_COLD_START = 12


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
    r"""The inner loop $w_{j+1} = w_j - \alpha_j\nabla l(w_j)$, j = 0..N-1.

    Arguments:
        steps: N, at least 0 (default 10).
        stepsize: $\alpha$ (default 0.01): a positive number or array of shape () or (N,); a function from the Python
            integer j to a number; a rule (`ax.stepsize.Edge`, `ax.stepsize.Guaranteed`), estimated on the tasks at hand
            wherever it has not been resolved; or `ax.stepsize.Learned`.
        adapt: which leaves adapt (default: all that are floating-point): a prefix pytree of booleans, or a predicate on
            paths such as `lambda path: path.startswith("head")`, where a path joins the keys with dots. The other
            leaves stay fixed inside and still receive their full meta-gradient.

    Errors: `InputError` for N < 0, a step size that is not positive and finite, or `adapt` that selects nothing.

    Example:
        >>> import adaptax as ax
        >>> ax.Inner(steps=5, stepsize=ax.stepsize.Edge()).steps
        5

    Source: docs/theory.md, sections 1 and 5.
    """

    steps: int = eqx.field(static=True)
    stepsize: Any
    adapt: Any = eqx.field(static=True)

    def __init__(self, steps=10, stepsize: Any = 0.01, adapt=None):
        if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 0:
            raise InputError(f"Inner(steps={steps!r}) must be a whole number of at least 0.")
        self.steps = int(steps)
        self.stepsize = _as_stepsize(stepsize)
        self.adapt = adapt if adapt is None or _tree.is_predicate(adapt) else _tree.Mask(adapt)

    def split(self, params: PyTree) -> Split:
        """The leaves that adapt, the other floating-point leaves, and everything else."""
        params = _tree.as_parameters(params)
        adapting, others = eqx.partition(params, _tree.mask_tree(self.adapt, params))
        return Split(adapting, *eqx.partition(others, _tree.is_floating))

    def unpack(self, params: PyTree, steps: int | None = None) -> tuple[PyTree, Rates]:
        """Plain parameters and the step sizes of N (or `steps`) steps, out of the outer problem's parameters."""
        self.check_meta(params)
        stepsize = self.stepsize
        if isinstance(stepsize, AbstractRule):
            raise InputError(f"{type(stepsize).__name__} is not resolved: call inner.resolve(problem, params, tasks, keys).")
        if isinstance(stepsize, Learned):
            as_rate = lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, float))  # noqa: E731
            rates = Rates(jax.tree.map(as_rate, params.stepsize), per_step=stepsize.per_step)
            params = params.params
        elif isinstance(stepsize, Schedule):
            rates = stepsize.rates(self.steps if steps is None else steps)
        else:
            rates = Rates(stepsize, per_step=stepsize.ndim == 1)
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
        leaves, treedef = jax.tree.flatten(self.split(params).adapting)
        keys = jax.random.split(jax.random.key(0), len(leaves))
        draws = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
        return Estimate(jnp.zeros(()), jax.tree.unflatten(treedef, draws))

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
        split = self.split(params)

        def one(inputs):
            task, key = inputs
            loss = step_loss(
                plain(problem, task, split.static),
                None if key is None else jax.random.fold_in(key, RULE),
                STEP,
                samples.step,
            )
            value, direction = along_path(
                loss, split.adapting, split.frozen, rule, self.steps, estimate, _COLD_START if cold else 0
            )
            return value, direction

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
    check_problem(problem, params, first(tasks), samples, target=False)
    # A step size from a rule counts as a constant: nothing of the measurement is differentiated.
    rule, problem, params, tasks = _tree.constant((inner.stepsize, problem, params, tasks))
    estimate = inner.refresh(rule, inner.first_estimate(params), problem, params, tasks, keys, samples=samples, cold=True)
    return rule.alpha(estimate.curvature, inner.steps)


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
