"""The meta-gradient of one task and of a batch of tasks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.batching import check_batch, check_in_flight, grouped, in_flight_for
from adaptax.curvature import AbstractCurvature, Exact
from adaptax.errors import InputError
from adaptax.inner import Info, Inner
from adaptax.objective import (
    CURVATURE,
    STEP,
    TARGET,
    check_key,
    check_problem,
    first,
    plain,
    products,
    require_keys,
    step_loss,
)
from adaptax.problem import AbstractProblem, Samples
from adaptax.recursion import check_store, forward, reverse
from adaptax.stepsize.learned import Learned, Meta
from adaptax.stepsize.rates import Rates
from adaptax.stepsize.rules import AbstractRule


class MetaGradient(eqx.Module):
    r"""The nested meta-gradient $\nabla\mathcal L_i(w) = \prod_{j=0}^{N-1}(I - \alpha\nabla^2 l_i(w_j))\,\nabla l_i(w_N)$.

    One reverse recursion: $v \leftarrow \nabla l_T(w_N)$, then $v \leftarrow v - \alpha\hat H_j v$ for j = N-1 ... 0.
    Only the iterates are kept, so memory does not grow with the computation graphs of N steps.

    Arguments:
        inner: the inner loop (`method.inner`).
        curvature: how $\hat H_j v$ is formed (default `ax.curvature.Exact()`).
        mode: "recursion" (default), or "backprop": plain backpropagation through the loop, an independent check.
        store: "iterates" (default) keeps all N iterates; "sqrt" keeps about $\sqrt N$ and recomputes the others, which
            costs one more gradient a step.
        samples: sample sizes S, D, T of a resampling problem.
        independent_curvature: whether Hessian factors draw samples of their own (default): an estimate of the gradient
            of the exact-path objective, unbiased given the path. False reuses the step's samples: the gradient of the
            sampled path, as backpropagation gives. Without effect on finite-sum problems, which draw nothing.

    Errors: `InputError` for an unknown mode or store, and for "backprop" of a resampling problem with independent
    curvature, which backpropagation cannot have.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> problem = ax.FiniteSum(lambda w, c: 0.5 * jnp.sum((w - c) ** 2), lambda key: None)
        >>> method = ax.MetaGradient(ax.Inner(steps=2, stepsize=0.5))
        >>> value, grad, info = method(problem, jnp.zeros(2), ax.Task(jnp.ones(2), jnp.ones(2)))
        >>> float(value), grad, info.losses  # w_2 = 3/4, gradient (1 - 1/2)^2 (w_2 - 1)
        (0.0625, Array([-0.0625, -0.0625], dtype=float32), Array([1.  , 0.25], dtype=float32))

    Source: docs/theory.md, sections 1 to 3; cf. Ji, Yang, Liang (2022), JMLR 23.
    """

    inner: Inner
    curvature: AbstractCurvature
    mode: str = eqx.field(static=True)
    store: str = eqx.field(static=True)
    samples: Samples
    independent_curvature: bool = eqx.field(static=True)

    def __init__(
        self,
        inner: Inner,
        curvature: AbstractCurvature = Exact(),  # noqa: B008
        *,
        mode: str = "recursion",
        store: str = "iterates",
        samples: Samples = Samples(),  # noqa: B008
        independent_curvature: bool = True,
    ):
        if not isinstance(inner, Inner):
            raise InputError(f"MetaGradient needs ax.Inner(steps, stepsize) first, not {type(inner).__name__}.")
        if not isinstance(curvature, AbstractCurvature):
            raise InputError("curvature= must be a strategy such as ax.curvature.Exact().")
        if mode not in ("recursion", "backprop"):
            raise InputError(f'mode={mode!r} must be "recursion" or "backprop".')
        if mode == "backprop" and not isinstance(curvature, Exact):
            raise InputError('mode="backprop" differentiates exactly: use curvature=ax.curvature.Exact() or mode="recursion".')
        if not isinstance(samples, Samples):
            raise InputError("samples= must be ax.Samples(step, curvature, target).")
        check_store(store)
        self.inner, self.curvature, self.mode, self.store = inner, curvature, mode, store
        self.samples, self.independent_curvature = samples, bool(independent_curvature)

    def __call__(
        self, problem: AbstractProblem, params: PyTree, task: PyTree, key: Key[Array, ""] | None = None
    ) -> tuple[Array, PyTree, Info]:
        """The target loss at w_N, the meta-gradient and `Info` of one task.

        Arguments:
            problem: the problem.
            params: parameters w, any pytree; leaves that are not floating-point pass through and are None in the
                gradient. With learned step sizes, `ax.Meta(params, stepsize)`.
            task: one task.
            key: needed where anything is drawn.
        """
        self._check(problem, key)
        return _single(self, problem, params, task, key)

    def batch(
        self,
        problem: AbstractProblem,
        params: PyTree,
        tasks: PyTree,
        keys: Key[Array, " B"] | None = None,
        in_flight: int | None = None,
    ) -> tuple[Array, PyTree, Info]:
        """The mean value, the mean meta-gradient, and each task's `Info`, over a batch of tasks.

        Arguments:
            problem, params: as for one task.
            tasks: one pytree whose every leaf has a leading axis B.
            keys: B keys, needed where anything is drawn.
            in_flight: how many tasks are held at a time (default: decided from the shapes; all for small models, one
                for large ones).
        """
        self._check(problem, keys)
        return _batch(self, problem, params, tasks, keys, check_in_flight(in_flight))

    def with_inner(self, inner: Inner) -> "MetaGradient":
        """The same method with another inner loop, such as a resolved one."""
        return eqx.tree_at(lambda method: method.inner, self, inner)

    def _check(self, problem: AbstractProblem, key: Any) -> None:
        if not isinstance(problem, AbstractProblem):
            raise InputError(f"The problem must be ax.FiniteSum or ax.Resampling, not {type(problem).__name__}.")
        require_keys(problem, key, self.curvature.stochastic)
        if self.mode == "backprop" and problem.stochastic and self.independent_curvature:
            raise InputError('mode="backprop" reuses the step samples: pass independent_curvature=False with it.')


@eqx.filter_jit
def _single(method, problem, params, task, key):
    check_key(key)
    if isinstance(method.inner.stepsize, AbstractRule):
        tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], task)
        inner = method.inner.resolve(problem, params, tasks, None if key is None else key[None], samples=method.samples)
        method = method.with_inner(inner)
    plain_params = params.params if isinstance(params, Meta) else params
    check_problem(problem, plain_params, task, method.samples, target=True)
    return one_task(method, problem, params, task, key)


@eqx.filter_jit
def _batch(method, problem, params, tasks, keys, in_flight):
    count = check_batch(tasks, keys)
    check_key(first(keys))
    rule = method.inner.stepsize
    if isinstance(rule, AbstractRule):
        few = jax.tree.map(lambda leaf: leaf[: rule.tasks], (tasks, keys))
        method = method.with_inner(method.inner.resolve(problem, params, *few, samples=method.samples))
    value, grad, infos = weighted_sum(method, problem, params, tasks, keys, jnp.ones(count), in_flight)
    return (value / count).astype(jnp.result_type(infos.value)), mean_like(grad, params, count), infos


def weighted_sum(
    method: MetaGradient,
    problem: AbstractProblem,
    params: PyTree,
    tasks: PyTree,
    keys: Any,
    weights: Array,
    in_flight: int | None,
) -> tuple[Array, PyTree, Info]:
    """Weighted sums of values and meta-gradients (in at least single precision), and each task's info.

    A task of weight zero adds exactly nothing, whatever it computes.
    """
    plain_params = params.params if isinstance(params, Meta) else params
    check_problem(problem, plain_params, first(tasks), method.samples, target=True)
    size = in_flight_for(problem, plain_params, tasks, keys, method.samples, in_flight)

    def one(inputs):
        task, key, weight = inputs
        value, grad, info = one_task(method, problem, params, task, key)
        wide = lambda x: jnp.where(weight > 0, weight.astype(_wide(x)) * x.astype(_wide(x)), 0)  # noqa: E731
        return jax.tree.map(wide, (value, grad)), info

    def group(inputs):
        sums, infos = jax.vmap(one)(inputs)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums), infos

    inputs = (tasks, keys, weights)
    count = weights.shape[0]
    if size == count:
        (value, grad), infos = group(inputs)
        return value, grad, infos
    inputs = (*grouped((tasks, keys), size), grouped(jnp.pad(weights, (0, -count % size)), size))

    def add(total, inputs):
        flat = jax.tree.map(lambda leaf: leaf[0], inputs) if size == 1 else inputs
        sums, infos = one(flat) if size == 1 else group(flat)
        return _tree.add(total, sums), infos

    shapes = jax.eval_shape(lambda x: add_shapes(one, x), inputs)
    (value, grad), infos = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), inputs)
    if size > 1:
        infos = jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), infos)
    return value, grad, jax.tree.map(lambda leaf: leaf[:count], infos)


def add_shapes(one, inputs):
    return one(jax.tree.map(lambda leaf: leaf[0, 0], inputs))[0]


def mean_like(total: PyTree, params: PyTree, count: Array | int) -> PyTree:
    """A summed gradient over `count`, in the parameters' own types."""
    return jax.tree.map(
        lambda g, p: None if g is None else (g / count).astype(jnp.result_type(p)),
        total,
        params,
        is_leaf=lambda x: x is None,
    )


