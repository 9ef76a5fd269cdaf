"""Planar navigation, a resampling problem: docs/theory.md, section 10.3."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import adaptax as ax
from adaptax.reproduce import navigation_page as page
from adaptax.reproduce.files import Row, Say, pick, read_rows, write_rows
from adaptax.reproduce.methods import EXACT, FINITE_DIFFERENCE, FIRST_ORDER, GGS, STEIN
from adaptax.reproduce.navigation_page import (
    EDGE,
    FIXED,
    FROM_RETURNS,
    GUARANTEED,
    LOADED,
    PLAIN,
    PRETRAINED,
    REUSED,
    UNTRAINED,
)
from adaptax.reproduce.training import check_count, check_sizes, initial_key
from adaptax.training.step import State, Step

COLUMNS = (
    "part", "setting", "method", "inner_steps", "rule", "seed", "meta_step", "env_steps", "adapted", "trajectories",
    "value", "goal", "time", "x", "y",
)  # fmt: skip
ALPHA, DISCOUNT, TASKS, TRAJECTORIES = 0.1, 0.95, 20, 20
# Inner steps after which a policy is judged: along training, and at the end.
SHORT, LONG = (0, 1), (0, 1, 2, 3, 5)
FIXED_STEPS, EDGE_STEPS, GUARANTEED_STEPS = (2, 3, 5), (1, 2, 3, 5), (1, 2, 3, 5)
# Of the held-out goals, which no training seed draws.
_HELD_OUT = 1_000_003
# What draws at shifted parameters needs a width far above rounding, and few directions, each of which draws anew.
DIRECTIONS, VALUES, WIDTH = 2, 10, 0.05


class Setting(NamedTuple):
    """A size of the experiment.

    Arguments:
        name: in the CSV.
        horizon, hidden: H, and the widths of the policy's network.
        sizes: with how many trajectories a policy adapts when it is judged at the end.
        drawn: whether trajectories are kept for a figure.
        goals: held-out goals.
        fisher: on how many tasks the trust region's F is formed.
        parts: into how many parts a run's curve is cut.
    """

    name: str
    horizon: int
    hidden: tuple[int, ...]
    sizes: tuple[int, ...] = (TRAJECTORIES,)
    drawn: bool = False
    goals: int = 40
    fisher: int = 2
    parts: int = 5


PAPER = Setting("paper", 100, (100, 100), (TRAJECTORIES, 2 * TRAJECTORIES), drawn=True)
SMALL = Setting("small", 25, (32, 32))


class Case(NamedTuple):
    """One way of training: how it is called, N, the rule of the inner step size, the method, outer optimiser and loss."""

    name: str
    inner_steps: int
    rule: str
    method: ax.MetaGradient | None
    optimizer: Any = None
    loss: Any = None


def surrogate(kind: Any = ax.tasks.rl.LVC, *, published: bool = True) -> Any:
    """As in published code advantages are standardised and not weighted by time; a mean over steps in any case."""
    baseline = ax.tasks.rl.LinearBaseline()
    return kind(DISCOUNT, baseline=baseline, per_step=True, normalise=published, discount_weighting=not published)


def policy(setting: Setting, seed: int) -> ax.tasks.rl.GaussianPolicy:
    """The initial policy of a seed, with weights N(0, 2/(inputs + outputs)) (Glorot and Bengio, 2010).

    With larger ones the mean action grows with the position, and the point runs away before anything is learned.
    """
    network = ax.models.mlp((2, *setting.hidden, 2), key=initial_key(seed), init="glorot")
    return ax.tasks.rl.GaussianPolicy(network, 2)


def method(steps: int = 1, alpha: Any = ALPHA, curvature: Any = None, gradients: Any = None, **options: Any) -> ax.MetaGradient:
    """A meta-gradient from 20 trajectories at every use."""
    inner = ax.Inner(steps, alpha) if gradients is None else ax.Inner(steps, alpha, gradients=gradients)
    samples = ax.Samples(TRAJECTORIES, TRAJECTORIES, TRAJECTORIES)
    return ax.MetaGradient(inner, curvature or ax.curvature.Exact(), samples=samples, **options)


def paper_cases() -> list[Case]:
    """Those of the paper's setting."""
    return [
        Case(EXACT, 1, FIXED, method()),
        Case(FIRST_ORDER, 1, FIXED, method(curvature=ax.curvature.FirstOrder())),
        Case(PRETRAINED, 0, FIXED, method(0)),
        Case(UNTRAINED, 0, FIXED, None),
    ]


