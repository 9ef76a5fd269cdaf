"""MAML in PyTorch by learn2learn's algorithm on few-shot characters until an accuracy; `time_to_accuracy.py` calls it."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import peer_inputs
import torch
from peer_torch import Batch, Learn2LearnStyle, Problem, conv4, keep_freed_memory, to_torch
from torch.nn import functional as F

WAYS, SHOTS = 5, 1
EVERY = 50


def network() -> tuple[torch.nn.Module, dict]:
    """Conv4-64 with the initial parameters of the other benchmarks."""
    arrays = peer_inputs.conv4(np.random.default_rng(0))
    net, names = conv4(arrays)
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(to_torch(arrays[name]))))
    return net.to(memory_format=torch.channels_last), names


def episodes(images: np.ndarray, tasks: int, queries: int, rng: np.random.Generator) -> Batch:
    """A batch of tasks: turned characters are classes of their own."""
    parts: dict[str, list] = {"support": [], "target": []}
    for _ in range(tasks):
        chosen = rng.choice(4 * len(images), WAYS, replace=False)
        rows = [rng.choice(images.shape[1], SHOTS + queries, replace=False) for _ in chosen]
        drawn = [np.rot90(images[c // 4][r], c % 4, axes=(1, 2)) for c, r in zip(chosen, rows, strict=True)]
        parts["support"].append(np.concatenate([x[:SHOTS] for x in drawn]))
        parts["target"].append(np.concatenate([x[SHOTS:] for x in drawn]))
    x = {name: torch.from_numpy(np.stack(part).astype(np.float32) / 255)[:, :, None] for name, part in parts.items()}
    labels = lambda each: torch.arange(WAYS).repeat_interleave(each).repeat(tasks, 1)  # noqa: E731
    return Batch(x["support"], labels(SHOTS), x["target"], labels(queries))


def accuracy(problem: Problem, batch: Batch) -> float:
    """Of the network after N, 5 and 10 inner steps: the best of these, on fixed tasks."""
    learner, counts, right = Learn2LearnStyle(problem), {problem.steps, 5, 10}, dict.fromkeys((problem.steps, 5, 10), 0.0)
    for support_x, support_y, target_x, target_y in batch:
        net = learner.clone(problem.net)
        for step in range(1, max(counts) + 1):
            slots = [(m, k, p) for m in net.modules() for k, p in m._parameters.items() if p is not None]
            gradients = torch.autograd.grad(problem.loss(net(support_x), support_y), [p for _, _, p in slots])
            for (module, key, parameter), gradient in zip(slots, gradients, strict=True):
                module._parameters[key] = (parameter - problem.stepsize * gradient).detach().requires_grad_()
            if step in counts:
                with torch.no_grad():
                    right[step] += float((net(target_x).argmax(1) == target_y).float().mean()) / len(batch)
    return max(right.values())


def main() -> None:
    inputs, out = map(Path, sys.argv[1:3])
    steps, stepsize, rate, tasks, queries, seconds, goal, threads = map(float, sys.argv[3:])
    torch.set_num_threads(int(threads))
    keep_freed_memory()
    with np.load(inputs) as file:
        arrays = {name: file[name] for name in file.files}
    images = lambda part: torch.from_numpy(arrays[f"{part}_x"]).permute(0, 1, 4, 2, 3)  # noqa: E731
    labels = lambda part: torch.from_numpy(arrays[f"{part}_y"]).long()  # noqa: E731
    judged = Batch(images("support"), labels("support"), images("target"), labels("target"))
    net, names = network()
    problem = Problem(net, F.cross_entropy, int(steps), stepsize, names)
    meta_gradient, optimizer = Learn2LearnStyle(problem), torch.optim.Adam(net.parameters(), lr=rate)
    rng, record, spent, done = np.random.default_rng(0), [], 0.0, 0
    began = time.perf_counter()
    while not record or (record[-1]["accuracy"] < goal and record[-1]["seconds"] < seconds):
        for _ in range(EVERY):
            batch = episodes(arrays["train"], int(tasks), int(queries), rng)
            optimizer.zero_grad()
            meta_gradient(batch)
            optimizer.step()
        done += EVERY
        start = time.perf_counter()
        record.append({"step": done, "seconds": start - began - spent, "accuracy": accuracy(problem, judged)})
        print(record[-1], flush=True)
        out.write_text(json.dumps(record))
        spent += time.perf_counter() - start


if __name__ == "__main__":
    main()
