"""Small Markov decision processes solved exactly: the expected return of any policy, and a list of all trajectories."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from adaptax._checks import check_real, check_true_or_false, check_whole
from adaptax.errors import InputError
from adaptax.problem import FiniteSum, Pool, Resampling, Task
from adaptax.tasks.rl.environment import Environment, Trajectories, as_horizon, problem
from adaptax.tasks.rl.policies import SoftmaxPolicy

_MAX_TRAJECTORIES = 1 << 18


class MDP(eqx.Module):
    """One task: a Markov decision process with S states and A actions.

    Arguments:
        start: probabilities of the first state, shape (S,).
        transition: probabilities of the next state, shape (S, A, S).
        reward: of each state and action, shape (S, A).
        terminal: whether entering a state ends the episode, shape (S,).
    """

    start: Float[Array, " S"]
    transition: Float[Array, "S A S"]
    reward: Float[Array, "S A"]
    terminal: Bool[Array, " S"]


class TabularEnvironment(Environment):
    """An `MDP` as an environment. A state is its index, which the policy observes.

    Arguments:
        horizon: H (default 3).
    """

    horizon: int = eqx.field(static=True, default=3, converter=as_horizon)

    def reset(self, task, key):
        return jax.random.categorical(key, jnp.log(task.start))

    def observe(self, task, state):
        return state

    def step(self, task, state, action, key):
        new = jax.random.categorical(key, jnp.log(task.transition[state, action]))
        return new, task.reward[state, action], task.terminal[new]


class Tabular(eqx.Module):
    r"""A finite pool of small MDPs $M_i$ whose expected returns $J_i(w)$ are computed exactly; made by `tabular`.

    A policy is any object with `log_prob(states, actions)`, for instance a `SoftmaxPolicy`.

    Arguments:
        tasks: an `MDP` whose leaves have a leading axis over the tasks.
        horizon: H (static).
        discount: $\gamma$ of $J_i$ (static).

    Errors: `InputError` from `enumerate` if there are more than 2^18 trajectories.

    Example:
        >>> import adaptax as ax, jax
        >>> family = ax.tasks.rl.tabular(states=2, actions=2, horizon=2, tasks=3)
        >>> mdp = family.exact.sample_task(jax.random.key(0)).support
        >>> batch, probability = family.enumerate(mdp, family.policy())
        >>> batch.rewards.shape, round(float(probability.sum()), 5)
        ((32, 2), 1.0)

    Source: docs/theory.md, section 2.1.
    """

    tasks: MDP
    horizon: int = eqx.field(static=True, converter=as_horizon)
    discount: float = eqx.field(static=True, converter=functools.partial(check_real, "Tabular", "discount", least=0, most=1))

    @property
    def environment(self) -> TabularEnvironment:
        """The environment that episodes are drawn from."""
        return TabularEnvironment(self.horizon)

    @property
    def exact(self) -> FiniteSum:
        r"""The problem with the exact loss $l_i = -J_i$, `loss(policy, mdp)`, where support and target are the same MDP."""
        return FiniteSum(self.loss, Pool(Task(self.tasks, self.tasks)))

    def resampling(self, loss: Any) -> Resampling:
        """The problem with a surrogate `loss` on sampled episodes, where a task is an `MDP`."""
        return problem(self.environment, Pool(self.tasks), loss)

    def policy(self, seed: int = 0, scale: float = 0.5) -> SoftmaxPolicy:
        """A policy whose logits are drawn from N(0, scale²)."""
        shape = self.tasks.reward.shape[1:]
        return SoftmaxPolicy(jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), float))

    def loss(self, policy: Any, mdp: MDP) -> Float[Array, ""]:
        """Minus the exact expected discounted return."""
        return -mdp.start @ self.values(policy, mdp)[0]

    def values(self, policy: Any, mdp: MDP) -> Float[Array, "H1 S"]:
        """The exact values V_t(s) of states in which the episode has not ended, shape (H + 1, S); zero at time H."""
        pi = jnp.exp(_log_table(policy, *mdp.reward.shape))
        values = [jnp.zeros_like(mdp.start)]
        for _ in range(self.horizon):
            ahead = jnp.where(mdp.terminal, 0, values[0])
            values.insert(0, jnp.sum(pi * (mdp.reward + self.discount * mdp.transition @ ahead), axis=1))
        return jnp.stack(values)

    def exact_baseline(self, policy: Any, mdp: MDP) -> Any:
        """The exact values of the policy as a `baseline` of surrogates on this MDP."""
        return jax.tree_util.Partial(_look_up, self.values(policy, mdp))

    def enumerate(self, mdp: MDP, policy: Any) -> tuple[Trajectories, Float[Array, " n"]]:
        """All trajectories, and their probabilities under the policy, shape (n,): zero for those that cannot happen."""
        horizon, (states, actions) = self.horizon, mdp.reward.shape
        count = states ** (horizon + 1) * actions**horizon
        if count > _MAX_TRAJECTORIES:
            raise InputError(f"There are {count} trajectories: use fewer states, fewer actions or a shorter horizon.")
        grid = np.indices((states,) * (horizon + 1) + (actions,) * horizon).reshape(2 * horizon + 1, -1).T
        s, a = jnp.asarray(grid[:, : horizon + 1]), jnp.asarray(grid[:, horizon + 1 :])
        entered = mdp.terminal[s[:, 1:]]
        ended = jnp.cumsum(entered, axis=1) - entered > 0
        log_probs = _log_table(policy, states, actions)[s[:, :-1], a]
        chance = jnp.exp(log_probs) * mdp.transition[s[:, :-1], a, s[:, 1:]]
        # After its end a trajectory can go on in many ways, of which staying in place with action 0 alone gets its probability.
        stays = (s[:, 1:] == s[:, :-1]) & (a == 0)
        probability = mdp.start[s[:, 0]] * jnp.prod(jnp.where(ended, stays, chance), axis=1)
        rewards = jnp.where(ended, 0, mdp.reward[s[:, :-1], a])
        batch = Trajectories(s, a, rewards, log_probs, ~ended, entered & ~ended)
        return jax.lax.stop_gradient((batch, probability))


def tabular(
    states: int = 3, actions: int = 2, horizon: int = 3, tasks: int = 8, *, discount: float = 0.9, terminal: bool = False,
    seed: int = 0,
) -> Tabular:  # fmt: skip
    r"""Random small MDPs that are solved exactly; see `Tabular`.

    Rewards are N(0, 1); the distributions of the first and of the next states are uniform on the simplex.

    Arguments:
        states: S, at least 1 (default 3).
        actions: A, at least 2 (default 2).
        horizon: H (default 3).
        tasks: the number of MDPs (default 8).
        discount: $\gamma$, from 0 to 1 (default 0.9).
        terminal: whether entering the last state ends the episode (default False).
        seed: decides the MDPs (default 0).

    Returns: a `Tabular` with `exact`, `resampling(loss)`, `policy()`, `values` and `enumerate`.

    Errors: `InputError` if a number is out of its range.

    Example:
        >>> import adaptax as ax, jax
        >>> family = ax.tasks.rl.tabular(states=3, actions=2, horizon=3)
        >>> task = family.exact.sample_task(jax.random.key(0))
        >>> value, grad, _ = ax.MetaGradient(ax.Inner(2, 0.1))(family.exact, family.policy(), task)
        >>> grad.logits.shape
        (3, 2)
        >>> family.resampling(ax.tasks.rl.LoadedDiCE(family.discount)).stochastic
        True

    Source: docs/theory.md, section 2.1.
    """
    states, tasks = check_whole("tabular", "states", states), check_whole("tabular", "tasks", tasks)
    actions, seed = check_whole("tabular", "actions", actions, least=2), check_whole("tabular", "seed", seed, least=0)
    rng = np.random.default_rng(seed)
    start, transition = rng.dirichlet(np.ones(states), tasks), rng.dirichlet(np.ones(states), (tasks, states, actions))
    reward = rng.standard_normal((tasks, states, actions))
    ends = np.zeros((tasks, states), bool)
    if check_true_or_false("tabular", "terminal", terminal) and states > 1:
        ends[:, -1] = True
        start[:, -1] = 0
        start /= start.sum(axis=1, keepdims=True)
    number = jnp.result_type(float)
    mdps = MDP(jnp.asarray(start, number), jnp.asarray(transition, number), jnp.asarray(reward, number), jnp.asarray(ends))
    return Tabular(mdps, horizon, discount)


def _log_table(policy: Any, states: int, actions: int) -> Float[Array, "S A"]:
    s, a = jnp.indices((states, actions))
    return policy.log_prob(s.ravel(), a.ravel()).reshape(states, actions)


def _look_up(table: Float[Array, "H1 S"], trajectories: Trajectories, returns: Array) -> Float[Array, "n H1"]:
    times = jnp.arange(trajectories.observations.shape[1])
    return jax.lax.stop_gradient(table[times, trajectories.observations])
