"""The adapted parameters of some of a meta-step's tasks, for what need not be known of all; and those of no inner steps."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from adaptax import _tree
from adaptax.objective import TARGET, fold
from adaptax.stepsize.trust import Divergence, Region
from adaptax.training import devices as dev
from adaptax.training.adapted import AdaptedTasks


class AdaptedBatch(AdaptedTasks):
    """`AdaptedTasks` that can be cut down to its first tasks, and that need not adapt."""

    def first(self, tasks: int) -> AdaptedTasks:
        """The same of the first tasks of each device's share, so many that all devices together have at least `tasks`."""
        size = dev.share(self.mesh, tasks)
        weights = self.weights[:size]
        # Means are divided by the number of all tasks.
        weights = weights * self.count / dev.total(self.mesh, jnp.sum(weights))
        local = jax.tree.map(lambda leaf: leaf[:size], self.tasks)
        return dataclasses.replace(self, tasks=local, keys=self.keys[:size], weights=weights)

    def region(self, divergence: Divergence) -> Region:
        if self.method.inner.steps:
            return super().region(divergence)
        problem, inner = self.problem, self.method.inner
        old, rest = eqx.partition(self.params, _tree.is_floating)
        start = lambda floats: inner.unpack(eqx.combine(floats, rest))[0]  # noqa: E731
        draw = lambda task, key: problem.target_batch(task, start(old), fold(key, TARGET), self.method.samples.target)  # noqa: E731
        batches = jax.vmap(draw)(self.tasks, self.keys)

        def mean(function):
            each = jax.vmap(function)(batches)
            shares = jax.tree.map(lambda leaf: jnp.tensordot(self.weights.astype(leaf.dtype), leaf, 1), each)
            return jax.tree.map(lambda leaf: leaf / self.count, dev.total(self.mesh, shares))

        apart = lambda floats, batch: divergence(start(old), start(floats), batch)  # noqa: E731
        both = lambda floats: lambda batch: (problem.target_loss(start(floats), batch), apart(floats, batch))  # noqa: E731
        product = lambda v: lambda batch: jax.jvp(lambda floats: jax.grad(apart)(floats, batch), (old,), (v,))[1]  # noqa: E731
        return Region(lambda floats: mean(both(floats)), lambda v: mean(product(v)))
