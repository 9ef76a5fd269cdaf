"""One exact second-order meta-gradient by adaptax, by plain JAX and by PyTorch with its libraries, side by side.

    make bench-env && python benchmarks/peers.py [--rounds 3] [--case sinusoid conv4 conv4-84 resnet12] [--sides NAME ...]

Every side computes the same meta-gradient from the same parameters and tasks, in a process of its own that may use all cores.
Before the rounds each side is tried on a quarter of the tasks with one worker of all cores and with one worker a core (JAX:
devices, PyTorch: processes of one thread), and keeps the faster of the two, which is saved as `split`; `torch.compile`, which
would compile for each number of tasks, has all cores together. The sides then take turns, round after round. A side that takes
more than --limit seconds for a turn, compilation included, is left out from then on, and the table says so.
The meta-gradients must agree, otherwise nothing is compared. Prints a table and writes results/peers.json, one entry for each
case and processor.

Plain JAX (`peer_jax.py`) is `jit(vmap(grad(scan)))`, with `jax.checkpoint` around the inner step or without; for images also
with `lax.map` instead of `vmap`. "adaptax, backprop" is adaptax's own `mode="backprop"`, measured for the largest network.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peer_inputs
from machine import measurement, run_within
from tables import RESULTS, rows_of, spread

HERE = Path(__file__).parent
PEER_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
TITLES = {
    "sinusoid": "sinusoids: MLP 1-40-40-1, 25 tasks, 10 + 10 points",
    "conv4": "images: Conv4-64, 28×28, 32 tasks, 5-way 1-shot, 5 queries",
    "conv4-84": "images: Conv4-32, 84×84, 4 tasks, 5-way 1-shot, 15 queries",
    "resnet12": "images: ResNet-12, 84×84, one task, 5-way 1-shot, 15 queries",
}
IMAGES = ("conv4", "conv4-84", "resnet12")


@dataclass(frozen=True)
class Side:
    """A way to compute the meta-gradient: the script, its options, and the cases that it is measured in."""

    script: str
    options: tuple[str, ...] = ()
    cases: tuple[str, ...] = tuple(TITLES)

    @property
    def is_jax(self) -> bool:
        return self.script != "peer_torch.py"


SIDES = {
    "adaptax": Side("peer_adaptax.py"),
    "adaptax, backprop": Side("peer_adaptax.py", ("--mode", "backprop"), ("resnet12",)),
    "plain JAX": Side("peer_jax.py"),
    "plain JAX, checkpoint": Side("peer_jax.py", ("--checkpoint",)),
    "plain JAX, lax.map": Side("peer_jax.py", ("--map",), IMAGES),
    "torch.func": Side("peer_torch.py", ("--peer", "torch-func")),
    "torch.func, torch.compile": Side("peer_torch.py", ("--peer", "torch-compile")),
    "parallel-metalearn": Side("peer_torch.py", ("--peer", "parallel-metalearn")),
    "parallel-metalearn, sequential": Side("peer_torch.py", ("--peer", "parallel-metalearn-sequential"), IMAGES),
    "TorchOpt": Side("peer_torch.py", ("--peer", "torchopt")),
    "higher": Side("peer_torch.py", ("--peer", "higher")),
    "learn2learn-style": Side("peer_torch.py", ("--peer", "learn2learn-style")),
}
# Timed meta-gradients of one turn, for adaptax and for the others.
REPEATS = {"sinusoid": (300, 100), "conv4": (5, 2), "conv4-84": (5, 2), "resnet12": (1, 1)}
# The largest network would take minutes more in double precision.
IN_DOUBLE = ("sinusoid", "conv4", "conv4-84")
DOUBLE_SIDES = ("adaptax", "plain JAX", "higher")
# Rounding decides now and then on which side of a ReLU a number lies, and that much the meta-gradients may differ.
AGREE = {"float32": 0.05, "float64": 1e-8}
# One worker that uses all cores, or a worker for each core.
WHOLE, SHARED = "all cores together", "one worker a core"


def require_peers() -> None:
    """Stop where the peers are not installed."""
    if not PEER_PYTHON.exists():
        raise SystemExit("The peers are not installed: run make bench-env first.")


def command(case: str, side: Side, inputs: Path, out: Path, split: str, dtype: str, repeats: int, warmup: int) -> list[str]:
    """The command of one turn."""
    workers, cores = (str(os.cpu_count()) if split == SHARED else "1"), str(os.cpu_count())
    python = sys.executable if side.is_jax else str(PEER_PYTHON)
    words = [python, str(HERE / side.script), "--case", case, "--inputs", str(inputs), "--out", str(out), *side.options]
    words += ["--dtype", dtype, "--repeats", str(repeats), "--warmup", str(warmup)]
    return words + (["--devices", workers] if side.is_jax else ["--threads", cores, "--processes", workers])


def measure(
    case: str, side: Side, inputs: Path, split: str, limit: float, dtype: str = "float32", repeats: int = 1, warmup: int = 1
) -> tuple[dict, dict]:
    """Times and meta-gradient of one turn; or "failed", with the reason, if it did not come to its end within the limit."""
    out = inputs.with_name("out.json")
    # What torch.compile has compiled serves the next round too.
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(inputs.with_name("inductor"))}
    words = command(case, side, inputs, out, split, dtype, repeats, warmup)
    status = run_within(limit, words, env=environment)
    if status != 0:
        reason = f"not within {limit:.0f} s" if status is None else f"failed with exit status {status}"
        if side.script == "peer_adaptax.py":
            raise SystemExit(f"adaptax, {case}: {reason}.")
        return {"failed": reason}, {}
    with np.load(out.with_suffix(".npz")) as file:
        return json.loads(out.read_text()), {name: file[name] for name in file.files}


def faster_split(case: str, side: Side, inputs: Path, limit: float) -> tuple[str, dict[str, float | None]]:
    """The faster of the two ways to use the cores, and the seconds of both on a quarter of the tasks."""
    tasks = max(peer_inputs.TASKS[case] // 4 // os.cpu_count(), 1) * os.cpu_count()
    divides = peer_inputs.TASKS[case] % os.cpu_count() == 0 or not side.is_jax
    if peer_inputs.TASKS[case] < os.cpu_count() or not divides or "torch-compile" in side.options:
        return WHOLE, {}
    few, seconds = inputs.with_name("few.npz"), {}
    peer_inputs.write(case, few, tasks=tasks)
    for split in (WHOLE, SHARED):
        record, _ = measure(case, side, few, split, limit, repeats=20 if case == "sinusoid" else 1)
        seconds[split] = None if "failed" in record else statistics.median(record["seconds"])
    found = {split: time for split, time in seconds.items() if time is not None}
    return (min(found, key=found.__getitem__) if found else WHOLE), seconds


def difference(a: dict, b: dict) -> float:
    """The norm of a - b over that of b."""
    flat = [np.concatenate([np.ravel(grads[name]).astype(float) for name in sorted(grads)]) for grads in (a, b)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def compare(case: str, names: list[str], rounds: int, limit: float, folder: Path) -> dict:
    """All rounds of one case."""
    inputs = folder / "inputs.npz"
    peer_inputs.write(case, inputs)
    sides: dict = {name: {"seconds": [], "round_medians": []} for name in names if case in SIDES[name].cases}
    for name, side in sides.items():
        side["split"], side["tried"] = faster_split(case, SIDES[name], inputs, limit)
        if side["tried"] and not any(side["tried"].values()):
            side["failed"] = f"not within {limit:.0f} s on a quarter of the tasks"
        print(f"{case}, {name}: {side['split']} {side['tried']}", flush=True)
    for number in range(rounds):
        gradients: dict = {}
        for name, side in sides.items():
            if "failed" in side:
                continue
            repeats = REPEATS[case][not name.startswith("adaptax")]
            record, gradient = measure(case, SIDES[name], inputs, side["split"], limit, repeats=repeats)
            if "failed" in record:
                side |= record
                continue
            gradients[name] = gradient
            side["seconds"] += record["seconds"]
            side["round_medians"].append(statistics.median(record["seconds"]))
            side.setdefault("first_s", record.get("first_s"))
            side |= {key: record[key] for key in ("peak_mib", "versions", "loss")}
            print(f"{case}, round {number + 1}, {name}: {1e3 * side['round_medians'][-1]:.4g} ms", flush=True)
        for name, gradient in gradients.items():
            sides[name]["difference"] = difference(gradient, gradients["adaptax"])
    agreement = in_double(case, sides, inputs, limit) if case in IN_DOUBLE else None
    wrong = [name for name, side in sides.items() if not side.get("difference", 0) < AGREE["float32"]]
    if wrong or (agreement is not None and not agreement < AGREE["float64"]):
        raise SystemExit(f"The meta-gradients disagree ({wrong}, {agreement} in double precision): compare nothing.")
    return {"name": case, "title": TITLES[case], "rounds": rounds, "difference_float64": agreement, "sides": sides}


def in_double(case: str, sides: dict, inputs: Path, limit: float) -> float:
    """The largest difference from adaptax's meta-gradient in double precision."""
    found = {}
    for name in DOUBLE_SIDES:
        if name in sides and "failed" not in sides[name]:
            record, gradient = measure(case, SIDES[name], inputs, sides[name]["split"], limit, "float64")
            found |= {} if "failed" in record else {name: gradient}
    return max(difference(gradient, found["adaptax"]) for gradient in found.values())


