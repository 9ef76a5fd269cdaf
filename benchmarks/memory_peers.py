"""Most memory resident against N, side by side: one exact meta-gradient of one task, Conv4-64 on 28x28 images.

    make bench-env && python benchmarks/memory_peers.py [--steps 1 5 20 100 500] [--limit 16]

Every side computes the same meta-gradient in a process of its own (adaptax's compiles its program there), which may hold
--limit GiB of data: a side that needs more has run out. Prints one table and writes results/memory_peers.json.
"""

import argparse
import json
import resource
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import peer_inputs
from machine import description
from peers import SIDES, command, difference, require_peers
from tables import rows_of

RESULTS = Path(__file__).parent / "results" / "memory_peers.json"
STEPSIZE = 0.01


def measure(side: str, inputs: Path, limit: int) -> tuple[dict, dict | None]:
    """Peak and seconds of one meta-gradient, and the meta-gradient; or that it does not fit."""
    out = inputs.with_name("out.json")
    warmup = "1" if side.startswith("adaptax") else "0"
    full = [*command("conv4", side, inputs, out, "float32", 1), "--warmup", warmup]
    cap = lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit << 30, limit << 30))  # noqa: E731
    done = subprocess.run(full, preexec_fn=cap, capture_output=True, text=True)
    if done.returncode:
        if not any(word in done.stderr for word in ("memory", "alloc")):
            raise SystemExit(done.stderr)
        return {"failed": f"more than {limit} GiB"}, None
    record = json.loads(out.read_text())
    with np.load(out.with_suffix(".npz")) as file:
        return {"peak_mib": record["peak_mib"], "seconds": record["seconds"][0]}, {n: file[n] for n in file.files}


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Peaks by side and N."""
    cell = lambda entry: entry["failed"] if "failed" in entry else f"{entry['peak_mib']:,.0f} MiB"  # noqa: E731
    rows = [[f"`{side}`", *(cell(entry) for entry in entries)] for side, entries in result["sides"].items()]
    return ["N", *map(str, result["steps"])], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 5, 20, 100, 500))
    parser.add_argument("--limit", type=int, default=16, help="GiB")
    options = parser.parse_args()
    require_peers()
    sides: dict = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        for steps in options.steps:
            inputs = Path(folder) / "inputs.npz"
            peer_inputs.write("conv4", inputs, steps=steps, tasks=1, stepsize=STEPSIZE)
            ours = None
            for side, entries in sides.items():
                entry, gradient = measure(side, inputs, options.limit)
                ours = gradient if ours is None else ours
                if gradient is not None:
                    entry["difference"] = difference(gradient, ours)
                entries.append(entry)
                print(steps, side, entry, flush=True)
    result = {"machine": description(), "limit_gib": options.limit, "steps": list(options.steps), "sides": sides}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
