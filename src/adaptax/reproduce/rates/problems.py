"""The problems with known constants that the experiments share, and runs of many seeds in one program."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

import adaptax as ax
from adaptax import theory
from adaptax.tasks.cosine import Cosine

DIM, TASKS = 6, 8
NOISE = (0.3, 0.3)
COSINE, CONVEX, ROUGH, QUADRATIC = "cosine", "convex cosine", "rough cosine", "quadratic"
# The amplitude c of the cosines in each problem; the least eigenvalue of A is 0.1, and with c = 0 the losses are quadratic.
AMPLITUDES = {COSINE: 0.5, CONVEX: 0.1, ROUGH: 2.0, QUADRATIC: 0.0}
FINITE, RESAMPLING = "finite-sum", "resampling"
CASES = (FINITE, RESAMPLING)
# The guaranteed inner step size is γ/(NL), the outer one 1/(C_β L_w).
GAMMA, C_BETA = 1 / 8, 2.0
GUARANTEED, FIXED, EDGE = f"α = 1/({1 / GAMMA:g}NL)", f"α = 1/({1 / GAMMA:g}L)", "α = 1/L (Edge)"
ADAPTIVE, CONSTANT = "adaptive β", "constant β"
# The sizes that the draws of steps, Hessian factors, last gradients and the smoothness estimate ask for; `Draw` recognises
# each by its number.
PURPOSES = ax.Samples(step=1, curvature=2, target=3)
SMOOTHNESS = 4


def pool_of(name: str, tasks: int = TASKS, noise: tuple[float, float] = NOISE) -> Cosine:
    """The pool of tasks of a problem; with one task only samples are random."""
    pool = ax.tasks.cosine(DIM, TASKS, amplitude=AMPLITUDES[name], noise=noise)
    names = [f"{kind}_{part}" for kind in ("support", "target") for part in ("phases", "offsets")]
    return dataclasses.replace(pool, **{name: getattr(pool, name)[:tasks] for name in names})


class Scales(NamedTuple):
    r"""$1/\sqrt{\text{size}}$ for S, D, T, $D_L$: the mean of Gaussian samples is drawn as one, at the price of one."""

    step: Any
    curvature: Any
    target: Any
    smoothness: Any

    @staticmethod
    def of(step: float = np.inf, curvature: float = np.inf, target: float = np.inf, smoothness: float = np.inf) -> "Scales":
        """The scales of these sizes; infinite sizes have no noise."""
        return Scales(*(jnp.asarray(float(size) ** -0.5) for size in (step, curvature, target, smoothness)))


class Draw(eqx.Module):
    r"""`draw` of the resampling problem: one pair $(\xi, \zeta)$ distributed as the mean of the samples of that purpose."""

    scales: Scales
    noise: tuple[float, float] = eqx.field(static=True)

    def __call__(self, task: Any, params: Array, key: Key[Array, ""], size: int) -> tuple[Array, ...]:
        purposes = (PURPOSES.step, PURPOSES.curvature, PURPOSES.target, SMOOTHNESS)
        scale = self.scales[purposes.index(size)]
        x_key, z_key = jax.random.split(key)
        xi, zeta = jax.random.normal(x_key, params.shape, params.dtype), jax.random.normal(z_key, (), params.dtype)
        return *task, (scale * self.noise[0] * xi)[None], (scale * self.noise[1] * zeta)[None]


def problem_of(pool: Cosine, case: str, scales: Scales | None = None) -> Any:
    """The pool as a problem. Without scales it is the exact one, with the target loss as both losses in the resampling case."""
    if case == FINITE:
        return pool.finite_sum
    if scales is None:
        return ax.FiniteSum(pool.finite_sum.loss, ax.Pool(ax.Task(pool.tasks.target, pool.tasks.target)))
    return ax.Resampling(pool.finite_sum.loss, ax.Pool(pool.tasks.target), Draw(scales, pool.noise))


def constants_of(pool: Cosine, case: str) -> theory.Constants:
    """The pool's constants; b is 0 in the resampling case."""
    return pool.constants if case == FINITE else dataclasses.replace(pool.constants, b=0.0)


def method(steps: int, alpha: float) -> ax.MetaGradient:
    """The meta-gradient with exact products, with sizes that `Draw` recognises."""
    return ax.MetaGradient(ax.Inner(steps, alpha), samples=PURPOSES)


