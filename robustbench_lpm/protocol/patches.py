"""Adversarial patches: one square of an image that the attack may fill, and nothing else (Brown et al. 2017, arXiv
1712.09665).

An attack sees the patch alone, as an image of its own: the oracle pastes it into the whole. So every attack searches
among the pixels that it may change, with the squares, directions and steps that it would use on a small image.

The place is given, or chosen for each image on selection draws. An attack that knows gradients takes the place where
the gradient at the clean image promises most: exact for a linear classifier. One that knows answers alone compares
random fills of a few random places.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.architectures.classifier import on_device
from robustbench_lpm.attacks.contract import Draws
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import Norm, uniform_in_ball
from robustbench_lpm.options import CENTRE
from robustbench_lpm.protocol.oracle import ClassifierOracle, pick
from robustbench_lpm.protocol.windows import cut, paste, window_at
from robustbench_lpm.randomness import Addresses


def side_of(share: float, shape: torch.Size) -> int:
    """The side in pixels of a square patch that covers a share of images (..., H, W)."""
    height, width = shape[-2:]
    return min(max(1, round((share * height * width) ** 0.5)), height, width)


def fixed(place: str, side: int, images: Tensor) -> Tensor:
    """The window (B, side, side) of a patch at "center", or with its upper left corner at "row,column".

    Raises LpmbenchError for a patch that is not inside images (B, C, H, W).
    """
    free = [length - side for length in images.shape[-2:]]
    corner = [room // 2 for room in free] if place == CENTRE else [int(number) for number in place.split(",")]
    if any(not 0 <= start <= room for start, room in zip(corner, free, strict=True)):
        raise LpmbenchError(
            f"A patch of {side} x {side} pixels at {place} is not inside images of {images.shape[-2]} x "
            f"{images.shape[-1]}: its corner may be at 0 to {free[0]}, 0 to {free[1]}."
        )
    corners = torch.tensor(corner, device=images.device).expand(len(images), 2)
    return window_at(corners[:, 0], corners[:, 1], side, images.shape[-1])


def promising(
    oracle: ClassifierOracle, labels: Tensor, targets: Tensor | None, side: int, norm: Norm, eps: float
) -> Tensor:
    """The window (B, side, side) in which the margin decreases most, to first order at the clean images."""
    images = oracle.originals
    drawn = oracle.noise_control.sample(
        oracle.classifier, oracle.seed, oracle.indices, "select", draws=oracle.select_draws
    )
    noise = Draws(on_device(drawn, images.device), oracle.select_draws)
    gradients = oracle.gradient(images, noise, partial(objective, "margin", labels=labels, targets=targets))[0]
    if norm == "linf":
        up, down = (images + eps).clamp(max=1) - images, (images - eps).clamp(min=0) - images
        gains = torch.maximum(-gradients * up, -gradients * down).sum(1, keepdim=True)
    else:
        gains = gradients.square().sum(1, keepdim=True)
    gains = gains if oracle.mask is None else gains * oracle.mask
    sums = F.avg_pool2d(gains.double(), side, stride=1)[:, 0]
    best = sums.flatten(1).argmax(1)
    return window_at(best // sums.shape[2], best % sums.shape[2], side, images.shape[-1])


def tried(
    oracle: ClassifierOracle, labels: Tensor, targets: Tensor | None, side: int, norm: Norm, eps: float, count: int
) -> Tensor:
    """The window (B, side, side) of the strongest of `count` random places with random pixels; of one, that place."""
    images, windows, filled = oracle.originals, [], []
    for number in range(count):
        addresses = Addresses.of(oracle.seed, oracle.indices, "search", stream=f"patch {number}")
        free = torch.tensor([length - side + 1 for length in images.shape[-2:]])
        corners = to_device((addresses.uniform("corner", 2) * free).long(), images.device)
        window = window_at(corners[:, 0], corners[:, 1], side, images.shape[-1])
        windows.append(window)
        filled.append(paste(uniform_in_ball(cut(images, window), norm, eps, addresses), images, window))
    return pick(windows, oracle.strongest(filled, labels, targets))