def small_cases() -> list[Case]:
    """Those of the small setting."""
    c = ax.curvature
    values = c.ZerothOrder(samples=VALUES, delta=WIDTH)
    smoothed = ax.gradients.Smoothed(samples=VALUES, delta=WIDTH, antithetic=True)
    return [
        Case(EXACT, 1, FIXED, method()),
        Case(FIRST_ORDER, 1, FIXED, method(curvature=c.FirstOrder())),
        Case(PRETRAINED, 0, FIXED, method(0)),
        Case(UNTRAINED, 0, FIXED, None),
        Case(REUSED, 1, FIXED, method(independent_curvature=False)),
        Case(LOADED, 1, FIXED, method(), loss=surrogate(ax.tasks.rl.LoadedDiCE)),
        Case(PLAIN, 1, FIXED, method(), loss=surrogate(published=False)),
        Case(FINITE_DIFFERENCE, 1, FIXED, method(curvature=c.FiniteDifference(delta=WIDTH))),
        Case(GGS, 1, FIXED, method(curvature=c.GaussianSmoothing(samples=DIRECTIONS, delta=WIDTH))),  # type: ignore[call-arg]
        Case(STEIN, 1, FIXED, method(curvature=values)),
        # A trust region holds batches fixed, but these gradients draw at every shifted parameter: Adam.
        Case(FROM_RETURNS, 1, FIXED, method(curvature=values, gradients=smoothed), optax.adam(1e-3)),
        *(Case(EXACT, n, FIXED, method(n)) for n in FIXED_STEPS),
        *(Case(EXACT, n, EDGE, method(n, ax.stepsize.Edge())) for n in EDGE_STEPS),
        *(Case(EXACT, n, GUARANTEED, method(n, ax.stepsize.Guaranteed())) for n in GUARANTEED_STEPS),
    ]


def navigation(
    out: Path, seeds: int = 5, steps: int = 200, say: Say = print, *, processes: int = 1,
    settings: Sequence[Setting] = (PAPER, SMALL),
) -> None:  # fmt: skip
    r"""Meta-train policies that find a goal they are not told of, with every method, and judge them on held-out goals.

    Arguments:
        out: the folder for navigation.csv, the figures and README.md; made if it is not there. Runs of so many meta-steps
            that navigation.csv has already are not run again, so that a stopped experiment goes on.
        seeds: how many seeds; the initial policy and the tasks of a seed are the same for all methods.
        steps: meta-steps.
        say: told how far it is (default: printed).
        processes: how many runs go on at a time, each in a process of its own (default 1).
        settings: the paper's size and the small one.

    Errors: `InputError` for fewer than two seeds, fewer than one meta-step or fewer than one process.

    Example:
        >>> from pathlib import Path
        >>> navigation(Path("reproduced/navigation"), seeds=2, steps=10)  # doctest: +SKIP

    Source: Finn, Abbeel, Levine (2017), ICML; the settings of arXiv 2002.07836v1; docs/theory.md, section 10.3.
    """
    check_sizes(seeds, steps)
    check_count(processes, "processes")
    out.mkdir(parents=True, exist_ok=True)
    cases = [(which, case) for which, group in enumerate((paper_cases(), small_cases())) for case in range(len(group))]
    # Seed by seed, so that the long runs do not all come last.
    jobs = [(*case, seed) for seed in range(seeds) for case in cases]
    found = _kept(out / "navigation.csv", jobs, settings, steps)
    for job, (rows, text) in _results([job for job in jobs if job not in found], settings, steps, processes):
        found[job] = rows
        say(text)
        write_rows(out / "navigation.csv", COLUMNS, [row for job in sorted(found) for row in found[job]])
    page.publish(out)


def _case(which: int, case: int) -> Case:
    """A case by its place: not all of what it holds can be sent to another process."""
    return (paper_cases, small_cases)[which]()[case]


def _kept(path: Path, jobs: list[Any], settings: Sequence[Setting], steps: int) -> dict[Any, list[Row]]:
    """What the runs found that are in the CSV already; each is there as a whole or not at all."""
    rows, found = read_rows(path) if path.exists() else [], {}
    for which, case, seed in jobs:
        one, name = _case(which, case), settings[which].name
        run = pick(rows, setting=name, method=one.name, inner_steps=one.inner_steps, rule=one.rule, seed=seed)
        if run and run[-1]["meta_step"] == (0 if one.method is None else steps):
            found[which, case, seed] = run
    return found