def adaptive(constants: theory.Constants, tasks: int = TASKS) -> ax.outer.AdaptiveOuter:
    """The theorems' outer step with known constants, which measures the smoothness on so many tasks."""
    return ax.outer.AdaptiveOuter(constants, C_BETA, tasks, samples=SMOOTHNESS)


def constant(constants: theory.Constants) -> Any:
    r"""Gradient descent with $1/(C_\beta e^{2\gamma}L)$: $e^{2\gamma}$ bounds the q of the guaranteed inner step size."""
    return optax.sgd(1 / (C_BETA * math.exp(2 * GAMMA) * constants.L))


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to the largest."""
    return [2**k for k in range(int(math.log2(largest)) + 1)]


class Exact(eqx.Module):
    """The meta-loss of the pool and its derivatives, without any noise."""

    problem: ax.FiniteSum
    steps: int = eqx.field(static=True)

    def __call__(self, w: Array, alpha: Array) -> tuple[Array, Array, Array]:
        r"""$\mathcal L(w)$, $\nabla\mathcal L(w)$ and $E_i\|\nabla l_i(w)\|$."""
        tasks = self.problem.sample_task.tasks
        value, gradient, _ = ax.MetaGradient(ax.Inner(self.steps, alpha)).batch(self.problem, w, tasks)
        norms = jax.vmap(lambda task: jnp.linalg.norm(jax.grad(self.problem.target_loss)(w, task)))(tasks.target)
        return value, gradient, jnp.mean(norms)


def starts(seeds: int, key: int = 0) -> Array:
    """Initial parameters, one for each seed."""
    return 2.0 * jax.random.normal(jax.random.key(key), (seeds, DIM))


@eqx.filter_jit
def descend(exact: Exact, constants: Any, w: Array, alpha: Array, iterations: int) -> tuple[Array, Array]:
    r"""Descent without noise, $w \leftarrow w - \nabla\mathcal L/(C_\beta L_w)$, from each row of w.

    Returns: the last w, and $\|\nabla\mathcal L\|$ before each step, shape (rows, iterations).
    """
    path = theory.Expansion(alpha, constants.L, exact.steps)

    def step(w, _):
        _, gradient, mean_norm = exact(w, alpha)
        bend = theory.smoothness(path, constants.rho, mean_norm, constants.b)
        return w - gradient / (C_BETA * bend), jnp.linalg.norm(gradient)

    return jax.vmap(lambda w: jax.lax.scan(step, w, None, length=iterations))(w)


class Runs(NamedTuple):
    r"""$\|\nabla\mathcal L\|$ and $\mathcal L$ before each meta-step, of shape (seeds, iterations)."""

    gradient: np.ndarray
    value: np.ndarray


def simulate(step: ax.training.Step, exact: Exact, w: Array, alpha: Array | float, iterations: int) -> Runs:
    """Meta-train from each row of w, with a seed and a step size of its own."""
    seeds = jnp.arange(len(w))
    norms, values = _simulate(step, exact, w, jnp.broadcast_to(jnp.asarray(alpha, w.dtype), len(w)), seeds, iterations)
    return Runs(np.asarray(norms), np.asarray(values))


@eqx.filter_jit
def _simulate(step, exact, w, alphas, seeds, iterations):
    def one(w, alpha, seed):
        def observe(state, _):
            value, gradient, _ = exact(state.params, alpha)
            return jnp.linalg.norm(gradient), value

        return train_with_stepsize(step, w, alpha, seed, iterations, observe)[1]

    return jax.vmap(one)(w, alphas, seeds)


def train_with_stepsize(
    step: ax.training.Step, params: PyTree, alpha: Array, seed: Any, iterations: int, observe: Callable[[ax.State, dict], Any]
) -> Any:
    """Meta-train with this inner step size, which may be traced.

    Returns: the last state, and the stacked results of `observe(state before, info)` at every meta-step.
    """
    state = step.init(params, seed)
    state = eqx.tree_at(lambda state: state.inner.stepsize, state, alpha.astype(state.inner.stepsize.dtype))
    arrays, static = eqx.partition(state, eqx.is_array)

    def take(arrays, _):
        before = eqx.combine(arrays, static)
        after, info = step(before)
        return eqx.filter(after, eqx.is_array), observe(before, info)

    arrays, seen = jax.lax.scan(take, arrays, None, length=iterations)
    return eqx.combine(arrays, static), seen
