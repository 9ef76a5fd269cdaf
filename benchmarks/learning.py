"""Held-out scores of every task family with the default step sizes and with others, at equal meta-steps.

    python benchmarks/learning.py [--data FOLDER] [--only sinusoid-10-5 ...] [--step-sizes auto edge 0.001 ...]

Each run is that of the command (`adaptax train sinusoid`, `images`, `navigation`) with its own network, outer optimiser,
schedule and clipping; only the inner step sizes differ: the rules `auto`, `edge` and `guaranteed`, learned ones from a first
value chosen by hand, and a grid of fixed ones. FOLDER holds images_background_small1.zip and images_background_small2.zip;
without it the characters are left out. --only takes beginnings of names too (`sinusoid-10` for all N), and a name with a full
stop for that case alone (`characters-5-1.`). Every run has a core of its own. Writes results/learning.json run by run; other
runs in it are kept.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
from pathlib import Path

from learning_cases import CASES, RULES, WAYS, Case, run
from machine import measurement
from tables import RESULTS, kept, load, rows_of

# Held-out scores beyond this are a training that diverged.
_DIVERGED = 1e3


def chosen(only: list[str] | None, data: Path | None) -> list[str]:
    """The cases asked for, of those that can run."""
    names = [name for name in CASES if only is None or any(f"{name}.".startswith(word) for word in only)]
    return [name for name in names if data is not None or CASES[name].family != "images"]


def _on_one_core(cores: "multiprocessing.Queue[int]") -> None:
    """Each worker keeps to a core of its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def _job(job: tuple[str, str, list[int], Path | None]) -> list[dict]:
    """All seeds of one step size, which share a compiled program."""
    name, kind, seeds, data = job
    rows = [run(name, kind, seed, data) for seed in seeds]
    print(f"{name}, {kind}: " + ", ".join(_number(row) for row in rows), flush=True)
    return rows


def _number(row: dict) -> str:
    return "diverged" if diverged([row]) else f"{row['score']:.4g}" + (f" ({row['skipped']} skipped)" if row["skipped"] else "")


def diverged(rows: list[dict]) -> bool:
    """Whether a run stopped, or ended with a score that is none."""
    return any(row["score"] is None or abs(row["score"]) > _DIVERGED for row in rows)


def mean_and_error(rows: list[dict]) -> tuple[float, float]:
    """The mean over seeds and its standard error (NaN for one seed)."""
    scores = [row["score"] for row in rows]
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return statistics.mean(scores), error


def best_fixed(case: Case, rows: list[dict]) -> tuple[str, list[dict]] | None:
    """The fixed step size with the best mean over the judged seeds themselves, and its runs."""
    by_kind = {str(alpha): [row for row in rows if row["stepsize"] == str(alpha)] for alpha in case.fixed}
    able = {kind: found for kind, found in by_kind.items() if found and not diverged(found)}
    if not able:
        return None
    best = (max if case.larger_is_better else min)(able, key=lambda kind: mean_and_error(able[kind])[0])
    return best, able[best]


def cell(case: Case, rows: list[dict], kind: str = "") -> str:
    """Mean with its standard error over seeds, and the skipped meta-steps if there are any."""
    if not rows:
        return ""
    skipped = sum(row["skipped"] or 0 for row in rows)
    notes = [note for note in (f"α = {kind}" if kind else "", f"{skipped} skipped" if skipped else "") if note]
    if len(rows) < 3:
        notes.append("1 seed" if len(rows) == 1 else f"{len(rows)} seeds")
    if diverged(rows):
        return "diverged"
    mean, error = mean_and_error(rows)
    if case.score == "accuracy":
        text = f"{100 * mean:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}") + " %"
    else:
        form = "{:.3f}" if abs(mean) < 1 else "{:.2f}" if abs(mean) < 10 else "{:.1f}"
        text = form.format(mean) + ("" if math.isnan(error) else " ± " + form.format(error))
    return text + (f" ({', '.join(notes)})" if notes else "")


def table(rows: list[dict]) -> str:
    """One row a case: the default, the best fixed step size of the grid, and the other rules."""
    body = []
    for name, case in CASES.items():
        mine = [row for row in rows if row["case"] == name]
        if not mine or case.rules == tuple(WAYS):
            continue
        by_rule = {rule: cell(case, [row for row in mine if row["stepsize"] == rule]) for rule in RULES}
        best = best_fixed(case, mine)
        tried = any(row["stepsize"] not in RULES for row in mine)
        fixed = cell(case, best[1], best[0]) if best else "diverged" if tried else ""
        cells = [by_rule["auto"], fixed, by_rule["edge"], by_rule["guaranteed"], by_rule["learned"], case.published]
        body.append([case.title, case.score, *cells])
    header = ["tasks", "score", "Auto", "best fixed α", "Edge", "Guaranteed", "Learned", "published"]
    return rows_of(header, body)


def ways_table(rows: list[dict]) -> str:
    """Ways to share learned step sizes on the demo's problem."""
    found = {kind: [row for row in rows if row["case"] == "demo" and row["stepsize"] == kind] for kind in WAYS}
    body = [[WAYS[kind], cell(CASES["demo"], mine)] for kind, mine in found.items() if mine]
    return rows_of(["step sizes", "loss after 10 steps"], body) if body else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with the two zips of characters")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=f"cases: {', '.join(CASES)}")
    parser.add_argument("--step-sizes", nargs="*", metavar="KIND", help="rules or numbers (default: all of each case)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--table", action="store_true", help="print the table of the saved runs, and run nothing")
    options = parser.parse_args()
    if options.table:
        runs = (load("learning") or {"runs": []})["runs"]
        print(f"{table(runs)}\n\n{ways_table(runs)}")
        return
    jobs = []
    # The longest first, so that no core waits at the end.
    for name in sorted(chosen(options.only, options.data), key=lambda name: -CASES[name].minutes):
        known = CASES[name].kinds
        kinds = known if options.step_sizes is None else [kind for kind in options.step_sizes if kind in known]
        jobs += [(name, kind, options.seeds, options.data) for kind in kinds]
    able = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    path, runs = RESULTS / "learning.json", kept("learning", "runs")
    described = measurement(parser, options)
    context = multiprocessing.get_context("spawn")

    def save(new: list[dict]) -> None:
        nonlocal runs
        done = {(row["case"], row["stepsize"], row["seed"]) for row in new}
        runs = [row for row in runs if (row["case"], row["stepsize"], row["seed"]) not in done]
        runs = sorted(runs + [row | {"measured": described} for row in new], key=_order)
        path.write_text(json.dumps(described | {"runs": runs}, indent=1) + "\n")

    cores = context.Queue()
    # Some to spare, for workers that take the place of others.
    for worker in range(options.workers + len(jobs)):
        cores.put(able[worker % len(able)])
    with context.Pool(options.workers, _on_one_core, (cores,)) as pool:
        for new in pool.imap_unordered(_job, jobs):
            save(new)
    print(f"{table(runs)}\n\n{ways_table(runs)}")


def _order(row: dict) -> tuple:
    return list(CASES).index(row["case"]), CASES[row["case"]].kinds.index(row["stepsize"]), row["seed"]


if __name__ == "__main__":
    main()
