"""The adapted parameters of a meta-step's tasks as functions of w, on batches that stay as they were drawn."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from adaptax import _devices as dev
from adaptax import _tree
from adaptax._batching import map_tasks
from adaptax._keys import STEP, fold
from adaptax._second_order import differentiated_twice, hessian_product, push_forward
from adaptax.gradients import AutoDiff
from adaptax.inner_path import TaskPath
from adaptax.methods.base import AbstractMethod
from adaptax.outer.trust_region import Divergence, Region
from adaptax.problem import AbstractProblem


class AdaptedPath(eqx.Module):
    """The `adapted_path` that the training step hands to optimisers; nothing is computed unless it is asked for.

    Arguments:
        problem, params: those of the meta-step.
        trained: which leaves of the parameters are moved, as a tree of booleans.
        method: the method, with the inner loop in use.
        tasks, keys, weights: this device's share of the tasks, their keys, and 0 for copies that only fill up the share.
        count: the number of tasks on all devices.
        mesh: the mesh of the devices.
    """

    problem: AbstractProblem
    params: PyTree
    trained: PyTree = eqx.field(static=True)
    method: AbstractMethod
    tasks: PyTree
    keys: Key[Array, " B"]
    weights: Array
    count: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def region(self, divergence: Divergence, tasks: int | None = None) -> Region:
        """Loss, divergence and gradient over all tasks; the product over the first tasks of each device's share.

        Arguments:
            divergence: `divergence(old, new, batch)` at adapted parameters.
            tasks: the product is over at least so many tasks (default: all).
        """
        inner, problem = self.method.inner, self.problem
        floats_now, static = eqx.partition(self.params, self.trained)

        def path_from(floats: PyTree, task: PyTree, key: Any) -> TaskPath:
            return TaskPath(problem, inner, eqx.combine(floats, static), task, key, self.method.samples)

        fixed = map_tasks(lambda x: _draw(path_from(floats_now, *x)), (self.tasks, self.keys))

        def adapted(floats: PyTree, batches: PyTree, key: Any) -> PyTree:
            """w_N from the outer problem's floating-point parameters, on batches already drawn."""
            path = path_from(floats, None, key)
            if not inner.steps:
                return path.params(path.split.adapting)

            def loss(w, frozen, j):
                return problem.loss(path.rebuild(w, frozen)[2], jax.tree.map(lambda leaf: leaf[j], batches))

            return path.params(path.with_loss(loss).forward().final)

        def mean(function: Callable[..., Any], few: int | None = None) -> Any:
            inputs, weights = jax.tree.map(lambda leaf: leaf[:few], ((fixed, self.keys), self.weights))
            each = map_tasks(lambda x: function(*x[0], x[1]), inputs)
            shares = jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1), each)
            count = self.count if few is None else dev.total(self.mesh, jnp.sum(weights))
            return jax.tree.map(lambda leaf: leaf / jnp.asarray(count, leaf.dtype), dev.total(self.mesh, shares))

        def evaluate(floats):
            def one(batches, last, old, key):
                new = adapted(floats, batches, key)
                others = _floating(new)[1]
                return problem.target_loss(new, last), divergence(eqx.combine(old, others), new, last)

            return mean(one)

        def product(v):
            def one(batches, last, old, key):
                def to_end(floats):
                    return _floating(adapted(floats, batches, key))[0]

                path = path_from(floats_now, None, key)
                others = _floating(path.params(path.split.adapting))[1]
                here, pushed = push_forward(to_end, floats_now, v)

                def apart(new, _):
                    return divergence(eqx.combine(old, others), eqx.combine(new, others), last)

                bent = hessian_product(apart, here, None, pushed)[1][0]
                return jax.vjp(to_end, floats_now)[1](bent)[0]

            return mean(one, None if tasks is None else dev.share(self.mesh, tasks))

        def gradient(floats, loss, weight):
            def one(batches, last, old, key):
                # Without inner steps the target batch is that of the parameters before adaptation.
                initial = jax.tree.map(lambda leaf: leaf[0], batches) if inner.steps else last

                def objective(floats):
                    before, now = (inner.initial(eqx.combine(w, static)) for w in (floats_now, floats))
                    return loss(adapted(floats, batches, key), last) + weight * divergence(before, now, initial)

                with differentiated_twice():
                    return jax.grad(objective)(floats)

            return mean(one)

        return Region(evaluate, product, gradient)


def _draw(path: TaskPath) -> tuple[PyTree, PyTree, PyTree]:
    """The batches of the inner steps, the target batch, and the floating-point part of w_N."""

    def step(carry, x):
        params = path.params(carry[0])
        drawn = path.problem.step_batch(path.task, params, fold(path.key, STEP, x["j"]), path.samples.step)
        stepped = path
        if isinstance(path.inner.gradients, AutoDiff):  # Other strategies ask for samples at other parameters too.
            stepped = path.with_loss(lambda w, frozen, j: path.problem.loss(path.rebuild(w, frozen)[2], drawn))
        return stepped.stepper()(carry, x)[0], drawn

    (final, _), batches = jax.lax.scan(step, path.start, path.inputs)
    return batches, path.target_batch(final), _floating(path.params(final))[0]


def _floating(params: PyTree) -> tuple[PyTree, PyTree]:
    return eqx.partition(params, _tree.is_floating)
