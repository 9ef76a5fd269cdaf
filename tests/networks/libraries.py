"""The same small network with batch normalisation and dropout in each library, as its own documentation writes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

STEPS, ROWS, ALPHA = 4, 6, 0.2


class Network(NamedTuple):
    """A network.

    Arguments:
        params, state: its two parts.
        loss: `loss(params, state, batch) -> (loss, next state)`, in training.
        judged: the same after it, with running statistics and no dropout.
        statistics: the floating-point part of the state.
    """

    params: Any
    state: Any
    loss: Callable
    judged: Callable
    statistics: Callable = lambda state: [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def linen():
    nn = __import__("pytest").importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            x = nn.Dense(8, param_dtype=float)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=float)(x)
            x = nn.Dropout(0.3, deterministic=not train)(jnp.tanh(x))
            return nn.Dense(3, param_dtype=float)(x)

    model = Model()
    variables = model.init(jax.random.key(0), jnp.ones((ROWS, 5)), train=False)

    def loss(params, state, batch):
        x, y = batch
        key, now = jax.random.split(state["key"])
        logits, moved = model.apply(
            {"params": params, "batch_stats": state["batch_stats"]},
            x,
            train=True,
            rngs={"dropout": now},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, y), {"batch_stats": moved["batch_stats"], "key": key}

    def judged(params, state, batch):
        x, y = batch
        return cross_entropy(model.apply({"params": params, "batch_stats": state["batch_stats"]}, x, train=False), y)

    return Network(variables["params"], {"batch_stats": variables["batch_stats"], "key": jax.random.key(1)}, loss, judged)


def nnx():
    nnx = __import__("pytest").importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(5, 8, rngs=rngs, param_dtype=float)
            self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs, param_dtype=float)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs, param_dtype=float)

        def __call__(self, x):
            return self.last(self.dropout(jnp.tanh(self.norm(self.first(x)))))

    model = Model(nnx.Rngs(0))
    model.train()
    graph, params, state = nnx.split(model, nnx.Param, ...)
    model.eval()
    judging = nnx.graphdef(model)

    def loss(params, state, batch):
        model = nnx.merge(graph, params, state)
        value = cross_entropy(model(batch[0]), batch[1])
        return value, nnx.state(model, nnx.Not(nnx.Param))

    def judged(params, state, batch):
        return cross_entropy(nnx.merge(judging, params, state)(batch[0]), batch[1])

    return Network(params, state, loss, judged)


def equinox():
    class Model(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        dropout: eqx.nn.Dropout
        last: eqx.nn.Linear

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.first = eqx.nn.Linear(5, 8, key=a)
            self.norm = eqx.nn.BatchNorm(8, axis_name="batch", momentum=0.9, mode="ema")
            self.dropout = eqx.nn.Dropout(0.3)
            self.last = eqx.nn.Linear(8, 3, key=b)

        def __call__(self, x, state, key):
            x, state = self.norm(self.first(x), state)
            return self.last(self.dropout(jnp.tanh(x), key=key)), state

    model, state = eqx.nn.make_with_state(Model)(jax.random.key(0))

    def apply(model, state, x, keys):
        return jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))(x, state, keys)

    def loss(model, carried, batch):
        state, key = carried
        key, now = jax.random.split(key)
        logits, state = apply(model, state, batch[0], jax.random.split(now, ROWS))
        return cross_entropy(logits, batch[1]), (state, key)

    def judged(model, carried, batch):
        model = eqx.nn.inference_mode(model)
        logits, _ = apply(model, carried[0], batch[0], jax.random.split(carried[1], ROWS))
        return cross_entropy(logits, batch[1])

    return Network(model, (state, jax.random.key(1)), loss, judged)


def haiku():
    hk = __import__("pytest").importorskip("haiku")

    def forward(x, train):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training=train)
        x = hk.dropout(hk.next_rng_key(), 0.3, jnp.tanh(x)) if train else jnp.tanh(x)
        return hk.Linear(3)(x)

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.key(0), jnp.ones((ROWS, 5)), True)

    def loss(params, carried, batch):
        state, key = carried
        key, now = jax.random.split(key)
        logits, state = model.apply(params, state, now, batch[0], True)
        return cross_entropy(logits, batch[1]), (state, key)

    def judged(params, carried, batch):
        return cross_entropy(model.apply(params, carried[0], None, batch[0], False)[0], batch[1])

    return Network(params, (state, jax.random.key(1)), loss, judged)


LIBRARIES = {"flax.linen": linen, "flax.nnx": nnx, "equinox": equinox, "haiku": haiku}