def _results(jobs: list[Any], settings: Sequence[Setting], steps: int, processes: int) -> Iterator[tuple[Any, Any]]:
    """Each run's name and what it found, in the order in which they end."""
    if processes == 1:
        yield from ((job, _run(settings, job, steps)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    shares = context.SimpleQueue()
    for which in range(processes):
        shares.put(which)
    with ProcessPoolExecutor(processes, context, _take_cores, (shares, processes)) as pool:
        begun = {pool.submit(_run, settings, job, steps): job for job in jobs}
        yield from ((begun[future], future.result()) for future in as_completed(begun))


def _take_cores(shares: Any, processes: int) -> None:
    """Keep this process to its share of the cores, if there is one for each: threads of several get in each other's way."""
    which = shares.get()
    if hasattr(os, "sched_setaffinity") and len(cores := sorted(os.sched_getaffinity(0))) >= processes:
        os.sched_setaffinity(0, cores[which::processes])


def _run(settings: Sequence[Setting], job: tuple[int, int, int], steps: int) -> tuple[list[Row], str]:
    """One run."""
    which, case, seed = job
    # Programs take memory maps, of which a process on Linux may have 65,530, and no run uses those of another.
    jax.clear_caches()
    with jax.threefry_partitionable(False):
        return train(settings[which], _case(which, case), seed, steps)


def train(setting: Setting, case: Case, seed: int, steps: int) -> tuple[list[Row], str]:
    """The returns of a case along training and at its end, and one sentence about it."""
    rows: list[Row] = []
    problem = ax.tasks.rl.navigation(horizon=setting.horizon, loss=case.loss or surrogate())
    about = {"setting": setting.name, "method": case.name, "inner_steps": case.inner_steps, "rule": case.rule, "seed": seed}
    began, params, alpha, at, each = time.perf_counter(), policy(setting, seed), jnp.asarray(ALPHA), 0, 0
    if case.method is not None:
        optimizer = case.optimizer or ax.stepsize.TrustRegion(ax.tasks.rl.mean_kl, tasks=setting.fisher)
        step = ax.make_step(problem, case.method, optimizer, TASKS)
        each = ax.tasks.rl.environment_steps(case.method, problem, TASKS)
        state = step.init(params, seed)
        for count in [0, *_chunks(steps, max(1, steps // setting.parts))]:
            state, at = _advance(step, state, jnp.asarray(count)), at + count
            alpha = alpha if case.rule == FIXED else state.inner.stepsize
            mark = about | {"meta_step": at, "env_steps": at * each, "trajectories": TRAJECTORIES}
            rows += [mark | {"part": "training"} | score for score in judge(setting, problem, state.params, alpha, SHORT)]
        params = state.params
    seconds = time.perf_counter() - began
    mark = about | {"meta_step": at, "env_steps": at * each}
    rows += [mark | {"part": "seconds", "value": seconds}, mark | {"part": "stepsize", "value": float(alpha)}]
    finals = [mark | {"part": "final", "trajectories": size} | score
              for size in setting.sizes for score in judge(setting, problem, params, alpha, LONG, size)]  # fmt: skip
    if seed == 0 and setting.drawn and case.name in (EXACT, PRETRAINED):
        finals += [mark | {"part": "path"} | row for row in paths(setting, problem, params)]
    before, after = (row["value"] for row in finals[:2])
    which = f"{setting.name}: {case.name}, N = {case.inner_steps}, {case.rule}, seed {seed}"
    return rows + finals, f"{which}: {at} meta-steps in {seconds:.0f} s; return {before:.2f}, after one step {after:.2f}"


def judge(
    setting: Setting, problem: ax.Resampling, params: Any, alpha: Array, steps: Sequence[int], size: int = TRAJECTORIES
) -> list[Row]:
    """The mean return on the held-out goals after each number of steps, each from `size` trajectories."""
    samples = ax.Samples(size, size, size)
    curve = ax.evaluate(problem, params, ax.Inner(1, alpha), steps, setting.goals, _HELD_OUT, samples=samples)
    return [{"adapted": int(n), "value": float(r)} for n, r in zip(curve.steps, curve.mean["return"], strict=True)]


def paths(setting: Setting, problem: ax.Resampling, params: Any) -> list[Row]:
    """Three trajectories for each of the drawn goals, before and after one step."""
    rows: list[Row] = []
    samples = ax.Samples(TRAJECTORIES, TRAJECTORIES, TRAJECTORIES)
    for goal, place in enumerate(page.GOALS):
        task = jnp.asarray(place)
        adapted = ax.adapt(problem, params, task, ax.Inner(1, ALPHA), jax.random.key(goal), samples=samples).params
        for steps, by in ((0, params), (1, adapted)):
            batch = problem.draw(task, by, jax.random.key(goal + 100), 3)
            for i, points in enumerate(batch.observations.tolist()):
                rows += [{"adapted": steps, "goal": goal, "trajectories": i, "time": t, "x": x, "y": y}
                         for t, (x, y) in enumerate(np.round(points, 4).tolist())]  # fmt: skip
    return rows


def _chunks(steps: int, every: int) -> list[int]:
    return [min(every, steps - at) for at in range(0, steps, every)]


@eqx.filter_jit
def _advance(step: Step, state: State, count: Array) -> State:
    """`count` meta-steps."""
    arrays, static = eqx.partition(state, eqx.is_array)
    one = lambda _, arrays: eqx.filter(step(eqx.combine(arrays, static))[0], eqx.is_array)  # noqa: E731
    return eqx.combine(jax.lax.fori_loop(0, count, one, arrays), static)
