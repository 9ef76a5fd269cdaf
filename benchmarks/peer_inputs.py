"""Initial parameters and tasks of the side-by-side benchmarks, drawn once with NumPy for all sides.

Every side of the comparison reads the same `.npz` file, so that all compute the same meta-gradient.
Layout: `params/...` (initial parameters), `support_x`, `support_y`, `target_x`, `target_y` (leading axis: tasks),
`inner_steps`, `stepsize`. Images are NHWC float32, labels int32, convolution kernels (3, 3, cin, cout),
dense kernels (in, out).
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

STEPS = 5
STEPSIZE = {"sinusoid": 0.01, "conv4": 0.1, "conv4-84": 0.05, "resnet12": 0.001}
TASKS = {"sinusoid": 25, "conv4": 32, "conv4-84": 4, "resnet12": 1}
HIDDEN = 40
WIDTH, WAYS, SHOTS, QUERIES, SIDE = 64, 5, 1, 5, 28
# The networks for 84x84 pictures in colour, with 15 queries a class.
WIDTH84, QUERIES84, SIDE84 = 32, 15, 84
RESNET = (64, 160, 320, 640)


def sinusoid(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A·sin(x − φ), A ~ U[0.1, 5], φ ~ U[0, π], x ~ U[−5, 5]; 10 support and 10 target points; MLP 1-40-40-1."""
    sizes = [1, HIDDEN, HIDDEN, 1]
    arrays = {}
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        arrays[f"params/layers/{i}/weight"] = rng.normal(size=(rows, columns)) * np.sqrt(2 / rows)
        arrays[f"params/layers/{i}/bias"] = rng.normal(size=columns) * 0.1
    tasks = TASKS["sinusoid"]
    amplitude, phase = rng.uniform(0.1, 5, (tasks, 1, 1)), rng.uniform(0, np.pi, (tasks, 1, 1))
    for part in ("support", "target"):
        x = rng.uniform(-5, 5, (tasks, 10, 1))
        arrays[f"{part}_x"], arrays[f"{part}_y"] = x, amplitude * np.sin(x - phase)
    return arrays


def strokes(rng: np.random.Generator) -> np.ndarray:
    """The points of one character: three smooth strokes, (points, 2) in pixels around the origin."""
    t = np.linspace(0, 1, 40)[:, None]
    ends = rng.uniform(-9, 9, (3, 3, 2))
    return np.concatenate([a * (1 - t) ** 2 + 2 * b * t * (1 - t) + c * t**2 for a, b, c in ends])


def draw(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One 28 × 28 image of the character: a random small affine distortion, ink in [0, 1], grey noise of 0.1."""
    matrix = np.eye(2) + rng.normal(size=(2, 2)) * 0.1
    moved = points @ matrix + SIDE / 2 + rng.uniform(-2, 2, 2)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1)
    distance = ((grid[:, :, None] - moved) ** 2).sum(-1).min(-1)
    # Without noise whole areas tie in the max pooling and lie at the kink of a ReLU, where rounding decides.
    return np.clip(2 - distance, 0, 1) + rng.normal(size=(SIDE, SIDE)) * 0.1


def conv4(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """5-way 1-shot episodes of drawn characters, 5 queries a class; Conv4-64 without convolution bias."""
    arrays = {}
    for i, channels in enumerate([1, WIDTH, WIDTH, WIDTH]):
        arrays[f"params/blocks/{i}/weight"] = rng.normal(size=(3, 3, channels, WIDTH)) * np.sqrt(2 / (9 * channels))
        arrays[f"params/blocks/{i}/scale"] = np.ones(WIDTH)
        arrays[f"params/blocks/{i}/shift"] = np.zeros(WIDTH)
    arrays["params/head/weight"] = rng.normal(size=(WIDTH, WAYS)) * np.sqrt(1 / WIDTH)
    arrays["params/head/bias"] = np.zeros(WAYS)
    characters = [[strokes(rng) for _ in range(WAYS)] for _ in range(TASKS["conv4"])]
    for part, count in (("support", SHOTS), ("target", QUERIES)):
        images = [[draw(points, rng) for points in classes for _ in range(count)] for classes in characters]
        arrays[f"{part}_x"] = np.stack([np.stack(task) for task in images])[..., None]
        arrays[f"{part}_y"] = np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), count), (TASKS["conv4"], 1))
    return arrays


def photos(rng: np.random.Generator, tasks: int) -> dict[str, np.ndarray]:
    """Episodes of coloured 84 x 84 pictures: a coarse field of colours for each class, moved and noisy in each picture."""
    arrays = {}
    fields = rng.uniform(0, 1, (tasks, WAYS, 7, 7, 3)).repeat(SIDE84 // 7, axis=2).repeat(SIDE84 // 7, axis=3)
    for part, count in (("support", SHOTS), ("target", QUERIES84)):
        images = fields.repeat(count, axis=1)
        for image in images.reshape(-1, SIDE84, SIDE84, 3):
            image[:] = np.roll(image, rng.integers(-10, 11, 2), (0, 1)) + rng.normal(size=image.shape) * 0.1
        arrays[f"{part}_x"] = images
        arrays[f"{part}_y"] = np.tile(np.repeat(np.arange(WAYS, dtype=np.int32), count), (tasks, 1))
    return arrays


def unit(rng: np.random.Generator, name: str, size: int, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """A convolution and its normalisation."""
    weight = rng.normal(size=(size, size, inputs, outputs)) * np.sqrt(2 / (size**2 * inputs))
    return {f"{name}/weight": weight, f"{name}/scale": np.ones(outputs), f"{name}/shift": np.zeros(outputs)}


def head(rng: np.random.Generator, inputs: int) -> dict[str, np.ndarray]:
    """A linear layer."""
    return {"params/head/weight": rng.normal(size=(inputs, WAYS)) * np.sqrt(1 / inputs), "params/head/bias": np.zeros(WAYS)}


def conv4_84(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Conv4-32 on 84 x 84 pictures, whose head has 5 * 5 * 32 inputs."""
    arrays = photos(rng, TASKS["conv4-84"])
    for i, channels in enumerate([3, WIDTH84, WIDTH84, WIDTH84]):
        arrays |= unit(rng, f"params/blocks/{i}", 3, channels, WIDTH84)
    return arrays | head(rng, 25 * WIDTH84)


def resnet12(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """ResNet-12 as published, on 84 x 84 pictures."""
    arrays, inputs = photos(rng, TASKS["resnet12"]), 3
    for i, width in enumerate(RESNET):
        for k in range(3):
            arrays |= unit(rng, f"params/blocks/{i}/units/{k}", 3, inputs if k == 0 else width, width)
        arrays |= unit(rng, f"params/blocks/{i}/shortcut", 1, inputs, width)
        inputs = width
    return arrays | head(rng, inputs)


CASES = {"sinusoid": sinusoid, "conv4": conv4, "conv4-84": conv4_84, "resnet12": resnet12}


def write(case: str, path: Path, seed: int = 0, steps: int = STEPS, tasks: int | None = None, stepsize=None) -> None:
    """Write the inputs of `case` to `path`: all of its tasks or the first `tasks`, with its step size or `stepsize`."""
    arrays = CASES[case](np.random.default_rng(seed))
    parts = ("support_x", "support_y", "target_x", "target_y")
    arrays = {name: a[:tasks] if name in parts else a for name, a in arrays.items()}
    arrays = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
    np.savez(path, inner_steps=np.int32(steps), stepsize=np.float32(stepsize or STEPSIZE[case]), **arrays)
