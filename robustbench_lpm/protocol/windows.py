"""Square windows of images, one for each: cut out, and pasted back.

A window is a tensor (B, k, k) of the positions of its pixels in a flattened channel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_at(rows: Tensor, columns: Tensor, side: int, width: int) -> Tensor:
    """The windows whose upper left corners are at rows, columns (B,), in images of a width."""
    steps = torch.arange(side, device=rows.device)
    return (rows[:, None, None] + steps[:, None]) * width + columns[:, None, None] + steps


def cut(images: Tensor, window: Tensor) -> Tensor:
    """The pixels (B, C, k, k) of images (B, C, H, W) in their windows."""
    return images.flatten(2).gather(2, _index(window, images.shape[1])).unflatten(2, window.shape[1:])


def paste(patches: Tensor, images: Tensor, window: Tensor) -> Tensor:
    """Images (B, C, H, W) with patches (B, C, k, k) in their windows; of patches (n, B, C, k, k) n versions of them."""
    versions, index = patches.shape[:-4], _index(window, images.shape[1])
    flat = images.flatten(2).expand(*versions, -1, -1, -1)
    pasted = flat.scatter(-1, index.expand(*versions, -1, -1, -1), patches.flatten(-2))
    return pasted.unflatten(-1, images.shape[2:])


def _index(window: Tensor, channels: int) -> Tensor:
    return window.flatten(1)[:, None].expand(-1, channels, -1)
