r"""Surrogate losses: their derivatives on a fixed batch of trajectories estimate the derivatives of minus the return.

Every surrogate is $-\frac1n\sum_\tau\big(G_0 + \sum_t\gamma^t c_t(w)A_t\big)$, with the discounted return $G_0$ and the
advantages $A_t$ as collected. With the ratios $\rho_t = \pi_w(a_t \mid o_t)/\pi_{\text{collection}}(a_t \mid o_t)$ the
surrogates differ in $c_t$ alone: $\rho_{\le t} - \rho_{<t}$, $\rho_t - 1$ (clipped or not), or $\log\rho_t$. At the parameters
of the collection every $c_t$ is zero, and the value is the mean of $-G_0$.
"""

import abc
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from adaptax._checks import check_real, check_true_or_false
from adaptax.errors import InputError
from adaptax.tasks.rl.advantages import LinearBaseline, advantages, returns_to_go
from adaptax.tasks.rl.environment import Trajectories


def _from_0_to_1(name: str) -> Callable[[Any], float]:
    """The converter of a field that is a number from 0 to 1."""
    return functools.partial(check_real, "", name, least=0, most=1)


def _boolean(name: str) -> Callable[[Any], bool]:
    """The converter of a field that is True or False."""
    return functools.partial(check_true_or_false, "", name)


class AbstractSurrogate(eqx.Module):
    """A loss `surrogate(policy, trajectories) -> scalar`, the mean over the episodes of `surrogate.per_episode`.

    Source: docs/theory.md, section 2.1.
    """

    discount: eqx.AbstractVar[float]
    per_step: eqx.AbstractVar[bool]

    def __call__(self, policy: Any, trajectories: Trajectories) -> Float[Array, ""]:
        return jnp.mean(self.per_episode(policy, trajectories))

    def _loss(self, returns: Array, trajectories: Trajectories) -> Float[Array, " n"]:
        return -returns / trajectories.rewards.shape[1] if self.per_step else -returns

    @abc.abstractmethod
    def per_episode(self, policy: Any, trajectories: Trajectories) -> Float[Array, " n"]:
        """The loss of each episode, shape (n,)."""

    def _powers(self, rewards: Array) -> Array:
        return jnp.asarray(self.discount, rewards.dtype) ** jnp.arange(rewards.shape[1], dtype=rewards.dtype)


