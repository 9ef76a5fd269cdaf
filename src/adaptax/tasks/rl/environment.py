"""The base class of environments, batches of trajectories, and running a policy in an environment."""

import abc
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from adaptax._checks import check_whole
from adaptax.errors import InputError
from adaptax.problem import Resampling, as_callable, settled

# The converter of an environment's field `horizon`.
as_horizon = functools.partial(check_whole, "", "horizon")


class Environment(eqx.Module):
    r"""A Markov decision process for each task, written in JAX. A subclass gives a horizon and three functions.

    Arguments:
        horizon: the number of steps H after which an episode is cut off (static).

    A subclass defines, for one episode and without a batch axis,

    - `reset(task, key) -> state`: any pytree of arrays;
    - `observe(task, state) -> observation`: the array that the policy sees;
    - `step(task, state, action, key) -> (state, reward, done)`: scalars `reward` and `done`. `done` says that the process
      itself has ended; the horizon alone is the time limit.

    A subclass whose steps call the host also sets `host = True`, so that its failures are raised.

    Errors: `InputError` if the horizon is not a positive whole number.

    Example:
        >>> import adaptax as ax
        >>> ax.tasks.rl.Navigation(horizon=20).horizon
        20

    Source: docs/theory.md, section 2.1.
    """

    horizon: eqx.AbstractVar[int]

    def __check_init__(self):
        check_whole(type(self).__name__, "horizon", self.horizon)

    @property
    def host(self) -> bool:
        """Whether steps call the host: what failed there is then raised once a program has come to its end."""
        return False

    def check_policy(self, policy: Any) -> None:
        """Refuse, with `InputError`, a policy that cannot fit; called before an episode begins."""

    @abc.abstractmethod
    def reset(self, task: PyTree, key: Key[Array, ""]) -> PyTree:
        """The first state of an episode."""

    @abc.abstractmethod
    def observe(self, task: PyTree, state: PyTree) -> Array:
        """The observation of a state: the array that the policy sees."""

    @abc.abstractmethod
    def step(self, task: PyTree, state: PyTree, action: Array, key: Key[Array, ""]) -> tuple[PyTree, Array, Array]:
        """The next state, the reward, and whether the process has ended."""


class Trajectories(eqx.Module):
    r"""n episodes of at most H steps, as they were collected. They are data: no derivative passes through them.

    Arguments:
        observations: shape (n, H + 1, ...); the last one was made after the last step.
        actions: shape (n, H, ...).
        rewards: shape (n, H), zero after the end of an episode.
        log_probs: shape (n, H), $\log\pi(a_t \mid o_t)$ of the policy that collected them.
        mask: shape (n, H), whether step t was taken.
        terminated: shape (n, H), whether the process ended with step t. An episode that took all H steps without such an end
            was cut off by the time limit.

    Example:
        >>> import adaptax as ax, jax
        >>> problem = ax.tasks.rl.navigation(horizon=5)
        >>> policy = ax.tasks.rl.GaussianPolicy(ax.models.mlp((2, 8, 2), key=jax.random.key(0)), 2)
        >>> batch = problem.draw(problem.sample_task(jax.random.key(1)), policy, jax.random.key(2), 7)
        >>> batch.observations.shape, batch.rewards.shape, int(batch.steps)
        ((7, 6, 2), (7, 5), 35)

    Source: docs/theory.md, section 2.1.
    """

    observations: Float[Array, "n H1 ..."] | Array
    actions: Array
    rewards: Float[Array, "n H"]
    log_probs: Float[Array, "n H"]
    mask: Bool[Array, "n H"]
    terminated: Bool[Array, "n H"]

    @property
    def steps(self) -> Array:
        """How many environment steps were taken."""
        return jnp.sum(self.mask)

    @property
    def timed_out(self) -> Bool[Array, " n"]:
        """Which episodes were cut off by the time limit."""
        return self.mask[:, -1] & ~self.terminated[:, -1]

    @property
    def returns(self) -> Float[Array, " n"]:
        """The undiscounted return of each episode."""
        return jnp.sum(self.rewards, axis=1)

    def log_ratios(self, policy: Any) -> Float[Array, "n H"]:
        r"""$\log\rho_t$, i.e. $\log\pi_w(a_t \mid o_t)$ less its value at collection; zero after the end of an episode."""
        n, horizon = self.rewards.shape
        observations, actions = (x.reshape((n * horizon, *x.shape[2:])) for x in (self.observations[:, :-1], self.actions))
        now = policy.log_prob(observations, actions).reshape(n, horizon)
        return jnp.where(self.mask, now - self.log_probs, 0)


