"""Advantages of the actions that were taken, and a linear baseline that is fitted to every batch."""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adaptax._checks import check_real, check_true_or_false
from adaptax.errors import InputError
from adaptax.tasks.rl.environment import Trajectories

_MOST_GIGABYTES = 4


def advantages(
    trajectories: Trajectories, values: Float[Array, "n H1"] | None, discount: float, gae_lambda: float = 1.0,
    bootstrap: bool = False,
) -> Float[Array, "n H"]:  # fmt: skip
    r"""Generalised advantages $A_t = \sum_{k\ge0}(\gamma\lambda)^k\delta_{t+k}$, $\delta_t = r_t + \gamma V_{t+1} - V_t$.

    $V_{t+1}$ is zero where the process terminated, and at the time limit unless `bootstrap`. Hence with $\lambda = 1$ the
    advantage is the discounted return to go less $V_t$, whatever V is.

    Arguments:
        trajectories: a batch of n episodes.
        values: V at each of the H + 1 observations, shape (n, H + 1) (None: zero).
        discount: $\gamma$, from 0 to 1.
        gae_lambda: $\lambda$, from 0 to 1 (default 1).
        bootstrap: whether the value after the time limit counts (default False). If it does, the objective has no horizon.

    Returns: shape (n, H), zero after the end of an episode.

    Errors: `InputError` if a number is out of its range.

    Example:
        >>> import adaptax as ax, jax.numpy as jnp
        >>> yes, no = jnp.ones((1, 3), bool), jnp.zeros((1, 3), bool)
        >>> batch = ax.tasks.rl.Trajectories(
        ...     jnp.zeros((1, 4)), jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.zeros((1, 3)), yes, no)
        >>> ax.tasks.rl.advantages(batch, None, 0.5)
        Array([[1.75, 1.5 , 1.  ]], dtype=float32)

    Source: Schulman et al. (2016), High-dimensional continuous control using generalized advantage estimation, ICLR.
    """
    discount = check_real("advantages", "discount", discount, least=0, most=1)
    gae_lambda = check_real("advantages", "gae_lambda", gae_lambda, least=0, most=1)
    rewards, mask = trajectories.rewards, trajectories.mask
    if values is None:
        values = jnp.zeros((rewards.shape[0], rewards.shape[1] + 1), rewards.dtype)
    goes_on = mask & ~trajectories.terminated
    if not check_true_or_false("advantages", "bootstrap", bootstrap):
        goes_on = goes_on.at[:, -1].set(False)
    next_values = jnp.where(goes_on, values[:, 1:], 0)
    delta = jnp.where(mask, rewards + discount * next_values - values[:, :-1], 0)

    def one_step_back(later, inputs):
        now = inputs[0] + discount * gae_lambda * jnp.where(inputs[1], later, 0)
        return now, now

    end = jnp.zeros(rewards.shape[:1], delta.dtype)
    return jax.lax.scan(one_step_back, end, (delta.T, goes_on.T), reverse=True)[1].T


def returns_to_go(trajectories: Trajectories, discount: float) -> Float[Array, "n H"]:
    r"""The discounted return from each step on, $G_t = \sum_{k\ge t}\gamma^{k-t}r_k$.

    Arguments:
        trajectories: a batch of n episodes.
        discount: $\gamma$, from 0 to 1.

    Returns: shape (n, H), zero after the end of an episode.

    Errors: `InputError` if the discount is out of its range.

    Example: see `advantages`, which this is without values and with $\lambda = 1$.
    """
    return advantages(trajectories, None, discount)


class LinearBaseline(eqx.Module):
    r"""A least-squares fit of the returns to go on $(o, o^2, \tau, \tau^2, \tau^3, 1)$, $\tau = t/100$, for every batch anew.

    Each episode's values come from a fit to the *other* episodes. So $V(o_t)$ does not depend on the action $a_t$ that it
    is subtracted for, and the estimators stay unbiased. A fit to all episodes would correlate the two.

    Arguments:
        ridge: weight of the squared coefficients, positive (default 1e-5).
        leave_one_out: whether an episode is left out of the fit that gives its values (default True).

    `baseline(trajectories, returns)` takes returns to go of shape (n, H) and gives values of shape (n, H + 1), which are
    constants to every derivative.

    Errors: `InputError` if ridge is not a positive number, or the observations are so large that a fit takes over 4 GiB.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.LoadedDiCE(discount=0.95, baseline=ax.tasks.rl.LinearBaseline()).discount
        0.95

    Source: the features are those of Duan et al. (2016), ICML; docs/theory.md, section 2.1.
    """

    ridge: float = eqx.field(
        static=True, default=1e-5, converter=functools.partial(check_real, "LinearBaseline", "ridge", above=0)
    )
    leave_one_out: bool = eqx.field(
        static=True, default=True, converter=functools.partial(check_true_or_false, "LinearBaseline", "leave_one_out")
    )

    def __call__(self, trajectories: Trajectories, returns: Float[Array, "n H"]) -> Float[Array, "n H1"]:
        _check_memory(trajectories.observations, returns.dtype)
        features = _features(trajectories.observations, returns.dtype)
        used = jnp.where(trajectories.mask[..., None], features[:, :-1], 0)

        def sums(x):
            """The sum that each episode's fit uses, shape (n, ...)."""
            total = jnp.broadcast_to(x.sum(0), x.shape)
            return total - x if self.leave_one_out else total

        gram = sums(jnp.einsum("nhi,nhj->nij", used, used))
        moment = sums(jnp.einsum("nhi,nh->ni", used, returns))
        coefficients = jax.vmap(_solve)(gram + self.ridge * jnp.eye(gram.shape[-1], dtype=gram.dtype), moment)
        return jax.lax.stop_gradient(jnp.einsum("nhi,ni->nh", features, coefficients))


def _solve(matrix: Float[Array, "f f"], right: Float[Array, " f"]) -> Float[Array, " f"]:
    """The solution of a symmetric positive definite system, by elimination without pivoting.

    It does without LAPACK: on a CPU, batched LAPACK calls of one program can wait for each other's threads for ever, as of
    jaxlib 0.10.2.
    """
    scale = jax.lax.rsqrt(jnp.diagonal(matrix))
    table = jnp.concatenate([matrix * scale * scale[:, None], (right * scale)[:, None]], axis=1)

    def eliminate(k, table):
        row = table[k] / table[k, k]
        return (table - table[:, k, None] * row).at[k].set(row)

    return scale * jax.lax.fori_loop(0, right.shape[0], eliminate, table)[:, -1]


def _check_memory(observations: Array, dtype: Any) -> None:
    n, size = observations.shape[0], math.prod(observations.shape[2:])
    gigabytes = n * (2 * size + 4) ** 2 * jnp.dtype(dtype).itemsize / 2**30
    if gigabytes > _MOST_GIGABYTES:
        text = f"LinearBaseline takes {gigabytes:.0f} GiB to fit {n} episodes with observations of {size} numbers"
        raise InputError(f"{text}: use baseline=ax.tasks.rl.NetworkBaseline() in the loss.")


def _features(observations: Array, dtype: Any) -> Float[Array, "n H1 features"]:
    n, times = observations.shape[:2]
    o = jnp.clip(observations.reshape(n, times, -1).astype(dtype), -10, 10)
    t = jnp.broadcast_to(jnp.arange(times, dtype=dtype)[:, None] / 100, (n, times, 1))
    return jnp.concatenate([o, o**2, t, t**2, t**3, jnp.ones_like(t)], axis=-1)
