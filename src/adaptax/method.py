"""What all meta-gradients share: one task or a batch of tasks, checked and compiled."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.batching import check_batch, check_in_flight, grouped, in_flight_for
from adaptax.cost import Cost
from adaptax.errors import InputError
from adaptax.inner import Info, Inner
from adaptax.objective import check_key, check_problem, first, require_keys
from adaptax.problem import AbstractProblem, Samples
from adaptax.stepsize.rules import AbstractRule


class AbstractMethod(eqx.Module):
    """A meta-gradient: `MetaGradient`, `Implicit` or `Reptile`."""

    inner: eqx.AbstractVar[Inner]
    samples: eqx.AbstractVar[Samples]
    stochastic: eqx.AbstractVar[bool]

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
        self.check(problem, key)
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
        self.check(problem, keys)
        return _batch(self, problem, params, tasks, keys, check_in_flight(in_flight))

    def with_inner(self, inner: Inner) -> "AbstractMethod":
        """The same method with another inner loop, such as a resolved one."""
        return eqx.tree_at(lambda method: method.inner, self, inner)

    def at(self, step: Any) -> "AbstractMethod":
        """The method at a meta-step; the same one unless it changes in training."""
        return self

    def one_task(self, problem: AbstractProblem, params: PyTree, task: PyTree, key: Any) -> tuple[Array, PyTree, Info]:
        """The meta-gradient of one task, for a resolved inner loop and arguments that have been checked."""
        raise NotImplementedError("abstract")

    def cost(self) -> Cost:
        """The oracle calls of the meta-gradient of one task, for a step size that is resolved."""
        raise NotImplementedError("abstract")

    def check(self, problem: AbstractProblem, key: Any) -> None:
        """Refuse what is no problem, and missing keys."""
        if not isinstance(problem, AbstractProblem):
            raise InputError(f"The problem must be ax.FiniteSum or ax.Resampling, not {type(problem).__name__}.")
        require_keys(problem, key, self.stochastic)


def check_parts(name: str, inner: Any, samples: Any) -> None:
    """Refuse what is no inner loop or no sample sizes."""
    if not isinstance(inner, Inner):
        raise InputError(f"{name} needs ax.Inner(steps, stepsize) first, not {type(inner).__name__}.")
    if not isinstance(samples, Samples):
        raise InputError("samples= must be ax.Samples(step, curvature, target).")


@eqx.filter_jit
def _single(method, problem, params, task, key):
    check_key(key)
    if isinstance(method.inner.stepsize, AbstractRule):
        tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], task)
        inner = method.inner.resolve(problem, params, tasks, None if key is None else key[None], samples=method.samples)
        method = method.with_inner(inner)
    check_problem(problem, method.inner.initial(params), task, method.samples, target=True)
    return method.one_task(problem, params, task, key)


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
    method: AbstractMethod,
    problem: AbstractProblem,
    params: PyTree,
    tasks: PyTree,
    keys: Any,
    weights: Array,
    in_flight: int | None,
    each: bool = False,
) -> tuple[Array, PyTree, Any]:
    """Weighted sums of values and meta-gradients (in at least single precision), and each task's info.

    With `each`, the last are pairs of a task's info and its own meta-gradient.
    A task of weight zero adds exactly nothing, whatever it computes.
    """
    initial = method.inner.initial(params)
    check_problem(problem, initial, first(tasks), method.samples, target=True)
    size = in_flight_for(problem, initial, tasks, keys, method.samples, in_flight)

    def one(inputs):
        task, key, weight = inputs
        value, grad, info = method.one_task(problem, params, task, key)
        wide = lambda x: jnp.where(weight > 0, weight.astype(_wide(x)) * x.astype(_wide(x)), 0)  # noqa: E731
        return jax.tree.map(wide, (value, grad)), (info, grad) if each else info

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
        infos = jax.tree.map(lambda leaf: leaf.reshape((leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])), infos)
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
