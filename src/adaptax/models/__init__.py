"""Models whose parameters are the module itself: `model(x)` is the forward pass."""

from adaptax.models.conv4 import Conv4, conv4
from adaptax.models.mlp import MLP, mlp
from adaptax.models.resnet12 import ResNet12, resnet12
from adaptax.models.shared_head import fresh_head, shared_head

__all__ = ["MLP", "Conv4", "ResNet12", "conv4", "fresh_head", "mlp", "resnet12", "shared_head"]
