r"""A certificate of stationarity: an estimate of $\|\nabla\mathcal L(w)\|$ from independent tasks, with bounds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from adaptax import _devices as dev
from adaptax import _processes as processes
from adaptax import _tree
from adaptax._batching import check_in_flight, map_tasks
from adaptax._checks import check_real, check_whole
from adaptax._cost import Cost
from adaptax._finite import Lost, tell
from adaptax._keys import CERTIFICATE, RULE_TASKS, draw_tasks, first, fold, numbered, require_keys
from adaptax._problem_checks import check_problem
from adaptax._tree import ravel
from adaptax.errors import InputError
from adaptax.measure.over_devices import measuring, mesh_for
from adaptax.measure.squared_norm import SquaredNorm, squared_norm
from adaptax.methods.base import AbstractMethod
from adaptax.problem import AbstractProblem
from adaptax.stepsize.measurement import resolve
from adaptax.stepsize.rules import AbstractRule

# Bytes of meta-gradients held at a time; beyond, they are formed again.
_BUDGET = 1 << 28


@dataclass(frozen=True)
class Certificate:
    r"""An estimate of $\|\nabla\mathcal L(w)\|$ at one w from M independent tasks, with bounds.

    Arguments:
        squared_norm: U, the unbiased estimate of $\|\nabla\mathcal L\|^2$ (it may be negative).
        standard_error: the standard error of U.
        upper: the one-sided upper bound on the norm $\|\nabla\mathcal L\|$, `bias` included.
        low, high: the two-sided interval of the norm, widened by `bias` at both ends.
        confidence: the confidence of the bound, and of the interval.
        tasks: M.
        bias: the bound on the method's bias that was added.
        epsilon: the accuracy asked for, or None.
        stationary: whether `upper` is at most epsilon; None if none was asked for.
        more_tasks: about how many more tasks would show it, if the norm is as estimated; None if none are needed, or
            if they would not.
        verdict: the same in words.
        cost: oracle calls spent, without those of a step-size rule.
    """

    squared_norm: float
    standard_error: float
    upper: float
    low: float
    high: float
    confidence: float
    tasks: int
    bias: float
    epsilon: float | None
    stationary: bool | None
    more_tasks: int | None
    verdict: str
    cost: Cost


def stationarity(
    problem: AbstractProblem,
    params: PyTree,
    method: AbstractMethod,
    *,
    epsilon: float | None = None,
    tasks: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
    bias: float = 0.0,
    in_flight: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Certificate:
    r"""Bound $\|\nabla\mathcal L(w)\|$ from the meta-gradients of M tasks that had no part in the choice of w.

    The bound is that of `bound_from_gram`: simulated to cover, not proved. It concerns the mean of what `method` yields.
    For an estimator that is biased, or in the resampling case, where that mean is not $\nabla\mathcal L$ (docs/theory.md,
    section 6, bounds the difference), give a bound on the norm of the difference as `bias`.

    Meta-gradients are held up to 256 MiB; of larger models they are formed again in blocks, which takes up to M/c times
    as many of them, c being the number that fits.

    Arguments:
        problem: the problem.
        params: parameters w, or `ax.Meta`.
        method: of the meta-gradient, such as `ax.MetaGradient(state.inner)`; a step-size rule that is not resolved is
            measured on tasks of its own.
        epsilon: the accuracy to be shown (default None: bounds only).
        tasks: M, at least 8 (default 200).
        seed: of the tasks (default 0); never those of training with the same seed.
        confidence: of the bound (default 0.95).
        bias: a bound on the norm of the method's bias (default 0).
        in_flight: how many tasks each device holds at a time (default: by what one task holds).
        devices: the devices to spread the tasks over, as for `ax.evaluate` (default: all of all processes, which must then all
            call this with the same arguments). Parameters that are cut over devices stay where they are.

    Returns: `Certificate`.

    Errors: `InputError` for numbers out of range, or tasks that do not fit the loss; `ProcessLost` when another process is
    gone.

    Example:
        >>> import jax.numpy as jnp
        >>> from adaptax import Inner, MetaGradient, measure
        >>> from adaptax.tasks import cosine
        >>> method = MetaGradient(Inner(2, 0.1))
        >>> found = measure.stationarity(cosine(dim=3).finite_sum, 9 * jnp.ones(3), method, epsilon=0.1, tasks=20)
        >>> found.verdict
        'not shown: the norm is estimated at 8.1, which is not below 0.1, so more tasks will not show it'

    Source: docs/theory.md, section 8.
    """
    if not isinstance(method, AbstractMethod):
        raise InputError(f"method must be a method such as ax.MetaGradient(inner), not {type(method).__name__}.")
    count, seed = check_whole("", "tasks", tasks, 8), check_whole("", "seed", seed, 0)
    epsilon = None if epsilon is None else check_real("", "epsilon", epsilon, above=0)
    bias = check_real("", "bias", bias, least=0)
    confidence = check_real("", "confidence", confidence, above=0.5, below=1)
    size = check_in_flight(in_flight)
    key = jax.random.fold_in(jax.random.key(seed), CERTIFICATE)
    method.check(problem, key)
    mesh = mesh_for(problem, params, devices, count, {"method": method}, seed=seed)
    method = _resolved(method, problem, params, key)
    method = processes.as_first(method) if dev.spans(mesh) else method
    given = dev.replicate(mesh, (method, problem, params, key))
    with measuring(mesh):
        gram, formed = _gram(given, count, size, mesh)
    lost = None
    if np.isfinite(gram).all():
        found = squared_norm(gram, confidence)
    else:
        found = SquaredNorm(math.nan, math.nan, math.inf, 0.0, math.inf, math.nan, math.nan)
        bad = Lost.of(~np.isfinite(np.diag(gram)))
        method, problem, params, key = dev.collect(mesh, given)
        text = tell(bad, problem, method.inner, params, method.samples, key, method=method)
        lost = f"not shown: some meta-gradients (or their squares) are not finite; {text.removesuffix('.')}"
    upper = math.sqrt(found.upper) + bias
    low, high = max(math.sqrt(found.low) - bias, 0.0), math.sqrt(found.high) + bias
    shown = None if epsilon is None else upper <= epsilon
    more = None if epsilon is None or shown else tasks_needed(found, epsilon - bias, count)
    return Certificate(
        float(found.value), float(found.standard_error), upper, low, high, confidence, count, float(bias), epsilon,
        shown, more, lost or _verdict(found, upper, bias, epsilon, more, confidence), method.cost().times(formed),
    )  # fmt: skip


def tasks_needed(found: SquaredNorm, epsilon: float, count: int) -> int | None:
    r"""How many more tasks bring the upper bound below $\epsilon^2$ if the truth is as estimated; None if no number does.

    $\mathrm{Var}\,U = \frac4M\mu^\top\Sigma\mu + \frac2{M(M-1)}\mathrm{tr}\Sigma^2$, scaled to what the bound adds to U at
    the present M.
    """
    value = max(float(found.value), 0.0)
    if not epsilon > 0 or not value < epsilon**2:
        return None

    def error(m: float) -> float:
        return math.sqrt(4 * float(found.linear) / m + 2 * float(found.degenerate) / (m * (m - 1)))

    added = float(found.upper - found.value)
    if not math.isfinite(added) or not error(count) > 0:
        return None
    scale = added / error(count)
    low = high = float(count)
    while value + scale * error(high) > epsilon**2:
        low, high = high, 2 * high
        if high > 1e15:
            return None
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if value + scale * error(middle) <= epsilon**2 else (middle, high)
    more = max(high - count, 1.0)
    digits = 10 ** max(math.floor(math.log10(more)) - 1, 0)
    return math.ceil(more / digits) * digits


def _verdict(found, upper: float, bias: float, epsilon: float | None, more: int | None, confidence: float) -> str:
    level = f"{100 * confidence:g} %"
    if epsilon is None:
        return f"the norm is at most {upper:.2g} at {level}"
    if upper <= epsilon:
        return f"stationary to {epsilon:g} at {level}"
    if more is not None:
        return f"not shown: the bound is {upper:.2g}, and about {more} more tasks would bring it to {epsilon:g}"
    estimate = math.sqrt(max(float(found.value), 0)) + bias
    if estimate >= epsilon:
        text = f"the norm is estimated at {estimate:.2g}, which is not below {epsilon:g}"
        return f"not shown: {text}, so more tasks will not show it"
    return f"not shown: the bound is {upper:.2g}"


@eqx.filter_jit
def _resolved(method, problem, params, key) -> AbstractMethod:
    rule = method.inner.stepsize
    if not isinstance(rule, AbstractRule):
        return method
    tasks, keys = draw_tasks(problem, numbered(fold(key, RULE_TASKS), jnp.arange(rule.tasks)))
    return method.with_inner(resolve(method.inner, problem, params, tasks, keys, samples=method.samples))


@eqx.filter_jit
def _gradients(given, indices, in_flight, mesh) -> Array:
    """The meta-gradients of tasks by their indices, one a row."""
    method, problem, params, key = given
    size = dev.share(mesh, indices.size)
    keys = numbered(key, jnp.asarray(indices)[jnp.minimum(jnp.arange(size * dev.rows(mesh)), indices.size - 1)])

    def local(shared, keys):
        method, problem, params = shared
        tasks, keys = draw_tasks(problem, keys)
        require_keys(problem, keys)
        check_problem(problem, method.inner.initial(params), first(tasks), method.samples, target=True)

        def one(pair):
            return ravel(eqx.filter(method.one_task(problem, params, *pair)[1], _tree.is_floating))

        return (), map_tasks(one, (tasks, keys), in_flight)

    return dev.spread(mesh, local, (method, problem, params), keys)[1]


def _gram(given: Any, count: int, in_flight: int | None, mesh: Any) -> tuple[np.ndarray, int]:
    """The Gram matrix of all meta-gradients, and how many of them were formed."""

    def rows(start, stop):
        return _gradients(given, np.arange(start, stop), in_flight, mesh)[: stop - start]

    whole = eqx.filter_eval_shape(rows, 0, 1)
    held = int(np.clip(_BUDGET // max(whole.shape[1] * whole.dtype.itemsize, 1), 2, None))
    # Two blocks are held at a time unless one is all.
    block = count if held >= count else held // 2
    gram, formed = np.empty((count, count)), 0
    for start in range(0, count, block):
        a = slice(start, min(start + block, count))
        left = rows(a.start, a.stop)
        formed += a.stop - a.start
        for other in range(start, count, block):
            b = slice(other, min(other + block, count))
            right = left if other == start else rows(b.start, b.stop)
            formed += 0 if other == start else b.stop - b.start
            gram[a, b] = dev.whole(mesh, jnp.matmul(left, right.T, precision="highest"))
            gram[b, a] = gram[a, b].T
    return gram, formed
