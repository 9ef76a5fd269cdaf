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
from adaptax.report.rows import distinct, pick
from adaptax.report.tables import markdown
from adaptax.reproduce.csv_rows import Row
from adaptax.reproduce.rates.problems import (
    ADAPTIVE,
    CONSTANT,
    FINITE,
    ROUGH,
    Exact,
    adaptive,
    constant,
    constants_of,
    method,
    pool_of,
    powers_of_two,
    problem_of,
    simulate,
    starts,
    train_with_stepsize,
)
from adaptax.tasks.sinusoid import AMPLITUDES, INPUTS, PHASES

PART = "map"
COSINE_ITERATIONS, SINUSOID_ITERATIONS = 500, 800
CONVERGED, STALLED, DIVERGED = "converged", "stalled", "diverged"
OUTCOMES = (CONVERGED, STALLED, DIVERGED)
SINUSOID, ADAM = "sinusoid", "Adam"
# A cosine run has converged when the mean of the gradient's norm over its last tenth is at most the first number; sinusoids,
# when the loss after adaptation is at most the second.
SMALL, LEARNED = 0.2, 2.5
# A sinusoid run that skips more than this part of its meta-steps, because gradients are not finite, counts as diverged.
_SKIPPED = 0.1
BELOW, ABOVE = "below the curve", "above it"


def measure_cosine(iterations: int = COSINE_ITERATIONS, largest: int = 64, columns: int = 15) -> Iterator[Row]:
    r"""The adaptive outer step and gradient descent, one run for each $(\alpha, N)$, 64 tasks a meta-step."""
    pool = pool_of(ROUGH)
    c = constants_of(pool, FINITE)
    alphas = np.geomspace(1e-3, 3.0, columns) / c.L
    w = jnp.broadcast_to(starts(1)[0], (columns, starts(1).shape[1]))
    for steps in powers_of_two(largest):
        exact = Exact(problem_of(pool, FINITE), steps)
        for name, outer in {ADAPTIVE: adaptive(c), CONSTANT: constant(c)}.items():
            step = ax.make_step(problem_of(pool, FINITE), method(steps, 0.1), outer, tasks_per_step=64)
            runs = simulate(step, exact, w, jnp.asarray(alphas), iterations)
            for alpha, norms, values in zip(alphas, runs.gradient, runs.value, strict=True):
                last = norms[-max(iterations // 10, 1) :].mean()
                lost = not np.all(np.isfinite(norms + values)) or values[-1] > values[0]
                found = DIVERGED if lost else CONVERGED if last <= SMALL else STALLED
                row = {"part": PART, "problem": ROUGH, "outer": name, "steps": steps, "alpha": float(alpha), "measure": found}
                yield row | {"value": float(last), "curve": theory.largest_alpha(c.L, steps)}


def measure_sinusoid(
    iterations: int = SINUSOID_ITERATIONS, largest: int = 64, columns: int = 9, held_out: int = 200
) -> Iterator[Row]:
    r"""The network 1-40-40-1 with Adam (3e-3), 15 tasks a meta-step; L is measured at the initial parameters."""
    problem = ax.tasks.sinusoid()
    params = ax.models.mlp((1, 40, 40, 1), key=jax.random.key(0))
    tasks = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(1), 32))
    rule = ax.stepsize.Edge(tasks=32)
    L = float(1 / ax.stepsize.resolve(ax.Inner(1, rule), problem, params, tasks).stepsize)
    alphas = np.geomspace(1e-2, 100.0, columns) / L
    judged = jax.vmap(problem.sample_task)(jax.random.split(jax.random.key(2), held_out))
    untrained = float(jax.vmap(lambda task: problem.loss(params, task.target))(judged).mean())
    for steps in powers_of_two(largest):
        step = ax.make_step(problem, ax.MetaGradient(ax.Inner(steps, 0.1)), optax.adam(3e-3), tasks_per_step=15)
        found = _train_all(step, params, judged, jnp.asarray(alphas), iterations)
        for alpha, after, skipped in zip(alphas, *(np.asarray(part).tolist() for part in found), strict=True):
            lost = not math.isfinite(after) or after > untrained or skipped > _SKIPPED * iterations
            outcome = DIVERGED if lost else CONVERGED if after <= LEARNED else STALLED
            row = {"part": PART, "problem": SINUSOID, "outer": ADAM, "steps": steps, "alpha": float(alpha), "measure": outcome}
            yield row | {"value": after, "curve": theory.largest_alpha(L, steps)}


