"""Most memory resident against N, side by side: one exact meta-gradient of one task, Conv4-64 on 28x28 images.

    make bench-env && python benchmarks/memory_peers.py [--steps 1 5 20 100 500] [--limit 16] [--seconds 300]

Every side of `peers.py` computes the same meta-gradient in a process of its own, which may hold --limit GiB of data and take
--seconds; JAX's sides compile their program there. `torch.compile` is left out, since it would compile the
graphs of N steps, and so are the sides that differ from others only where there are several tasks.
Prints one table and writes results/memory_peers.json.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import peer_inputs
from machine import measurement, run_within
from peers import SIDES, WHOLE, command, difference, require_peers
from tables import RESULTS, rows_of

STEPSIZE = 0.01
LEFT_OUT = ("adaptax, backprop", "plain JAX, lax.map", "torch.func, torch.compile", "parallel-metalearn, sequential")
NAMES = tuple(name for name in SIDES if name not in LEFT_OUT)


def measure(name: str, inputs: Path, limit: int, seconds: float) -> tuple[dict, dict | None]:
    """Peak and seconds of one meta-gradient, and the meta-gradient; or why there is none."""
    out, side = inputs.with_name("out.json"), SIDES[name]

    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit << 30, limit << 30))

    words = command("conv4", side, inputs, out, WHOLE, "float32", repeats=1, warmup=1 if side.is_jax else 0)
    said = inputs.with_name("errors.txt")
    with said.open("w") as errors:
        status = run_within(seconds, words, preexec_fn=cap, stdout=errors, stderr=errors)
    if status is None:
        return {"failed": f"more than {seconds:.0f} s"}, None
    if status:
        if not any(word in said.read_text() for word in ("memory", "alloc")):
            raise SystemExit(said.read_text())
        return {"failed": f"more than {limit} GiB"}, None
    record = json.loads(out.read_text())
    with np.load(out.with_suffix(".npz")) as file:
        return {"peak_mib": record["peak_mib"], "seconds": record["seconds"][0]}, {n: file[n] for n in file.files}


def cell(entry: dict) -> str:
    """The peak, or what was exceeded."""
    return entry["failed"] if "failed" in entry else f"{entry['peak_mib']:,.0f} MiB"


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Peaks by side and N."""
    rows = [[side, *map(cell, entries)] for side, entries in result["sides"].items()]
    return ["N", *map(str, result["steps"])], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="*", default=(1, 5, 20, 100, 500))
    parser.add_argument("--limit", type=int, default=16, help="GiB")
    parser.add_argument("--seconds", type=float, default=300, help="the longest a side may take, compilation included")
    options = parser.parse_args()
    require_peers()
    sides: dict = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        for steps in options.steps:
            inputs = Path(folder) / "inputs.npz"
            peer_inputs.write("conv4", inputs, steps=steps, tasks=1, stepsize=STEPSIZE)
            ours = None
            for name, entries in sides.items():
                entry, gradient = measure(name, inputs, options.limit, options.seconds)
                ours = gradient if ours is None else ours
                if gradient is not None and ours is not None:
                    entry["difference"] = difference(gradient, ours)
                entries.append(entry)
                print(steps, name, entry, flush=True)
    result = measurement(parser, options) | {"limit_gib": options.limit, "steps": list(options.steps), "sides": sides}
    (RESULTS / "memory_peers.json").write_text(json.dumps(result, indent=1) + "\n")
    print(rows_of(*table(result)))


if __name__ == "__main__":
    main()
