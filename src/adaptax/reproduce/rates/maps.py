r"""(e) Maps over $(\alpha, N)$: where training converges, stalls and diverges."""

import math
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptax as ax
from adaptax import theory
from adaptax.reproduce.files import Row
from adaptax.reproduce.rates.parts import ADAPTIVE, C_BETA, CONSTANT, GAMMA, adaptive, method
from adaptax.reproduce.rates.problems import FINITE, ROUGH, Exact, constants_of, pool_of, problem_of, simulate, starts, train

CONVERGED, STALLED, DIVERGED = "converged", "stalled", "diverged"
SINUSOID = "sinusoid"
# A cosine run has converged when the gradient is this small in the mean over its last tenth; sinusoids, when the loss after
# adaptation is at most this, where no network without adaptation gets below about 3.1.
SMALL, LEARNED = 0.2, 2.5


def cosine_map(iterations: int, largest: int = 64, columns: int = 15) -> Iterator[Row]:
    r"""Plain outer gradient descent and the adaptive one, one run for each $(\alpha, N)$, 64 tasks a meta-step."""
    pool = pool_of(ROUGH)
    c = constants_of(pool, FINITE)
    alphas = np.geomspace(1e-3, 3.0, columns) / c.L
    outers = {ADAPTIVE: adaptive(c), CONSTANT: optax.sgd(1 / (C_BETA * math.exp(2 * GAMMA) * c.L))}
    w = jnp.broadcast_to(starts(1)[0], (columns, starts(1).shape[1]))
    for steps in _numbers(largest):
        exact = Exact(problem_of(pool, FINITE), steps)
        for name, outer in outers.items():
            step = ax.make_step(problem_of(pool, FINITE), method(steps, 0.1), outer, tasks_per_step=64)
            runs = simulate(step, exact, w, jnp.asarray(alphas), iterations)
            for alpha, norms, values in zip(alphas, runs.gradient, runs.value, strict=True):
                last = norms[-max(iterations // 10, 1) :].mean()
                lost = not np.all(np.isfinite(norms + values)) or values[-1] > values[0]
                found = DIVERGED if lost else CONVERGED if last <= SMALL else STALLED
                row = {"part": "map", "problem": ROUGH, "outer": name, "steps": steps, "alpha": float(alpha), "measure": found}
                yield row | {"value": float(last), "curve": theory.largest_alpha(c.L, steps)}


def sinusoid_map(iterations: int, largest: int = 64, columns: int = 9, held_out: int = 200) -> Iterator[Row]:
    r"""The network 1-40-40-1 with Adam (3e-3), 15 tasks a meta-step; L is measured at the initial parameters."""
    problem = ax.tasks.sinusoid()
    params = ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(1), 32))
    rule = ax.stepsize.Edge(tasks=32)
    L = float(1 / ax.Inner(1, rule).resolve(problem, params, tasks).stepsize)
    alphas = np.geomspace(1e-2, 100.0, columns) / L
    judged = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(2), held_out))
    untrained = float(jax.vmap(lambda task: problem.loss(params, task.target))(judged).mean())
    for steps in _numbers(largest):
        step = ax.make_step(problem, ax.MetaGradient(ax.Inner(steps, 0.1)), optax.adam(3e-3), tasks_per_step=15)
        found = _train_all(step, params, judged, jnp.asarray(alphas), iterations)
        for alpha, after, lost in zip(alphas, *(np.asarray(part).tolist() for part in found), strict=True):
            bad = not math.isfinite(after) or after > untrained or lost > iterations / 10
            outcome = DIVERGED if bad else CONVERGED if after <= LEARNED else STALLED
            row = {
                "part": "map",
                "problem": SINUSOID,
                "outer": "Adam",
                "steps": steps,
                "alpha": float(alpha),
                "measure": outcome,
            }
            yield row | {"value": after, "curve": theory.largest_alpha(L, steps)}


@eqx.filter_jit
def _train_all(step, params, judged, alphas, iterations):
    """Held-out loss after adaptation, and how many meta-steps had to be skipped, for each step size."""

    def one(alpha):
        state, skipped = train(step, params, alpha, 0, iterations, lambda _, info: info["skipped"])

        def judge(task):
            adapted = ax.adapt(step.problem, state.params, task, state.inner).params
            return step.problem.loss(adapted, task.target)

        return jnp.mean(jax.vmap(judge)(judged)), jnp.sum(skipped)

    return jax.vmap(one)(alphas)


def _numbers(largest: int) -> list[int]:
    return [2**k for k in range(int(math.log2(largest)) + 1)]
