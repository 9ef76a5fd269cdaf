"""Meta-reinforcement learning on planar navigation in PyTorch, three ways; `navigation_speed.py` calls it.

Runs in the environment of `requirements-peers.txt`. One meta-iteration: 20 episodes a task at w, one inner step on the
surrogate mean(ratio × advantage) with a linear baseline fitted to the batch, 20 episodes at the adapted parameters, the
gradient of the same surrogate through the inner step, one step of Adam. The ways differ in how the episodes are collected:

- episodes: one environment object an episode, one episode after another, the policy called at every step;
- workers: the environments of a task's episodes abreast in a Python loop, the policy called once for all of them;
- numpy: all tasks and episodes as one array, in NumPy; the policy and its derivatives batched over tasks.

The first two share the tasks out over one process a core, as such code does.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

EPISODES, HORIZON, DISCOUNT, ALPHA, RIDGE, LONGEST = 20, 100, 0.95, 0.1, 1e-5, 0.1
NAMES = ("w1", "b1", "w2", "b2", "w3", "b3", "log_std")
Params = list[Tensor]


class Point:
    """The environment with gym's interface: one episode, one step at a time."""

    def __init__(self, goal: np.ndarray) -> None:
        self.goal = goal

    def reset(self) -> np.ndarray:
        self.x = np.zeros(2, np.float32)
        return self.x

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict]:
        self.x = self.x + np.clip(action, -LONGEST, LONGEST)
        dx, dy = self.x - self.goal
        return self.x, -np.sqrt(dx * dx + dy * dy), False, {}


def mean(params: Params, x: Tensor) -> Tensor:
    """The policy's mean; parameters and observations may have a leading axis over tasks."""
    w1, b1, w2, b2, w3, b3, _ = params
    x = torch.tanh(x @ w1 + b1.unsqueeze(-2))
    x = torch.tanh(x @ w2 + b2.unsqueeze(-2))
    return x @ w3 + b3.unsqueeze(-2)


def act(params: Params, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        middle = mean(params, torch.from_numpy(x))
        return (middle + params[-1].exp().unsqueeze(-2) * torch.randn_like(middle)).numpy()


def log_prob(params: Params, x: Tensor, actions: Tensor) -> Tensor:
    """The log-density of the actions, up to a constant."""
    log_std = params[-1].unsqueeze(-2)
    z = (actions - mean(params, x)) * torch.exp(-log_std)
    return -0.5 * (z**2).sum(-1) - log_std.sum(-1)


def collect_episodes(params: Params, goal: np.ndarray) -> tuple[np.ndarray, ...]:
    batch = []
    for _ in range(EPISODES):
        environment, steps = Point(goal), []
        x = environment.reset()
        for _ in range(HORIZON):
            action = act(params, x[None])[0]
            new, reward, _, _ = environment.step(action)
            steps.append((x, action, reward))
            x = new
        batch.append([np.asarray(part, np.float32) for part in zip(*steps, strict=True)])
    return tuple(np.stack(part) for part in zip(*batch, strict=True))


def collect_workers(params: Params, goal: np.ndarray) -> tuple[np.ndarray, ...]:
    environments = [Point(goal) for _ in range(EPISODES)]
    x, steps = np.stack([environment.reset() for environment in environments]), []
    for _ in range(HORIZON):
        actions = act(params, x)
        new, rewards, _, _ = zip(*(e.step(a) for e, a in zip(environments, actions, strict=True)), strict=True)
        steps.append((x, actions, np.asarray(rewards, np.float32)))
        x = np.stack(new)
    return tuple(np.stack(part, axis=1) for part in zip(*steps, strict=True))


def collect_numpy(params: Params, goals: np.ndarray) -> tuple[np.ndarray, ...]:
    x, steps = np.zeros((len(goals), EPISODES, 2), np.float32), []
    for _ in range(HORIZON):
        actions = act(params, x)
        new = x + np.clip(actions, -LONGEST, LONGEST)
        steps.append((x, actions, -np.sqrt(((new - goals[:, None]) ** 2).sum(-1))))
        x = new
    return tuple(np.stack(part, axis=2) for part in zip(*steps, strict=True))


def advantages(x: Tensor, rewards: Tensor) -> Tensor:
    """Returns to go minus a least-squares fit, standardised; x (..., n, H, 2) and rewards (..., n, H)."""
    to_go, ahead = torch.empty_like(rewards), torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        ahead = rewards[..., t] + DISCOUNT * ahead
        to_go[..., t] = ahead
    o = x.clamp(-10, 10)
    t = (torch.arange(rewards.shape[-1], dtype=x.dtype) / 100)[:, None].expand(*rewards.shape, 1)
    features = torch.cat([o, o**2, t, t**2, t**3, torch.ones_like(t)], dim=-1).flatten(-3, -2)
    transposed = features.transpose(-1, -2)
    matrix = transposed @ features + RIDGE * torch.eye(features.shape[-1], dtype=x.dtype)
    fit = torch.linalg.solve(matrix, transposed @ to_go.flatten(-2)[..., None])
    advantage = to_go - (features @ fit).reshape(rewards.shape)
    middle = advantage.mean((-2, -1), keepdim=True)
    return (advantage - middle) / torch.sqrt(advantage.var((-2, -1), keepdim=True, correction=0) + 1e-8)


def surrogate(params: Params, batch: tuple[Tensor, ...]) -> Tensor:
    """Minus the mean over steps of ratio × advantage; summed over tasks if there are several."""
    x, actions, rewards = batch
    now = log_prob(params, x.flatten(-3, -2), actions.flatten(-3, -2))
    ratio = torch.exp(now - now.detach())
    return -(ratio * advantages(x, rewards).flatten(-2)).mean(-1).sum()


def tensors(batch: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, batch))


