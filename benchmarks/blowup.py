"""Stability against N: sinusoids with N inner steps, step-size rules beside fixed step sizes.

    python benchmarks/blowup.py [--steps 2000] [--seeds 3] [--workers 2] [--inner-steps 1 5 ...]

Every run is `ax.train` with Adam 1e-3 and 25 tasks a meta-step; every network is judged after N steps,
with its last step size, on the same 1,000 held-out tasks. Prints one table (also as markdown) and writes results/blowup.json.
"""

import argparse
import json
import math
import multiprocessing

from machine import measurement
from tables import RESULTS

INNER_STEPS = (1, 5, 10, 20, 50, 100)
FIXED = (0.0003, 0.001, 0.003, 0.01, 0.03)


def run(job: tuple[int, str, int, int]) -> list[dict]:
    """All seeds of one setting, which share a compiled program."""
    inner_steps, kind, seeds, steps = job
    import jax
    import optax

    import adaptax as ax

    rules = {"edge": ax.stepsize.Edge, "guaranteed": ax.stepsize.Guaranteed}
    problem, optimizer = ax.tasks.sinusoid(), optax.adam(1e-3)
    method = ax.MetaGradient(ax.Inner(inner_steps, rules[kind]() if kind in rules else float(kind)))
    rows = []
    for seed in range(seeds):
        params = ax.models.mlp((1, 40, 40, 1), key=jax.random.key(seed))
        row = {"inner_steps": inner_steps, "stepsize": kind, "seed": seed}
        try:
            state, history = ax.train(
                problem, params, method, optimizer=optimizer, steps=steps, tasks_per_step=25, seed=seed, max_skipped=steps + 1
            )
        except Exception as error:
            raise RuntimeError(f"{row}: {error}") from error
        curve = ax.evaluate(problem, state.params, state.inner, steps=[inner_steps], tasks=1000, seed=10_007)
        loss = float(curve.mean["loss"][0])
        row |= {
            "held_out_loss": loss if math.isfinite(loss) else None,
            "skipped": int(history["skipped"].sum()),
            "alpha_first": float(history["stepsize"][0]),
            "alpha_last": float(history["stepsize"][-1]),
        }
        rows.append(row)
    print(f"N={inner_steps} {kind}: " + ", ".join(f"{r['held_out_loss']}" for r in rows), flush=True)
    return rows


def cell(rows: list[dict]) -> str:
    """Mean held-out loss with its standard error over seeds, and the skipped meta-steps if there are any."""
    losses = [row["held_out_loss"] for row in rows]
    skipped = sum(row["skipped"] for row in rows)
    note = f" ({skipped} skipped)" if skipped else ""
    if any(loss is None or loss > 1e3 for loss in losses):
        return "diverged" + note
    mean = sum(losses) / len(losses)
    error = math.sqrt(sum((x - mean) ** 2 for x in losses) / max(len(losses) - 1, 1) / len(losses))
    return f"{mean:.2f} ± {error:.2f}{note}"


def table(rows: list[dict]) -> str:
    """Mean held-out losses by N and step size, as markdown."""
    kinds = ["edge", "guaranteed", *map(str, FIXED)]
    lines = ["| N | " + " | ".join(k if k.isalpha() else f"α = {k}" for k in kinds) + " |", "| --- " * (len(kinds) + 1) + "|"]
    for n in sorted({row["inner_steps"] for row in rows}):
        chosen = [[r for r in rows if r["inner_steps"] == n and r["stepsize"] == kind] for kind in kinds]
        lines.append(f"| {n} | " + " | ".join(cell(c) if c else "–" for c in chosen) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="meta-steps a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--inner-steps", type=int, nargs="*", default=INNER_STEPS)
    arguments = parser.parse_args()
    kinds = ["edge", "guaranteed", *map(str, FIXED)]
    jobs = [(n, kind, arguments.seeds, arguments.steps) for n in sorted(arguments.inner_steps, reverse=True) for kind in kinds]
    path = RESULTS / "blowup.json"
    settings = measurement(parser, arguments) | {"meta_steps": arguments.steps, "tasks_per_step": 25}
    saved = json.loads(path.read_text()) if path.exists() else {}
    # Rows of the same commit and the same kind of machine, with as many meta-steps, stay.
    same = ("machine", "commit", "meta_steps", "tasks_per_step")
    rows = saved["rows"] if all(saved.get(name) == settings[name] for name in same) else []
    with multiprocessing.get_context("spawn").Pool(arguments.workers, maxtasksperchild=6) as pool:
        for new in pool.imap_unordered(run, jobs):
            done = {(r["inner_steps"], r["stepsize"]) for r in new}
            rows = [r for r in rows if (r["inner_steps"], r["stepsize"]) not in done] + new
            rows.sort(key=lambda r: (r["inner_steps"], kinds.index(r["stepsize"]), r["seed"]))
            path.write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
