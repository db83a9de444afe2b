"""Whether a network reads images of one size only: found by passes that compute shapes and no numbers."""

from __future__ import annotations

import torch
from torch import nn


def fixed_size(network: nn.Module, channels: int, side: int) -> bool:
    """Whether a network on the meta device, in eval mode, refuses images that are larger than `side` x `side`.

    One that cannot run on that device is taken to need its own size, which is always right.
    """
    try:
        for size in (side, side + 32, 2 * side):
            network(torch.empty(2, channels, size, size, device="meta"))
    except Exception:  # whatever it raises
        return True
    return False
