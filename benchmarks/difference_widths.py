"""How wide a finite difference may be on a convolutional network: the error of Hv over the width, in single precision.

    python benchmarks/difference_widths.py --data ZIP [--tasks 6]

`conv4` with 32 channels at its initial parameters, 5-way 1-shot, v the gradient of the target loss; on the characters of
Omniglot's images_background_small1.zip and on images of noise. Prints one table and writes results/difference_widths.json.
"""

import argparse
import json
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from machine import measurement
from tables import RESULTS

import adaptax as ax

WIDTHS = (None, 1e-1, 1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6)


def noise(key):
    """A task of images of noise."""
    a, b = jax.random.split(key)
    labels = jnp.arange(5)
    support, target = jax.random.normal(a, (5, 28, 28, 1)), jax.random.normal(b, (25, 28, 28, 1))
    return ax.Task((support, labels), (target, jnp.tile(labels, 5)))


def errors(loss, model, tasks) -> dict[str, list[float]]:
    """Relative errors of Hv by width, one for each task."""

    def product(strategy):
        def run(task):
            v = jax.grad(lambda w: loss(w, task.target))(model)
            return ravel_pytree(strategy.product(ax.curvature.LocalLoss(lambda w, _: loss(w, task.support), model), v)[1][0])[0]

        return jax.jit(run)

    exact, found = [product(ax.curvature.Exact())(task) for task in tasks], {}
    for width in WIDTHS:
        got = product(ax.curvature.FiniteDifference(delta=width))
        pairs = zip(tasks, exact, strict=True)
        found[str(width)] = [float(jnp.linalg.norm(got(task) - hv) / jnp.linalg.norm(hv)) for task, hv in pairs]
    return found


def table(result: dict) -> str:
    """Median and range over tasks, as markdown."""
    kinds = list(result["errors"])
    lines = ["| width | " + " | ".join(kinds) + " |", "| --- " * (1 + len(kinds)) + "|"]
    for width in map(str, WIDTHS):
        cells = [result["errors"][kind][width] for kind in kinds]
        cells = [f"{statistics.median(x):.2g} [{min(x):.2g}, {max(x):.2g}]" for x in cells]
        lines.append(f"| {'default' if width == 'None' else width} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="ZIP", help="an Omniglot zip")
    parser.add_argument("--tasks", type=int, default=6)
    arguments = parser.parse_args()
    model = ax.models.conv4(5, key=jax.random.key(0), channels=32)
    omniglot = ax.tasks.few_shot(ax.tasks.read_characters(arguments.data), 5, 1, 5)
    keys = [jax.random.key(i) for i in range(arguments.tasks)]
    samplers = {"Omniglot": omniglot.sample_task, "noise": noise}
    found = {kind: errors(omniglot.loss, model, [sample(key) for key in keys]) for kind, sample in samplers.items()}
    result = measurement(parser, arguments) | {"tasks": arguments.tasks, "errors": found}
    (RESULTS / "difference_widths.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
