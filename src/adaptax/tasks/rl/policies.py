"""Policies: a table of logits for finitely many states, and a network that gives logits or the mean of a Gaussian."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from adaptax._checks import check_real, check_whole
from adaptax.errors import InputError

_LEAST_LOG_STD = math.log(1e-6)


class SoftmaxPolicy(eqx.Module):
    r"""$\pi(a \mid s) \propto e^{\theta_{sa}}$ for finitely many states and actions.

    Arguments:
        logits: $\theta$, shape (states, actions).

    Errors: `InputError` if the logits are not a matrix.

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
        _check_states(observations)
        return jax.random.categorical(key, self.logits[observations])

    def log_prob(self, observations: Int[Array, " n"], actions: Int[Array, " n"]) -> Float[Array, " n"]:
        """The logarithms of the actions' probabilities."""
        return jax.nn.log_softmax(self.logits)[observations, actions]

    def divergence(self, other: "SoftmaxPolicy", observations: Int[Array, " n"]) -> Float[Array, " n"]:
        """The Kullback-Leibler divergence from this policy to another, at each observed state."""
        mine, its = (jax.nn.log_softmax(p.logits)[observations] for p in (self, other))
        return jnp.sum(jnp.exp(mine) * (mine - its), axis=-1)


def _check_states(observations: Array) -> None:
    if not jnp.issubdtype(observations.dtype, jnp.integer):
        text = f"SoftmaxPolicy is a table of states, and the observations are {observations.dtype}{list(observations.shape)}"
        raise InputError(f"{text}: use ax.tasks.rl.CategoricalPolicy with a network.")


class CategoricalPolicy(eqx.Module):
    r"""$\pi(a \mid o) = \prod_i \mathrm{softmax}(\theta_i(o))_{a_i}$: a network gives a logit for each choice.

    It serves the finite spaces of gymnasium, whose environments say as `choices` what there is to choose: a number for
    `Discrete`, and numbers, one for each entry of an action, for `MultiDiscrete` and `MultiBinary` (twos). Actions count
    from 0.

    Arguments:
        logits: a network from (n, observation size) to (n, number of choices in all), such as
            `ax.models.mlp((4, 64, 2), key=key)`.
        choices: the number of actions, for actions of shape (n,); or numbers $c_1, ..., c_k$, for actions of shape (n, k).

    Errors: `InputError` if `logits` is not callable or gives another shape, or a number of choices is not a positive whole
        number.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> policy = ax.tasks.rl.CategoricalPolicy(ax.models.mlp((4, 64, 5), key=jax.random.key(0)), (3, 2))
        >>> actions = policy.sample(jnp.zeros((7, 4)), jax.random.key(1))
        >>> actions.shape, policy.log_prob(jnp.zeros((7, 4)), actions).shape
        ((7, 2), (7,))

    Source: docs/theory.md, section 2.1.
    """

    logits: Callable
    choices: int | tuple[int, ...] = eqx.field(static=True)

    def __init__(self, logits: Callable, choices: int | Sequence[int]):
        if not callable(logits):
            raise InputError(f"CategoricalPolicy(logits={type(logits).__name__}) must be a network: use ax.models.mlp.")
        self.logits = logits
        if isinstance(choices, tuple | list) and choices:
            self.choices = tuple(check_whole("CategoricalPolicy", "choices", n) for n in choices)
        else:
            self.choices = check_whole("CategoricalPolicy", "choices", choices)

    def sample(self, observations: Float[Array, "n ..."], key: Key[Array, ""]) -> Int[Array, "n ..."]:
        """An action for each observation."""
        return self.act(observations, self.noise(key, len(observations)))

    def noise(self, key: Key[Array, ""], n: int) -> Float[Array, "n k most"]:
        """The noise from which `act` makes n actions. `rollout` draws the noise of all steps at once."""
        return jax.random.gumbel(key, (n, len(self._counts), max(self._counts)))

    def act(self, observations: Float[Array, "n ..."], noise: Float[Array, "n k most"]) -> Int[Array, "n ..."]:
        """The action for each observation, as a function of the noise."""
        actions = jnp.argmax(self._log_probs(observations) + noise, axis=-1)
        return actions[:, 0] if isinstance(self.choices, int) else actions

    def log_prob(self, observations: Float[Array, "n ..."], actions: Int[Array, "n ..."]) -> Float[Array, " n"]:
        """The logarithms of the actions' probabilities."""
        index = actions.reshape(len(actions), len(self._counts), 1)
        return jnp.sum(jnp.take_along_axis(self._log_probs(observations), index, axis=-1), axis=(1, 2))

    def divergence(self, other: "CategoricalPolicy", observations: Float[Array, "n ..."]) -> Float[Array, " n"]:
        """The Kullback-Leibler divergence from this policy to another, at each observation."""
        mine, its = self._log_probs(observations), other._log_probs(observations)
        return jnp.sum(jnp.exp(mine) * (mine - its), axis=(1, 2))

    @property
    def _counts(self) -> tuple[int, ...]:
        return (self.choices,) if isinstance(self.choices, int) else self.choices

    def _log_probs(self, observations: Float[Array, "n ..."]) -> Float[Array, "n k most"]:
        """Log probabilities of each entry's choices, which are filled up to one number with ones that never happen."""
        counts = np.asarray(self._counts)
        logits = _outputs(self.logits, observations, int(counts.sum()), "choices")
        column = np.arange(counts.max())
        index = np.minimum(np.cumsum(counts)[:, None] - counts[:, None] + column, counts.sum() - 1)
        # Finite, so that differences of logarithms are numbers.
        never = jnp.finfo(logits.dtype).min / 2
        return jax.nn.log_softmax(jnp.where(column < counts[:, None], logits[:, index], never))


