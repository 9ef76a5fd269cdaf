"""Tasks, pools of tasks, and the two kinds of problem: finite-sum and resampling."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import keystr
from jaxtyping import Array, Key, PyTree

from adaptax._checks import check_whole, is_traced
from adaptax._drawn_once import traced
from adaptax._intake import as_batch
from adaptax._tree import Selection, as_selection, constant, describe, first_line
from adaptax.errors import DrawnOnce, InputError, forget_failures, raise_failure


class Task(eqx.Module):
    r"""One task $i$: a support set $S_i$ to adapt on and a target (query) set $T_i$ to judge by.

    Both are arbitrary pytrees of arrays, whose leaves need not share a leading axis; a batch of tasks is a `Task` whose
    every leaf has one more leading axis, or a list of tasks of equal shapes. A resampling problem's task may be any pytree
    that says which task it is. Whatever NumPy reads as numbers is taken for an array. Text and other values that are no
    numbers may be in one task (for `ax.adapt`, and a method on one task), and not in a batch or in a task that is drawn.

    Arguments:
        support: the batch given to the inner loss.
        target: the batch given to the outer loss; may be left out where only `ax.adapt` is used.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> ax.Task(support=(jnp.ones((10, 1)), jnp.zeros((10, 1)))).target is None
        True

    Source: the finite-sum case of Ji, Yang, Liang (2022), JMLR 23.
    """

    support: PyTree
    target: PyTree = None

    def __init__(self, support: PyTree, target: PyTree = None):
        # Written out, since the one that would be made looks into leaves that are refused in a sentence where they are used.
        self.support, self.target = support, target


class Samples(eqx.Module):
    r"""Numbers of samples of the resampling case: $S$ in each inner step, $D$ in each Hessian factor, $T$ at the end.

    Arguments:
        step: $S$, at least 1 (default 20).
        curvature: $D$, at least 1 (default 20).
        target: $T$, at least 1 (default 20).

    Errors: `InputError` if one is not a positive integer.

    Example:
        >>> import adaptax as ax
        >>> ax.Samples(step=5, curvature=10, target=20).curvature
        10

    Source: algorithm 1 of Ji, Yang, Liang (2022); docs/theory.md, section 2.
    """

    step: int = eqx.field(static=True, default=20)
    curvature: int = eqx.field(static=True, default=20)
    target: int = eqx.field(static=True, default=20)

    def __post_init__(self):
        sizes = (check_whole("Samples", name, getattr(self, name)) for name in ("step", "curvature", "target"))
        self.step, self.curvature, self.target = sizes


class Pool(eqx.Module):
    r"""Finitely many tasks $1..n$, indexed; as `sample_task` it draws one uniformly, so $E_i$ is the mean over the pool.

    Arguments:
        tasks: one pytree of tasks, whose every leaf has a leading axis n (kept as arrays); or a list of n tasks of equal
            shapes. (A tuple of arrays is one pytree of stacked tasks; a tuple of `ax.Task` is tasks.)

    `pool(key)` is a task, `pool.index(key)` the index i that this key draws, `len(pool)` is n.

    Errors: `InputError` if the leaves have no common leading axis of at least one task, or are no numbers.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> centres = jnp.arange(6.0).reshape(3, 2)
        >>> pool = ax.Pool(ax.Task(centres, centres))
        >>> key = jax.random.key(0)
        >>> len(pool), bool(jnp.all(pool(key).support == centres[pool.index(key)]))
        (3, True)
        >>> len(ax.Pool([ax.Task(jnp.zeros(2), jnp.zeros(2)), ax.Task(jnp.ones(2), jnp.ones(2))]))
        2

    Source: docs/theory.md, section 3.1.
    """

    tasks: PyTree

    def __init__(self, tasks: PyTree):
        tasks = as_batch(tasks)
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
        if len(lengths) != 1 or lengths <= {(), (0,)}:
            found = describe(tasks)
            raise InputError(f"Every leaf of ax.Pool(tasks) needs one leading axis over the same tasks, but found {found}.")
        self.tasks = jax.tree.map(jnp.asarray, tasks)

    def __len__(self) -> int:
        return jax.tree.leaves(self.tasks)[0].shape[0]

    def index(self, key: Key[Array, ""]) -> Array:
        """Which task this key draws."""
        return jax.random.randint(key, (), 0, len(self))

    def __call__(self, key: Key[Array, ""]) -> PyTree:
        index = self.index(key)
        return jax.tree.map(lambda leaf: leaf[index], self.tasks)


def as_callable(function: Callable, name: str) -> Callable:
    """A callable that is a pytree: modules with arrays as they are, plain functions as a static leaf."""
    if not callable(function):
        raise InputError(f"{name} must be a function, not {type(function).__name__}.")
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


class AbstractProblem(eqx.Module):
    """A loss and a distribution of tasks. Use `FiniteSum`, `Resampling` or `Sequential`."""

    loss: eqx.AbstractVar[Callable[[PyTree, PyTree], Array]]
    sample_task: eqx.AbstractVar[Callable[[Key[Array, ""]], PyTree]]
    target_loss: eqx.AbstractVar[Callable[[PyTree, PyTree], Array]]
    metrics: eqx.AbstractVar[Callable[..., dict[str, Array]] | None]
    trainable: eqx.AbstractVar[Selection]
    stochastic: eqx.AbstractClassVar[bool]

    def step_batch(self, task: PyTree, params: PyTree, key: Key[Array, ""] | None, size: int, j: Any = None) -> PyTree:
        """The batch of inner step j (or of a Hessian factor) on `task` at `params`."""
        raise NotImplementedError("abstract")

    def target_batch(self, task: PyTree, params: PyTree, key: Key[Array, ""] | None, size: int) -> PyTree:
        """The batch on which the adapted parameters are judged."""
        raise NotImplementedError("abstract")

    def initial_state(self, params: PyTree) -> PyTree:
        """The loss's state at w_0; None for a loss that has none."""
        return None

    def step_loss(self, params: PyTree, batch: PyTree, state: PyTree) -> tuple[Array, PyTree]:
        """The inner loss on a batch, and the loss's next state."""
        return self.loss(params, batch), None

    def outer_loss(self, params: PyTree, batch: PyTree, state: PyTree) -> Array:
        """The target loss on a batch."""
        return self.target_loss(params, batch)

    def scores(self, params: PyTree, batch: PyTree, steps: Any = None, state: PyTree = None) -> dict[str, Array]:
        """The outer loss and the metrics on one batch after so many inner steps, by name."""
        where = (steps,) if getattr(self.metrics, "by_step", False) else ()
        # A copy: some libraries' states may be used once only.
        carried = () if state is None else (jax.tree.map(lambda leaf: leaf, state),)
        extra = {} if self.metrics is None else dict(self.metrics(params, *carried, batch, *where))
        return {"loss": self.outer_loss(params, batch, state), **extra}


