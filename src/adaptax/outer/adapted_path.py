"""The adapted parameters of a meta-step's tasks as functions of w, on batches that stay as they were drawn."""

import dataclasses
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
from adaptax._second_order import differentiated_twice, hessian_product, push_forward
from adaptax.inner_path import Drawn
from adaptax.methods.base import AbstractMethod
from adaptax.outer.trust_region import Divergence, Region
from adaptax.problem import AbstractProblem
from adaptax.sequential import refuse_sequence


class AdaptedPath(eqx.Module):
    """The `adapted_path` that the training step hands to optimisers; nothing is computed unless it is asked for.

    Arguments:
        problem, params: those of the meta-step.
        trained: which leaves of the parameters are moved, as a tree of booleans.
        method: the method, with the inner loop in use.
        tasks, keys, weights: this device's share of the tasks (`Drawn` ones, if the method has their batches too), their keys,
            and 0 for copies that only fill up the share.
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
        refuse_sequence(problem, "This outer optimiser", "use an optax one such as optax.adam")
        floats_now, static = eqx.partition(self.params, self.trained)
        fixed = self if isinstance(self.tasks, Drawn) else self.draw()

        def adapted(floats: PyTree, drawn: Drawn, key: Any) -> PyTree:
            """w_N from the outer problem's floating-point parameters, on batches already drawn."""
            path = self.method.path(problem, eqx.combine(floats, static), drawn, key)
            return path.params(path.forward().final if inner.steps else path.split.adapting)

        def mean(function: Callable[..., Any], few: int | None = None) -> Any:
            inputs, weights = jax.tree.map(lambda leaf: leaf[:few], ((fixed.tasks, self.keys), self.weights))
            each = map_tasks(lambda x: function(*x), inputs)
            shares = jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1), each)
            count = self.count if few is None else dev.total(self.mesh, jnp.sum(weights))
            return jax.tree.map(lambda leaf: leaf / jnp.asarray(count, leaf.dtype), dev.total(self.mesh, shares))

        def evaluate(floats):
            def one(drawn, key):
                new = adapted(floats, drawn, key)
                old = eqx.combine(drawn.final, _floating(new)[1])
                return problem.target_loss(new, drawn.target), divergence(old, new, drawn.target)

            return mean(one)

        def product(v):
            def one(drawn, key):
                def to_end(floats):
                    return _floating(adapted(floats, drawn, key))[0]

                others = _floating(inner.initial(self.params))[1]
                here, pushed = push_forward(to_end, floats_now, v)

                def apart(new, _):
                    return divergence(eqx.combine(drawn.final, others), eqx.combine(new, others), drawn.target)

                bent = hessian_product(apart, here, None, pushed)[1][0]
                return jax.vjp(to_end, floats_now)[1](bent)[0]

            return mean(one, None if tasks is None else dev.share(self.mesh, tasks))

        def gradient(floats, loss, weight):
            def one(drawn, key):
                # Without inner steps the target batch is that of the parameters before adaptation.
                initial = jax.tree.map(lambda leaf: leaf[0], drawn.batches) if inner.steps else drawn.target

                def objective(floats):
                    before, now = (inner.initial(eqx.combine(w, static)) for w in (floats_now, floats))
                    return loss(adapted(floats, drawn, key), drawn.target) + weight * divergence(before, now, initial)

                with differentiated_twice():
                    return jax.grad(objective)(floats)

            return mean(one)

        return Region(evaluate, product, gradient)

    def draw(self) -> "AdaptedPath":
        """The same path on batches that are drawn now, and then stay."""

        def one(inputs):
            task, key = inputs
            return self.method.path(self.problem, self.params, task, key).drawn()

        return dataclasses.replace(self, tasks=map_tasks(one, (self.tasks, self.keys)))


def _floating(params: PyTree) -> tuple[PyTree, PyTree]:
    return eqx.partition(params, _tree.is_floating)
