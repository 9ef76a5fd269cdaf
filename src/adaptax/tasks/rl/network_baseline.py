"""A baseline that is a value network, fitted to every batch anew."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError
from adaptax.tasks.rl.environment import Trajectories


def _widths(hidden: Any) -> tuple[int, ...]:
    if not isinstance(hidden, tuple | list):
        raise InputError(f"NetworkBaseline(hidden={hidden!r}) must be a tuple of widths such as (32, 32): change hidden=.")
    return tuple(check_whole("NetworkBaseline", "hidden", width) for width in hidden)


class NetworkBaseline(eqx.Module):
    r"""A network of tanh layers from $(o, t)$ to returns to go, fitted to every batch anew by full-batch steps of Adam.

    The episodes are cut into two halves, and each half's values come from a fit to the *other* half, which also gives the
    standardisation of inputs and targets. So, as with `LinearBaseline`, the estimators stay unbiased. Every fit begins with
    the same weights and a last layer of zeros, where V is the mean return to go.

    Arguments:
        hidden: widths of the hidden layers (default (32, 32)).
        steps: the number of Adam steps (default 50).
        learning_rate: Adam's (default 1e-2).
        seed: decides the initial weights (default 0).

    `baseline(trajectories, returns)` takes returns to go of shape (n, H) and gives values of shape (n, H + 1), which are
    constants to every derivative.

    Errors: `InputError` if a width or the number of steps is not a positive whole number, the seed not a whole number of at
        least 0, or the rate not positive.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.LVC(discount=0.95, baseline=ax.tasks.rl.NetworkBaseline(hidden=(16,))).discount
        0.95

    Source: the network in place of the features of Duan et al. (2016), ICML; cross-fitting: docs/theory.md, section 2.1.
    """

    hidden: tuple[int, ...] = eqx.field(static=True, default=(32, 32), converter=_widths)
    steps: int = eqx.field(static=True, default=50, converter=functools.partial(check_whole, "NetworkBaseline", "steps"))
    learning_rate: float = eqx.field(
        static=True, default=1e-2, converter=functools.partial(check_real, "NetworkBaseline", "learning_rate", above=0)
    )
    seed: int = eqx.field(static=True, default=0, converter=functools.partial(check_whole, "NetworkBaseline", "seed", least=0))

    def __call__(self, trajectories: Trajectories, returns: Float[Array, "n H"]) -> Float[Array, "n H1"]:
        n, times = trajectories.observations.shape[:2]
        o = trajectories.observations.reshape(n, times, -1).astype(returns.dtype)
        t = jnp.broadcast_to(jnp.arange(times, dtype=o.dtype)[:, None], (n, times, 1))
        weights = trajectories.mask.astype(o.dtype)

        def halves(x):
            # An odd number of episodes is filled up with one that has weight zero.
            return jnp.pad(x, ((0, n % 2), *((0, 0),) * (x.ndim - 1))).reshape(2, -1, *x.shape[1:])

        inputs = jnp.concatenate([o, t], axis=-1)
        x, y, w = jax.lax.stop_gradient(jax.tree.map(halves, (inputs, returns, weights)))
        values = jax.vmap(self._values)(x[::-1], y[::-1], w[::-1], x)
        return values.reshape(-1, times)[:n]

    def _values(self, inputs: Array, returns: Array, weights: Array, others: Array) -> Float[Array, "half H1"]:
        """The values of other episodes, by a fit to these."""
        weights = weights / jnp.maximum(jnp.sum(weights), 1)
        used = inputs[:, :-1]
        middle, spread = _moments(used, weights[..., None], (0, 1))
        mean, deviation = _moments(returns, weights, None)

        def standardised(x):
            return (x - middle) / (spread + 1e-6)

        targets, used = (returns - mean) / (deviation + 1e-6), standardised(used)

        def loss(layers):
            return jnp.sum(weights * (_network(layers, used) - targets) ** 2)

        adam = optax.adam(self.learning_rate)

        def step(carry, _):
            layers, state = carry
            updates, state = adam.update(jax.grad(loss)(layers), state)
            return (optax.apply_updates(layers, updates), state), None

        layers = self._initial_layers(inputs.shape[-1], inputs.dtype)
        (layers, _), _ = jax.lax.scan(step, (layers, adam.init(layers)), length=self.steps)
        return mean + (deviation + 1e-6) * _network(layers, standardised(others))

    def _initial_layers(self, size: int, dtype: Any) -> list[tuple[Array, Array]]:
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
