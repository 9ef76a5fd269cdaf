"""The inner path of one task: from w_0 by N steps on the task's samples to w_N, and the target loss there.

Every method, measurement and evaluation takes its inner path from `TaskPath`, so that all of them draw the same samples for
the same key and take the same steps.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._drawn_once import traced
from adaptax._keys import CURVATURE, DIRECTION, FACTOR, GRADIENT, LAST, STEP, TARGET, any_key, drawn_shape, fold, shape_of
from adaptax._parameters import split
from adaptax._recursion import Descent, ForwardPass, Gradient, Product, StepLoss, forward, stepper
from adaptax._tree import describe, first_line
from adaptax.curvature import AbstractCurvature, Exact, LocalLoss
from adaptax.errors import DrawnOnce, InputError
from adaptax.gradients.autodiff import AutoDiff
from adaptax.inner import Info, Inner
from adaptax.problem import AbstractProblem, Samples, check_not_empty, check_scalar
from adaptax.stepsize.learned import LearnedRates, Meta
from adaptax.stepsize.rates import Rates


class Drawn(NamedTuple):
    """A task with the batches that its path drew: in its place, `TaskPath` takes them at all parameters and draws no others.

    Arguments:
        task: the task.
        batches: those of the inner steps, stacked.
        target: the target batch, drawn at w_N.
        final: the floating-point part of w_N, where it was drawn.
    """

    task: PyTree
    batches: PyTree
    target: PyTree
    final: PyTree


class TaskPath:
    r"""The inner path $w_0, \dots, w_N$ of one task, for a resolved inner loop and arguments that have been checked.

    The loss of step j is a function of w and of `rest`, everything else that it may be differentiated by: the frozen
    parameters, and with `all_arrays` also the floating-point arrays of the problem and the task.

    Arguments:
        problem: the problem.
        inner: the inner loop.
        params: the outer problem's parameters (`ax.Meta` where step sizes are learned).
        task: one task, or a `Drawn` one.
        key: the task's key; None where nothing is drawn.
        samples: sample sizes of a resampling problem.
        steps: how many steps the step sizes are for (default: N).
        all_arrays: whether the arrays of the problem and the task are variables too.

    Attributes: `split` (the parameters w_0 in three parts), `rest`, `loss` (of step j), `rates` (the step sizes).

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> from adaptax.inner_path import TaskPath
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> task = ax.Task(jnp.ones(2), jnp.ones(2))
        >>> path = TaskPath(problem, ax.Inner(steps=2, stepsize=0.5), jnp.zeros(2), task, None, ax.Samples())
        >>> final, losses = path.walk()
        >>> final, float(path.target(final, path.rest))
        (Array([0.75, 0.75], dtype=float32), 0.0625)

    Source: docs/theory.md, section 1.
    """

    def __init__(
        self, problem: AbstractProblem, inner: Inner, params: PyTree, task: PyTree, key: Key[Array, ""] | None,
        samples: Samples, *, steps: int | None = None, all_arrays: bool = False,
    ):  # fmt: skip
        inner.check_meta(params)
        self._drawn = task if isinstance(task, Drawn) else None
        task = task.task if isinstance(task, Drawn) else task
        self.problem, self.inner, self.outer_params, self.task, self.key, self.samples = (
            problem,
            inner,
            params,
            task,
            key,
            samples,
        )
        self.steps = inner.steps if steps is None else steps
        self.split = split(problem, inner, params, task, samples)
        self.rest, self._fixed = self.split.frozen, None
        if all_arrays:
            self.rest, self._fixed = eqx.partition((self.split.frozen, problem, task), _tree.is_floating)
        self.loss: StepLoss = self.loss_on(STEP, samples.step)

    def rebuild(self, w: PyTree, rest: PyTree) -> tuple[AbstractProblem, PyTree, PyTree]:
        """The problem, the task and the parameters at these values of the variables."""
        if self._fixed is None:
            return self.problem, self.task, eqx.combine(w, rest, self.split.static)
        frozen, problem, task = eqx.combine(rest, self._fixed)
        return problem, task, eqx.combine(w, frozen, self.split.static)

    def params(self, w: PyTree) -> PyTree:
        """All parameters of the inner problem, with w for those that adapt."""
        return eqx.combine(w, self.split.frozen, self.split.static)

    def loss_on(self, purpose: int, size: int) -> StepLoss:
        """The inner loss at step j, on `size` samples that this purpose and step alone draw."""
        drawn = self._drawn if purpose == STEP and self.steps else None

        def loss(w, rest, j):
            problem, task, params = self.rebuild(w, rest)
            if drawn is not None:
                return problem.loss(params, jax.tree.map(lambda leaf: leaf[j], drawn.batches))
            return problem.loss(params, problem.step_batch(task, params, fold(self.key, purpose, j), size))

        return loss

    def with_loss(self, loss: StepLoss, rest: PyTree = None) -> "TaskPath":
        """The same path with another inner loss (and another `rest`, if one is given)."""
        other = object.__new__(TaskPath)
        other.__dict__ = self.__dict__ | {"loss": loss}
        if rest is not None:
            other.rest = rest
        return other

    @property
    def learns(self) -> bool:
        """Whether the step sizes are parameters of the outer problem."""
        return isinstance(self.outer_params, Meta)

    @cached_property
    def rates(self) -> Rates:
        """The step sizes, checked against the parameters that adapt."""
        return self.inner.rates(self.outer_params, self.split.adapting, self.steps)

    @property
    def descent(self) -> Descent:
        """One inner step on `loss`."""
        strategy, loss = self.inner.gradients, self.loss

        def value_and_gradient(w, rest, j):
            return strategy.value_and_gradient(lambda w: loss(w, rest, j), w, fold(self.key, GRADIENT, j))

        return Descent(value_and_gradient, self.inner.update)

    @property
    def start(self) -> tuple[PyTree, PyTree]:
        """w_0 and the inner optimiser's state there."""
        return self.split.adapting, self.inner.update.init(self.split.adapting)

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of the steps, stacked: the number of each step and its step size."""
        return {"j": jnp.arange(self.steps), "rate": self.rates.stacked(self.steps)}

    def stepper(self) -> Callable[[Any, dict], tuple[Any, Array]]:
        """One step, `((w, optimiser state), {"j", "rate"}) -> ((w, optimiser state), loss before)`."""
        return stepper(self.descent, self.split.adapting, self.rest, self.rates)

    def walk(self) -> tuple[PyTree, Array]:
        """w_N, and l(w_0), ..., l(w_{N-1}); no iterate is kept."""
        (final, _), losses = jax.lax.scan(self.stepper(), self.start, self.inputs)
        return final, losses

    def forward(self, store: str = "iterates") -> ForwardPass:
        """The path with its iterates: all of them, or with store="sqrt" about 2 sqrt(N)."""
        return forward(self.descent, self.split.adapting, self.rest, self.rates, self.steps, store)

    def drawn(self) -> Drawn:
        """The task with the batches of the inner steps and the target batch of this path."""

        def step(carry, x):
            params = self.params(carry[0])
            batch = self.problem.step_batch(self.task, params, fold(self.key, STEP, x["j"]), self.samples.step)
            stepped = self
            if isinstance(self.inner.gradients, AutoDiff):  # Other strategies ask for samples at other parameters too.
                stepped = self.with_loss(lambda w, rest, j: self.problem.loss(self.rebuild(w, rest)[2], batch))
            return stepped.stepper()(carry, x)[0], batch

        (final, _), batches = jax.lax.scan(step, self.start, self.inputs)
        return Drawn(self.task, batches, self.target_batch(final), eqx.filter(self.params(final), _tree.is_floating))

    def target_batch(self, w: PyTree, *numbers: Any) -> PyTree:
        """The batch that w is judged on; other numbers draw other samples."""
        return self.problem.target_batch(self.task, self.params(w), fold(self.key, TARGET, *numbers), self.samples.target)

    def target(self, w: PyTree, rest: PyTree, j: Any = None) -> Array:
        """The target loss at w: on the last step's samples, or on those of an earlier step j."""
        problem, task, params = self.rebuild(w, rest)
        if self._drawn is not None and j is None:
            return problem.target_loss(params, self._drawn.target)
        fresh = fold(self.key, TARGET) if j is None else fold(self.key, TARGET, j)
        return problem.target_loss(params, problem.target_batch(task, params, fresh, self.samples.target))

    def target_gradient(self, w: PyTree, rest: PyTree, j: Any = None) -> tuple[Array, tuple[PyTree, PyTree]]:
        """The target loss and its gradient by (w, rest), formed by the inner loop's gradient strategy."""
        use = fold(self.key, LAST) if j is None else fold(self.key, LAST, j)
        return self.inner.gradients.value_and_gradient(lambda x: self.target(x[0], x[1], j), (w, rest), use)

    def curvature_loss(self, independent: bool) -> StepLoss:
        """The loss of the Hessian factors: on samples of their own, or on those of the steps."""
        return self.loss_on(CURVATURE, self.samples.curvature) if independent else self.loss_on(STEP, self.samples.step)

    def factors(self, curvature: AbstractCurvature, loss: StepLoss) -> tuple[Product, Gradient]:
        """Hessian-vector products by a curvature strategy, and gradients at the same points, for the reverse recursion."""

        def local(w, rest, j):
            return LocalLoss(lambda w, rest: loss(w, rest, j), w, rest, self.inner.gradients, fold(self.key, FACTOR, j))

        def product(w, rest, u, j):
            return curvature.product(local(w, rest, j), u, fold(self.key, DIRECTION, j))

        def gradient(w, rest, j):
            return local(w, rest, j).gradient(w)

        return product, gradient

    def outer_gradient(self, by_w: PyTree, by_frozen: PyTree, by_rates: PyTree = None) -> PyTree:
        """The derivative by the outer problem's parameters, from those by w_0, the frozen parameters and the step sizes."""
        outer = self.outer_params
        grad = self.inner.pull_back(outer.params if self.learns else outer, eqx.combine(by_w, by_frozen))
        if not self.learns:
            return grad
        if isinstance(outer.stepsize, LearnedRates):
            by_rates = jax.vjp(lambda learned: learned.tree, outer.stepsize)[1](by_rates)[0]
        return Meta(grad, by_rates)

    def info(self, losses: Array, value: Array) -> Info:
        """The report of a method that went this path."""
        return Info(self.rates.mean(), losses, value)