@eqx.filter_jit
def _train_all(step, params, judged, alphas, iterations):
    """For each step size the held-out loss after adaptation, and the number of meta-steps that were skipped."""

    def one(alpha):
        state, skipped = train_with_stepsize(step, params, alpha, 0, iterations, lambda _, info: info["skipped"])

        def judge(task):
            adapted = ax.adapt(step.problem, state.params, task, state.inner).params
            return step.problem.loss(adapted, task.target)

        return jnp.mean(jax.vmap(judge)(judged)), jnp.sum(skipped)

    return jax.vmap(one)(alphas)


def least_unadapted() -> float:
    r"""The mean squared error of the best function without adaptation, $x \mapsto E[y \mid x]$, on the sinusoids.

    It is $E[A^2]\,E[\sin^2(x - \varphi)] - E[A]^2\,E_x(E_\varphi\sin(x - \varphi))^2$.
    """
    a, b = AMPLITUDES
    points = (np.arange(1000) + 0.5) / 1000
    x, phase = (low + (high - low) * points for low, high in (INPUTS, PHASES))
    waves = np.sin(x[:, None] - phase)
    return float((b**3 - a**3) / (3 * (b - a)) * np.mean(waves**2) - ((a + b) / 2) ** 2 * np.mean(waves.mean(axis=1) ** 2))


def section(rows: list[Row]) -> str:
    """The section of the page."""
    body, counts = [], {}
    for problem, outer in distinct(rows, "problem", "outer"):
        for where in (BELOW, ABOVE):
            run = [r for r in pick(rows, problem=problem, outer=outer) if (r["alpha"] < r["curve"]) == (where == BELOW)]
            counts[problem, outer, where] = {outcome: len(pick(run, measure=outcome)) for outcome in OUTCOMES}
            body.append([problem, outer, where, *map(str, counts[problem, outer, where].values())])
    return (
        "## Where training converges\n\nOne run for each pair. The curve is α = (2^(1/(2N)) − 1)/L, below which q < 2 and the "
        "theorem holds (for the cosine problem with the adaptive outer step; the network has no global L, and its curve uses "
        "the largest eigenvalue at the initial parameters). A cosine run has converged if ‖∇L‖ is at most "
        f"{SMALL:g} in the mean over its last tenth. A sinusoid run has converged if the loss after adaptation is at most "
        f"{LEARNED:g}; no function reaches less than {least_unadapted():.2f} without adaptation. A run has diverged if its "
        "loss is not finite or above that at the start, or if its gradients are often not finite.\n\n"
        f"![Maps](maps.png)\n\n{markdown(['problem', 'outer step', 'α', *OUTCOMES], body)}\n\n" + " ".join(_found(rows, counts))
    )


def _found(rows: list[Row], counts: dict[tuple[str, str, str], dict[str, int]]) -> Iterator[str]:
    """Sentences about what the maps show on both sides of the curve."""
    diverged = sum(found[DIVERGED] for (_, _, where), found in counts.items() if where == BELOW)
    yield f"Below the curve {diverged or 'no'} run{'s' if diverged > 1 else ''} diverged."
    above = [row["alpha"] / row["curve"] for row in pick(rows, measure=CONVERGED) if row["alpha"] >= row["curve"]]
    if above:
        yield (
            f"The curve is sufficient, not necessary: {len(above)} runs converge above it, at up to {max(above):.0f} times "
            "its α."
        )
    else:
        yield "No run converges above the curve."
    learned = {where: counts[SINUSOID, ADAM, where][CONVERGED] for where in (BELOW, ABOVE)}
    if learned[ABOVE] and not learned[BELOW]:
        yield "Sinusoids converge above it only, which is why the practical rule, Edge, takes larger step sizes."
