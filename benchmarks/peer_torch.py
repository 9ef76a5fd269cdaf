"""One exact second-order MAML meta-gradient in PyTorch, as higher, TorchOpt and learn2learn write it.

Runs in the environment of `requirements-peers.txt`; `peers.py` calls it. Each peer follows its own published MAML
example: a loop over tasks, N differentiable steps of SGD on the support set, the target loss differentiated through
them. The inputs come from the `.npz` file of `peer_inputs.py`; the meta-gradient goes back beside the times.
"""

import argparse
import copy
import ctypes
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """The tasks of one meta-step; each array has a leading axis over tasks."""

    support_x: Tensor
    support_y: Tensor
    target_x: Tensor
    target_y: Tensor

    def __len__(self) -> int:
        return len(self.support_x)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(self.support_x, self.support_y, self.target_x, self.target_y, strict=True)

    def share(self, rank: int, count: int) -> "Batch":
        """Every `count`-th task, from task `rank` on."""
        return Batch(*(x[rank::count] for x in (self.support_x, self.support_y, self.target_x, self.target_y)))


@dataclass(frozen=True)
class Problem:
    """A network with its initial parameters, the loss, and the inner loop's step count and step size."""

    net: nn.Module
    loss: Loss
    steps: int
    stepsize: float
    names: dict[str, nn.Parameter]  # the file's name of each parameter


