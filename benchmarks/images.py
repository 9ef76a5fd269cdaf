"""Real images: Omniglot's small background set 1 for training, the unseen alphabets of set 2 to judge by.

    python benchmarks/images.py --data FOLDER [--only 5-1 5-5 20-1] [--seeds 0 1 2]

FOLDER holds images_background_small1.zip and images_background_small2.zip, as published. Runs `adaptax train images` with
its defaults, as a user would, for each number of classes and support images and each seed, with prototypical and pre-trained
networks beside it (names `prototypical` and `pretrain`, seed 0). Writes results/images.json; other runs in it are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import description

RESULTS = Path(__file__).parent / "results" / "images.json"
# What differs from the defaults, and how often.
RUNS = {
    "5-1": ([], (0, 1, 2)),
    "5-5": (["--shots", 5], (0,)),
    "20-1": (["--ways", 20, "--steps", 2500], (0,)),
    "prototypical": (["--method", "prototypical", "--inner-steps", 0], (0,)),
    "pretrain": (["--method", "pretrain", "--inner-steps", 5, "--stepsize", 0.1], (0,)),
}


def accelerator() -> str | None:
    """What training runs on, if it is no CPU; asked in a process of its own, which leaves the device free."""
    ask = "import jax; device = jax.devices()[0]; print('' if device.platform == 'cpu' else device.device_kind)"
    return subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout.strip() or None


def run(name: str, seed: int, folder: Path) -> dict:
    """Train, judge, and say how long it took."""
    adaptax = str(Path(sys.executable).parent / "adaptax")
    data, test = (folder / f"images_background_small{n}.zip" for n in (1, 2))
    with tempfile.TemporaryDirectory() as out:
        options = ["--data", data, "--test-data", test, "--seed", seed, "--out", Path(out) / "run", *RUNS[name][0]]
        began = time.perf_counter()
        subprocess.run([adaptax, "train", "images", *map(str, options)], check=True)
        minutes = (time.perf_counter() - began) / 60
        kept = Path(out) / "run"
        told = subprocess.run([adaptax, "evaluate", str(kept), "--format", "json"], check=True, capture_output=True, text=True)
        config = json.loads((kept / "config.json").read_text())
    chosen = {key: config[key] for key in ("ways", "shots", "queries", "inner_steps", "stepsize", "channels", "adapt", "steps")}
    # The evaluation's own seed, that of the held-out tasks, is the same for all.
    told = json.loads(told.stdout)
    return {**told, "name": name, "seed": seed, "minutes": minutes, "accelerator": accelerator(), "config": chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two zips")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="*", help="seeds of each (default: 0, of 5-1 also 1 and 2)")
    options = parser.parse_args()
    saved = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    runs = saved.get("runs", [])
    for name in options.only:
        for seed in options.seeds or RUNS[name][1]:
            new = run(name, seed, options.data)
            runs = [old for old in runs if (old["name"], old["seed"]) != (name, seed)] + [new]
            RESULTS.write_text(json.dumps({"machine": description(), "runs": runs}, indent=1) + "\n")
            print(f"{name}, seed {seed}: {new['minutes']:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
