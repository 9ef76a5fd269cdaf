"""Problems whose inner steps each have a batch of their own, and whose loss may carry a state from step to step."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from adaptax._tree import Selection, as_selection, describe
from adaptax.errors import InputError
from adaptax.problem import AbstractProblem, as_callable


class Sequential(AbstractProblem):
    r"""Inner step j takes batch $b_j$ of its own, and the loss may thread a state: $(l_j, s_{j+1}) = l(w_j, s_j, b_j)$.

    The path is $w_{j+1} = w_j - \alpha\nabla_w l(w_j, s_j, b_j)$. The outer loss is the target loss $l_T(w_N, s_N)$, or with
    outer="path" the mean $\frac1N\sum_j l(w_j, s_j, b_j)$ of the losses before each update, as in test-time training and online
    learning. Meta-gradients are exact: the state's derivative goes backward through the same recursion. Uses of the state are
    running batch statistics, the hidden state of a recurrent or streaming model, and counters of random numbers.

    Arguments:
        loss: `loss(params, batch) -> scalar`; with a state, `loss(params, state, batch) -> (scalar, next state)`.
        sample_task: `sample_task(key) -> Task`. Every leaf of `task.support` has a leading axis over the inner steps, at least
            N long: step j takes `leaf[j]`.
        state: $s_0$, a pytree of arrays, or a function from w_0 to it (default None: the loss has no state). The next state
            must have the same structure, shapes and dtypes. Entries that are not floating-point carry no derivative.
        outer: "last" (default) judges w_N and s_N by the target loss; "path" takes the mean of the losses on the way, and
            needs no target set.
        target_loss: another outer loss of `task.target` for outer="last" (default: `loss`): `target_loss(params, batch)`, with
            a state `target_loss(params, state, batch)`. It returns a scalar, or like `loss` also a state, which is not used.
        metrics: `metrics(params, batch)`, with a state `metrics(params, state, batch)`: a dict of scalars reported by
            `ax.evaluate`. With outer="path" the loss and the metrics after n steps are those of batch n, before it is learned
            from, so that n < the length of the sequence.
        trainable: as for `ax.FiniteSum`.

    Errors: `InputError` for arguments that are not callable, another `outer`, sequences shorter than N, and a next state unlike
    the state.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> def loss(w, total, x):  # the state is the sum of what was seen
        ...     return 0.5 * (w - total - x) ** 2, total + x
        >>> problem = ax.Sequential(loss, lambda key: None, state=jnp.zeros(()))
        >>> task = ax.Task(support=jnp.array([1.0, 2.0]), target=jnp.array(3.0))
        >>> value, gradient, info = ax.MetaGradient(ax.Inner(steps=2, stepsize=0.5))(problem, jnp.zeros(()), task)
        >>> info.losses  # w_1 = 1/2, s_1 = 1; w_2 = 7/4, s_2 = 3
        Array([0.5  , 3.125], dtype=float32)
        >>> float(value), float(gradient)  # (7/4 - 6)^2 / 2, and (7/4 - 6) (1 - 1/2)^2
        (9.03125, -1.0625)

    Source: docs/theory.md, section 1.
    """

    loss: Callable
    sample_task: Callable
    target_loss: Callable
    metrics: Callable | None
    state: Any
    outer: str = eqx.field(static=True)
    trainable: Selection = eqx.field(static=True)
    stochastic: ClassVar[bool] = False

    def __init__(self, loss, sample_task, *, state=None, outer="last", target_loss=None, metrics=None, trainable=None):
        if outer not in ("last", "path"):
            raise InputError(f'outer={outer!r} must be "last" (the target loss at w_N) or "path" (the mean of the losses).')
        if outer == "path" and target_loss is not None:
            raise InputError('outer="path" judges by the losses on the way: leave target_loss= out, or take outer="last".')
        self.loss = as_callable(loss, "loss")
        self.sample_task = as_callable(sample_task, "sample_task")
        self.target_loss = self.loss if target_loss is None else as_callable(target_loss, "target_loss")
        self.metrics = None if metrics is None else as_callable(metrics, "metrics")
        self.state = as_callable(state, "state") if callable(state) else jax.tree.map(jnp.asarray, state)
        self.outer = outer
        self.trainable = as_selection("trainable", trainable)

    @property
    def carries(self) -> bool:
        """Whether the loss has a state."""
        return self.state is not None

    def initial_state(self, params):
        return self.state(params) if callable(self.state) else self.state

    def step_batch(self, task, params, key, size, j=None):
        return jax.tree.map(lambda leaf: leaf[0 if j is None else j], task.support)

    def target_batch(self, task, params, key, size):
        return task.target

    def step_loss(self, params, batch, state):
        if not self.carries:
            return self.loss(params, batch), None
        out = self.loss(params, _fresh(state), batch)
        if not isinstance(out, tuple) or len(out) != 2:
            raise InputError(f"With state= the loss must return (scalar, next state), and not {describe(out)}.")
        return out

    def outer_loss(self, params, batch, state):
        found = self.target_loss(params, _fresh(state), batch) if self.carries else self.target_loss(params, batch)
        return found[0] if self.carries and isinstance(found, tuple) else found

    def check_state(self, params: PyTree, batch: PyTree) -> None:
        """Refuse a loss whose next state is unlike the state."""
        before = jax.eval_shape(lambda: self.initial_state(params))
        after = eqx.filter_eval_shape(self.step_loss, params, batch, before)[1]
        if _forms(after) != _forms(before):
            text = f"loss(params, state, batch) returned the state {describe(after)} after {describe(before)}"
            raise InputError(f"{text}: return one of the same structure, shapes and dtypes.")


def check_length(problem: AbstractProblem, support: Any, steps: int) -> None:
    """Refuse a sequence with fewer batches than inner steps."""
    if not isinstance(problem, Sequential):
        return
    lengths: set[Any] = {(*jnp.shape(leaf), None)[0] for leaf in jax.tree.leaves(support)}
    if len(lengths) != 1 or None in lengths:
        text = f"Every leaf of task.support needs one leading axis over the inner steps, but found {describe(support)}"
        raise InputError(f"{text}: stack one batch for each step.")
    if (length := lengths.pop()) < steps:
        raise InputError(f"task.support has {length} batches for {steps} inner steps: give one for each, or take fewer steps.")


def _fresh(state: PyTree) -> PyTree:
    """A copy: some libraries' states, such as `eqx.nn.State`, may be used once only."""
    return jax.tree.map(lambda leaf: leaf, state)