class FiniteSum(AbstractProblem):
    r"""Few-shot learning: $\min_w E_i[\,l_{T_i}(w^i_N)\,]$ with $w^i_{j+1} = w^i_j - \alpha\nabla l_{S_i}(w^i_j)$.

    Losses are pure functions: batch normalisation uses the statistics of the batch given, and randomness enters through the
    batch. A loss with running statistics or another state is one of `ax.Sequential`. Problems are pytrees: a `loss` or
    `sample_task` that is a module holding arrays keeps them as leaves; a plain function is static.

    Arguments:
        loss: `loss(params, batch) -> scalar`, the inner loss, called with `task.support`.
        sample_task: `sample_task(key) -> Task`, one task; traceable, since tasks are sampled on the device. For finitely
            many tasks, `ax.Pool(tasks)`.
        target_loss: another outer loss, called with `task.target` (default: `loss`).
        metrics: `metrics(params, batch) -> dict of scalars`, reported by `ax.evaluate`, never differentiated. One with a
            true attribute `by_step` is called as `metrics(params, batch, n)` after n inner steps.
        trainable: which floating-point arrays are parameters (default: all that a derivative of the loss reaches, but no
            statistics of Flax such as `nnx.BatchStat`): a prefix pytree of booleans, or a predicate on paths such as
            `lambda path: "batch_stats" not in path`, where a path joins the keys with dots. With `ax.Inner(start=...)` a
            predicate gets the paths of the outer problem's parameters and those of w_0. The other arrays are constants: no
            optimiser, inner or outer, moves or decays them, and their gradient is None.

    Errors: `InputError` if an argument is not callable.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> def sample_task(key):
        ...     centre = jax.random.normal(key, (2,))
        ...     return ax.Task(support=centre, target=centre)
        >>> problem = ax.FiniteSum(lambda w, c: jnp.sum((w - c) ** 2), sample_task)
        >>> problem.stochastic
        False

    Source: algorithm 2 of Ji, Yang, Liang (2022); docs/theory.md, section 3.
    """

    loss: Callable
    sample_task: Callable
    target_loss: Callable
    metrics: Callable | None
    trainable: Selection = eqx.field(static=True)
    stochastic: ClassVar[bool] = False

    def __init__(self, loss, sample_task, *, target_loss=None, metrics=None, trainable=None):
        self.loss = as_callable(loss, "loss")
        self.sample_task = as_callable(sample_task, "sample_task")
        self.target_loss = self.loss if target_loss is None else as_callable(target_loss, "target_loss")
        self.metrics = None if metrics is None else as_callable(metrics, "metrics")
        self.trainable = as_selection("trainable", trainable)

    def step_batch(self, task, params, key, size, j=None):
        return task.support

    def target_batch(self, task, params, key, size):
        return task.target


