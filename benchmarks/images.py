"""Real images: Omniglot's small background set 1 for training, the unseen alphabets of set 2 to judge by.

    python benchmarks/images.py --data FOLDER [--out RUN]

FOLDER holds images_background_small1.zip and images_background_small2.zip, as published. Runs `adaptax train images` with
its defaults, as a user would, and writes results/images.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import description

WAYS, SHOTS, QUERIES = 5, 1, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two zips")
    parser.add_argument("--out", type=Path, help="run folder to keep (default: a temporary one)")
    arguments, rest = parser.parse_known_args()
    adaptax = str(Path(sys.executable).parent / "adaptax")
    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder) / "run"
        data, test = (arguments.data / f"images_background_small{n}.zip" for n in (1, 2))
        options = ["--data", data, "--test-data", test, "--ways", WAYS, "--shots", SHOTS, "--queries", QUERIES, *rest]
        began = time.perf_counter()
        subprocess.run([adaptax, "train", "images", *map(str, options), "--out", str(out)], check=True)
        minutes = (time.perf_counter() - began) / 60
        told = subprocess.run([adaptax, "evaluate", str(out), "--format", "json"], check=True, capture_output=True, text=True)
    result = {"machine": description(), "minutes": minutes, "ways": WAYS, "shots": SHOTS, **json.loads(told.stdout)}
    (Path(__file__).parent / "results" / "images.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{minutes:.1f} minutes")


if __name__ == "__main__":
    main()
