"""One exact second-order MAML meta-gradient in PyTorch, as its libraries and `torch.func` write it; `peers.py` calls it.

Runs in the environment of `requirements-peers.txt`. The peers of libraries follow the library's own published MAML example. The
inputs come from the `.npz` file of `peer_inputs.py`; the meta-gradient goes back beside the times.
"""

import argparse
import copy
import ctypes
import json
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from peer_networks import Batch, Problem, from_torch, load
from torch import Tensor, nn
from torch import multiprocessing as mp


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


class Learn2LearnStyle:
    """The algorithm of learn2learn's `MAML`: clone the module within the graph, then replace its parameters by
    p − α g, with g from `torch.autograd.grad(create_graph=True)`. The package itself does not build on Python 3.11: its C
    sources include `longintrepr.h`, which that Python no longer has."""

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


class Functional:
    """`torch.func`: `grad` through N steps of `grad`, all tasks together by `vmap`; `torch.compile` around it on request."""

    def __init__(self, problem: Problem, compiled: bool = False) -> None:
        self.problem = problem
        self.params = {name: p.detach() for name, p in problem.net.named_parameters()}
        self.gradient = torch.func.grad_and_value(self.mean)
        if compiled:
            self.gradient = torch.compile(self.gradient)

    def loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.problem.loss(torch.func.functional_call(self.problem.net, params, (x,)), y)

    def target_loss(self, params, support_x, support_y, target_x, target_y) -> Tensor:
        """The loss of one task after its inner steps."""
        for _ in range(self.problem.steps):
            gradient = torch.func.grad(self.loss)(params, support_x, support_y)
            params = {name: p - self.problem.stepsize * gradient[name] for name, p in params.items()}
        return self.loss(params, target_x, target_y)

    def mean(self, params, *batch) -> Tensor:
        return torch.func.vmap(self.target_loss, in_dims=(None, 0, 0, 0, 0))(params, *batch).mean()

    def __call__(self, batch: Batch) -> Tensor:
        parts = batch.support_x, batch.support_y, batch.target_x, batch.target_y
        gradient, value = self.gradient(self.params, *parts)
        for name, parameter in self.problem.net.named_parameters():
            parameter.grad = gradient[name]
        return value


class ParallelMetalearn:
    """`metalearn.algorithms.MAML` of the package parallel-metalearn, of second order, with a learning rate that is not learned.

    Its `step` draws a batch, forms the meta-gradient and calls the outer optimiser, which here is `torch.optim.SGD` with a
    learning rate of 0. Backend "vmap", the default, takes all tasks together; "sequential" takes them in turn, and divides the
    loss that it reports (not the gradient) by the number of tasks twice.
    """

    def __init__(self, problem: Problem, backend: str = "vmap") -> None:
        from metalearn.algorithms import MAML
        from metalearn.inner_optimizers import InnerSGD
        from metalearn.loss import BaseLoss

        class Loss(BaseLoss):
            def forward(self, out_dict, targets, model_states=None, **options):
                loss = problem.loss(out_dict["logits"], targets["labels"])
                return loss, loss.detach()

        class Model(nn.Module):
            """What its `MAML_Model` gives for a network in one piece."""

            def __init__(self) -> None:
                super().__init__()
                self.net = problem.net

            def forward(self, x: Tensor, **options) -> dict:
                return {"logits": self.net(x), "buffers": {}}

            def get_fast_weights(self) -> dict:
                return dict(self.named_parameters())

        model = Model()
        inner = InnerSGD(model.get_fast_weights(), inner_lr=problem.stepsize, learn_lr=False)
        inner.to(next(problem.net.parameters()).dtype)
        outer = torch.optim.SGD(model.parameters(), lr=0.0)
        self.maml = MAML(
            model=model, optimizer=outer, inner_optimizer=inner, support_loss_fn=Loss(), inner_steps=problem.steps,
            chunk_size=80, backend=backend,
        )  # fmt: skip

    def __call__(self, batch: Batch) -> float:
        labels = {"labels": batch.support_y}, {"labels": batch.target_y}
        loss = self.maml.step(iter([(batch.support_x, labels[0], batch.target_x, labels[1])]))[0]
        return loss * len(batch) if self.maml.backend == "sequential" else loss


PEERS = {
    "higher": Higher,
    "torchopt": TorchOpt,
    "learn2learn-style": Learn2LearnStyle,
    "torch-func": Functional,
    "torch-compile": lambda problem: Functional(problem, compiled=True),
    "parallel-metalearn": ParallelMetalearn,
    "parallel-metalearn-sequential": lambda problem: ParallelMetalearn(problem, "sequential"),
}
PACKAGES = {
    "higher": "higher",
    "torchopt": "torchopt",
    "parallel-metalearn": "parallel-metalearn",
    "parallel-metalearn-sequential": "parallel-metalearn",
}


def versions(peer: str) -> dict[str, str]:
    """The versions that the figures belong to."""
    package = PACKAGES.get(peer)
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
    """Processes of one thread each that share the tasks; their gradients are added in shared memory."""

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
    """One process of `Workers`: the meta-gradient of its share of the tasks, each time the barrier opens."""
    torch.set_num_threads(1)
    keep_freed_memory()
    problem, batch = load(args.case, args.inputs, getattr(torch, args.dtype))
    meta_gradient, batch = PEERS[args.peer](problem), batch.share(rank, args.processes)
    while True:
        begin.wait()
        problem.net.zero_grad()
        losses[rank] = float(meta_gradient(batch))
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
    parser.add_argument("--processes", type=int, default=1, help="processes of one thread each that share the tasks")
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
        loss = float(meta_gradient(batch))
        times.append(time.perf_counter() - start)
    record = {
        "seconds": times[args.warmup :],
        "first_s": times[0],
        "loss": loss,
        "peak_mib": peak_mib() + (float(workers.peaks.sum()) if workers else 0),
        "versions": versions(args.peer),
    }
    np.savez(args.out.with_suffix(".npz"), **{n: from_torch(p.grad.numpy()) for n, p in problem.names.items()})
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
