"""The recipe, the shared batches and the clock of every side of `time_to_accuracy.py`. Needs NumPy only.

5-way 1-shot characters with 5 target images a class, Conv4-32 with one class vector for all classes at first, N = 5 inner steps
of α = 0.1 on the last layer or on the whole network, Adam with a rate of 0.001, 16 tasks a meta-step.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peer_inputs

WAYS, SHOTS, QUERIES, TASKS = 5, 1, 5, 16
INNER_STEPS, ALPHA, RATE, WIDTH = 5, 0.1, 1e-3, 32
ADAPT = ("head", "everything")
PARTS = {"support": SHOTS, "target": QUERIES}


def initial() -> dict[str, np.ndarray]:
    """The initial parameters by name: He's weights, and a head of zeros with one output."""
    rng, arrays = np.random.default_rng(0), {}
    for i, channels in enumerate([1, WIDTH, WIDTH, WIDTH]):
        arrays |= peer_inputs.unit(rng, f"params/blocks/{i}", 3, channels, WIDTH)
    arrays |= {"params/head/weight": np.zeros((WIDTH, 1)), "params/head/bias": np.zeros(1)}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def labels(each: int, tasks: int = TASKS) -> np.ndarray:
    """The labels of `each` images of every class, for all tasks."""
    return np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), each), (tasks, 1))


def batches(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Support and target images of each meta-step, (tasks, images, 28, 28, 1) in [0, 1]."""
    files = [np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS]
    for support, target in zip(*files, strict=True):
        yield tuple(images.astype(np.float32)[..., None] / 255 for images in (support, target))


class Clock:
    """Seconds of training, and the parameters at each look; it stands still while they are written."""

    def __init__(self, out: Path, every: int, seconds: float) -> None:
        self.out, self.every, self.limit, self.looks = out, every, seconds, []
        self.spent, self.began = 0.0, time.perf_counter()

    def look(self, step: int, params: dict[str, np.ndarray]) -> bool:
        """Keep the parameters after so many meta-steps; whether there is time left."""
        seconds = self.spent + time.perf_counter() - self.began
        np.savez(self.out / f"{step}.npz", **params)
        self.looks.append({"step": step, "seconds": seconds})
        (self.out / "looks.json").write_text(json.dumps(self.looks))
        print(f"{step} meta-steps: {seconds:.1f} s", flush=True)
        self.spent, self.began = seconds, time.perf_counter()
        return seconds < self.limit