def rollout(environment: Environment, task: PyTree, policy: Any, key: Key[Array, ""], size: int) -> Trajectories:
    r"""Run a policy for `size` episodes: one `lax.scan` over time that steps all episodes together.

    Arguments:
        environment: an `Environment`.
        task: one task.
        policy: has `sample(observations, key)` and `log_prob(observations, actions)`, each for arrays with a leading axis n.
            It may split `sample` into `noise(key, n)` and `act(observations, noise)`, which is faster: the noise of all
            steps is then drawn at once.
        key: decides the episodes.
        size: n, the number of episodes (static).

    Returns: `Trajectories`, with all derivatives cut.

    Errors: `InputError` if the policy lacks `sample` or `log_prob` or does not fit, or the size is not a positive whole number;
        `HostFailure` if the environment's host failed, outside of compiled programs.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> rl = ax.tasks.rl
        >>> policy = rl.GaussianPolicy(ax.models.mlp((2, 8, 2), key=jax.random.key(0)), 2)
        >>> batch = rl.rollout(rl.Navigation(horizon=3), jnp.array([0.3, 0.1]), policy, jax.random.key(1), 4)
        >>> batch.actions.shape
        (4, 3, 2)

    Source: docs/theory.md, section 2.1.
    """
    if not (hasattr(policy, "sample") and hasattr(policy, "log_prob")):
        raise InputError(
            "The parameters must be a policy with sample(observations, key) and log_prob(observations, actions): use "
            "ax.tasks.rl.GaussianPolicy, CategoricalPolicy or SoftmaxPolicy."
        )
    size = check_whole("rollout", "size", size)
    environment.check_policy(policy)
    return settled(environment, lambda: _rollout(environment, task, policy, key, size))


def _rollout(environment: Environment, task: PyTree, policy: Any, key: Key[Array, ""], size: int) -> Trajectories:
    start_key, run_key = jax.random.split(key)
    observe = jax.vmap(lambda state: environment.observe(task, state))
    move = jax.vmap(lambda state, action, key: environment.step(task, state, action, key))

    # One draw of the noise of all steps takes less time than a draw at every step.
    noise_at_once = hasattr(policy, "noise") and hasattr(policy, "act")
    act = policy.act if noise_at_once else policy.sample

    def step(carry, inputs):
        (state, alive), (noise, move_key) = carry, inputs
        observations = observe(state)
        actions = act(observations, noise)
        log_probs = policy.log_prob(observations, actions)
        new, rewards, done = move(state, actions, jax.random.split(move_key, size))
        # An episode that has ended keeps its state, so that nothing in it can become infinite.
        kept = jax.tree.map(lambda a, b: jnp.where(alive.reshape((size,) + (1,) * (a.ndim - 1)), a, b), new, state)
        record = observations, actions, jnp.where(alive, rewards, 0), log_probs, alive, alive & done
        return (kept, alive & ~done), record

    states = jax.vmap(lambda key: environment.reset(task, key))(jax.random.split(start_key, size))
    alive = jnp.ones(size, bool)
    act_keys, move_keys = jnp.unstack(jax.vmap(jax.random.split)(jax.random.split(run_key, environment.horizon)), axis=1)
    noise = jax.vmap(lambda key: policy.noise(key, size))(act_keys) if noise_at_once else act_keys
    (last, _), records = jax.lax.scan(step, (states, alive), (noise, move_keys))
    observations, *rest = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), records)
    observations = jnp.concatenate([observations, observe(last)[:, None]], axis=1)
    return jax.lax.stop_gradient(Trajectories(observations, *rest))


class Rollouts(eqx.Module):
    """The `draw` of a reinforcement-learning problem: episodes of the current policy in an environment, by `rollout`."""

    environment: Environment

    @property
    def host(self) -> bool:
        """Whether a draw calls the host: as for the environment."""
        return self.environment.host

    def __call__(self, task: PyTree, params: Any, key: Key[Array, ""], size: int) -> Trajectories:
        return rollout(self.environment, task, params, key, size)


def mean_return(policy: Any, trajectories: Trajectories) -> dict[str, Array]:
    """The `metrics` of a reinforcement-learning problem: `{"return": mean undiscounted return of the episodes}`."""
    return {"return": jnp.mean(trajectories.returns)}


def problem(environment: Environment, sample_task: Any, loss: Any) -> Resampling:
    r"""Meta-reinforcement learning as a resampling problem: episodes are drawn at the current parameters.

    Arguments:
        environment: an `Environment`.
        sample_task: `sample_task(key) -> task`, or `ax.Pool(tasks)`.
        loss: a surrogate such as `ax.tasks.rl.LoadedDiCE()`, or any `loss(policy, trajectories) -> scalar`.

    Returns: `ax.Resampling`, with the mean undiscounted return as the metric "return".

    Errors: `InputError` if the environment is not an `Environment`, or loss or sample_task not callable.

    Example:
        >>> import adaptax as ax, jax
        >>> rl = ax.tasks.rl
        >>> rl.problem(rl.Navigation(), lambda key: jax.random.normal(key, (2,)), rl.LVC(discount=0.95)).stochastic
        True

    Source: docs/theory.md, section 2.1.
    """
    if not isinstance(environment, Environment):
        raise InputError(f"The environment must be an ax.tasks.rl.Environment, not {type(environment).__name__}: subclass it.")
    return Resampling(as_callable(loss, "loss"), sample_task, Rollouts(environment), metrics=mean_return)
