r"""Losses on a batch of trajectories whose derivatives, with the batch held fixed, estimate those of minus the return.

All are $-\frac1n\sum_\tau\big(G_0 + \sum_t\gamma^t c_t(w)A_t\big)$, $G_0$ the discounted return and $A_t$ the advantage as
collected. With the ratios $\rho_t = \pi_w(a_t \mid o_t)/\pi_{\text{then}}(a_t \mid o_t)$ they differ in $c_t$ alone:
$\rho_{\le t} - \rho_{<t}$, $\rho_t - 1$ (clipped or not), or $\log\rho_t$. At the parameters of the collection every value is
$-G_0$.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adaptax.errors import InputError
from adaptax.tasks.rl.advantages import LinearBaseline, advantages, returns_to_go
from adaptax.tasks.rl.environment import Trajectories


class AbstractSurrogate(eqx.Module):
    """A loss `surrogate(policy, trajectories) -> scalar`; `surrogate.each` gives that of each episode.

    Source: docs/theory.md, section 2.1.
    """

    discount: eqx.AbstractVar[float]
    per_step: eqx.AbstractVar[bool]

    def __check_init__(self):
        for name in ("discount", "gae_lambda"):
            value = getattr(self, name, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"{type(self).__name__}({name}={value!r}) must be a number from 0 to 1: change {name}=.")
        baseline = getattr(self, "baseline", None)
        if baseline is not None and not callable(baseline):
            raise InputError("baseline= must be a function such as ax.tasks.rl.LinearBaseline().")

    def __call__(self, policy: Any, trajectories: Trajectories) -> Float[Array, ""]:
        return jnp.mean(self.each(policy, trajectories))

    def _loss(self, returns: Array, trajectories: Trajectories) -> Float[Array, " n"]:
        return -returns / trajectories.rewards.shape[1] if self.per_step else -returns

    @abc.abstractmethod
    def each(self, policy: Any, trajectories: Trajectories) -> Float[Array, " n"]:
        """The loss of each episode."""

    def _powers(self, rewards: Array) -> Array:
        return jnp.asarray(self.discount, rewards.dtype) ** jnp.arange(rewards.shape[1], dtype=rewards.dtype)


class DiCE(AbstractSurrogate):
    r"""$-\frac1n\sum_\tau\sum_t\gamma^t r_t\,\rho_{\le t}$, with $\rho_{\le t} = \prod_{s\le t}\rho_s$ the magic box.

    As a function of w on a fixed batch it is an unbiased estimate of $-J$ (importance sampling decision by decision), so
    that derivatives of all orders are unbiased.

    Arguments:
        discount: $\gamma$ of the objective J (default 1).
        per_step: divide by the horizon, so that the inner step size need not change with it (default False).

    Errors: `InputError` if the discount is not in [0, 1].

    Example:
        >>> import adaptax as ax, jax
        >>> family = ax.tasks.rl.tabular(states=2, actions=2, horizon=2)
        >>> problem = family.resampling(ax.tasks.rl.DiCE())
        >>> value, grad, _ = ax.MetaGradient(ax.Inner(1, 0.1))(
        ...     problem, family.policy(), problem.sample_task(jax.random.key(0)), jax.random.key(1))
        >>> grad.logits.shape
        (2, 2)

    Source: Foerster et al. (2018), DiCE: the infinitely differentiable Monte Carlo estimator, ICML; docs/theory.md,
    section 2.1.
    """

    discount: float = eqx.field(static=True, default=1.0)
    per_step: bool = eqx.field(static=True, default=False, kw_only=True)

    def each(self, policy, trajectories):
        ratios = jnp.exp(jnp.cumsum(trajectories.log_ratios(policy), axis=1))
        return self._loss(jnp.sum(self._powers(trajectories.rewards) * trajectories.rewards * ratios, axis=1), trajectories)


class AbstractAdvantageSurrogate(AbstractSurrogate):
    """What the surrogates with advantages share; they differ in `coefficients`."""

    discount: float = eqx.field(static=True, default=1.0)
    per_step: bool = eqx.field(static=True, default=False, kw_only=True)
    baseline: Callable | None = eqx.field(default=None, kw_only=True)
    gae_lambda: float = eqx.field(static=True, default=1.0, kw_only=True)
    bootstrap: bool = eqx.field(static=True, default=False, kw_only=True)
    discount_weighting: bool = eqx.field(static=True, default=True, kw_only=True)
    normalise: bool = eqx.field(static=True, default=False, kw_only=True)

    @abc.abstractmethod
    def coefficients(self, log_ratios: Float[Array, "n H"], advantage: Float[Array, "n H"]) -> Float[Array, "n H"]:
        r"""$c_t$, zero at the parameters of the collection."""

    def each(self, policy, trajectories):
        powers, mask = self._powers(trajectories.rewards), trajectories.mask
        values = None
        if self.baseline is not None:
            values = self.baseline(trajectories, returns_to_go(trajectories, self.discount))
        advantage = advantages(trajectories, values, self.discount, self.gae_lambda, self.bootstrap)
        if self.normalise:
            mean, var = jnp.mean(advantage, where=mask), jnp.var(advantage, where=mask)
            advantage = jnp.where(mask, (advantage - mean) / jnp.sqrt(var + 1e-8), 0)
        advantage = jax.lax.stop_gradient(advantage * powers if self.discount_weighting else advantage)
        value = jnp.sum(powers * trajectories.rewards, axis=1)
        gain = jnp.sum(self.coefficients(trajectories.log_ratios(policy), advantage) * advantage, axis=1)
        return self._loss(value + gain, trajectories)


class LoadedDiCE(AbstractAdvantageSurrogate):
    r"""DiCE with advantages: $c_t = \rho_{\le t} - \rho_{<t}$.

    With $\lambda = 1$ (the default) and a baseline that does not depend on the episode's own actions, derivatives of all
    orders are unbiased; without a baseline it equals `DiCE` on every batch. Other $\lambda$ are unbiased if the baseline
    is the policy's own value.

    Arguments:
        discount: $\gamma$ (default 1).
        per_step: divide by the horizon, as published step sizes suppose (default False).
        baseline: `baseline(trajectories, returns_to_go) -> values (n, H + 1)`, such as `LinearBaseline()` (default None).
        gae_lambda: $\lambda$ of the generalised advantages (default 1).
        bootstrap: whether the value after the time limit counts (default: the horizon belongs to the objective).
        discount_weighting: whether $\gamma^t$ weighs $A_t$ (default), as the derivative of the discounted return has it. Most
            published code leaves it out.
        normalise: standardise the advantages of a batch (default False): the scale of the gradient changes, and a little
            of its direction.

    Errors: `InputError` if the discount or the gae_lambda is not in [0, 1], or the baseline is no function.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.LoadedDiCE(0.99, baseline=ax.tasks.rl.LinearBaseline()).gae_lambda
        1.0

    Source: Farquhar, Whiteson, Foerster (2019), Loaded DiCE, NeurIPS; docs/theory.md, section 2.1.
    """

    def coefficients(self, log_ratios, advantage):
        before = jnp.cumsum(log_ratios, axis=1) - log_ratios
        return jnp.exp(before) * jnp.expm1(log_ratios)


class LVC(AbstractAdvantageSurrogate):
    r"""The low-variance curvature surrogate: $c_t = \rho_t - 1$.

    The gradient is that of `LoadedDiCE` on every batch. The Hessian leaves out how earlier actions change which states the
    later ones meet, $\sum_t\gamma^t\sum_s(\nabla d_t(s)\,h_t(s)^\top + h_t(s)\,\nabla d_t(s)^\top)$ with
    $h_t = \sum_a\nabla\pi(a \mid s)A_t(s, a)$: less variance for a bias, which is zero where H = 1.

    Arguments: those of `LoadedDiCE`.

    Errors: those of `LoadedDiCE`.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.LVC(0.99).discount
        0.99

    Source: Rothfuss et al. (2019), ProMP: proximal meta-policy search, ICLR; docs/theory.md, section 2.1.
    """

    def coefficients(self, log_ratios, advantage):
        return jnp.expm1(log_ratios)


class LikelihoodRatio(AbstractAdvantageSurrogate):
    r"""The plain policy-gradient surrogate: $c_t = \log\rho_t$. Its gradient is right, its Hessian is not.

    Beside what `LVC` leaves out, its Hessian lacks $\nabla\log\pi\,\nabla\log\pi^\top$. It is here for comparison, and for
    strategies that differentiate once (`ax.curvature.FirstOrder`, or finite differences, which draw at shifted parameters).

    Arguments: those of `LoadedDiCE`.

    Errors: those of `LoadedDiCE`.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.LikelihoodRatio(0.99).discount
        0.99

    Source: Finn, Abbeel, Levine (2017), ICML; docs/theory.md, section 2.1.
    """

    def coefficients(self, log_ratios, advantage):
        return log_ratios


class Clipped(AbstractAdvantageSurrogate):
    r"""The clipped surrogate: $c_tA_t = \min\{(\rho_t - 1)A_t,\ \mathrm{clip}(\rho_t - 1, -\epsilon, \epsilon)A_t\}$.

    Up to a constant, that is $\min(\rho A, \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)A)$. At the parameters of the
    collection the gradient is that of `LVC`; a step whose ratio has left $[1 - \epsilon, 1 + \epsilon]$ in the direction of
    its advantage gives none. It is for several steps on one batch: the loss of `ax.stepsize.Proximal`.

    Arguments: those of `LoadedDiCE`, and
        clip: $\epsilon$ (default 0.2).

    Errors: those of `LoadedDiCE`, and `InputError` if clip is not a positive, finite number.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.Clipped(0.99, clip=0.3).clip
        0.3

    Source: Schulman et al. (2017), Proximal policy optimization algorithms, arXiv 1707.06347.
    """

    clip: float = eqx.field(static=True, default=0.2, kw_only=True)

    def __check_init__(self):
        if isinstance(self.clip, bool) or not isinstance(self.clip, int | float) or not 0 < self.clip < math.inf:
            raise InputError(f"Clipped(clip={self.clip!r}) must be a positive, finite number: change clip=.")

    def coefficients(self, log_ratios, advantage):
        moved = jnp.expm1(log_ratios)
        return jnp.where(advantage > 0, jnp.minimum(moved, self.clip), jnp.maximum(moved, -self.clip))


def published(discount: float = 0.99) -> LVC:
    """What environments with published step sizes take by default: standardised advantages, no weight of time, means.

    In trials the half cheetah learned with it, and not with `LoadedDiCE`, whose Hessian varies more.
    """
    return LVC(discount, baseline=LinearBaseline(), per_step=True, normalise=True, discount_weighting=False)
