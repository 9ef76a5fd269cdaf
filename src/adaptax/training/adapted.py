"""The adapted parameters of a meta-step's tasks as functions of w, on batches that stay as they were drawn."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.batching import in_flight_for, map_tasks
from adaptax.gradients import AutoDiff
from adaptax.method import AbstractMethod
from adaptax.objective import STEP, TARGET, fold, plain, step_loss
from adaptax.problem import AbstractProblem
from adaptax.recursion import forward, stepper
from adaptax.stepsize.trust import Divergence, Region
from adaptax.training import devices as dev


class AdaptedTasks(eqx.Module):
    """The `adapted` of the training step; nothing is computed unless it is asked for.

    Arguments:
        problem, params: as of the meta-step.
        method: with the inner loop in use.
        tasks, keys, weights: this device's share of the tasks, their keys, and 0 for those that only fill up.
        count: tasks of all devices.
        mesh: of the devices.
    """

    problem: AbstractProblem
    params: PyTree
    method: AbstractMethod
    tasks: PyTree
    keys: Key[Array, " B"]
    weights: Array
    count: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def region(self, divergence: Divergence, tasks: int | None = None) -> Region:
        """Of all tasks; the product of the first of each device's share, that together are at least `tasks` (None: all)."""
        inner, problem, samples = self.method.inner, self.problem, self.method.samples
        _, static = eqx.partition(self.params, _tree.is_floating)
        size = in_flight_for(problem, inner.initial(self.params), self.tasks, self.keys, samples, None)
        floating = lambda params: eqx.partition(params, _tree.is_floating)  # noqa: E731

        def draw(inputs):
            task, key = inputs
            start, rates = inner.unpack(self.params)
            split = inner.split(start)

            def step(carry, x):
                at = lambda w, frozen: eqx.combine(w, frozen, split.static)  # noqa: E731
                drawn = problem.step_batch(task, at(carry[0], split.frozen), fold(key, STEP, x["j"]), samples.step)
                if isinstance(inner.gradients, AutoDiff):  # Others ask for samples at other parameters too.
                    loss = lambda w, frozen, j: problem.loss(at(w, frozen), drawn)  # noqa: E731
                else:
                    loss = step_loss(plain(problem, task, split.static), key, STEP, samples.step)
                return stepper(inner.descent(loss, key), split.adapting, split.frozen, rates)(carry, x)[0], drawn

            xs = {"j": jnp.arange(inner.steps), "rate": rates.stacked(inner.steps)}
            (end, _), batches = jax.lax.scan(step, (split.adapting, inner.update.init(split.adapting)), xs)
            end = eqx.combine(end, split.frozen, split.static)
            last = problem.target_batch(task, end, fold(key, TARGET), samples.target)
            return batches, last, floating(end)[0]

        fixed = map_tasks(draw, (self.tasks, self.keys), size)

        def ends(floats, batches, key):
            """w_N from the outer problem's floating-point parameters, on batches already drawn."""
            start, rates = inner.unpack(eqx.combine(floats, static))
            split = inner.split(start)
            if not inner.steps:
                return eqx.combine(split.adapting, split.frozen, split.static)

            def loss(w, frozen, j):
                batch = jax.tree.map(lambda leaf: leaf[j], batches)
                return problem.loss(eqx.combine(w, frozen, split.static), batch)

            path = forward(inner.descent(loss, key), split.adapting, split.frozen, rates, inner.steps, "iterates")
            return eqx.combine(path.final, split.frozen, split.static)

        def mean(function: Callable[..., Any], first: int | None = None) -> Any:
            inputs, weights = jax.tree.map(lambda leaf: leaf[:first], ((fixed, self.keys), self.weights))
            each = map_tasks(lambda x: function(*x[0], x[1]), inputs, size)
            shares = jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1), each)
            count = self.count if first is None else dev.total(self.mesh, jnp.sum(weights))
            return jax.tree.map(lambda leaf: leaf / jnp.asarray(count, leaf.dtype), dev.total(self.mesh, shares))

        def evaluate(floats):
            def one(batches, last, old, key):
                new = ends(floats, batches, key)
                others = floating(new)[1]
                return problem.target_loss(new, last), divergence(eqx.combine(old, others), new, last)

            return mean(one)

        def product(v):
            def one(batches, last, old, key):
                others: list[Any] = []

                def to_end(floats):
                    end, rest = floating(ends(floats, batches, key))
                    others.append(rest)
                    return end

                here, pushed = jax.jvp(to_end, (floating(self.params)[0],), (v,))
                apart = lambda new: divergence(eqx.combine(old, others[0]), eqx.combine(new, others[0]), last)  # noqa: E731
                bent = jax.jvp(jax.grad(apart), (here,), (pushed,))[1]
                return jax.vjp(to_end, floating(self.params)[0])[1](bent)[0]

            return mean(one, None if tasks is None else dev.share(self.mesh, tasks))

        def gradient(floats, loss, weight):
            def one(batches, last, old, key):
                # Without inner steps the target batch is that of the parameters before adaptation.
                first = jax.tree.map(lambda leaf: leaf[0], batches) if inner.steps else last

                def objective(floats):
                    before, now = (inner.unpack(eqx.combine(w, static))[0] for w in (floating(self.params)[0], floats))
                    return loss(ends(floats, batches, key), last) + weight * divergence(before, now, first)

                return jax.grad(objective)(floats)

            return mean(one)

        return Region(evaluate, product, gradient)