class Resampling(AbstractProblem):
    r"""Tasks that can be sampled from again: $\min_w E_i[\,l_i(\tilde w^i_N)\,]$ with $l_i(w) = E_\tau\, l_i(w;\tau)$.

    Every inner step, Hessian factor and last gradient draws fresh samples, possibly at the current parameters (as in
    reinforcement learning). Draws are samples, not functions to differentiate: their dependence on `params` is cut.

    Arguments:
        loss: `loss(params, batch) -> scalar`.
        sample_task: `sample_task(key) -> task`, any pytree; or `ax.Pool(tasks)`.
        draw: `draw(task, params, key, size) -> batch`, `size` samples, fresh for every key; `size` is a static integer.
        target_loss: another outer loss (default: `loss`).
        metrics: `metrics(params, batch) -> dict of scalars`, never differentiated.
        trainable: as for `FiniteSum`.

    Errors: `InputError` if an argument is not callable.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> draw = lambda centre, w, key, size: centre + jax.random.normal(key, (size, 2))
        >>> problem = ax.Resampling(lambda w, x: jnp.mean((w - x) ** 2), lambda key: jax.random.normal(key, (2,)), draw)
        >>> problem.stochastic
        True

    Source: algorithm 1 of Ji, Yang, Liang (2022); docs/theory.md, section 2.
    """

    loss: Callable
    sample_task: Callable
    draw: Callable
    target_loss: Callable
    metrics: Callable | None
    trainable: Selection = eqx.field(static=True)
    stochastic: ClassVar[bool] = True

    def __init__(self, loss, sample_task, draw, *, target_loss=None, metrics=None, trainable=None):
        self.loss = as_callable(loss, "loss")
        self.sample_task = as_callable(sample_task, "sample_task")
        self.draw = as_callable(draw, "draw")
        self.target_loss = self.loss if target_loss is None else as_callable(target_loss, "target_loss")
        self.metrics = None if metrics is None else as_callable(metrics, "metrics")
        self.trainable = as_selection("trainable", trainable)

    def step_batch(self, task, params, key, size, j=None):
        return self.draw(task, constant(params), key, size)

    def target_batch(self, task, params, key, size):
        return self.step_batch(task, params, key, size)


def settled(source: Any, compute: Callable[[], Any]) -> Any:
    """`compute()`; `HostFailure` if it draws from the host, as a problem or an environment says, and that failed meanwhile.

    Nothing is raised while a program is traced: whoever runs the program does.
    """
    if not getattr(getattr(source, "draw", source), "host", False):
        return compute()
    forget_failures()
    result = compute()
    if not any(map(is_traced, jax.tree.leaves(result))):
        jax.block_until_ready(result)
        raise_failure()
    return result


def check_is_problem(problem: Any) -> None:
    """Refuse anything but a problem."""
    if not isinstance(problem, AbstractProblem):
        raise InputError(f"The problem must be ax.FiniteSum, ax.Resampling or ax.Sequential, not {type(problem).__name__}.")


def check_scalar(
    function: Callable, params: PyTree, batch: PyTree, name: str, where: str, call: Callable | None = None, state: PyTree = None
) -> None:  # fmt: skip
    """Refuse a loss that fails on this batch or does not return one floating-point number (`call` runs it otherwise)."""
    given = "params, batch" if state is None else "params, state, batch"
    try:
        remedy = "let randomness enter through the batch"
        out, _ = traced(function, params, batch, said=name, remedy=remedy, call=call)
    except (InputError, DrawnOnce):
        raise
    except Exception as error:
        message = f"{name}({given}) fails on the {where} ({first_line(error)}); the batch is {describe(batch)}: "
        raise InputError(message + "make the loss, the parameters and the batch fit each other.") from error
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = type(out).__name__ if shape is None else f"{dtype}{list(shape)}"
        raise InputError(f"{name}({given}) must return one floating-point number but returned {got}: take the mean.")


def check_not_empty(batch: PyTree, where: str, remedy: str) -> None:
    """Refuse a batch with no examples, which are counted along the leading axes."""
    paths = jax.tree_util.tree_flatten_with_path(batch)[0]
    leading = {keystr(path): shape[0] for path, leaf in paths if (shape := getattr(leaf, "shape", ()))}
    none = [path for path, examples in leading.items() if examples == 0]
    if not paths or (none and len(none) == len(leading)):
        raise InputError(f"The {where} is empty ({describe(batch)}): {remedy}.")
    if none:
        text = f"The {where} has examples, and none in {none[0]} ({describe(batch)})"
        raise InputError(f"{text}: give as many there, or leave it out.")
