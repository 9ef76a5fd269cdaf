"""Models whose parameters are the module itself: `model(x)` is the forward pass. `protocol` says what your own may offer."""

from adaptax.models.conv4 import Conv4, conv4
from adaptax.models.lora import LoRA, adapters, biases, lora, norms
from adaptax.models.mlp import MLP, mlp
from adaptax.models.protocol import Head, Moments, head_of, head_only, with_head
from adaptax.models.resnet12 import ResNet12, resnet12
from adaptax.models.shared_head import fresh_head, shared_head

__all__ = [
    "MLP",
    "Conv4",
    "Head",
    "LoRA",
    "Moments",
    "ResNet12",
    "adapters",
    "biases",
    "conv4",
    "fresh_head",
    "head_of",
    "head_only",
    "lora",
    "mlp",
    "norms",
    "resnet12",
    "shared_head",
    "with_head",
]