def exact_factors(loss: StepLoss) -> tuple[Product, Gradient]:
    """Exact Hessian-vector products of a loss, and its gradients by differentiation, for the reverse recursion."""

    def product(w, rest, u, j):
        return Exact().product(LocalLoss(lambda w, rest: loss(w, rest, j), w, rest), u)

    def gradient(w, rest, j):
        return jax.grad(loss, argnums=(0, 1))(w, rest, j)

    return product, gradient


def check_problem(problem: AbstractProblem, params: PyTree, task: PyTree, samples: Samples, *, target: bool) -> PyTree:
    """Refuse tasks and losses that cannot be trained on, before anything is computed. Returns the shapes of a target batch."""

    task = task.task if isinstance(task, Drawn) else task

    def batch(draw, size):
        try:
            user: Any = getattr(problem, "draw", None)
            return traced(user, task, params, any_key(), size, said="draw", remedy="use jax.random with its key", call=draw)[0]
        except (InputError, DrawnOnce):
            raise
        except Exception as error:
            text = f"draw(task, params, key, size={size}) fails ({first_line(error)}) on a task of {describe(task)}"
            raise InputError(f"{text}: make draw, the task and the parameters fit each other.") from error

    if problem.stochastic:
        support = batch(problem.step_batch, samples.step)
        query = batch(problem.target_batch, samples.target) if target else None
    else:
        if not hasattr(task, "support"):
            raise InputError(f"A finite-sum problem needs ax.Task(support, target), not {describe(task)}.")
        structure, shapes = shape_of(task)
        if (drawn := drawn_shape(problem)) is not None and drawn[0] == structure and shapes != drawn[1]:
            count = shapes[0][:1]
            if [(*count, *shape) for shape in drawn[1]] == shapes:
                text = f"task is a batch of {count[0]} tasks as this problem draws them"
                raise InputError(f"{text}: give one of them, or use a function of batches such as MetaGradient(...).batch.")
        support, query = task.support, task.target
        if target and query is None:
            raise InputError("This task has no target set to judge by: make it ax.Task(support, target).")
    check_not_empty(support, "support set", "give every task at least one example to adapt on")
    check_scalar(problem.loss, params, support, "loss", "support set")
    if target:
        check_not_empty(query, "target set", "give every task at least one example to judge by")
        check_scalar(problem.target_loss, params, query, "target_loss", "target set")
    return query
