"""Train the models that come with the package, and write them with their cards to src/adaptax/weights.

    python benchmarks/weights.py --data FOLDER [--only NAME ...]

FOLDER holds `omniglot/images_background_small1.zip`, `omniglot/images_background_small2.zip` and
`parkinsons/parkinsons_updrs.data`. Each model is trained by the command that its card names.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import adaptax as ax
from adaptax import _archive as archive
from adaptax.learner.load import FILE, TABLE

ADAPTAX = str(Path(sys.executable).parent / "adaptax")
WEIGHTS = Path(ax.learner.__file__).parents[1] / "weights"
OMNIGLOT = "Omniglot's minimal background sets, Lake, Salakhutdinov, Tenenbaum (2015), Science 350"
PARKINSONS = "UCI Parkinson's Telemonitoring, Tsanas, Little, McSharry, Ramig (2010), IEEE TBME"
VOICE = [
    "age", "sex", "test_time", "Jitter(%)", "Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP", "Shimmer", "Shimmer(dB)",
    "Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA", "NHR", "HNR", "RPDE", "DFA", "PPE",
]  # fmt: skip
# By name: the words of the command, where the names of files stand in braces, and the card.
MODELS = {
    "sinusoid": (
        ["sinusoid", "--inner-steps", "10", "--steps", "7000"],
        {"about": "sinusoids from 10 points, MLP 1-40-40-1, N = 10", "data": "drawn by ax.tasks.sinusoid", "licence": "none"},
    ),
    "omniglot-conv4-32": (
        ["images", "--data", "{small1}", "--test-data", "{small2}"],
        {"about": "few-shot characters, any number of classes, Conv4-32, 28 x 28, trained on 5-way 1-shot tasks",
         "data": f"{OMNIGLOT}: trained on small 1, judged on the alphabets of small 2 that are not in it", "licence": "MIT"},
    ),
    "parkinsons": (
        ["table", "--data", "{parkinsons}", "--group", "subject#", "--target", "motor_UPDRS", "--order", "test_time",
         "--support", "10", "--features", *VOICE],
        {"about": "motor UPDRS of a new patient over time, from the first ten recordings; not for clinical use",
         "data": f"{PARKINSONS}: trained on all 42 patients, judged on groups held out by each of five models",
         "licence": "CC BY 4.0"},
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=list(MODELS))
    arguments = parser.parse_args()
    files = {
        "small1": arguments.data / "omniglot" / "images_background_small1.zip",
        "small2": arguments.data / "omniglot" / "images_background_small2.zip",
        "parkinsons": arguments.data / "parkinsons" / "parkinsons_updrs.data",
    }
    for name in arguments.only:
        words, card = MODELS[name]
        shown = " ".join(["adaptax train", *(word.format(**{key: path.name for key, path in files.items()}) for word in words)])
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            subprocess.run([ADAPTAX, "train", *(word.format(**files) for word in words), "--out", str(run)], check=True)
            _write(
                run / (TABLE if (run / TABLE).exists() else FILE), WEIGHTS / f"{name}.npz", card | {"command": shown, "seed": 0}
            )


def _write(source: Path, target: Path, card: dict) -> None:
    """The file with its card among what it says of itself."""
    kind = archive.kind_of(source)
    assert kind is not None
    header, arrays = archive.read(source, kind, 1, {"about"})
    header["about"]["card"] = card
    target.parent.mkdir(exist_ok=True)
    draft = source.with_name("with-card.npz")
    archive.write(draft, kind, header["version"], {k: v for k, v in header.items() if k not in ("format", "version")}, arrays)
    shutil.copyfile(draft, target)


if __name__ == "__main__":
    main()
