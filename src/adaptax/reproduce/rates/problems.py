"""The problems with known constants, samples of any size at one price, and runs of many seeds in one program."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

import adaptax as ax
from adaptax import theory
from adaptax.tasks.cosine import Cosine
from adaptax.training.step import State, Step

DIM, TASKS = 6, 8
NOISE = (0.3, 0.3)
COSINE, ROUGH, QUADRATIC = "cosine", "rough cosine", "quadratic"
FINITE, RESAMPLING = "finite-sum", "resampling"
CASES = (FINITE, RESAMPLING)
# What the draws of steps, Hessian factors, last gradients and the smoothness estimate ask for: it says which one it is.
PURPOSES = ax.Samples(step=1, curvature=2, target=3)
SMOOTHNESS = 4


def pool_of(name: str, tasks: int = TASKS, noise: tuple[float, float] = NOISE) -> Cosine:
    """The pool of tasks: `amplitude` 0 makes the losses quadratic; with one task nothing is random but samples."""
    amplitude = {COSINE: 0.5, ROUGH: 2.0, QUADRATIC: 0.0}[name]
    pool = ax.tasks.cosine(DIM, TASKS, amplitude=amplitude, noise=noise)
    names = [f"{kind}_{part}" for kind in ("support", "target") for part in ("phases", "offsets")]
    return dataclasses.replace(pool, **{name: getattr(pool, name)[:tasks] for name in names})


class Scales(NamedTuple):
    r"""$1/\sqrt{\text{size}}$ for S, D, T, $D_L$: a mean of Gaussian samples is drawn as one, at one price."""

    step: Any
    curvature: Any
    target: Any
    smoothness: Any

    @staticmethod
    def of(step: float = np.inf, curvature: float = np.inf, target: float = np.inf, smoothness: float = np.inf) -> "Scales":
        """From the sizes; infinite ones draw nothing."""
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
    """The pool as a problem; without scales, the exact one: in the resampling case the target losses are both."""
    if case == FINITE:
        return pool.finite_sum
    if scales is None:
        return ax.FiniteSum(pool.finite_sum.loss, ax.Pool(ax.Task(pool.tasks.target, pool.tasks.target)))
    return ax.Resampling(pool.finite_sum.loss, ax.Pool(pool.tasks.target), Draw(scales, pool.noise))


def constants_of(pool: Cosine, case: str) -> theory.Constants:
    """The pool's constants; b is nothing in the resampling case."""
    return pool.constants if case == FINITE else dataclasses.replace(pool.constants, b=0.0)


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
def descend(exact: Exact, constants: Any, w: Array, alpha: Array, iterations: int, C_beta: float = 2.0) -> tuple[Array, Array]:
    r"""Without noise, $w \leftarrow w - \nabla\mathcal L/(C_\beta L_w)$: the last w, and $\|\nabla\mathcal L\|$ at each."""
    path = theory.Expansion(alpha, constants.L, exact.steps)

    def step(w, _):
        _, gradient, mean_norm = exact(w, alpha)
        bend = theory.smoothness(path, constants.rho, mean_norm, constants.b)
        return w - gradient / (C_beta * bend), jnp.linalg.norm(gradient)

    return jax.vmap(lambda w: jax.lax.scan(step, w, None, length=iterations))(w)


class Runs(NamedTuple):
    r"""$\|\nabla\mathcal L\|$ and $\mathcal L$ before each meta-step, shape (seeds, iterations), and the last parameters."""

    gradient: np.ndarray
    value: np.ndarray
    final: Array


def simulate(step: Step, exact: Exact, w: Array, alpha: Array | float, iterations: int, first_seed: int = 0) -> Runs:
    """Meta-train from each of the initial parameters, with a seed and a step size of its own."""
    seeds = first_seed + jnp.arange(len(w))
    norms, values, final = _simulate(step, exact, w, jnp.broadcast_to(jnp.asarray(alpha, w.dtype), len(w)), seeds, iterations)
    return Runs(np.asarray(norms), np.asarray(values), final)


@eqx.filter_jit
def _simulate(step, exact, w, alphas, seeds, iterations):
    def one(w, alpha, seed):
        def look(state, _):
            value, gradient, _ = exact(state.params, alpha)
            return jnp.linalg.norm(gradient), value

        state, (norms, values) = train(step, w, alpha, seed, iterations, look)
        return norms, values, state.params

    return jax.vmap(one)(w, alphas, seeds)


def train(step: Step, params: PyTree, alpha: Array, seed: Any, iterations: int, look: Callable[[State, dict], Any]) -> Any:
    """The state after `iterations` meta-steps with this inner step size, and what `look(state before, info)` saw of each."""
    state = step.init(params, seed)
    state = eqx.tree_at(lambda state: state.inner.stepsize, state, alpha.astype(state.inner.stepsize.dtype))
    arrays, static = eqx.partition(state, eqx.is_array)

    def take(arrays, _):
        before = eqx.combine(arrays, static)
        after, info = step(before)
        return eqx.filter(after, eqx.is_array), look(before, info)

    arrays, seen = jax.lax.scan(take, arrays, None, length=iterations)
    return eqx.combine(arrays, static), seen
