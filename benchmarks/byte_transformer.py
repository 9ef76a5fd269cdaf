"""A causal transformer over bytes, of plain arrays, and the texts that it reads: the modules of Python's standard library.

    python benchmarks/byte_transformer.py --save FILE [--pretrain 4500]

The command trains the network on the texts as a language model and saves it, so that several benchmarks can begin with it.
"""

import argparse
import functools
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

import adaptax as ax

# Bytes beyond ASCII are read as one letter.
LETTERS = 128
WIDTH, HEADS, LAYERS, LENGTH = 256, 4, 4, 128
# The largest step size of Adam from random parameters.
RATE = 1.5e-3
# Standard deviation of the letters' vectors.
EMBEDDING = 1.0
# Bytes of the shortest text, and of the shortest that is held out or that the language model is trained on.
LEAST, LONG = 5_000, 16_384
# Texts that no training sees: to judge by, and to choose settings by.
HELD_OUT, VALIDATION = 30, 15


def initial(key: Any, width: int = WIDTH, layers: int = LAYERS) -> dict[str, Any]:
    """Random parameters."""
    keys = jax.random.split(key, layers + 1)

    def matrix(key, *shape):
        return jax.random.normal(key, shape) / shape[0] ** 0.5

    def layer(key):
        qkv, mix, up, down = jax.random.split(key, 4)
        return {
            "scale": jnp.ones((2, width)),
            "qkv": matrix(qkv, width, 3 * width),
            "mix": matrix(mix, width, width) / (2 * layers) ** 0.5,
            "up": matrix(up, width, 4 * width),
            "down": matrix(down, 4 * width, width) / (2 * layers) ** 0.5,
        }

    return {
        "letters": EMBEDDING * jax.random.normal(keys[0], (LETTERS, width)),
        "layers": [layer(key) for key in keys[1:]],
        "scale": jnp.ones(width),
        "out": jnp.zeros((width, LETTERS)),
    }


def logits(w: dict[str, Any], text: Any, heads: int = HEADS) -> Any:
    """What follows each letter of a text (n, length); places are told by rotations of the queries and keys."""
    n, length = text.shape
    seen = jnp.tril(jnp.ones((length, length), bool))

    def normalise(h, scale):
        return h * scale * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)

    def product(h, matrix):
        # One product of all rows: on a CPU its derivative by the matrix takes half the time of that of a batch of products.
        return (h.reshape(-1, h.shape[-1]) @ matrix).reshape(*h.shape[:-1], -1)

    def rotated(x):
        half = x.shape[-1] // 2
        angle = jnp.arange(length)[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)

    h = w["letters"][text]
    for layer in w["layers"]:
        q, k, v = (
            x.reshape(n, length, heads, -1) for x in jnp.split(product(normalise(h, layer["scale"][0]), layer["qkv"]), 3, -1)
        )
        score = jnp.einsum("nihd,njhd->nhij", rotated(q), rotated(k)) / q.shape[-1] ** 0.5
        mixed = jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(jnp.where(seen, score, -1e9)), v)
        h = h + product(mixed.reshape(h.shape), layer["mix"])
        h = h + product(jax.nn.gelu(product(normalise(h, layer["scale"][1]), layer["up"])), layer["down"])
    return product(normalise(h, w["scale"]), w["out"])


def loss(w: dict[str, Any], text: Any) -> Any:
    """The mean loss of the next letter, in nats, on texts (n, length + 1)."""
    text = text.astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits(w, text[:, :-1]), text[:, 1:]).mean()


def standard_library(least: int = LEAST) -> dict[str, np.ndarray]:
    """The text of each module or package of the standard library that has so many bytes, by name."""
    root, texts = Path(sysconfig.get_paths()["stdlib"]), {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).parts[0].removesuffix(".py")
        if name not in ("site-packages", "test", "lib2to3", "idlelib", "encodings", "__pycache__", "pydoc_data", "config"):
            texts.setdefault(name, []).append(path.read_bytes())
    joined = {name: np.minimum(np.frombuffer(b"\n".join(parts), np.uint8), LETTERS - 1) for name, parts in texts.items()}
    return {name: text for name, text in joined.items() if len(text) >= least}


class Parts(NamedTuple):
    """Texts to judge by, to choose settings by, to train the language model on, and short ones for meta-training."""

    held_out: list[np.ndarray]
    validation: list[np.ndarray]
    training: list[np.ndarray]
    short: list[np.ndarray]


def parts(texts: dict[str, np.ndarray]) -> Parts:
    """The texts in parts that share none."""
    names = np.random.default_rng(0).permutation(sorted(name for name, text in texts.items() if len(text) >= LONG))
    long = [[texts[str(name)] for name in part] for part in np.split(names, [HELD_OUT, HELD_OUT + VALIDATION])]
    return Parts(*long, [text for text in texts.values() if len(text) < LONG])


def cut(text: Any, first: Any, count: int) -> Any:
    """So many stretches of a text (count, 129), one after another from a place on; the last letter of each begins the next."""
    return text[first + LENGTH * jnp.arange(count)[:, None] + jnp.arange(LENGTH + 1)]