class DiCE(AbstractSurrogate):
    r"""$-\frac1n\sum_\tau\sum_t\gamma^t r_t\,\rho_{\le t}$, with the "magic box" $\rho_{\le t} = \prod_{s\le t}\rho_s$.

    On a fixed batch and as a function of w it is an unbiased estimate of $-J$ (importance sampling decision by decision), so
    its derivatives of all orders are unbiased.

    Arguments:
        discount: $\gamma$ of the objective J (default 1).
        per_step: divide by the horizon, so that the inner step size need not change with it (default False).

    Errors: `InputError` if the discount is not in [0, 1], or `per_step` not True or False.

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

    discount: float = eqx.field(static=True, default=1.0, converter=_from_0_to_1("discount"))
    per_step: bool = eqx.field(static=True, default=False, kw_only=True, converter=_boolean("per_step"))

    def per_episode(self, policy, trajectories):
        ratios = jnp.exp(jnp.cumsum(trajectories.log_ratios(policy), axis=1))
        return self._loss(jnp.sum(self._powers(trajectories.rewards) * trajectories.rewards * ratios, axis=1), trajectories)


class AbstractAdvantageSurrogate(AbstractSurrogate):
    """The base of the surrogates with advantages, which differ in `coefficients`."""

    discount: float = eqx.field(static=True, default=1.0, converter=_from_0_to_1("discount"))
    per_step: bool = eqx.field(static=True, default=False, kw_only=True, converter=_boolean("per_step"))
    baseline: Callable | None = eqx.field(default=None, kw_only=True)
    gae_lambda: float = eqx.field(static=True, default=1.0, kw_only=True, converter=_from_0_to_1("gae_lambda"))
    bootstrap: bool = eqx.field(static=True, default=False, kw_only=True, converter=_boolean("bootstrap"))
    discount_weighting: bool = eqx.field(static=True, default=True, kw_only=True, converter=_boolean("discount_weighting"))
    normalise: bool = eqx.field(static=True, default=False, kw_only=True, converter=_boolean("normalise"))

    def __check_init__(self):
        if self.baseline is not None and not callable(self.baseline):
            raise InputError("baseline= must be a function such as ax.tasks.rl.LinearBaseline(), or None.")

    @abc.abstractmethod
    def coefficients(self, log_ratios: Float[Array, "n H"], advantage: Float[Array, "n H"]) -> Float[Array, "n H"]:
        r"""$c_t$, zero at the parameters of the collection."""

    def per_episode(self, policy, trajectories):
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
    orders are unbiased. Without a baseline it equals `DiCE` on every batch. With another $\lambda$ it is unbiased if the
    baseline is the policy's value function.

    Arguments:
        discount: $\gamma$ (default 1).
        per_step: divide by the horizon, as published step sizes suppose (default False).
        baseline: `baseline(trajectories, returns_to_go) -> values (n, H + 1)`, such as `LinearBaseline()` (default None).
        gae_lambda: $\lambda$ of the generalised advantages (default 1).
        bootstrap: whether the value after the time limit counts (default False: the objective ends at the horizon).
        discount_weighting: whether $A_t$ is weighted by $\gamma^t$, as in the derivative of the discounted return (default
            True). Most published code leaves the weights out.
        normalise: standardise the advantages of a batch (default False). This changes the scale of the gradient and, a
            little, its direction.

    Errors: `InputError` if the discount or `gae_lambda` is not in [0, 1], the baseline not callable, or a switch not
        True or False.

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

    The gradient is that of `LoadedDiCE` on every batch. The Hessian leaves out how earlier actions change the distribution
    of later states, $\sum_t\gamma^t\sum_s(\nabla d_t(s)\,h_t(s)^\top + h_t(s)\,\nabla d_t(s)^\top)$ with
    $h_t = \sum_a\nabla\pi(a \mid s)A_t(s, a)$. That bias, which is zero for H = 1, is the price of less variance.

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
    r"""The plain policy-gradient surrogate: $c_t = \log\rho_t$. Its gradient is unbiased, its Hessian is wrong.

    The Hessian lacks $\nabla\log\pi\,\nabla\log\pi^\top$ in addition to the terms that `LVC` leaves out. This surrogate is here
    for comparison, and for strategies that differentiate once (`ax.curvature.FirstOrder`, or finite differences, which draw
    at shifted parameters).

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
    its advantage contributes no gradient. It is meant for several steps on one batch, as in `ax.stepsize.Proximal`.

    Arguments: those of `LoadedDiCE`, and
        clip: $\epsilon$ (default 0.2).

    Errors: those of `LoadedDiCE`, and `InputError` if clip is not a positive, finite number.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.Clipped(0.99, clip=0.3).clip
        0.3

    Source: Schulman et al. (2017), Proximal policy optimization algorithms, arXiv 1707.06347.
    """

    clip: float = eqx.field(
        static=True, default=0.2, kw_only=True, converter=functools.partial(check_real, "Clipped", "clip", above=0)
    )

    def coefficients(self, log_ratios, advantage):
        change = jnp.expm1(log_ratios)
        return jnp.where(advantage > 0, jnp.minimum(change, self.clip), jnp.maximum(change, -self.clip))


def published_surrogate(discount: float = 0.99) -> LVC:
    """The default loss of environments with published step sizes: standardised advantages, no discount weighting.

    In trials the half cheetah learned with it, but not with `LoadedDiCE`, whose Hessian has a larger variance.
    """
    return LVC(discount, baseline=LinearBaseline(), per_step=True, normalise=True, discount_weighting=False)
