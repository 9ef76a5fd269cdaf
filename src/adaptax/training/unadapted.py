"""Gradients before adaptation, on tasks apart from those of the meta-step: what the adaptive outer step is made of."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax.batching import in_flight_for, map_tasks
from adaptax.errors import InputError
from adaptax.method import AbstractMethod
from adaptax.objective import STEP, TARGET, fold, plain, step_loss
from adaptax.problem import AbstractProblem
from adaptax.recursion import forward
from adaptax.stepsize.estimate import power_iteration
from adaptax.stepsize.learned import Learned
from adaptax.stepsize.outer import Measured

# What separates these tasks from those of the same meta-step, whose indices are small.
_APART = 2**32 - 2
# Hessian-vector products of each power iteration.
_PRODUCTS = 6


class UnadaptedGradients(eqx.Module):
    """The `unadapted` of the training step; nothing is computed unless it is asked for.

    Arguments:
        problem, params: as of the meta-step.
        method: with the inner loop in use.
        key: of this meta-step.
        fed: whether tasks come from the host, so that none can be drawn apart.
    """

    problem: AbstractProblem
    params: PyTree
    method: AbstractMethod
    key: Key[Array, ""]
    fed: bool = eqx.field(static=True)

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
        if isinstance(inner.stepsize, Learned) or jnp.ndim(inner.stepsize) or any(part is not None for part in parts):
            raise InputError(
                "AdaptiveOuter knows the smoothness of plain inner gradient descent only: use ax.Inner(steps, stepsize) with "
                "one step size and no adapt=, optimizer=, proximal= or start=, or another outer optimiser."
            )
        return inner.stepsize

    def gradient_norm(self, tasks: int, samples: int) -> Array:
        def one(task, key, w, static):
            return _tree.norm(jax.grad(self._target(task, key, static, samples))(w))

        return jnp.mean(self._over_tasks(one, tasks))

    def measure(self, tasks: int, samples: int) -> Measured:
        inner = self.method.inner
        frozen = inner.split(self.params).frozen

        def one(task, key, w, static):
            key, directions = jax.random.split(key)
            loss = step_loss(plain(self.problem, task, static), key, STEP, samples)
            rates = inner.unpack(self.params)[1]
            end = forward(inner.descent(loss, key), w, frozen, rates, self.steps, "iterates").final
            losses = (lambda w: loss(w, frozen, jnp.array(0)), self._target(task, key, static, samples))
            start = _tree.normal_like(directions, w)
            norm = lambda product: power_iteration(product, start, _PRODUCTS)[0]  # noqa: E731
            size = [norm(_hessian(loss, at)) for loss in losses for at in (w, end)]
            change = [norm(lambda v, f=loss: _tree.subtract(_hessian(f, end)(v), _hessian(f, w)(v))) for loss in losses]
            length = _tree.norm(_tree.subtract(end, w))
            rho = jnp.where(length > 0, jnp.stack(change) / jnp.where(length > 0, length, 1), 0)
            support, target = (jax.grad(loss)(w) for loss in losses)
            gap = jnp.zeros(()) if self.problem.stochastic else _tree.norm(_tree.subtract(support, target))
            return jnp.nanmax(jnp.stack(size)), jnp.nanmax(rho), gap

        size, rho, gap = self._over_tasks(one, tasks)
        return Measured(jnp.nanmax(size), jnp.nanmax(rho), jnp.sqrt(jnp.mean(gap**2)))

    def _target(self, task, key, static, samples):
        def loss(floats):
            params = eqx.combine(floats, static)
            return self.problem.target_loss(params, self.problem.target_batch(task, params, fold(key, TARGET), samples))

        return loss

    def _over_tasks(self, one: Any, count: int) -> Any:
        """one(task, key, floating-point parameters, other parameters) over tasks drawn apart from those of the meta-step."""
        if self.fed:
            raise InputError("AdaptiveOuter draws tasks of its own, by the problem's sample_task: train without tasks=.")
        apart = jax.random.fold_in(self.key, _APART)
        keys = jax.vmap(lambda i: jax.random.fold_in(apart, i))(jnp.arange(count))
        tasks = jax.vmap(lambda key: self.problem.sample_task(jax.random.fold_in(key, 0)))(keys)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        w, _, static = self.method.inner.split(self.params)
        size = in_flight_for(self.problem, self.params, tasks, keys, self.method.samples, None)
        return map_tasks(lambda x: one(*x, w, static), (tasks, keys), size)


def _hessian(loss: Any, w: PyTree) -> Any:
    return lambda v: jax.jvp(jax.grad(loss), (w,), (v,))[1]
