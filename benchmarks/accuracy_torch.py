"""Training by the recipe of `recipe.py` in PyTorch, with a process a core; `time_to_accuracy.py` calls it.

Each process has a share of the tasks; their gradients are added by `torch.distributed`. Inner steps are
`torch.autograd.grad(create_graph=True)`, as learn2learn, the fastest of the libraries on Conv4, takes them.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import recipe
import torch
from peer_networks import conv4, from_torch, to_torch
from peer_torch import keep_freed_memory
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.func import functional_call
from torch.nn import functional as F


def network() -> tuple[nn.Sequential, dict[str, nn.Parameter]]:
    """Conv4-32 with the recipe's initial parameters."""
    arrays = recipe.initial()
    net, names = conv4(arrays)
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(to_torch(arrays[name]))))
    return net.to(memory_format=torch.channels_last), names


def target_loss(
    net: nn.Sequential, adapt: str, support_x: Tensor, support_y: Tensor, target_x: Tensor, target_y: Tensor
) -> Tensor:
    """The loss of one task after its inner steps; features under an adapting head are formed once."""
    params, last = dict(net.named_parameters()), str(len(net) - 1)
    params |= {f"{last}.{name}": params[f"{last}.{name}"].repeat_interleave(recipe.WAYS, 0) for name in ("weight", "bias")}
    if adapt == "head":
        support_x, target_x = net[:-1](support_x), net[:-1](target_x)
        net, params = net[-1], {name: params[f"{last}.{name}"] for name in ("weight", "bias")}
    for _ in range(recipe.INNER_STEPS):
        loss = F.cross_entropy(functional_call(net, params, (support_x,)), support_y)
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: p - recipe.ALPHA * g for (name, p), g in zip(params.items(), gradients, strict=True)}
    return F.cross_entropy(functional_call(net, params, (target_x,)), target_y)


def train(rank: int, args: argparse.Namespace) -> None:
    """One process: its share of every batch, and the same outer step as the others."""
    torch.set_num_threads(1)
    keep_freed_memory()
    meeting = f"file://{args.out.resolve() / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    clock = recipe.Clock(args.out, args.every, args.seconds) if rank == 0 else None
    net, names = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.RATE)
    support_y, target_y = (torch.from_numpy(recipe.labels(each)[0]).long() for each in recipe.PARTS.values())
    for step, images in enumerate(recipe.batches(args.batches), 1):
        support, target = (torch.from_numpy(x[rank :: args.processes]).permute(0, 1, 4, 2, 3) for x in images)
        optimizer.zero_grad()
        for support_x, target_x in zip(support, target, strict=True):
            (target_loss(net, args.adapt, support_x, support_y, target_x, target_y) / recipe.TASKS).backward()
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        if step % args.every == 0:
            left = torch.ones(1)
            if clock is not None:
                left[0] = clock.look(step, {name: from_torch(p.detach().numpy()) for name, p in names.items()})
            dist.broadcast(left, 0)
            if not left:
                break
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapt", choices=recipe.ADAPT, required=True)
    parser.add_argument("--batches", type=Path, required=True, help="folder of the batches")
    parser.add_argument("--every", type=int, required=True, help="meta-steps between looks")
    parser.add_argument("--seconds", type=float, required=True, help="longest training")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of one thread each (default: one a core)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the looks")
    args = parser.parse_args()
    mp.spawn(train, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
