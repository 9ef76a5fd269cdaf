"""Side by side: adaptax, TorchOpt, higher and learn2learn's algorithm on one exact second-order meta-gradient.

    make bench-env && python benchmarks/peers.py [--rounds 3] [--case sinusoid conv4 conv4-84 resnet12]

Every side is a process of its own, free to use all cores, fed with the same parameters and tasks; sides take turns, round
after round, and the gradients must agree. adaptax spreads the images over one host device a core, as its training does;
for the small network one device is faster, since a call takes two milliseconds.
TorchOpt under vmap is shown too, though its examples do not use it for Conv4, and for the largest network adaptax's own
backpropagation, which keeps what the recursion forms again.
Prints one table and writes results/peers.json, one entry for each case and processor.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import peer_inputs
from machine import description

HERE = Path(__file__).parent
PEER_PYTHON = HERE.parent / ".venv-bench" / "bin" / "python"
TITLES = {
    "sinusoid": "sinusoids: MLP 1-40-40-1, 25 tasks, 10 + 10 points",
    "conv4": "images: Conv4-64, 32 tasks, 5-way 1-shot, 5 queries",
    "conv4-84": "Conv4-32, 84×84, 4 tasks, 5-way 1-shot, 15 queries",
    "resnet12": "ResNet-12, 84×84, one task, 5-way 1-shot, 15 queries",
}
SIDES = {
    "adaptax": [],
    "adaptax, backprop": ["--mode", "backprop"],
    "TorchOpt": ["--peer", "torchopt"],
    "TorchOpt, vmap": ["--peer", "torchopt-vmap"],
    "higher": ["--peer", "higher"],
    "learn2learn-style": ["--peer", "learn2learn-style"],
}
# Sides that are not in every case.
ONLY = {"adaptax, backprop": ("resnet12",)}
DEVICES = {"sinusoid": 1, "conv4": os.cpu_count(), "conv4-84": os.cpu_count(), "resnet12": 1}
REPEATS = {
    "sinusoid": {"adaptax": 300, "other": 30},
    "conv4": {"adaptax": 5, "other": 3},
    "conv4-84": {"adaptax": 5, "other": 3},
    "resnet12": {"adaptax": 1, "other": 1},
}
# The largest network would take minutes more in double precision.
IN_DOUBLE = ("sinusoid", "conv4", "conv4-84")
# Rounding decides now and then on which side of a ReLU a number lies, and that much the meta-gradients may differ.
AGREE = {"float32": 0.05, "float64": 1e-8}


def require_peers() -> None:
    """Stop where the peers are not installed."""
    if not PEER_PYTHON.exists():
        raise SystemExit("The peers are not installed: run make bench-env first.")


def command(case: str, side: str, inputs: Path, out: Path, dtype: str, repeats: int) -> list[str]:
    cores = str(os.cpu_count())
    common = ["--case", case, "--inputs", str(inputs), "--out", str(out), "--dtype", dtype, "--repeats", str(repeats)]
    if side.startswith("adaptax"):
        return [sys.executable, str(HERE / "peer_adaptax.py"), *common, *SIDES[side], "--devices", str(DEVICES[case])]
    return [str(PEER_PYTHON), str(HERE / "peer_torch.py"), *common, *SIDES[side], "--threads", cores]


def measure(case: str, side: str, inputs: Path, folder: Path, dtype: str, repeats: int) -> tuple[dict, dict]:
    out = folder / "out.json"
    subprocess.run(command(case, side, inputs, out, dtype, repeats), check=True)
    with np.load(out.with_suffix(".npz")) as file:
        return json.loads(out.read_text()), {name: file[name] for name in file.files}


def difference(a: dict, b: dict) -> float:
    flat = lambda grads: np.concatenate([np.ravel(grads[name]).astype(float) for name in sorted(grads)])  # noqa: E731
    return float(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)))


def compare(case: str, rounds: int, folder: Path) -> dict:
    inputs = folder / "inputs.npz"
    peer_inputs.write(case, inputs)
    names = [name for name in SIDES if case in ONLY.get(name, TITLES)]
    sides: dict = {name: {"seconds": [], "round_medians": []} for name in names}
    for number in range(rounds):
        gradients = {}
        for name in names:
            repeats = REPEATS[case]["adaptax" if name.startswith("adaptax") else "other"]
            record, gradients[name] = measure(case, name, inputs, folder, "float32", repeats)
            side = sides[name]
            side["seconds"] += record["seconds"]
            side["round_medians"].append(statistics.median(record["seconds"]))
            side |= {key: record[key] for key in ("peak_mib", "versions", "loss")}
            print(f"{case}, round {number + 1}, {name}: {1e3 * side['round_medians'][-1]:.4g} ms", flush=True)
        for name in names:
            sides[name]["difference"] = difference(gradients[name], gradients["adaptax"])
    agreement = None
    if case in IN_DOUBLE:
        doubles = {name: measure(case, name, inputs, folder, "float64", 1)[1] for name in ("adaptax", "higher")}
        agreement = difference(doubles["higher"], doubles["adaptax"])
    wrong = [name for name in names if not sides[name]["difference"] < AGREE["float32"]]
    if wrong or (agreement is not None and not agreement < AGREE["float64"]):
        raise SystemExit(f"The meta-gradients disagree ({wrong}, {agreement} in double precision): compare nothing.")
    ours = sides["adaptax"]["round_medians"]
    for side in sides.values():
        ratios = [theirs / mine for theirs, mine in zip(side["round_medians"], ours, strict=True)]
        middle = statistics.median(ratios)
        side["ratio"] = {"median": middle, "low": min(ratios), "high": max(ratios)}
        side["ratio"]["text"] = f"{middle:.3g} x [{min(ratios):.3g}, {max(ratios):.3g}]"
    return {
        "name": case, "title": TITLES[case], "machine": description(), "devices": DEVICES[case],
        "difference_float64": agreement, "sides": sides,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", nargs="*", choices=tuple(TITLES), default=tuple(TITLES))
    arguments = parser.parse_args()
    require_peers()
    with tempfile.TemporaryDirectory() as folder:
        cases = [compare(case, arguments.rounds, Path(folder)) for case in arguments.case]
    for case in cases:
        double = case["difference_float64"]
        print(f"\n{case['title']}" + (f" (double precision agrees to {double:.1e})" if double is not None else ""))
        print("| | median | ratio to adaptax [rounds] | peak memory | loss |\n| --- | --- | --- | --- | --- |")
        for name, side in case["sides"].items():
            time = 1e3 * statistics.median(side["seconds"])
            print(f"| {name} | {time:.4g} ms | {side['ratio']['text']} | {side['peak_mib']:.0f} MiB | {side['loss']:.6f} |")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / "peers.json"
    kept = json.loads(path.read_text())["cases"] if path.exists() else []
    # What another processor did stays.
    which = lambda case: (list(TITLES).index(case["name"]), case["machine"]["cpu"])  # noqa: E731
    cases = list(({which(case): case for case in kept} | {which(case): case for case in cases}).values())
    cases.sort(key=which)
    path.write_text(json.dumps({"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
