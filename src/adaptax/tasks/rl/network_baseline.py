"""A value network that is fitted to each batch anew."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from adaptax.errors import InputError
from adaptax.tasks.rl.environment import Trajectories


class NetworkBaseline(eqx.Module):
    r"""A network of tanh layers fitted to returns to go on $(o, t)$, for each batch anew, by steps of Adam on all of it.

    The episodes are cut into two halves, and each half's values come from a fit to the *other* one, standardisation of inputs
    and targets included. So, as with `LinearBaseline`, the estimators stay unbiased. Every fit begins with the same weights,
    with zeros in the last layer: without steps V is the mean return to go.

    Arguments:
        hidden: widths of the hidden layers (default (32, 32)).
        steps: of Adam (default 50).
        learning_rate: of Adam (default 1e-2).
        seed: of the first weights (default 0).

    `baseline(trajectories, returns)` gives values of shape (n, H + 1), with no derivative by anything.

    Errors: `InputError` if a width or the number of steps is not a positive whole number, or the rate not a positive one.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.LVC(discount=0.95, baseline=ax.tasks.rl.NetworkBaseline(hidden=(16,))).discount
        0.95

    Source: the network in place of the features of Duan et al. (2016), ICML; cross-fitting: docs/theory.md, section 2.1.
    """

    hidden: tuple[int, ...] = eqx.field(
        static=True, default=(32, 32), converter=lambda x: tuple(x) if isinstance(x, list) else x
    )
    steps: int = eqx.field(static=True, default=50)
    learning_rate: float = eqx.field(static=True, default=1e-2)
    seed: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        whole = lambda x, least: not isinstance(x, bool) and isinstance(x, int) and x >= least  # noqa: E731
        if not isinstance(self.hidden, tuple) or not all(whole(width, 1) for width in self.hidden):
            raise InputError(f"NetworkBaseline(hidden={self.hidden!r}) must be positive whole numbers such as (32, 32).")
        for name, least in (("steps", 1), ("seed", 0)):
            if not whole(getattr(self, name), least):
                value = getattr(self, name)
                raise InputError(
                    f"NetworkBaseline({name}={value!r}) must be a whole number of at least {least}: change {name}=."
                )
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise InputError(f"NetworkBaseline(learning_rate={rate!r}) must be a positive, finite number.")

    def __call__(self, trajectories: Trajectories, returns: Float[Array, "n H"]) -> Float[Array, "n H1"]:
        n, times = trajectories.observations.shape[:2]
        o = trajectories.observations.reshape(n, times, -1).astype(returns.dtype)
        t = jnp.broadcast_to(jnp.arange(times, dtype=o.dtype)[:, None], (n, times, 1))
        weights = trajectories.mask.astype(o.dtype)

        def halves(x):
            # An odd number of episodes is filled up with one of weight zero.
            return jnp.pad(x, ((0, n % 2), *((0, 0),) * (x.ndim - 1))).reshape(2, -1, *x.shape[1:])

        inputs = jnp.concatenate([o, t], axis=-1)
        x, y, w = jax.lax.stop_gradient(jax.tree.map(halves, (inputs, returns, weights)))
        values = jax.vmap(self._values)(x[::-1], y[::-1], w[::-1], x)
        return values.reshape(-1, times)[:n]

    def _values(self, inputs: Array, returns: Array, weights: Array, others: Array) -> Float[Array, "half H1"]:
        """The values of other episodes by a fit to these."""
        weights = weights / jnp.maximum(jnp.sum(weights), 1)
        used = inputs[:, :-1]
        middle, spread = _moments(used, weights[..., None], (0, 1))
        mean, deviation = _moments(returns, weights, None)
        standard = lambda x: (x - middle) / (spread + 1e-6)  # noqa: E731
        targets, used = (returns - mean) / (deviation + 1e-6), standard(used)

        def loss(layers):
            return jnp.sum(weights * (_network(layers, used) - targets) ** 2)

        adam = optax.adam(self.learning_rate)

        def step(carry, _):
            layers, state = carry
            updates, state = adam.update(jax.grad(loss)(layers), state)
            return (optax.apply_updates(layers, updates), state), None

        layers = self._layers(inputs.shape[-1], inputs.dtype)
        (layers, _), _ = jax.lax.scan(step, (layers, adam.init(layers)), length=self.steps)
        return mean + (deviation + 1e-6) * _network(layers, standard(others))

    def _layers(self, size: int, dtype: Any) -> list[tuple[Array, Array]]:
        sizes = (size, *self.hidden, 1)
        keys = jax.random.split(jax.random.key(self.seed), len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        layers = [(jax.random.normal(key, (a, b), dtype) / math.sqrt(a), jnp.zeros(b, dtype)) for key, a, b in pairs]
        return [*layers[:-1], (jnp.zeros_like(layers[-1][0]), layers[-1][1])]


def _moments(x: Array, weights: Array, axis: Any) -> tuple[Array, Array]:
    mean = jnp.sum(weights * x, axis=axis)
    return mean, jnp.sqrt(jnp.sum(weights * (x - mean) ** 2, axis=axis))


def _network(layers: Any, x: Array) -> Array:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return (x @ layers[-1][0] + layers[-1][1])[..., 0]
