"""torchvision's classifiers by name, whole or (ResNets) narrowed and with a stem for small images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from robustbench_lpm.errors import LpmbenchError, unknown

BASIC_LAYERS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}


def torchvision_model(*, architecture: str, channels: int, classes: int, **parameters: Any) -> nn.Module:
    """The classifier that torchvision.models calls `architecture`, untrained.

    Images (B, channels, H, W), already normalised, to logits (B, classes).
    """
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown("torchvision architecture", architecture, known)
    if channels != 3:
        raise LpmbenchError(f"torchvision's {architecture} reads 3 channels, not {channels}; see small_resnet.")
    return models.get_model(architecture, weights=None, num_classes=classes, **parameters)


class NarrowResNet(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """A torchvision ResNet of basic blocks whose every stage keeps a share of its channels."""

    def __init__(self, layers: list[int], *, width: float, channels: int, classes: int, stem: str) -> None:
        self._width = width
        super().__init__(BasicBlock, layers, num_classes=classes)
        self.fc = nn.Linear(self._narrow(512), classes)
        if stem == "small":  # He et al. 2016, section 4.2: images of 32 pixels keep their resolution at first
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        for conv in (self.conv1, self.fc):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def _narrow(self, planes: int) -> int:
        return max(8, round(planes * self._width))

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return super()._make_layer(block, self._narrow(planes), *args, **kwargs)


def small_resnet(
    *,
    architecture: Literal["resnet18", "resnet34"],
    channels: int,
    classes: int,
    width: float = 1.0,
    stem: Literal["small", "imagenet"] = "small",
) -> nn.Module:
    """torchvision's ResNet-18 or -34 with `width` of its channels, for images of 1 or 3 channels."""
    if architecture not in BASIC_LAYERS:
        raise unknown("architecture", architecture, BASIC_LAYERS)
    return NarrowResNet(BASIC_LAYERS[architecture], width=width, channels=channels, classes=classes, stem=stem)


def torchvision_weights(name: str) -> dict[str, Tensor]:
    """torchvision's own weights, e.g. "ResNet50_Weights.IMAGENET1K_V2"; downloaded and hash-checked when missing.

    Raises LpmbenchError for an unknown name, and when the download fails.
    """
    try:
        weights = models.get_weight(name)
    except (ValueError, KeyError, AttributeError):
        raise LpmbenchError(f"torchvision has no weights called '{name}'.") from None
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise LpmbenchError(f"The weights {name} could not be downloaded: {error}.") from None


def torchvision_weights_cached(name: str) -> bool:
    """Whether those weights are on this computer already."""
    try:
        url = str(models.get_weight(name).url)
    except (ValueError, KeyError, AttributeError):
        return False
    from pathlib import Path

    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]).is_file()