def sampler(texts: Sequence[np.ndarray], count: int) -> Callable[[Any], Any]:
    """`draw(key)`: stretches of a text, drawn in proportion to the root of its length, from a random place on."""
    sizes = np.array([len(text) for text in texts])
    letters = jnp.asarray(np.concatenate(texts))
    starts, lasts, shares = (jnp.asarray(x) for x in (np.cumsum(sizes) - sizes, sizes - count * LENGTH, np.log(sizes) / 2))

    def draw(key):
        who, where = jax.random.split(key)
        i = jax.random.categorical(who, shares)
        return cut(letters, starts[i] + jax.random.randint(where, (), 0, lasts[i]), count)

    return draw


def interval(values: np.ndarray) -> list[float]:
    """The mean over texts and half of its 95 % interval, by Student's distribution."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return [float(values.mean()), float(half)]


def climb(judge: Callable[[float], float], first: float, factor: float = 2.0) -> tuple[float, dict[float, float]]:
    """A step size that is no better times a factor or divided by it, searched from the first one on, and all tried."""
    tried: dict[float, float] = {}

    def at(stepsize):
        if stepsize not in tried:
            value = float(judge(stepsize))
            tried[stepsize] = value if np.isfinite(value) else float("inf")
        return tried[stepsize]

    best = first
    while (better := min((best, best / factor, factor * best), key=at)) != best:
        best = better
    return best, tried


def train(
    w: Any, texts: list[np.ndarray], rate: float, *, steps: int | None = None, seconds: float = 0.0, last: float = 0.0,
    stretches: int = 8, seed: int = 0, every: int = 250,
) -> tuple[Any, int]:  # fmt: skip
    """Train as a language model by Adam on random stretches of the texts; the parameters, and the steps taken.

    A text is drawn in proportion to the root of its length. The run takes so many steps, or without `steps` so many seconds. In
    its first fiftieth the step size rises to `rate`, and then it falls as a cosine to a share `last` of that.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    rng, shares = np.random.default_rng(seed), np.sqrt([len(text) for text in texts])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(w, state, text, rate):
        value, gradient = jax.value_and_grad(loss)(w, text)
        move, state = optimizer.update(gradient, state, w)
        return jax.tree.map(lambda w, move: w - rate * move, w, move), state, value

    w = jax.tree.map(jnp.array, w)
    state, start, values = optimizer.init(w), time.perf_counter(), []

    def done():
        return (time.perf_counter() - start) / seconds if steps is None else len(values) / steps

    while (share := done()) < 1:
        rising = min(50 * share + 0.02, 1.0)
        falling = last + (1 - last) * (1 + np.cos(np.pi * max(share - 0.02, 0) / 0.98)) / 2
        chosen = rng.choice(len(texts), stretches, p=shares / shares.sum())
        places = [rng.integers(0, len(texts[i]) - LENGTH) for i in chosen]
        text = np.stack([texts[i][a : a + LENGTH + 1] for i, a in zip(chosen, places, strict=True)])
        w, state, value = step(w, state, text, rate * rising * falling)
        values.append(float(value))
        if len(values) % every == 0:
            print(f"{len(values)} steps, {time.perf_counter() - start:.0f} s: {np.mean(values[-every:]):.3f} nats", flush=True)
    return w, len(values)


def outer_optimizer(steps: int, rate: float, of_stepsizes: float) -> optax.GradientTransformation:
    """Adam for `ax.Meta`: a largest step size for what adapts and one for the logarithms of step sizes; both fall to zero."""
    rising = max(steps // 20, 1)

    def adam(rate):
        schedule = optax.warmup_cosine_decay_schedule(rate / rising, rate, rising, steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    return optax.partition({"w": adam(rate), "rates": adam(of_stepsizes)}, lambda tree: ax.Meta("w", "rates"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark that begins with a trained language model."""
    parser.add_argument("--pretrain", type=int, default=4500, help="steps as a language model")
    parser.add_argument(
        "--base", type=Path, metavar="FILE", help="begin with the network of this file instead, which --save wrote"
    )


def base(options: argparse.Namespace, texts: list[np.ndarray]) -> tuple[Any, int, float]:
    """The trained language model, the steps and the seconds that it took: from the file, or trained now."""
    w = initial(jax.random.key(0))
    if options.base is not None:
        with np.load(options.base) as file:
            leaves = [jnp.asarray(file[f"leaf{i}"]) for i in range(len(jax.tree.leaves(w)))]
            return jax.tree.unflatten(jax.tree.structure(w), leaves), int(file["steps"]), float(file["seconds"])
    start = time.perf_counter()
    w, steps = train(w, texts, RATE, steps=options.pretrain, last=0.1)
    return w, steps, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--save", type=Path, metavar="FILE", required=True, help="where the network is written, as npz")
    options = parser.parse_args()
    w, steps, seconds = base(options, parts(standard_library()).training)
    np.savez(options.save, steps=steps, seconds=seconds, **{f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(w))})


if __name__ == "__main__":
    main()
