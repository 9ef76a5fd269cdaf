"""`adaptax adapt`: adapt what was trained to a new case, and predict."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import adaptax as ax
from adaptax._archive import kind_of
from adaptax.cli.families.own_network import own_network
from adaptax.cli.table import adapt as adapt_table
from adaptax.cli.table import features, is_described, read_frame
from adaptax.errors import InputError
from adaptax.learner.file import FORMAT, about_of
from adaptax.learner.load import FILE
from adaptax.report.table_model import worth
from adaptax.tasks.images import read_images
from adaptax.tasks.images.io.decoding import SUFFIXES, decode
from adaptax.training.files import write_text

if TYPE_CHECKING:
    from adaptax.cli.commands import Adapt

_ONE_SIDED_95 = 1.6448536269514722
_TWO_SIDED_95 = 1.959963984540054


def adapt(options: "Adapt") -> int:
    """Adapt, predict and write a CSV file. Returns the exit code."""
    if not options.out.absolute().parent.is_dir():
        raise InputError(f"--out {options.out} is in a folder that is not there: make it first.")
    learner = ax.load(options.run, params=_own_network(options))
    if not isinstance(learner, ax.Learner):
        if not is_described(learner.about_.get("table")):
            raise InputError(f"{options.run} does not say which columns it takes: use it from Python, by adapt and predict.")
        print(adapt_table(learner, options.support, options.predict, options.out))
        gain = learner.about_.get("gain")
        if not (isinstance(gain, list) and len(gain) == 2 and all(isinstance(x, int | float) for x in gain)):
            gain = [math.nan, math.nan]
        if options.explain:
            print(learner.about_.get("report") or worth(*gain))
        elif not gain[1] > 0:
            print(worth(*gain))
        return 0
    if not isinstance(learner.problem, ax.FiniteSum):
        raise InputError(f"{options.run} is of reinforcement learning, which adapts in its environment: see adaptax video.")
    predictor = (_images if learner.classifies else _rows)(learner, options)
    if not np.isfinite(predictor.losses).all():
        raise InputError("The adaptation was not finite: look for wrong values in --support.")
    _explain(learner, predictor, options.explain)
    return 0


def _own_network(options: "Adapt") -> Any:
    """The network of the user's own that was trained, if it was one, as --model makes it."""
    import jax

    path = options.run / FILE if options.run.is_dir() else options.run
    learner = path.is_file() and kind_of(path) == FORMAT
    said = about_of(path).get("images", {}) if learner else {}
    if (own := said.get("network")) is None:
        if options.model is not None:
            raise InputError(f"--model {options.model} is for a network of your own, and {options.run} has none: leave it out.")
        return None
    if options.model is None:
        raise InputError(f"{options.run} has a network of your own: name its function, --model {own['function']}.")
    images = jax.ShapeDtypeStruct((2, said["size"], said["size"], said["channels"]), np.float32)
    return own_network(options.model, own["outputs"], jax.random.key(0), images)


def _images(learner: ax.Learner, options: "Adapt") -> ax.Predictor:
    """Class folders to adapt to, and pictures to tell apart."""
    said = learner.about.get("images")
    if not _is_described(said):
        raise InputError(f"{options.run} does not say how its images were read: train it again, or use it from Python.")
    size, channels = said["size"], said["channels"]
    known = read_images(options.support, size, channels)
    paths = _pictures(options.predict)
    names = [str(path) for path in paths]
    pictures = np.stack([decode(path.read_bytes(), str(path), size, channels, False) for path in paths])
    predictor = learner.adapt((_pixels(known.images, said), np.repeat(known.names, known.counts)))
    parts = np.array_split(pictures, math.ceil(len(pictures) / 64))
    found = [np.asarray(predictor.probabilities(_pixels(part, said))) for part in parts]
    probabilities, classes = np.concatenate(found), predictor.classes
    assert classes is not None
    best = probabilities.argmax(1)
    rows = [(n, classes[k], f"{p[k]:.4f}") for n, k, p in zip(names, best, probabilities, strict=True)]
    _write(options.out, ("file", "class", "probability"), rows)
    print(f"{len(rows):,} pictures predicted after adaptation to {len(known.names)} classes: {options.out}")
    return predictor


def _is_described(said: Any) -> bool:
    """Whether a file says how its images were read."""
    sizes = isinstance(said, dict) and all(type(said.get(name)) is int and said[name] > 0 for name in ("size", "channels"))
    return sizes and isinstance(said.get("inverted"), bool)


def _pixels(images: np.ndarray, said: dict[str, Any]) -> np.ndarray:
    """Pictures as the network takes them."""
    return (255 - images if said["inverted"] else images).astype(np.float32) / 255


def _pictures(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"There are no pictures in {path}: give a folder of {', '.join(SUFFIXES)} files, or one file.")
    return found


def _rows(learner: ax.Learner, options: "Adapt") -> ax.Predictor:
    """A regression: the support table's last column is the target, and the others are the inputs."""
    known, asked = read_frame(options.support), read_frame(options.predict)
    *inputs, target = map(str, known.columns)
    if not inputs:
        raise InputError(f"{options.support.name} has one column alone: give columns of inputs, and the target last.")
    x, y = (features(known, names, options.support).astype(np.float32) for names in (inputs, [target]))
    rows = features(asked, inputs, options.predict).astype(np.float32)
    predictor = learner.adapt((x, y))
    found = np.asarray(predictor(rows)).reshape(len(rows), -1)
    _write(options.out, (*inputs, target), np.concatenate([rows, found], 1).tolist())
    print(f"{len(rows):,} rows predicted after adaptation to {len(x):,} rows: {options.out}")
    return predictor


def _write(path: Path, header: tuple[str, ...], rows: Any) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _explain(learner: ax.Learner, predictor: ax.Predictor, whole: bool) -> None:
    """How the loss fell on the support set, and what to expect by the held-out tasks of the training."""
    steps = learner.inner.steps
    if whole:
        losses = " ".join(f"{loss:.3g}" for loss in np.asarray(predictor.losses))
        print(f"Loss on the support set before each of {steps} steps: {losses}")
    evaluation = learner.about.get("evaluation")
    try:
        name = next((n for n in evaluation["scores"] if n.startswith("accuracy")), "loss")
        score, at = evaluation["scores"][name], evaluation["steps"].index(steps)
        ends = [tuple(float(score[k][i]) for k in ("low", "mean", "high")) for i in (0, at)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # none of these steps, or none at all
        return
    (low0, first, high0), (low, mean, high) = ends
    sign = 1 if name != "loss" else -1
    error = math.hypot(high0 - low0, high - low) / (2 * _TWO_SIDED_95)
    gain = sign * (mean - first)
    if whole:
        print(f"{name} on held-out tasks of its training: {mean:.4g} [{low:.4g}, {high:.4g}], before adaptation {first:.4g}")
    if whole or gain - _ONE_SIDED_95 * error <= 0:
        print(worth(gain, gain - _ONE_SIDED_95 * error).replace("lowers the error", f"improves the {name}"))