def _forms(state: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(state)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def on_one_device(problem: AbstractProblem, devices: Any, shards: int = 1) -> bool:
    """Whether the problem holds a state of Equinox, which refuses values that are spread over devices."""
    if shards > 1 and getattr(getattr(problem, "draw", None), "host", False):
        text = f"parameter_shards={shards} needs tasks and samples that are drawn on the devices, and these come from the host"
        raise InputError(f"{text}: leave parameter_shards= out.")
    found = jax.tree.leaves(problem, is_leaf=lambda x: isinstance(x, eqx.nn.State))
    alone = any(isinstance(x, eqx.nn.State) for x in found)
    if alone and (devices is not None or shards > 1):
        wrong = "parameter_shards=" if devices is None else "devices="
        raise InputError(f"equinox.nn.State cannot be spread over devices: leave {wrong} out, which takes the default one.")
    if alone and jax.process_count() > 1:
        raise InputError("equinox.nn.State cannot be spread over processes: start one, or hold the state in plain arrays.")
    return alone


def refuse_sequence(problem: AbstractProblem, who: str, instead: str) -> None:
    """Refuse a sequence where all inner steps must have the same loss."""
    if isinstance(problem, Sequential):
        raise InputError(f"{who} needs one inner loss for all steps, and ax.Sequential has one for each: {instead}.")