class GaussianPolicy(eqx.Module):
    r"""$a \sim N(\mu(o), \mathrm{diag}(e^{2s}))$, with a network $\mu$ and learned log standard deviations s.

    Standard deviations below 1e-6 count as 1e-6.

    Arguments:
        mean: a network from (n, observation size) to (n, size), such as `ax.models.mlp((2, 100, 100, 2), key=key)`.
        size: the number of entries of an action.
        std: the initial standard deviation (default 1).

    Errors: `InputError` if `mean` is not callable or gives another shape, the size is not a positive whole number, or std not
        positive.

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
        size = check_whole("GaussianPolicy", "size", size)
        std = check_real("GaussianPolicy", "std", std, above=0)
        self.mean = mean
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(mean) if eqx.is_inexact_array(leaf)]
        self.log_std = jnp.full((size,), math.log(std), dtypes[0] if dtypes else None)

    def sample(self, observations: Float[Array, "n inputs"], key: Key[Array, ""]) -> Float[Array, "n size"]:
        """An action for each observation."""
        return self.act(observations, self.noise(key, len(observations)))

    def noise(self, key: Key[Array, ""], n: int) -> Float[Array, "n size"]:
        """The noise from which `act` makes n actions. `rollout` draws the noise of all steps at once."""
        return jax.random.normal(key, (n, *self.log_std.shape), self.log_std.dtype)

    def act(self, observations: Float[Array, "n inputs"], noise: Float[Array, "n size"]) -> Float[Array, "n size"]:
        """The action for each observation, as a function of the noise."""
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
        return jnp.maximum(self.log_std, _LEAST_LOG_STD)

    def _means(self, observations):
        return _outputs(self.mean, observations, self.log_std.shape[0], "actions")


def _outputs(network: Callable, observations: Array, size: int, what: str) -> Float[Array, "n size"]:
    out, need = network(observations), (*observations.shape[:1], size)
    if out.shape != need:
        raise InputError(f"The network returns shape {out.shape} where the {what} have {need}: change its outputs.")
    return out


def mean_kl(old: Any, new: Any, trajectories: Any) -> Float[Array, ""]:
    r"""The mean of $\mathrm{KL}(\pi_{old} \| \pi_{new})$ over the observations of all steps taken.

    It is the divergence that `ax.stepsize.TrustRegion` and `ax.stepsize.Proximal` take for policies.

    Arguments:
        old, new: policies of one kind, with a method `divergence(other, observations)`.
        trajectories: a batch of `Trajectories`.

    Returns: a scalar, in nats.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> rl, goal = ax.tasks.rl, jnp.array([0.3, 0.1])
        >>> network = ax.models.mlp((2, 8, 2), key=jax.random.key(0))
        >>> old, new = rl.GaussianPolicy(network, 2), rl.GaussianPolicy(network, 2, std=2.0)
        >>> batch = rl.rollout(rl.Navigation(horizon=3), goal, old, jax.random.key(1), 4)
        >>> round(float(rl.mean_kl(old, new, batch)), 3)
        0.636

    Source: Schulman et al. (2015), Trust region policy optimization, ICML.
    """
    mask, observations = trajectories.mask, trajectories.observations[:, :-1]
    flat = observations.reshape((mask.size, *observations.shape[2:]))
    return jnp.mean(old.divergence(new, flat), where=mask.ravel())