def _wide(x: Array):
    return jnp.promote_types(x.dtype, jnp.float32)


def one_task(
    method: MetaGradient, problem: AbstractProblem, params: PyTree, task: PyTree, key: Any
) -> tuple[Array, PyTree, Info]:
    """The meta-gradient of one task, for a resolved inner loop."""
    inner, samples = method.inner, method.samples
    learned = isinstance(inner.stepsize, Learned)
    params, rates = inner.unpack(params)
    split = inner.split(params)
    rebuild = plain(problem, task, split.static)
    loss = step_loss(rebuild, key, STEP, samples.step)

    def target(w, frozen):
        _, _, params = rebuild(w, frozen)
        fresh = None if key is None else jax.random.fold_in(key, TARGET)
        return problem.target_loss(params, problem.target_batch(task, params, fresh, samples.target))

    if method.mode == "backprop":

        def through(w, frozen, tree):
            path = forward(loss, w, frozen, Rates(tree, rates.per_step), inner.steps, "iterates")
            return target(path.final, frozen), path.losses

        (value, losses), (v, v_frozen, rates_bar) = jax.value_and_grad(through, argnums=(0, 1, 2), has_aux=True)(
            split.adapting, split.frozen, rates.tree
        )
    else:
        path = forward(loss, split.adapting, split.frozen, rates, inner.steps, method.store)
        losses = path.losses
        value, cotangent = jax.value_and_grad(target, argnums=(0, 1))(path.final, split.frozen)
        purpose, size = (CURVATURE, samples.curvature) if method.independent_curvature else (STEP, samples.step)
        product = products(method.curvature, step_loss(rebuild, key, purpose, size), key)
        v, v_frozen, rates_bar = reverse(product, path, split.frozen, rates, cotangent, loss=loss)
    grad = eqx.combine(v, v_frozen)
    info = Info(rates.mean(), losses, value)
    return value, Meta(grad, rates_bar) if learned else grad, info
