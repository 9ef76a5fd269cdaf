"""The interface of all methods, and how a method is applied to one task or to a batch of tasks."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._batching import Traced, check_batch, check_in_flight, grouped, ungrouped
from adaptax._cost import Cost
from adaptax._devices import beside
from adaptax._intake import as_batch, as_task
from adaptax._keys import check_key, first, require_keys
from adaptax._problem_checks import check_problem
from adaptax.errors import InputError
from adaptax.inner import Info, Inner
from adaptax.inner_path import TaskPath
from adaptax.problem import AbstractProblem, Samples, check_is_problem, settled
from adaptax.stepsize.measurement import resolve_on_first, resolve_one


class AbstractMethod(eqx.Module):
    """A method makes a gradient for the outer parameters out of one task: `MetaGradient`, `Implicit`, `Reptile`.

    A new method is a subclass with the fields `inner` and `samples`, `one_task` and `cost`; `adaptax.inner_path.TaskPath`
    takes the inner steps for it.
    """

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
        task = beside(as_task(task), params)

        def run():
            method = self.with_inner(resolve_one(self.inner, problem, params, task, key, self.samples))
            return _single(method, problem, params, task, key)

        return settled(problem, run)

    def batch(
        self,
        problem: AbstractProblem,
        params: PyTree,
        tasks: PyTree,
        keys: Key[Array, " B"] | None = None,
        in_flight: int | None = None,
    ) -> tuple[Array, PyTree, Info]:
        """The mean value, the mean meta-gradient, and each task's `Info`, over a batch of tasks.

        A task that is not finite makes both means so; `info.finite` says which, and `ax.diagnose` says why.

        Arguments:
            problem, params: as for one task.
            tasks: one pytree whose every leaf has a leading axis B, or a list of B tasks.
            keys: B keys, needed where anything is drawn.
            in_flight: how many tasks are held in memory at a time (default: by what one task holds; all for small models,
                one for large ones).
        """
        self.check(problem, keys)
        tasks, in_flight = beside(as_batch(tasks), params), check_in_flight(in_flight)
        check_batch(tasks, keys, problem)

        def run():
            method = self.with_inner(resolve_on_first(self.inner, problem, params, tasks, keys, self.samples))
            return _batch(method, problem, params, tasks, keys, in_flight)

        return settled(problem, run)

    def with_inner(self, inner: Inner) -> "AbstractMethod":
        """The same method with another inner loop, such as a resolved one."""
        return eqx.tree_at(lambda method: method.inner, self, inner)

    @property
    def learns(self) -> bool:
        """Whether the method gives derivatives by the step sizes, and the inner loop's are to be learned."""
        return False

    @property
    def keeps_draws(self) -> bool:
        """Whether its path asks for no samples but those drawn along it, so that it can go on batches drawn before."""
        return False

    def at(self, step: Any) -> "AbstractMethod":
        """The method at a meta-step; the same one unless it changes in training."""
        return self

    def path(self, problem: AbstractProblem, params: PyTree, task: PyTree, key: Any) -> TaskPath:
        """The inner path of one task, in the method's arithmetic and by its parts of batches."""
        precision, microbatches = (getattr(self, name, None) for name in ("precision", "microbatches"))
        return TaskPath(
            problem, self.inner, params, task, key, self.samples, precision=precision, microbatches=microbatches
        )  # fmt: skip

    def one_task(self, problem: AbstractProblem, params: PyTree, task: PyTree, key: Any) -> tuple[Array, PyTree, Info]:
        """The meta-gradient of one task, for a resolved inner loop and arguments that have been checked."""
        raise NotImplementedError("abstract")

    def cost(self) -> Cost:
        """The oracle calls of the meta-gradient of one task, for a step size that is resolved."""
        raise NotImplementedError("abstract")

    def products(self, path: TaskPath) -> Array | None:
        """For w_0, w_1, ... of a path: 2 where a Hessian-vector product is not finite, 1 where its direction is not, else 0.

        None for a method that forms none. It is asked only to say why a meta-gradient is not finite.
        """
        return None

    def check(self, problem: AbstractProblem, key: Any) -> None:
        """Refuse anything but a problem, and missing keys."""
        check_is_problem(problem)
        require_keys(problem, key, self.stochastic)


def check_parts(name: str, inner: Any, samples: Any) -> None:
    """Refuse anything but an inner loop and sample sizes."""
    if not isinstance(inner, Inner):
        raise InputError(f"{name} needs ax.Inner(steps, stepsize) first, not {type(inner).__name__}.")
    if not isinstance(samples, Samples):
        raise InputError("samples= must be ax.Samples(step, curvature, target).")


@eqx.filter_jit
def _single(method, problem, params, task, key):
    check_key(key)
    check_problem(problem, method.inner.initial(params), task, method.samples, target=True)
    return _one_task(method, problem, params, task, key)


def _one_task(method, problem, params, task, key) -> tuple[Array, PyTree, Info]:
    """`method.one_task`, and whether its result is finite."""
    value, grad, info = method.one_task(problem, params, task, key)
    return value, grad, dataclasses.replace(info, finite=_tree.all_finite((value, grad)))


@eqx.filter_jit
def _batch(method, problem, params, tasks, keys, in_flight):
    count = check_batch(tasks, keys, problem)
    check_key(first(keys))
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
    """Weighted sums of values and meta-gradients (in at least single precision), and each task's `Info`.

    With `each`, the third result has pairs of a task's `Info` and its own meta-gradient. A task of weight zero adds exactly
    nothing, even where its own values are not finite.
    """
    check_problem(problem, method.inner.initial(params), first(tasks), method.samples, target=True)

    def one(inputs):
        task, key, weight = inputs
        value, grad, info = _one_task(method, problem, params, task, key)

        def weighted(x):
            dtype = jnp.promote_types(x.dtype, jnp.float32)
            return jnp.where(weight > 0, weight.astype(dtype) * x.astype(dtype), 0)

        return jax.tree.map(weighted, (value, grad)), (info, grad) if each else info

    def group(inputs):
        sums, infos = jax.vmap(traced)(inputs)
        return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums), infos

    inputs, count = (tasks, keys, weights), weights.shape[0]
    traced = Traced(one, inputs)
    size = traced.at_a_time(count, in_flight, summed=True)
    if size == count:
        (value, grad), infos = group(inputs)
        return value, grad, infos
    inputs = (*grouped((tasks, keys), size), grouped(jnp.pad(weights, (0, -count % size)), size))

    def add(total, inputs):
        flat = jax.tree.map(lambda leaf: leaf[0], inputs) if size == 1 else inputs
        sums, infos = traced(flat) if size == 1 else group(flat)
        return optax.tree.add(total, sums), infos

    (value, grad), infos = jax.lax.scan(add, optax.tree.zeros_like(traced.outputs[0]), inputs)
    return value, grad, jax.tree.map(lambda leaf: leaf[:count], infos if size == 1 else ungrouped(infos))


def mean_like(total: PyTree, params: PyTree, count: Array | int) -> PyTree:
    """A summed gradient over `count`, in the parameters' own types."""
    return jax.tree.map(
        lambda g, p: None if g is None else (g / count).astype(jnp.result_type(p)),
        total,
        params,
        is_leaf=lambda x: x is None,
    )
