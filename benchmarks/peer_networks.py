"""The networks of the benchmarks in PyTorch, and the inputs that `peer_inputs.py` wrote for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
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
