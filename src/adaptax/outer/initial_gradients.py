"""Gradients before and after adaptation, on tasks apart from those of the meta-step: the input of the adaptive outer step."""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._batching import map_tasks
from adaptax._keys import INITIAL_GRADIENTS, draw_tasks, fold, numbered
from adaptax._lanczos import tree_ends
from adaptax._second_order import hessian_product
from adaptax.errors import InputError
from adaptax.inner_path import TaskPath
from adaptax.methods.base import AbstractMethod
from adaptax.outer.adaptive import SmoothnessConstants, TwoSidedConstants
from adaptax.problem import AbstractProblem, Samples
from adaptax.sequential import refuse_sequence
from adaptax.stepsize.walk import power_iteration

# Hessian-vector products of each power iteration, and for both ends of a spectrum, of which the lower takes more.
_PRODUCTS, _LANCZOS = 6, 12


class InitialGradients(eqx.Module):
    """The `initial_gradients` that the training step hands to optimisers; nothing is computed unless it is asked for.

    Arguments:
        problem, params: those of the meta-step.
        method: the method, with the inner loop in use.
        key: the key of this meta-step.
        from_host: whether tasks come from the host, so that no other tasks can be drawn.
    """

    problem: AbstractProblem
    params: PyTree
    method: AbstractMethod
    key: Key[Array, ""]
    from_host: bool = eqx.field(static=True)

    @property
    def steps(self) -> int:
        return self.method.inner.steps

    @property
    def finite_sum(self) -> bool:
        return not self.problem.stochastic

    @property
    def alpha(self) -> Array:
        inner = self.method.inner
        parts = (inner.adapt, inner.optimizer, inner.proximal, inner.start)
        one = eqx.is_array(inner.stepsize) and inner.stepsize.ndim == 0
        if not one or any(part is not None for part in parts):
            raise InputError(
                "AdaptiveOuter knows the smoothness of plain inner gradient descent only: use ax.Inner(steps, stepsize) with "
                "one step size (ax.stepsize.Guaranteed() or a number) and no adapt=, optimizer=, proximal= or start=, or "
                "another outer optimiser."
            )
        return inner.stepsize

    def gradient_norm(self, tasks: int, samples: int) -> Array:
        def one(path: TaskPath) -> Array:
            return _tree.norm(jax.grad(lambda w: path.target(w, path.rest))(path.split.adapting))

        return jnp.mean(self._over_tasks(one, tasks, samples))

    def adapted_norm(self, tasks: int, samples: int) -> Array:
        def one(path: TaskPath) -> Array:
            return _tree.norm(jax.grad(lambda w: path.target(w, path.rest))(path.walk()[0]))

        return jnp.mean(self._over_tasks(one, tasks, samples))

    def measure(self, tasks: int, samples: int) -> SmoothnessConstants:
        def one(path: TaskPath):
            w, end, losses, start = self._both_ends(path)

            def norm(product: Callable[[PyTree], PyTree]) -> Array:
                return power_iteration(product, start, _PRODUCTS)[0]

            size = [norm(_hessian(loss, at)) for loss in losses for at in (w, end)]
            change = [norm(_difference(_hessian(loss, end), _hessian(loss, w))) for loss in losses]
            length = _tree.norm(optax.tree.sub(end, w))
            rho = jnp.where(length > 0, jnp.stack(change) / jnp.where(length > 0, length, 1), 0)
            support, target = (jax.grad(loss)(w) for loss in losses)
            gap = jnp.zeros(()) if self.problem.stochastic else _tree.norm(optax.tree.sub(support, target))
            return jnp.nanmax(jnp.stack(size)), jnp.nanmax(rho), gap

        size, rho, gap = self._over_tasks(one, tasks, samples)
        return SmoothnessConstants(jnp.nanmax(size), jnp.nanmax(rho), jnp.sqrt(jnp.mean(gap**2)))

    def measure_two_sided(self, tasks: int, samples: int) -> TwoSidedConstants:
        def one(path: TaskPath):
            w, end, losses, start = self._both_ends(path)
            ends = [tree_ends(_hessian(loss, at), start, _LANCZOS)[:2] for loss in losses for at in (w, end)]
            low, high = (jnp.stack(x) for x in zip(*ends, strict=True))
            change = [tree_ends(_difference(_hessian(loss, end), _hessian(loss, w)), start, _PRODUCTS)[:2] for loss in losses]
            length = _tree.norm(optax.tree.sub(end, w))
            sizes = jnp.stack([jnp.maximum(-below, above) for below, above in change])
            rho = jnp.where(length > 0, sizes / jnp.where(length > 0, length, 1), 0)
            # The inner steps descend on the first loss alone.
            return jnp.nanmax(jnp.maximum(-low, high)), jnp.nanmax(rho), jnp.nanmax(high[:2]), jnp.nanmax(-low[:2])

        found = map(jnp.nanmax, self._over_tasks(one, tasks, samples))
        return TwoSidedConstants(*found, sigma_g=jnp.zeros(()))

    def _both_ends(self, path: TaskPath) -> tuple[PyTree, PyTree, tuple[Any, Any], PyTree]:
        """w_0, w_N, the support and the target loss as functions of w, and a random direction to search from."""
        key, directions = jax.random.split(cast(Any, path.key))
        path = TaskPath(self.problem, self.method.inner, self.params, path.task, key, path.samples)
        w, end = path.split.adapting, path.forward().final
        losses = (lambda w: path.loss(w, path.rest, jnp.array(0)), lambda w: path.target(w, path.rest))
        return w, end, losses, _tree.normal_like(directions, w)

    def _over_tasks(self, one: Callable[[TaskPath], Any], count: int, samples: int) -> Any:
        """`one(path)` over tasks drawn apart from those of the meta-step, with so many samples for everything."""
        refuse_sequence(self.problem, "This outer optimiser", "use an optax one such as optax.adam")
        if self.from_host:
            raise InputError("AdaptiveOuter draws tasks of its own, by the problem's sample_task: train without tasks=.")
        tasks, keys = draw_tasks(self.problem, numbered(fold(self.key, INITIAL_GRADIENTS), jnp.arange(count)))
        sizes = Samples(samples, samples, samples)

        def on_task(pair):
            task, key = pair
            return one(TaskPath(self.problem, self.method.inner, self.params, task, key, sizes))

        return map_tasks(on_task, (tasks, keys))


def _hessian(loss: Any, w: PyTree) -> Callable[[PyTree], PyTree]:
    return lambda v: hessian_product(lambda w, _: loss(w), w, None, v)[1][0]


def _difference(a: Callable[[PyTree], PyTree], b: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    return lambda v: optax.tree.sub(a(v), b(v))
