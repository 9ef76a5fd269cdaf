"""Run the benchmarks of a CPU one after another, the cheapest and most telling first, as far as the time goes.

    make bench-env && python benchmarks/all.py [--minutes 40] [--data FOLDER] [--list]

A benchmark is started if its expected minutes (on two idle cores) still fit into --minutes, and stopped when it takes three
times as long; then the next one follows. FOLDER holds the two Omniglot archives; without it the benchmarks on characters are
left out. Each benchmark writes its own results as it goes. At the end docs/benchmarks.md is written anew.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import run_within

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A script with its options, and the minutes that it is expected to take; FOLDER stands for --data."""

    minutes: float
    words: str


JOBS = (
    Job(4, "peers.py --case sinusoid"),
    Job(3, "memory.py"),
    Job(12, "peers.py --case conv4"),
    Job(2, "in_flight.py"),
    Job(4, "first_step.py"),
    Job(10, "time_to_accuracy.py --data FOLDER --adapt head"),
    Job(9, "memory_peers.py"),
    Job(4, "strategies.py --case memory sinusoids"),
    Job(4, "navigation_speed.py"),
    Job(5, "strategies.py --case images"),
    Job(4, "roofline.py --case conv4 conv4-84"),
    Job(12, "peers.py --case conv4-84"),
    Job(60, "learning.py --only sinusoid-10"),
    Job(20, "time_to_accuracy.py --data FOLDER"),
    Job(15, "memory_method.py"),
    Job(3, "table_scale.py"),
    Job(3, "host_batches.py"),
    Job(15, "store.py"),
    Job(15, "precision.py --data FOLDER/images_background_small1.zip"),
    Job(15, "difference_widths.py --data FOLDER/images_background_small1.zip"),
    Job(20, "images.py --data FOLDER --only pretrain"),
    Job(50, "peers.py --case resnet12"),
    Job(55, "test_time_training.py"),
    Job(45, "writers.py"),
    Job(25, "images.py --data FOLDER --only prototypical"),
    Job(90, "ablations.py --data FOLDER"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40, help="for everything")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with the two zips")
    parser.add_argument("--list", action="store_true", help="print the order and the expected minutes, and run nothing")
    options = parser.parse_args()
    began = time.monotonic()
    for job in JOBS:
        left = options.minutes - (time.monotonic() - began) / 60
        if options.list:
            print(f"{job.minutes:4.0f} min  python benchmarks/{job.words}")
        elif "FOLDER" in job.words and options.data is None:
            print(f"left out without --data: {job.words}", flush=True)
        elif job.minutes > left:
            print(f"left out for want of time: {job.words}", flush=True)
        else:
            run(job, options.data)
    if not options.list:
        subprocess.run([sys.executable, str(HERE / "page.py")], check=True)


def run(job: Job, data: Path | None) -> None:
    """One benchmark; a failure does not keep the next ones from running."""
    script, *words = job.words.split()
    words = [word.replace("FOLDER", str(data)) for word in words]
    start = time.monotonic()
    status = run_within(180 * job.minutes, [sys.executable, str(HERE / script), *words])
    ended = "stopped" if status is None else f"exit status {status}"
    print(f"{job.words}: {ended} after {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