def adapt(params: Params, batch: tuple[Tensor, ...]) -> Params:
    gradient = torch.autograd.grad(surrogate(params, batch), params, create_graph=True)
    return [p - ALPHA * g for p, g in zip(params, gradient, strict=True)]


def meta_gradient(params: Params, goals: np.ndarray, collect, given=None) -> tuple[list[Tensor], list[float]]:
    """The gradient summed over `goals` (one goal, or all abreast), and the returns before and after adaptation."""
    first = collect(params, goals) if given is None else given[0]
    tasks = [p.expand(len(goals), *p.shape) for p in params] if goals.ndim == 2 else params
    adapted = adapt(tasks, tensors(first))
    last = collect([p.detach() for p in adapted], goals) if given is None else given[1]
    gradient = torch.autograd.grad(surrogate(adapted, tensors(last)), params)
    return list(gradient), [float(batch[2].sum(-1).mean()) for batch in (first, last)]


def share(arrays: list[np.ndarray], goals: np.ndarray, way: str, seed: int) -> tuple[list[np.ndarray], list[list[float]]]:
    """The gradients of one process, which takes its tasks one after another, and their returns."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    params = [torch.from_numpy(array).requires_grad_() for array in arrays]
    collect = {"episodes": collect_episodes, "workers": collect_workers}[way]
    gradients, returns = zip(*(meta_gradient(params, goal, collect) for goal in goals), strict=True)
    return [sum(parts).numpy() for parts in zip(*gradients, strict=True)], list(returns)


def train(params: Params, goals_of, way: str, iterations: int, processes: int) -> tuple[list[float], list]:
    """Seconds and mean returns of each iteration."""
    optimizer, seconds, returns = torch.optim.Adam(params, lr=1e-3), [], []
    pool = None if way == "numpy" else ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    for number in range(iterations):
        start, goals = time.perf_counter(), goals_of(number)
        if pool is None:
            gradient, found = meta_gradient(params, goals, lambda p, g: collect_numpy(p, g))
        else:
            arrays = [p.detach().numpy() for p in params]
            jobs = [pool.submit(share, arrays, goals[i::processes], way, 1000 * number + i) for i in range(processes)]
            parts, several = zip(*(job.result() for job in jobs), strict=True)
            gradient = [torch.from_numpy(sum(part)) for part in zip(*parts, strict=True)]
            found = np.concatenate(several).mean(0).tolist()
        for p, g in zip(params, gradient, strict=True):
            p.grad = g / len(goals)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        returns.append(found)
    if pool is not None:
        pool.shutdown()
    return seconds, returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=("episodes", "workers", "numpy"), required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--iterations", type=int, required=True, help="timed ones, after one more")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="JSON; the gradient on the shared batches beside it as .npz")
    args = parser.parse_args()
    torch.set_num_threads(args.cores)
    torch.manual_seed(0)
    with np.load(args.inputs) as file:
        inputs = {name: file[name] for name in file.files}
    # The gradient on the shared episodes is in double precision, training in single.
    params = [torch.from_numpy(inputs[name]).requires_grad_() for name in NAMES]
    given = [tuple(inputs[f"{when}_{part}"] for part in ("x", "a", "r")) for when in ("first", "last")]
    if args.way == "numpy":
        gradient, _ = meta_gradient(params, inputs["goals"], None, given)
    else:
        each = [
            meta_gradient(params, g, None, [[part[i] for part in b] for b in given])[0] for i, g in enumerate(inputs["goals"])
        ]
        gradient = [sum(parts) for parts in zip(*each, strict=True)]
    params, count = [p.detach().float().requires_grad_() for p in params], len(inputs["goals"])
    np.savez(args.out.with_suffix(".npz"), **{n: g.numpy() / count for n, g in zip(NAMES, gradient, strict=True)})

    def goals_of(number: int) -> np.ndarray:
        """The shared goals in the first iteration, new ones in the others."""
        new = np.random.default_rng(number).uniform(-0.5, 0.5, (count, 2))
        return (inputs["goals"] if number == 0 else new).astype(np.float32)

    seconds, returns = train(params, goals_of, args.way, args.iterations + 1, args.cores)
    record = {"seconds": seconds[1:], "returns": returns[0], "version": f"torch {torch.__version__}"}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