def mlp(arrays: dict[str, np.ndarray]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Dense layers with ReLU between them."""
    layers, names = [], {}
    count = sum(name.startswith("params/layers/") and name.endswith("/weight") for name in arrays)
    for i in range(count):
        dense = nn.Linear(*arrays[f"params/layers/{i}/weight"].shape)
        names |= {f"params/layers/{i}/weight": dense.weight, f"params/layers/{i}/bias": dense.bias}
        layers += [dense] if i == count - 1 else [dense, nn.ReLU()]
    return nn.Sequential(*layers), names


def conv4(arrays: dict[str, np.ndarray]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Four blocks of 3 × 3 convolution, batch norm by batch statistics, ReLU, 2 × 2 max pooling; a linear head."""
    layers, names = [], {}
    count = sum(name.startswith("params/blocks/") and name.endswith("/weight") for name in arrays)
    for i in range(count):
        channels, width = arrays[f"params/blocks/{i}/weight"].shape[2:]
        # No bias: batch norm cancels it. No running statistics: they would only cost time.
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        norm = nn.BatchNorm2d(width, eps=1e-5, track_running_stats=False)
        names[f"params/blocks/{i}/weight"] = conv.weight
        names |= {f"params/blocks/{i}/scale": norm.weight, f"params/blocks/{i}/shift": norm.bias}
        layers += [conv, norm, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = nn.Linear(*arrays["params/head/weight"].shape)
    names |= {"params/head/weight": head.weight, "params/head/bias": head.bias}
    return nn.Sequential(*layers, Rows(), head), names


class Rows(nn.Module):
    """Flatten with the channels last, as they lie in memory here."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class Residual(nn.Module):
    """Three units of 3 x 3 convolution and batch norm beside one of 1 x 1; leaky ReLU; 2 x 2 max pooling."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, width, 3, padding=1, bias=False) for i in (inputs, width, width))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, eps=1e-5, track_running_stats=False) for _ in range(3))
        self.short = nn.Conv2d(inputs, width, 1, bias=False)
        self.short_norm = nn.BatchNorm2d(width, eps=1e-5, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.leaky_relu(y, 0.1) if k < 2 else y
        return F.leaky_relu(F.max_pool2d(y + self.short_norm(self.short(x)), 2), 0.1)


def resnet12(arrays: dict[str, np.ndarray]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Four residual blocks, the mean over pixels, a linear head."""
    blocks, names = [], {}
    for i in range(4):
        block = Residual(*arrays[f"params/blocks/{i}/shortcut/weight"].shape[2:])
        parts = {f"units/{k}": (block.convs[k], block.norms[k]) for k in range(3)}
        parts["shortcut"] = block.short, block.short_norm
        for part, (conv, norm) in parts.items():
            name = f"params/blocks/{i}/{part}"
            names |= {f"{name}/weight": conv.weight, f"{name}/scale": norm.weight, f"{name}/shift": norm.bias}
        blocks.append(block)
    head = nn.Linear(*arrays["params/head/weight"].shape)
    names |= {"params/head/weight": head.weight, "params/head/bias": head.bias}
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), names


def to_torch(array: np.ndarray) -> np.ndarray:
    """A parameter in PyTorch's layout: (out, in) and (cout, cin, 3, 3)."""
    return {1: array, 2: array.T, 4: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array}[array.ndim]


def from_torch(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`."""
    return {1: array, 2: array.T, 4: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array}[array.ndim]


def load(case: str, path: Path, dtype: torch.dtype) -> tuple[Problem, Batch]:
    """Read the inputs and build the network with exactly those initial parameters."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    net, names = {"sinusoid": mlp, "resnet12": resnet12}.get(case, conv4)(arrays)
    net = net.to(dtype)
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(to_torch(arrays[name]))))
    parts = [torch.from_numpy(arrays[f"{part}_{axis}"]) for part in ("support", "target") for axis in "xy"]
    if case == "sinusoid":
        loss, batch = F.mse_loss, Batch(*(x.to(dtype) for x in parts))
    else:
        # Images stay NHWC in memory ("channels last"), which is the faster format here.
        net = net.to(memory_format=torch.channels_last)
        images, labels = (x.to(dtype).permute(0, 1, 4, 2, 3) for x in parts[::2]), (y.long() for y in parts[1::2])
        (support_x, target_x), (support_y, target_y) = images, labels
        loss, batch = F.cross_entropy, Batch(support_x, support_y, target_x, target_y)
    return Problem(net, loss, int(arrays["inner_steps"]), float(arrays["stepsize"]), names), batch


class Higher:
    """`higher.innerloop_ctx` around a `torch.optim.SGD`, one backward pass per task, as in its Omniglot example."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.optimizer = torch.optim.SGD(problem.net.parameters(), lr=problem.stepsize)

    def __call__(self, batch: Batch) -> float:
        import higher

        problem, total = self.problem, 0.0
        for support_x, support_y, target_x, target_y in batch:
            context = higher.innerloop_ctx(problem.net, self.optimizer, copy_initial_weights=False, track_higher_grads=True)
            with context as (net, optimizer):
                for _ in range(problem.steps):
                    optimizer.step(problem.loss(net(support_x), support_y))
                loss = problem.loss(net(target_x), target_y) / len(batch)
                loss.backward()
            total += loss.detach()
        return float(total)


class TorchOpt:
    """`torchopt.MetaSGD` on the module itself, its state restored after each task, as in its Omniglot example.

    The example keeps the graphs of all tasks and calls `backward` once; here it is called per task, which needs less
    memory and is faster, so it is the peer's better side.
    """

    def __init__(self, problem: Problem) -> None:
        import torchopt

        self.problem = problem
        self.optimizer = torchopt.MetaSGD(problem.net, lr=problem.stepsize)

    def __call__(self, batch: Batch) -> float:
        import torchopt

        problem, total = self.problem, 0.0
        net_state = torchopt.extract_state_dict(problem.net, by="reference", detach_buffers=True)
        optimizer_state = torchopt.extract_state_dict(self.optimizer, by="reference")
        for support_x, support_y, target_x, target_y in batch:
            for _ in range(problem.steps):
                self.optimizer.step(problem.loss(problem.net(support_x), support_y))
            loss = problem.loss(problem.net(target_x), target_y) / len(batch)
            loss.backward()
            total += loss.detach()
            torchopt.recover_state_dict(problem.net, net_state)
            torchopt.recover_state_dict(self.optimizer, optimizer_state)
        return float(total)


class TorchOptVmap:
    """TorchOpt's functional SGD under `torch.func.vmap`: all tasks at once, as in its functorch Omniglot example."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.params = dict(problem.net.named_parameters())

    def target_loss(self, support_x: Tensor, support_y: Tensor, target_x: Tensor, target_y: Tensor) -> Tensor:
        import torchopt

        problem, params = self.problem, self.params

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return problem.loss(torch.func.functional_call(problem.net, params, (x,)), y)

        optimizer = torchopt.sgd(lr=problem.stepsize)
        state = optimizer.init(params)
        for _ in range(problem.steps):
            gradient = torch.func.grad(loss)(params, support_x, support_y)
            updates, state = optimizer.update(gradient, state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return loss(params, target_x, target_y)

    def __call__(self, batch: Batch) -> float:
        losses = torch.func.vmap(self.target_loss)(batch.support_x, batch.support_y, batch.target_x, batch.target_y)
        loss = losses.mean()
        loss.backward()
        return loss.item()


class Learn2LearnStyle:
    """The algorithm of learn2learn's `MAML`: clone the module within the graph, then replace its parameters by
    p − α g, with g from `torch.autograd.grad(create_graph=True)`. The package does not build on Python 3.11."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def clone(self, module: nn.Module) -> nn.Module:
        """A twin of `module` whose parameters are clones that lead back to the originals in the graph."""
        twin = copy.copy(module)
        twin._parameters = {k: None if p is None else p.clone() for k, p in module._parameters.items()}
        twin._modules = {k: None if m is None else self.clone(m) for k, m in module._modules.items()}
        return twin

    def adapt(self, net: nn.Module, loss: Tensor) -> None:
        """One differentiable step of gradient descent on the parameters of the clone."""
        slots = [(m, k, p) for m in net.modules() for k, p in m._parameters.items() if p is not None]
        gradients = torch.autograd.grad(loss, [p for _, _, p in slots], create_graph=True)
        for (module, key, parameter), gradient in zip(slots, gradients, strict=True):
            module._parameters[key] = parameter - self.problem.stepsize * gradient

    def __call__(self, batch: Batch) -> float:
        problem, total = self.problem, 0.0
        for support_x, support_y, target_x, target_y in batch:
            net = self.clone(problem.net)
            for _ in range(problem.steps):
                self.adapt(net, problem.loss(net(support_x), support_y))
            loss = problem.loss(net(target_x), target_y) / len(batch)
            loss.backward()
            total += loss.detach()
        return float(total)


PEERS = {"higher": Higher, "torchopt": TorchOpt, "torchopt-vmap": TorchOptVmap, "learn2learn-style": Learn2LearnStyle}


def versions(peer: str) -> dict[str, str]:
    """The versions that the figures belong to."""
    from importlib.metadata import version

    package = {"higher": "higher", "torchopt": "torchopt", "torchopt-vmap": "torchopt"}.get(peer)
    return {"python": platform.python_version(), "torch": torch.__version__} | ({package: version(package)} if package else {})


def keep_freed_memory() -> None:
    """Let the C library keep what is freed: fetching large arrays anew from the system costs page faults."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 32 << 20)
    mallopt(m_trim_threshold, 2**31 - 1)


class Workers:
    """The tasks shared out over processes of one thread each, whose gradients are then added."""

    def __init__(self, args: argparse.Namespace, problem: Problem, tasks: int) -> None:
        context, self.problem, self.count = mp.get_context("spawn"), problem, args.processes
        self.weights = [len(range(rank, tasks, self.count)) / tasks for rank in range(self.count)]
        names = problem.names.items()
        self.gradients = [{k: torch.zeros_like(p).share_memory_() for k, p in names} for _ in self.weights]
        self.losses = torch.zeros(self.count, dtype=torch.float64).share_memory_()
        self.peaks = torch.zeros(self.count, dtype=torch.float64).share_memory_()
        self.begin, self.end = context.Barrier(self.count + 1), context.Barrier(self.count + 1)
        for rank in range(self.count):
            shared = (self.gradients[rank], self.losses, self.peaks, self.begin, self.end)
            context.Process(target=work, args=(args, rank, *shared), daemon=True).start()

    def __call__(self, batch: Batch) -> float:
        self.begin.wait()
        self.end.wait()
        for name, parameter in self.problem.names.items():
            parameter.grad = sum(w * g[name] for w, g in zip(self.weights, self.gradients, strict=True))
        return sum(w * float(x) for w, x in zip(self.weights, self.losses, strict=True))


def work(args: argparse.Namespace, rank: int, gradients, losses, peaks, begin, end) -> None:
    """One process of `Workers`: its share of the tasks again and again, whenever the barrier opens."""
    torch.set_num_threads(1)
    keep_freed_memory()
    problem, batch = load(args.case, args.inputs, getattr(torch, args.dtype))
    meta_gradient, batch = PEERS[args.peer](problem), batch.share(rank, args.processes)
    while True:
        begin.wait()
        problem.net.zero_grad()
        losses[rank] = meta_gradient(batch)
        for name, parameter in problem.names.items():
            gradients[name].copy_(parameter.grad)
        peaks[rank] = peak_mib()
        end.wait()


def peak_mib() -> float:
    """The most memory this process has had resident, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("sinusoid", "conv4", "conv4-84", "resnet12"), required=True)
    parser.add_argument("--peer", choices=tuple(PEERS), required=True)
    parser.add_argument("--inputs", type=Path, required=True, help="the .npz file that peer_inputs.py writes")
    parser.add_argument("--repeats", type=int, default=5, help="timed meta-gradients, after the warm-up")
    parser.add_argument("--warmup", type=int, default=2, help="meta-gradients before the timed ones")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads")
    parser.add_argument("--processes", type=int, default=1, help="more than 1: tasks shared out, one thread each")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--out", type=Path, required=True, help="JSON; the meta-gradient goes beside it as .npz")
    args = parser.parse_args()
    torch.set_num_threads(args.threads if args.processes == 1 else 1)
    keep_freed_memory()
    problem, batch = load(args.case, args.inputs, getattr(torch, args.dtype))
    workers = Workers(args, problem, len(batch)) if args.processes > 1 else None
    meta_gradient = workers or PEERS[args.peer](problem)
    loss, times = 0.0, []
    for _ in range(args.warmup + args.repeats):
        problem.net.zero_grad()
        start = time.perf_counter()
        loss = meta_gradient(batch)
        times.append(time.perf_counter() - start)
    record = {
        "seconds": times[args.warmup :],
        "loss": loss,
        "peak_mib": peak_mib() + (float(workers.peaks.sum()) if workers else 0),
        "versions": versions(args.peer),
    }
    np.savez(args.out.with_suffix(".npz"), **{n: from_torch(p.grad.numpy()) for n, p in problem.names.items()})
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
