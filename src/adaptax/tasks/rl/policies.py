"""Policies whose parameters are the module itself: a table of logits, and a Gaussian around a network's output."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from adaptax.errors import InputError

_LEAST = math.log(1e-6)


class SoftmaxPolicy(eqx.Module):
    r"""$\pi(a \mid s) \propto e^{\theta_{sa}}$ for finitely many states and actions.

    Arguments:
        logits: $\theta$, shape (states, actions).

    Errors: `InputError` if the logits are no matrix.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> policy = ax.tasks.rl.SoftmaxPolicy(jnp.zeros((3, 2)))
        >>> policy.log_prob(jnp.array([0, 2]), jnp.array([1, 1])).shape
        (2,)

    Source: docs/theory.md, section 2.1.
    """

    logits: Float[Array, "states actions"]

    def __check_init__(self):
        if hasattr(self.logits, "ndim") and self.logits.ndim != 2:
            raise InputError(f"SoftmaxPolicy needs logits of shape (states, actions), not {self.logits.shape}: reshape them.")

    def sample(self, observations: Int[Array, " n"], key: Key[Array, ""]) -> Int[Array, " n"]:
        """An action for each observed state."""
        return jax.random.categorical(key, self.logits[observations])

    def log_prob(self, observations: Int[Array, " n"], actions: Int[Array, " n"]) -> Float[Array, " n"]:
        """The logarithms of the actions' probabilities."""
        return jax.nn.log_softmax(self.logits)[observations, actions]

    def divergence(self, other: "SoftmaxPolicy", observations: Int[Array, " n"]) -> Float[Array, " n"]:
        """The Kullback-Leibler divergence from this policy to another, at each observed state."""
        mine, its = (jax.nn.log_softmax(p.logits)[observations] for p in (self, other))
        return jnp.sum(jnp.exp(mine) * (mine - its), axis=-1)


class GaussianPolicy(eqx.Module):
    r"""$a \sim N(\mu(o), \mathrm{diag}(e^{2s}))$: the mean is a network's, the log standard deviations s are learned.

    Standard deviations are at least 1e-6, whatever s is.

    Arguments:
        mean: a network from (n, observation size) to (n, size), such as `ax.models.mlp((2, 100, 100, 2), key=key)`.
        size: the number of entries of an action.
        std: the standard deviation to begin with (default 1).

    Errors: `InputError` if `mean` is no function, the size is not a positive whole number or std not a positive one.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> policy = ax.tasks.rl.GaussianPolicy(ax.models.mlp((2, 100, 100, 2), key=jax.random.key(0)), 2, std=0.1)
        >>> policy.sample(jnp.zeros((5, 2)), jax.random.key(1)).shape
        (5, 2)

    Source: Finn, Abbeel, Levine (2017), ICML, section 5.3; docs/theory.md, section 10.3.
    """

    mean: Callable
    log_std: Float[Array, " size"]

    def __init__(self, mean: Callable, size: int, std: float = 1.0):
        if not callable(mean):
            raise InputError(f"GaussianPolicy(mean={type(mean).__name__}) must be a network: use ax.models.mlp.")
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
            raise InputError(f"GaussianPolicy(size={size!r}) must be a whole number of at least 1.")
        if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf:
            raise InputError(f"GaussianPolicy(std={std!r}) must be a positive, finite number: change std=.")
        self.mean = mean
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(mean) if eqx.is_inexact_array(leaf)]
        self.log_std = jnp.full((size,), math.log(std), dtypes[0] if dtypes else None)

    def sample(self, observations: Float[Array, "n inputs"], key: Key[Array, ""]) -> Float[Array, "n size"]:
        """An action for each observation."""
        return self.act(observations, self.noise(key, len(observations)))

    def noise(self, key: Key[Array, ""], n: int) -> Float[Array, "n size"]:
        """What `act` makes n actions of; `rollout` draws that of all steps at once."""
        return jax.random.normal(key, (n, *self.log_std.shape), self.log_std.dtype)

    def act(self, observations: Float[Array, "n inputs"], noise: Float[Array, "n size"]) -> Float[Array, "n size"]:
        """The action for each observation that the noise decides."""
        return self._means(observations) + jnp.exp(self._scale) * noise

    def log_prob(self, observations: Float[Array, "n inputs"], actions: Float[Array, "n size"]) -> Float[Array, " n"]:
        """The log densities of the actions."""
        z = (actions - self._means(observations)) * jnp.exp(-self._scale)
        return -0.5 * jnp.sum(z**2, axis=-1) - jnp.sum(self._scale) - 0.5 * math.log(2 * math.pi) * z.shape[-1]

    def divergence(self, other: "GaussianPolicy", observations: Float[Array, "n inputs"]) -> Float[Array, " n"]:
        """The Kullback-Leibler divergence from this policy to another, at each observation."""
        z = (self._means(observations) - other._means(observations)) * jnp.exp(-other._scale)
        ratio = 2 * (self._scale - other._scale)
        return 0.5 * jnp.sum(z**2 + jnp.exp(ratio) - 1 - ratio, axis=-1)

    @property
    def _scale(self):
        return jnp.maximum(self.log_std, _LEAST)

    def _means(self, observations):
        mean = self.mean(observations)
        if mean.shape != (*observations.shape[:1], *self.log_std.shape):
            need = (*observations.shape[:1], *self.log_std.shape)
            raise InputError(f"The network returns shape {mean.shape} where the actions have {need}: change its outputs.")
        return mean


def mean_kl(old: Any, new: Any, trajectories: Any) -> Float[Array, ""]:
    """The mean divergence from one policy to another over the steps taken: for `ax.stepsize.TrustRegion`."""
    mask = trajectories.mask
    flat = trajectories.observations[:, :-1].reshape((mask.size, *trajectories.observations.shape[2:]))
    return jnp.mean(old.divergence(new, flat), where=mask.ravel())
