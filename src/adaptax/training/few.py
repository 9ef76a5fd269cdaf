"""The adapted parameters of some of a meta-step's tasks, for what need not be known of all of them."""

import dataclasses

import jax
import jax.numpy as jnp

from adaptax.training import devices as dev
from adaptax.training.adapted import AdaptedTasks


class AdaptedBatch(AdaptedTasks):
    """`AdaptedTasks` that can be cut down to its first tasks."""

    def first(self, tasks: int) -> AdaptedTasks:
        """The same of the first tasks of each device's share, so many that all devices together have at least `tasks`."""
        size = dev.share(self.mesh, tasks)
        weights = self.weights[:size]
        # Means are divided by the number of all tasks.
        weights = weights * self.count / dev.total(self.mesh, jnp.sum(weights))
        local = jax.tree.map(lambda leaf: leaf[:size], self.tasks)
        return dataclasses.replace(self, tasks=local, keys=self.keys[:size], weights=weights)
