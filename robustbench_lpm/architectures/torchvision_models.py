"""torchvision's classifiers by name, unchanged or (ResNets) narrowed and with a stem for small images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from robustbench_lpm.errors import LpmbenchError, unknown
from robustbench_lpm.hashing import sha256_of

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


class _NarrowResNet(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """A torchvision ResNet of basic blocks whose every stage keeps a share of its channels."""

    def __init__(self, layers: list[int], *, width: float, channels: int, classes: int, stem: str) -> None:
        self._width = width
        super().__init__(BasicBlock, layers, num_classes=classes)
        self.fc = nn.Linear(self._narrow(512), classes)
        first = self._narrow(64)
        self.bn1 = nn.BatchNorm2d(first)
        if stem == "small":  # He et al. 2016, section 4.2: images of 32 pixels keep their resolution at first
            self.conv1 = nn.Conv2d(channels, first, kernel_size=3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, first, kernel_size=7, stride=2, padding=3, bias=False)
        for conv in (self.conv1, self.fc):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def _narrow(self, planes: int) -> int:
        return max(8, round(planes * self._width))

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage; what enters it comes from the stem, which is narrowed alike
            self.inplanes = self._narrow(64)
        return super()._make_layer(block, self._narrow(planes), *args, **kwargs)

    # Many ResNets for small images have these names instead of torchvision's; nothing else about them differs.
    reference_parameters: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def is_reference_state(state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict calls the last layer "linear" and the projections "shortcut"."""
        return "linear.weight" in state and "layer2.0.shortcut.0.weight" in state

    @staticmethod
    def translate_reference_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Such a state dict under torchvision's names."""
        return {re.sub("^linear", "fc", name.replace("shortcut", "downsample")): state[name] for name in state}


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
    return _NarrowResNet(BASIC_LAYERS[architecture], width=width, channels=channels, classes=classes, stem=stem)


def torchvision_weights(name: str) -> Path:
    """The file with torchvision's own weights, e.g. "ResNet50_Weights.IMAGENET1K_V2", downloaded when it is missing.

    torchvision writes the start of the sha256 into the file's name; it is checked on every call, downloaded or not.
    Raises LpmbenchError for an unknown name, a failed download and an altered file.
    """
    url = _url(name)
    path = _cached(url)
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    start_of_sha256 = match[1] if match else ""
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), start_of_sha256, progress=False)
    except (OSError, RuntimeError, HTTPException) as error:
        raise LpmbenchError(f"The weights {name} could not be downloaded: {error}.") from None
    if not sha256_of(path).startswith(start_of_sha256):
        raise LpmbenchError(f"{path} is not what torchvision calls {name}: it was altered or cut short; delete it.")
    return path


def torchvision_weights_cached(name: str) -> bool:
    """Whether those weights are on this computer already."""
    try:
        return _cached(_url(name)).is_file()
    except LpmbenchError:  # an older torchvision does not know them; loading them gives the error
        return False


def _url(name: str) -> str:
    try:
        return str(models.get_weight(name).url)
    except (ValueError, KeyError, AttributeError):
        raise LpmbenchError(f"torchvision has no weights called '{name}'.") from None


def _cached(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
