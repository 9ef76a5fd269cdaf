"""A causal transformer over bytes, of plain arrays, and the texts that it reads: the modules of Python's standard library."""

import sysconfig
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Bytes beyond ASCII are read as one letter.
LETTERS = 128
WIDTH, HEADS, LAYERS, LENGTH = 256, 4, 4, 128


def initial(key: Any, width: int = WIDTH, layers: int = LAYERS, length: int = LENGTH) -> dict[str, Any]:
    """Random parameters; a layer's are stacked along the first axis."""
    keys = jax.random.split(key, 6)

    def matrix(key, *shape):
        return jax.random.normal(key, shape) / shape[-2] ** 0.5

    return {
        "letters": 0.02 * jax.random.normal(keys[0], (LETTERS, width)),
        "places": 0.02 * jax.random.normal(keys[1], (length, width)),
        "layers": {
            "scale": jnp.ones((layers, 2, width)),
            "qkv": matrix(keys[2], layers, width, 3 * width),
            "mix": matrix(keys[3], layers, width, width) / (2 * layers) ** 0.5,
            "up": matrix(keys[4], layers, width, 4 * width),
            "down": matrix(keys[5], layers, 4 * width, width) / (2 * layers) ** 0.5,
        },
        "scale": jnp.ones(width),
        "out": jnp.zeros((width, LETTERS)),
    }


def logits(w: dict[str, Any], text: Any, heads: int = HEADS) -> Any:
    """What follows each letter of a text (n, length)."""
    n, length = text.shape
    seen = jnp.tril(jnp.ones((length, length), bool))

    def normalise(h, scale):
        return h * scale * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)

    def block(h, w):
        q, k, v = jnp.split(normalise(h, w["scale"][0]) @ w["qkv"], 3, -1)
        q, k, v = (x.reshape(n, length, heads, -1) for x in (q, k, v))
        score = jnp.einsum("nihd,njhd->nhij", q, k) / q.shape[-1] ** 0.5
        mixed = jnp.einsum("nhij,njhd->nihd", jax.nn.softmax(jnp.where(seen, score, -1e9)), v)
        h = h + mixed.reshape(h.shape) @ w["mix"]
        return h + jax.nn.gelu(normalise(h, w["scale"][1]) @ w["up"]) @ w["down"], None

    h = jax.lax.scan(block, w["letters"][text] + w["places"][:length], w["layers"])[0]
    return normalise(h, w["scale"]) @ w["out"]


def loss(w: dict[str, Any], text: Any) -> Any:
    """The mean loss of the next letter, in nats, on texts (n, length + 1)."""
    text = text.astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits(w, text[:, :-1]), text[:, 1:]).mean()


def standard_library(least: int = 16_384) -> dict[str, np.ndarray]:
    """The text of each module or package of the standard library that has so many bytes, by name."""
    root, texts = Path(sysconfig.get_paths()["stdlib"]), {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).parts[0].removesuffix(".py")
        if name not in ("site-packages", "test", "lib2to3", "idlelib", "encodings", "__pycache__", "pydoc_data", "config"):
            texts.setdefault(name, []).append(path.read_bytes())
    joined = {name: np.minimum(np.frombuffer(b"\n".join(parts), np.uint8), LETTERS - 1) for name, parts in texts.items()}
    return {name: text for name, text in joined.items() if len(text) >= least}