def table(case: dict) -> tuple[list[str], list[list[str]]]:
    """A row for each side of one case."""
    header = ["", "time", "ratio to adaptax", "cores", "most memory resident"]
    rows, ours = [], case["sides"]["adaptax"]["round_medians"]
    for name, side in case["sides"].items():
        if "failed" in side:
            rows.append([name, side["failed"], "", "", ""])
            continue
        ratios = [theirs / mine for theirs, mine in zip(side["round_medians"], ours, strict=True)]
        milliseconds = 1e3 * statistics.median(side["seconds"])
        time = f"{milliseconds:,.{0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2}f} ms"
        rows.append([name, time, spread(ratios, "{:.3g} ×"), side.get("split", ""), f"{side['peak_mib']:,.0f} MiB"])
    return header, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs="*", choices=tuple(TITLES), default=tuple(TITLES))
    parser.add_argument(
        "--sides", nargs="*", choices=tuple(SIDES), default=tuple(SIDES), metavar="NAME", help="always with adaptax"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds of one turn of a side")
    options = parser.parse_args()
    require_peers()
    names = [name for name in SIDES if name == "adaptax" or name in options.sides]
    path = RESULTS / "peers.json"
    for case in options.case:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(case, names, options.rounds, options.limit, Path(folder)) | measurement(parser, options)
        double = found["difference_float64"]
        print(f"\n{found['title']}" + (f" (double precision agrees to {double:.1e})" if double is not None else ""))
        print(rows_of(*table(found)))
        kept = json.loads(path.read_text())["cases"] if path.exists() else []
        # Results of other cases and other processors stay.
        cases = [old for old in kept if place(old) != place(found)] + [found]
        path.write_text(json.dumps({"cases": sorted(cases, key=place)}, indent=1) + "\n")


def place(case: dict) -> tuple[int, str]:
    """The order of the entries, of which there is one for each case and processor."""
    return list(TITLES).index(case["name"]), case["machine"]["cpu"]


if __name__ == "__main__":
    main()
