"""The inner path of one task: from w_0 by N steps on the task's samples to w_N, and the target loss there.

Every method, measurement and evaluation takes its inner path from `TaskPath`, so that all of them draw the same samples for
the same key and take the same steps.
"""

from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._keys import CURVATURE, DIRECTION, FACTOR, GRADIENT, LAST, STEP, TARGET, fold
from adaptax._microbatches import by_parts
from adaptax._parameters import split
from adaptax._precision import ARITHMETICS, evaluate
from adaptax._recursion import Descent, ForwardPass, Gradient, Point, Product, StepLoss, Threaded, forward, stepper, threaded
from adaptax.curvature import AbstractCurvature, Exact, LocalLoss
from adaptax.gradients.autodiff import AutoDiff
from adaptax.inner import Info, Inner
from adaptax.problem import AbstractProblem, Samples
from adaptax.sequential import Sequential, check_length
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
    parameters, and with `all_arrays` also the floating-point arrays of the problem and the task. Where the loss has a state,
    `Threaded(rest, state)` takes the place of `rest`.

    Arguments:
        problem: the problem.
        inner: the inner loop.
        params: the outer problem's parameters (`ax.Meta` where step sizes are learned).
        task: one task, or a `Drawn` one.
        key: the task's key; None where nothing is drawn.
        samples: sample sizes of a resampling problem.
        steps: how many steps the step sizes are for (default: N).
        all_arrays: whether the arrays of the problem and the task are variables too.
        precision, microbatches: the arithmetic of the losses, and the parts of their batches, as in `ax.MetaGradient`.

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
        samples: Samples, *, steps: int | None = None, all_arrays: bool = False, precision: str | None = None,
        microbatches: int | None = None,
    ):  # fmt: skip
        inner.check_meta(params)
        self._drawn = task if isinstance(task, Drawn) else None
        task = task.task if isinstance(task, Drawn) else task
        self.problem, self.inner, self.outer_params, self.task = problem, inner, params, task
        self.key, self.samples, self.microbatches = key, samples, microbatches
        self.arithmetic, self._curvature_arithmetic = ARITHMETICS[precision]
        self.steps = inner.steps if steps is None else steps
        self.split = split(problem, inner, params, task, samples)
        self.rest, self._fixed = self.split.frozen, None
        if all_arrays:
            self.rest, self._fixed = eqx.partition((self.split.frozen, problem, task), _tree.is_floating)
        self._unwrap: Callable[[PyTree], PyTree] = lambda rest: rest
        self.carries = isinstance(problem, Sequential) and problem.carries
        # Whether the outer loss is the mean of the losses along the path.
        self.judged_on_path = isinstance(problem, Sequential) and problem.outer == "path"
        check_length(problem, getattr(task, "support", None), self.steps)
        self.loss: StepLoss = self.loss_on(STEP, samples.step)

    def rebuild(self, w: PyTree, rest: PyTree) -> tuple[AbstractProblem, PyTree, PyTree]:
        """The problem, the task and the parameters at these values of the variables."""
        rest = self._unwrap(rest.rest if isinstance(rest, Threaded) else rest)
        if self._fixed is None:
            return self.problem, self.task, eqx.combine(w, rest, self.split.static)
        frozen, problem, task = eqx.combine(rest, self._fixed)
        return problem, task, eqx.combine(w, frozen, self.split.static)

    def evaluate(self, function: Callable, params: PyTree, batch: PyTree, state: PyTree = None) -> Any:
        """A loss in the path's arithmetic, by parts of the batch if there are any."""
        if self.microbatches is None or state is not None:
            return evaluate(self.arithmetic, function, params, batch, state)
        part = lambda params, part: evaluate(self.arithmetic, function, params, part)  # noqa: E731
        return by_parts(part, params, batch, self.microbatches)

    def begin(self, w: PyTree, rest: PyTree) -> PyTree:
        """The loss's state at w_0 (None where it has none)."""
        problem, _, params = self.rebuild(w, rest)
        return problem.initial_state(params)

    def advance(self, w: PyTree, rest: PyTree, j: Array) -> PyTree:
        """The loss's state after step j (None where it has none)."""
        return self.step(w, rest, j)[1] if self.carries else None

    def step(self, w: PyTree, rest: PyTree, j: Array) -> tuple[Array, PyTree]:
        """The loss of step j and its state after it, for a loss with a state."""
        problem, task, params = self.rebuild(w, rest)
        return self.evaluate(problem.step_loss, params, problem.step_batch(task, params, None, 0, j), rest.state)

    def params(self, w: PyTree) -> PyTree:
        """All parameters of the inner problem, with w for those that adapt."""
        return eqx.combine(w, self.split.frozen, self.split.static)

    def loss_on(self, purpose: int, size: int) -> StepLoss:
        """The inner loss at step j, on `size` samples that this purpose and step alone draw."""
        drawn = self._drawn if purpose == STEP and self.steps else None

        def loss(w, rest, j):
            if self.carries:
                return self.step(w, rest, j)[0]
            problem, task, params = self.rebuild(w, rest)
            if drawn is not None:
                return self.evaluate(problem.loss, params, jax.tree.map(lambda leaf: leaf[j], drawn.batches))
            batch = problem.step_batch(task, params, fold(self.key, purpose, j), size, j)
            return self.evaluate(problem.loss, params, batch)

        return loss

    def with_loss(self, loss: StepLoss, rest: PyTree = None, unwrap: Callable[[PyTree], PyTree] | None = None) -> "TaskPath":
        """The same path with another inner loss (and another `rest`, if one is given, and how the old one is found in it)."""
        other = copy(self)
        other.loss, other._unwrap = loss, self._unwrap if unwrap is None else unwrap
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
        return descent_of(self.inner, self.loss, self.inner.update, self.key, self if self.carries else None)

    @property
    def start(self) -> Point:
        """w_0, with the inner optimiser's and the loss's state there."""
        return self.descent.start(self.split.adapting, self.rest)

    @property
    def first_rest(self) -> PyTree:
        """The loss's second argument at w_0."""
        return threaded(self.rest, self.start.state)

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of the steps, stacked: the number of each step and its step size."""
        return {"j": jnp.arange(self.steps), "rate": self.rates.stacked(self.steps)}

    def stepper(self) -> Callable[[Point, dict], tuple[Point, Array]]:
        """One step, `(point, {"j", "rate"}) -> (next point, loss before)`."""
        return stepper(self.descent, self.split.adapting, self.rest, self.rates)

    def walk(self) -> tuple[PyTree, Array]:
        """w_N, and l(w_0), ..., l(w_{N-1}); no iterate is kept."""
        last, losses = self.to_end()
        return last.w, losses

    def to_end(self) -> tuple[Point, Array]:
        """The same with the last point, which has the states too."""
        return jax.lax.scan(self.stepper(), self.start, self.inputs)

    def forward(self, store: str | int = "iterates", truncate: int | None = None) -> ForwardPass:
        """The path with its iterates: all of them, or as many as `store` says; with `truncate`, of the last steps."""
        return forward(self.descent, self.split.adapting, self.rest, self.rates, self.steps, store, truncate)

    def drawn(self) -> Drawn:
        """The task with the batches of the inner steps and the target batch of this path."""

        def step(carry, x):
            params = self.params(carry.w)
            batch = self.problem.step_batch(self.task, params, fold(self.key, STEP, x["j"]), self.samples.step)
            stepped = self
            if isinstance(self.inner.gradients, AutoDiff):  # Other strategies ask for samples at other parameters too.
                loss = self.problem.loss
                stepped = self.with_loss(lambda w, rest, j: self.evaluate(loss, self.rebuild(w, rest)[2], batch))
            return stepped.stepper()(carry, x)[0], batch

        last, batches = jax.lax.scan(step, self.start, self.inputs)
        final = last.w
        return Drawn(self.task, batches, self.target_batch(final), eqx.filter(self.params(final), _tree.is_floating))

    def target_batch(self, w: PyTree, *numbers: Any) -> PyTree:
        """The batch that w is judged on; other numbers draw other samples."""
        return self.problem.target_batch(self.task, self.params(w), fold(self.key, TARGET, *numbers), self.samples.target)

    def judged_batch(self, w: PyTree, n: Any, *numbers: Any) -> PyTree:
        """The batch that scores after n steps are of: the target batch, or along a path the next one."""
        if self.judged_on_path:
            return self.problem.step_batch(self.task, self.params(w), None, 0, n)
        return self.target_batch(w, *numbers)

    def target(self, w: PyTree, rest: PyTree, j: Any = None) -> Array:
        """The target loss at w: on the last step's samples, or on those of an earlier step j."""
        problem, task, params = self.rebuild(w, rest)
        if self._drawn is not None and j is None:
            return self.evaluate(problem.target_loss, params, self._drawn.target)
        fresh = fold(self.key, TARGET) if j is None else fold(self.key, TARGET, j)
        state = rest.state if self.carries else None
        batch = problem.target_batch(task, params, fresh, self.samples.target)
        return self.evaluate(problem.outer_loss if self.carries else problem.target_loss, params, batch, state)

    def target_gradient(self, w: PyTree, rest: PyTree, j: Any = None) -> tuple[Array, tuple[PyTree, PyTree]]:
        """The target loss and its gradient by (w, rest), formed by the inner loop's gradient strategy."""
        use = fold(self.key, LAST) if j is None else fold(self.key, LAST, j)
        floats, others = floating(rest)
        return self.inner.gradients.value_and_gradient(lambda x: self.target(x[0], joined(x[1], others), j), (w, floats), use)

    def value(self, last: Point, losses: Array, rest: PyTree = None) -> Array:
        """The outer loss of a path (at other values of the rest, if they are given)."""
        rest = self.rest if rest is None else rest
        return jnp.mean(losses) if self.judged_on_path else self.target(last.w, threaded(rest, last.state))

    def outcome(self, walked: ForwardPass) -> tuple[Array, tuple[PyTree, PyTree], Array | None]:
        """The outer loss, its derivatives by w_N and the rest, and those by the losses (None where it depends on none)."""
        rest = threaded(self.rest, walked.state)
        if not self.judged_on_path:
            return *self.target_gradient(walked.final, rest), None
        nothing = optax.tree.zeros_like((walked.final, floating(rest)[0]))
        return jnp.mean(walked.losses), nothing, jnp.full_like(walked.losses, 1 / walked.losses.size)

    def curvature_loss(self, independent: bool) -> StepLoss:
        """The loss of the Hessian factors: on samples of their own, or on those of the steps; in an arithmetic of its own."""
        path = copy(self)
        path.arithmetic = self._curvature_arithmetic
        return path.loss_on(CURVATURE, self.samples.curvature) if independent else path.loss_on(STEP, self.samples.step)

    @property
    def one_arithmetic(self) -> bool:
        """Whether the Hessian factors are formed in the arithmetic of the steps."""
        return self.arithmetic == self._curvature_arithmetic

    def factors(self, curvature: AbstractCurvature, loss: StepLoss) -> tuple[Product, Gradient]:
        """Hessian-vector products by a curvature strategy, and gradients at the same points, for the reverse recursion."""

        return factors_of(loss, curvature, self.inner.gradients, self.key)

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


