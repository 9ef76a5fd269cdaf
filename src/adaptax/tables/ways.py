"""The ways to adapt a model of a table to a group: in closed form, or by gradient steps."""

from dataclasses import dataclass
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from adaptax.adaptation import adapt
from adaptax.errors import InputError
from adaptax.inner import Inner
from adaptax.methods.metagrad import MetaGradient
from adaptax.models.mlp import mlp
from adaptax.problem import FiniteSum, Task
from adaptax.stepsize.auto import Auto
from adaptax.stepsize.learned import LearnedRates
from adaptax.tables.ridge import RidgeModel
from adaptax.tasks.table import Batch, SampleRows


class Way(Protocol):
    """How a model adapts: `outputs` is 1 for a regression, else the number of classes."""

    def start(self, columns: int, outputs: int, key: Key[Array, ""]) -> PyTree:
        """Initial parameters."""
        ...

    def problem(self, rows: SampleRows, outputs: int) -> FiniteSum:
        """What training solves."""
        ...

    def method(self) -> MetaGradient:
        """The meta-gradient of that problem."""
        ...

    def rates(self, inner: Inner) -> PyTree:
        """The step sizes of a trained inner loop, None where there are none."""
        ...

    def adapt(self, params: PyTree, rates: PyTree, support: Batch, outputs: int) -> PyTree:
        """What `predict` needs for one group."""
        ...

    def predict(self, params: PyTree, adapted: PyTree, x: Float[Array, "n F"]) -> tuple[Array, Array]:
        """The outputs of rows, shape (n, outputs), and the scale of their errors, shape (n,)."""
        ...


@dataclass(frozen=True)
class Ridge:
    """The last layer by ridge regression about its prior, on features of single columns (`additive`) or of all together."""

    additive: bool
    hidden: tuple[int, ...]

    def start(self, columns: int, outputs: int, key: Key[Array, ""]) -> RidgeModel:
        return RidgeModel.start(columns, outputs, self.hidden, self.additive, key)

    def problem(self, rows: SampleRows, outputs: int) -> FiniteSum:
        return FiniteSum(_Marginal(outputs), _WithSupport(rows))

    def method(self) -> MetaGradient:
        return MetaGradient(Inner(0, 1.0))

    def rates(self, inner: Inner) -> PyTree:
        return None

    def adapt(self, params: RidgeModel, rates: PyTree, support: Batch, outputs: int) -> PyTree:
        x, y, mask = support
        return params.adapt(x, _targets(y, outputs), mask)

    def predict(self, params: RidgeModel, adapted: Any, x: Array) -> tuple[Array, Array]:
        mean, variance = params.predict(adapted, x)
        if mean.shape[-1] > 1:
            mean = params.scale * mean
        return mean, jnp.sqrt(variance)


@dataclass(frozen=True)
class Steps:
    """N gradient steps on every parameter, or on the last layer alone, with the step sizes of `ax.stepsize.Auto`."""

    head: bool
    hidden: tuple[int, ...]
    steps: int

    def start(self, columns: int, outputs: int, key: Key[Array, ""]) -> Any:
        return mlp((columns, *self.hidden, outputs), key=key)

    def problem(self, rows: SampleRows, outputs: int) -> FiniteSum:
        return FiniteSum(_RowLoss(outputs), rows)

    def method(self) -> MetaGradient:
        return MetaGradient(self._inner(Auto()))

    def _inner(self, stepsize: Any) -> Inner:
        return Inner(self.steps, stepsize, LastLayer(len(self.hidden)) if self.head else None)

    def rates(self, inner: Inner) -> PyTree:
        found: Any = inner.stepsize
        return found.tree

    def adapt(self, params: PyTree, rates: PyTree, support: Batch, outputs: int) -> PyTree:
        inner = self._inner(LearnedRates.of(rates, False))
        return adapt(FiniteSum(_RowLoss(outputs), _no_tasks), params, Task(support), inner).params

    def predict(self, params: PyTree, adapted: Any, x: Array) -> tuple[Array, Array]:
        return adapted(x), jnp.ones(len(x), x.dtype)


@dataclass(frozen=True)
class LastLayer:
    """The predicate of the paths of a network's last layer."""

    number: int

    def __call__(self, path: str) -> bool:
        return path.startswith(f"layers.{self.number}.")


class _WithSupport(eqx.Module):
    """Tasks whose target loss sees the support set too."""

    rows: SampleRows

    def __call__(self, key: Key[Array, ""]) -> Task:
        task = self.rows(key)
        return Task((task.support, task.support), (task.support, task.target))


class _Marginal(eqx.Module):
    """The negative log-likelihood of the target rows, given the support rows; for classes their cross-entropy."""

    outputs: int = eqx.field(static=True)

    def __call__(self, model: RidgeModel, batch: tuple[Batch, Batch]) -> Array:
        (x, y, mask), (inputs, targets, there) = batch
        mean, variance = model.predict(model.adapt(x, _targets(y, self.outputs), mask), inputs)
        if self.outputs > 1:
            each = -_log_probability(model.scale * mean, targets)
        else:
            each = 0.5 * (jnp.log(variance) + (targets - mean[:, 0]) ** 2 / variance)
        return _over(each, there)


class _RowLoss(eqx.Module):
    """The mean squared error of rows, or the cross-entropy of their classes."""

    outputs: int = eqx.field(static=True)

    def __call__(self, model: Any, batch: Batch) -> Array:
        x, y, mask = batch
        outputs = model(x)
        return _over(-_log_probability(outputs, y) if self.outputs > 1 else (outputs[:, 0] - y) ** 2, mask)


def errors(outputs: Array, y: Array) -> Array:
    """The error of each row that choices are made by: its absolute error, or minus the logarithm of its class's probability."""
    return jnp.abs(outputs[:, 0] - y) if outputs.shape[-1] == 1 else -_log_probability(outputs, y)


def _targets(y: Array, outputs: int) -> Array:
    """Targets for a ridge regression; those of classes have mean zero over the classes."""
    return y[:, None] if outputs == 1 else jax.nn.one_hot(y, outputs) - 1 / outputs


def _log_probability(logits: Array, classes: Array) -> Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1)[:, 0]


def _over(values: Array, mask: Array) -> Array:
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def _no_tasks(key: Any) -> Any:
    raise InputError("A model of a table is adapted to rows that are given, and draws no tasks.")
