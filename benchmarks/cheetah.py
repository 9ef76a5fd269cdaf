"""Meta-reinforcement learning of the half cheetah that must find out whether to run forwards or backwards.

    python benchmarks/cheetah.py --runs FOLDER [--minutes 60] [--steps 700] [--seeds 1] [-- more options of adaptax train]

Runs `adaptax train cheetah-dir` with its defaults for so many meta-steps, all seeds at the same time, and after so many
minutes stops them as Ctrl-C does. Runs in FOLDER go on; with --minutes 0 what is there is judged. Writes
results/cheetah.json and the figure of docs/experiments/cheetah.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from machine import measurement
from tables import RESULTS, rows_of

HERE = Path(__file__).parent
FIGURE = HERE.parent / "docs" / "experiments" / "cheetah"
ADAPTAX = str(Path(sys.executable).parent / "adaptax")
EVERY, STEPS, TASKS = 100, 3, 200


def train(runs: Path, seeds: int, minutes: float, steps: int, rest: list[str]) -> None:
    """Train all seeds at once, each in a process with one device, since MuJoCo has threads of its own."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = []
    for seed in range(seeds):
        out = runs / f"seed{seed}"
        if (out / "config.json").exists():
            command = [ADAPTAX, "train", "cheetah-dir", "--out", str(out), "--resume"]
        else:
            options = ["--steps", str(steps), "--evaluate-every", str(EVERY), "--seed", str(seed), "--out", str(out), *rest]
            command = [ADAPTAX, "train", "cheetah-dir", *options]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    start = time.monotonic()
    while time.monotonic() < start + 60 * minutes and any(process.poll() is None for process in processes):
        time.sleep(1)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()
    path, minutes = runs / "minutes.json", (time.monotonic() - start) / 60
    path.write_text(json.dumps(minutes + (json.loads(path.read_text()) if path.exists() else 0)))


def judge(run: Path) -> dict:
    """The curve of a run, and its returns after 0..STEPS inner steps at its newest checkpoint."""
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    curve = [{"step": line["step"], "before": line["return_before"], "after": line["return"]} for line in lines]
    command = [ADAPTAX, "evaluate", str(run), "--tasks", str(TASKS), "--inner-steps", str(STEPS), "--format", "json"]
    final = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    score = final["scores"]["return"]["mean"]
    curve.append({"step": final["step"], "before": score[0], "after": score[1]})
    return {"config": json.loads((run / "config.json").read_text()), "curve": curve, "final": final}


def draw(records: list[dict]) -> None:
    """The return before and after one step along training, a line for each seed."""
    from adaptax.report.figures import COLOURS, grid, legend, save

    FIGURE.mkdir(parents=True, exist_ok=True)
    figure, axes = grid(1, 1, width=6.0, height=3.2)
    ax = axes[0, 0]
    for name, colour, label in (("before", COLOURS[1], "before adaptation"), ("after", COLOURS[5], "after one step")):
        for i, record in enumerate(records):
            steps, returns = [p["step"] for p in record["curve"]], [p[name] for p in record["curve"]]
            ax.plot(steps, returns, color=colour, linewidth=1.4, label=None if i else label)
    ax.set_xlabel("meta-steps", fontsize=9)
    ax.set_ylabel("return on 200 held-out tasks", fontsize=9)
    legend(figure, ax, 2)
    save(figure, FIGURE, "returns")


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Returns of every seed and inner step at the end."""
    header = ["seed", "meta-steps", *("before" if n == 0 else f"after {n}" for n in range(STEPS + 1))]
    body = []
    for seed, record in enumerate(result["seeds"]):
        score = record["final"]["scores"]["return"]
        cells = [f"{m:.1f} [{a:.1f}, {b:.1f}]" for m, a, b in zip(score["mean"], score["low"], score["high"], strict=True)]
        body.append([str(seed), str(record["final"]["step"]), *cells])
    return header, body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER", help="folder of the run folders")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=700, help="meta-steps over which the outer step size falls to zero")
    parser.add_argument("--seeds", type=int, default=1)
    arguments, rest = parser.parse_known_args()
    if arguments.minutes > 0:
        train(arguments.runs, arguments.seeds, arguments.minutes, arguments.steps, [word for word in rest if word != "--"])
    records = [judge(arguments.runs / f"seed{seed}") for seed in range(arguments.seeds)]
    draw(records)
    result = measurement(parser, arguments)
    result |= {"minutes": json.loads((arguments.runs / "minutes.json").read_text()), "seeds": records}
    (RESULTS / "cheetah.json").write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