def floating(rest: PyTree) -> tuple[PyTree, PyTree]:
    """The part of the rest that carries derivatives, and that of the loss's state which does not (None where it has none)."""
    if not isinstance(rest, Threaded):
        return rest, None
    state, others = eqx.partition(rest.state, _tree.is_floating)
    return Threaded(rest.rest, state), others


def joined(rest: PyTree, others: PyTree) -> PyTree:
    """The rest again, from its two parts."""
    return Threaded(rest.rest, eqx.combine(rest.state, others)) if isinstance(rest, Threaded) else rest


def descent_of(inner: Inner, loss: StepLoss, update: Any, key: Any, carried: Any = None) -> Descent:
    """One inner step on a loss.

    Arguments:
        inner: the inner loop, whose gradient strategy is used.
        loss: the loss of a step.
        update: the update.
        key: the task's key.
        carried: an object whose `begin`, `step` and `advance` move the loss's state; None for a loss without one.
    """
    strategy = inner.gradients

    def value_and_gradient(w, rest, j):
        use = fold(key, GRADIENT, j)
        if carried is not None and isinstance(strategy, AutoDiff):
            return strategy.value_and_gradient(lambda w: carried.step(w, rest, j), w, use, has_aux=True)
        value, gradient = strategy.value_and_gradient(lambda w: loss(w, rest, j), w, use)
        return (value, None if carried is None else carried.advance(w, rest, j)), gradient

    if carried is None:
        return Descent(value_and_gradient, update)
    return Descent(value_and_gradient, update, carried.begin, carried.advance)


def factors_of(
    loss: StepLoss, curvature: AbstractCurvature = Exact(), gradients: Any = AutoDiff(), key: Any = None  # noqa: B008
) -> tuple[Product, Gradient]:  # fmt: skip
    """Hessian-vector products of a loss by a curvature strategy, and its gradients at the same points, for the recursion."""

    def local(w, rest, j):
        floats, others = floating(rest)
        at_step = lambda w, rest: loss(w, joined(rest, others), j)  # noqa: E731
        return LocalLoss(at_step, w, floats, gradients, fold(key, FACTOR, j))

    def product(w, rest, u, j):
        return curvature.product(local(w, rest, j), u, fold(key, DIRECTION, j))

    def gradient(w, rest, j):
        return local(w, rest, j).gradient(w)

    return product, gradient
