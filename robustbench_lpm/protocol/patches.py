"""Adversarial patches: one square of an image that the attack may fill, and nothing else (Brown et al. 2017, arXiv
1712.09665).

An attack sees the patch alone, as an image of its own: the oracle pastes it into the whole. So every attack searches
among the pixels that it may change, with the squares, directions and steps that it would use on a small image.

The place is given, or chosen for each image on selection draws, by comparing a few places with some pixels in them. An
attack that knows gradients compares the places of which the gradient at the clean image promises most, filled with what
it says: exact for a linear classifier. One that knows answers alone compares random pixels in random places.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.attacks.losses import objective
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.norms import Norm, project, steepest, uniform_in_ball
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
    oracle: ClassifierOracle, labels: Tensor, targets: Tensor | None, side: int, norm: Norm, eps: float, count: int
) -> Tensor:
    """The window (B, side, side) of the strongest of `count` places, filled with the worst pixels to first order.

    They are those of which the gradient at the clean images promises most, none within half a side of another.
    """
    images = oracle.originals
    losses = partial(objective, "margin", labels=labels, targets=targets)
    gradients, _, _ = oracle.gradient(images, oracle.selection(), losses)
    if oracle.mask is not None:
        gradients = gradients * oracle.mask
    # In linf every pixel has a worst value of its own; in other norms pixels share a budget.
    worst = project(images - eps * gradients.sign(), images, "linf", eps)
    gains = gradients * (images - worst) if norm == "linf" else gradients.square()
    left = F.avg_pool2d(gains.sum(1, keepdim=True).double(), side, stride=1)[:, 0]
    rows, columns = (torch.arange(length, device=images.device) for length in left.shape[1:])
    windows, filled = [], []
    for _ in range(count):
        best = left.flatten(1).argmax(1)
        row, column = best // left.shape[2], best % left.shape[2]
        near = [(places - chosen[:, None]).abs() * 2 <= side for places, chosen in ((rows, row), (columns, column))]
        left = left.masked_fill(near[0][:, :, None] & near[1][:, None], -torch.inf)
        window = window_at(row, column, side, images.shape[-1])
        clean, slopes = cut(images, window), cut(gradients, window)
        windows.append(window)
        filled.append(paste(project(clean - eps * steepest(slopes, norm), clean, norm, eps), images, window))
    return pick(windows, oracle.strongest(filled, labels, targets))


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
