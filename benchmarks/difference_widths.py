"""How wide a finite difference may be on networks with kinks: the error of Hv over the width, in single precision.

    python benchmarks/difference_widths.py --data ZIP [--tasks 20] [--only NETWORK ...]

Five networks at their initial parameters, v the gradient of the target loss: `conv4` with 32 channels, 5-way 1-shot, on the
characters of Omniglot's images_background_small1.zip and on images of noise; `resnet12` on images of noise; a relu network on
sinusoids; a transformer with relu and causal attention on random text. Prints one table and writes
results/difference_widths.json.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from machine import measurement
from tables import RESULTS, load

import adaptax as ax

WIDTHS = (None, 1e-2, 1e-3, 1e-4, 1e-5)
LETTERS, WIDTH, LAYERS, LENGTH = 64, 64, 4, 64


class Network(NamedTuple):
    """A network, its loss, and a function that draws a task."""

    model: Any
    loss: Callable
    sample: Callable


def noise(side: int, channels: int) -> Callable:
    """Tasks of images of noise, five classes, one example each."""

    def sample(key):
        a, b = jax.random.split(key)
        labels, size = jnp.arange(5), (side, side, channels)
        support, target = jax.random.normal(a, (5, *size)), jax.random.normal(b, (25, *size))
        return ax.Task((support, labels), (target, jnp.tile(labels, 5)))

    return sample


def transformer() -> Network:
    """A small causal language model of plain arrays, on random letters."""
    keys = jax.random.split(jax.random.key(0), 3)

    def of(key, *shape):
        return jax.random.normal(key, shape) / shape[-2] ** 0.5

    layer = lambda key: {n: of(jax.random.fold_in(key, i), *shape) for i, (n, shape) in enumerate(shapes.items())}  # noqa: E731
    shapes = {"qkv": (3, WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    model = {
        "embedding": jax.random.normal(keys[0], (LETTERS, WIDTH)),
        "layers": jax.vmap(layer)(jax.random.split(keys[1], LAYERS)),
        "out": of(keys[2], WIDTH, LETTERS),
    }

    def normalise(h):
        return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)

    def block(h, w):
        q, k, v = normalise(h) @ w["qkv"]
        seen = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        h = h + jax.nn.softmax(jnp.where(seen, q @ k.T / WIDTH**0.5, -jnp.inf)) @ v
        return h + jax.nn.relu(normalise(h) @ w["up"]) @ w["down"], None

    def loss(w, text):
        h = jax.lax.scan(block, w["embedding"][text[:-1]], w["layers"])[0]
        return optax.softmax_cross_entropy_with_integer_labels(h @ w["out"], text[1:]).mean()

    return Network(model, loss, lambda key: ax.Task(*jax.random.randint(key, (2, LENGTH + 1), 0, LETTERS)))


def networks(data: Path) -> dict[str, Network]:
    """The networks of the table."""
    characters = ax.tasks.few_shot(ax.tasks.read_characters(data), 5, 1, 5)
    conv4 = ax.models.conv4(5, key=jax.random.key(0), channels=32)
    resnet = ax.models.resnet12(5, key=jax.random.key(0), channels=16, image=(32, 32, 3))
    mlp, waves = eqx.nn.MLP(1, 1, 64, 3, key=jax.random.key(0)), ax.tasks.sinusoid()
    return {
        "Conv4, Omniglot": Network(conv4, characters.loss, characters.sample_task),
        "Conv4, noise": Network(conv4, characters.loss, noise(28, 1)),
        "relu network, sinusoids": Network(mlp, lambda w, b: jnp.mean((jax.vmap(w)(b[0]) - b[1]) ** 2), waves.sample_task),
        "transformer, random text": transformer(),
        "ResNet-12, noise": Network(resnet, characters.loss, noise(32, 3)),
    }


def errors(network: Network, keys: list) -> dict[str, list[float]]:
    """Relative errors of Hv by width, one for each task."""
    floats, static = eqx.partition(network.model, eqx.is_inexact_array)

    def loss(w, batch):
        return network.loss(eqx.combine(w, static), batch)

    def product(strategy):
        def run(task):
            v = jax.grad(loss)(floats, task.target)
            local = ax.curvature.LocalLoss(lambda w, _: loss(w, task.support), floats)
            return ravel_pytree(strategy.product(local, v)[1][0])[0]

        return jax.jit(run)

    tasks = [network.sample(key) for key in keys]
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
    for width in (w for w in map(str, WIDTHS) if all(w in result["errors"][kind] for kind in kinds)):
        cells = [result["errors"][kind][width] for kind in kinds]
        cells = [f"{statistics.median(x):.2g} [{min(x):.2g}, {max(x):.2g}]" for x in cells]
        lines.append(f"| {'default' if width == 'None' else f'δ = {width}'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="ZIP", help="an Omniglot zip")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--only", nargs="*", metavar="NETWORK", help="beginnings of names; other networks are kept")
    arguments = parser.parse_args()
    keys = [jax.random.key(1000 + i) for i in range(arguments.tasks)]
    described = measurement(parser, arguments)
    result = described | {"tasks": arguments.tasks, "errors": {}, "measured": {}}
    if arguments.only is not None:
        result = load("difference_widths") or result
    for name, network in networks(arguments.data).items():
        if arguments.only is not None and not any(name.startswith(word) for word in arguments.only):
            continue
        result["errors"][name], result["measured"][name] = errors(network, keys), described
        (RESULTS / "difference_widths.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
