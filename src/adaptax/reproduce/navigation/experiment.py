"""The runs of the navigation experiment, a resampling problem: docs/theory.md, section 10.3."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import adaptax as ax
from adaptax._checks import check_whole
from adaptax.report.rows import pick
from adaptax.reproduce.csv_rows import Row, Say, read_rows, write_rows
from adaptax.reproduce.meta_training import check_sizes, chunks, take_steps
from adaptax.reproduce.navigation.page import publish
from adaptax.reproduce.navigation.settings import (
    ALPHA,
    FIXED,
    GOALS,
    PAPER,
    PRETRAINED,
    SMALL,
    TESTED,
    TESTED_IN_TRAINING,
    Case,
    Setting,
    paper_cases,
    policy,
    small_cases,
    surrogate,
    trust_region,
)
from adaptax.reproduce.strategies import EXACT

COLUMNS = (
    "part", "setting", "method", "inner_steps", "rule", "seed", "meta_step", "env_steps", "adapted", "trajectories",
    "value", "goal", "time", "x", "y",
)  # fmt: skip
# The seed of the held-out goals, which no training run has.
_HELD_OUT = 1_000_003
# The number of trajectories that the figure shows for each goal.
_DRAWN = 3


def navigation(
    out: Path, seeds: int = 5, steps: int = 200, say: Say = print, *, processes: int = 1,
    settings: Sequence[Setting] = (PAPER, SMALL),
) -> None:  # fmt: skip
    r"""Meta-train policies that find a goal they are not told of, with every method, and judge them on held-out goals.

    Arguments:
        out: the folder for navigation.csv, the figures and README.md; made if it is not there. A run of the same number of
            meta-steps that navigation.csv holds already is not repeated, so that a stopped experiment goes on.
        seeds: the number of seeds; a seed's initial policy and tasks are the same for all methods.
        steps: meta-steps.
        say: called with a sentence about the progress (default: it is printed).
        processes: the number of runs at a time, each in a process of its own (default 1).
        settings: the paper's size and the small one.

    Errors: `InputError` for fewer than 2 seeds, more than 1000, fewer than one meta-step or fewer than one process.

    Example:
        >>> from pathlib import Path
        >>> navigation(Path("reproduced/navigation"), seeds=2, steps=10)  # doctest: +SKIP

    Source: Finn, Abbeel, Levine (2017), ICML; the settings of arXiv 2002.07836v1; docs/theory.md, section 10.3.
    """
    seeds, steps = check_sizes(seeds, steps)
    processes = check_whole("", "processes", processes)
    out.mkdir(parents=True, exist_ok=True)
    cases = [(which, case) for which, group in enumerate(_cases(settings)) for case in range(len(group))]
    # Jobs go seed by seed, so that the long runs do not all come last.
    jobs = [(*case, seed) for seed in range(seeds) for case in cases]
    found = _kept(out / "navigation.csv", jobs, settings, steps)
    for job, (rows, text) in _results([job for job in jobs if job not in found], settings, steps, processes):
        found[job] = rows
        say(text)
        write_rows(out / "navigation.csv", COLUMNS, [row for job in sorted(found) for row in found[job]])
    publish(out, settings)


def _cases(settings: Sequence[Setting]) -> tuple[list[Case], list[Case]]:
    """The cases of both settings. Jobs name them by place, since a case cannot be sent to another process."""
    return paper_cases(settings[0]), small_cases(settings[1])


def _kept(path: Path, jobs: list[Any], settings: Sequence[Setting], steps: int) -> dict[Any, list[Row]]:
    """The rows of the jobs that the CSV holds already; a job is there as a whole or not at all."""
    rows, found, cases = read_rows(path) if path.exists() else [], {}, _cases(settings)
    for which, case, seed in jobs:
        one, name = cases[which][case], settings[which].name
        run = pick(rows, setting=name, method=one.name, inner_steps=one.inner_steps, rule=one.rule, seed=seed)
        if run and run[-1]["meta_step"] == (0 if one.method is None else steps):
            found[which, case, seed] = run
    return found


def _results(jobs: list[Any], settings: Sequence[Setting], steps: int, processes: int) -> Iterator[tuple[Any, Any]]:
    """Each job with its rows and its sentence, in the order in which the runs end."""
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
    """Restrict this process to its share of the cores, if each process can have one, so that threads do not compete."""
    which = shares.get()
    if hasattr(os, "sched_setaffinity") and len(cores := sorted(os.sched_getaffinity(0))) >= processes:
        os.sched_setaffinity(0, cores[which::processes])


def _run(settings: Sequence[Setting], job: tuple[int, int, int], steps: int) -> tuple[list[Row], str]:
    """One run: its rows and one sentence about it."""
    which, case, seed = job
    # Compiled programs take memory maps, of which a process has 65,530 on Linux, and no run uses the programs of another.
    jax.clear_caches()
    with jax.threefry_partitionable(False):
        return run_case(settings[which], _cases(settings)[which][case], seed, steps)


def run_case(setting: Setting, case: Case, seed: int, steps: int) -> tuple[list[Row], str]:
    """The returns of a case along training and at its end, and one sentence about it."""
    rows: list[Row] = []
    problem = ax.tasks.rl.navigation(horizon=setting.horizon, loss=case.loss or surrogate())
    about = {"setting": setting.name, "method": case.name, "inner_steps": case.inner_steps, "rule": case.rule, "seed": seed}
    began, params, alpha, at, each = time.perf_counter(), policy(setting, seed), jnp.asarray(ALPHA), 0, 0
    if case.method is not None:
        step = ax.make_step(problem, case.method, case.optimizer or trust_region(setting), setting.tasks)
        each = ax.tasks.rl.environment_steps(case.method, problem, setting.tasks)
        state = step.init(params, seed)
        for count in [0, *chunks(steps, max(1, steps // setting.parts))]:
            state, at = _advance(step, state, jnp.asarray(count)), at + count
            alpha = alpha if case.rule == FIXED else state.inner.stepsize
            mark = about | {"meta_step": at, "env_steps": at * each, "trajectories": setting.trajectories}
            scores = judge(setting, problem, state.params, alpha, TESTED_IN_TRAINING, setting.trajectories)
            rows += [mark | {"part": "training"} | score for score in scores]
        params = state.params
    seconds = time.perf_counter() - began
    mark = about | {"meta_step": at, "env_steps": at * each}
    rows += [mark | {"part": "seconds", "value": seconds}, mark | {"part": "stepsize", "value": float(alpha)}]
    finals = [mark | {"part": "final", "trajectories": size} | score
              for size in setting.sizes for score in judge(setting, problem, params, alpha, TESTED, size)]  # fmt: skip
    if seed == 0 and setting.drawn and case.name in (EXACT, PRETRAINED):
        finals += [mark | {"part": "path"} | row for row in paths(setting, problem, params)]
    before, after = (row["value"] for row in finals[:2])
    which = f"{setting.name}: {case.name}, N = {case.inner_steps}, {case.rule}, seed {seed}"
    return rows + finals, f"{which}: {at} meta-steps in {seconds:.0f} s; return {before:.2f}, after one step {after:.2f}"


def judge(setting: Setting, problem: ax.Resampling, params: Any, alpha: Array, steps: Sequence[int], size: int) -> list[Row]:
    """The mean return on the held-out goals after each number of steps, each from `size` trajectories."""
    samples = ax.Samples(size, size, size)
    curve = ax.evaluate(problem, params, ax.Inner(1, alpha), steps, setting.goals, _HELD_OUT, samples=samples)
    return [{"adapted": int(n), "value": float(r)} for n, r in zip(curve.steps, curve.mean["return"], strict=True)]


def paths(setting: Setting, problem: ax.Resampling, params: Any) -> list[Row]:
    """A few trajectories for each of the drawn goals, before and after one step."""
    rows: list[Row] = []
    for goal, place in enumerate(GOALS):
        task = jnp.asarray(place)
        adapted = ax.adapt(problem, params, task, ax.Inner(1, ALPHA), jax.random.key(goal), samples=setting.samples).params
        for steps, by in ((0, params), (1, adapted)):
            batch = problem.draw(task, by, jax.random.key(goal + 100), _DRAWN)
            for i, points in enumerate(batch.observations.tolist()):
                rows += [{"adapted": steps, "goal": goal, "trajectories": i, "time": t, "x": x, "y": y}
                         for t, (x, y) in enumerate(np.round(points, 4).tolist())]  # fmt: skip
    return rows


@eqx.filter_jit
def _advance(step: ax.training.Step, state: ax.State, count: Array) -> ax.State:
    """The state after `count` meta-steps."""
    return take_steps(step, state, count)
