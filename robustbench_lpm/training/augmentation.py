"""Random maps of training images, from a keyed generator: the same key, the same maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.registry.cards import Augmentation

TRIES = 8


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Each image (B, C, H, W) mirrored, turned, sheared, scaled and moved at random, with zeros outside.

    Mirroring alone resamples nothing. An affine map that keeps less than settings.keep of an image's brightness in the
    frame is drawn again, at most TRIES times; then the image is not mapped.
    """
    if settings.flip:
        images = _mirrored(images, settings.flip, generator)
        settings = settings.model_copy(update={"flip": 0.0})
    if settings == Augmentation():
        return images  # resampling on the identity grid would still round
    if not settings.keep:
        return _resample(images, random_maps(len(images), settings, generator))
    result, left = images.clone(), torch.arange(len(images))
    mass = images.flatten(1).sum(1)
    for _ in range(TRIES):
        maps = random_maps(len(left), settings, generator)
        moved = _resample(images[left.to(images.device)], maps)
        # A map that magnifies by s spreads an image over s^2 times the area.
        expected = mass[left.to(mass.device)] / maps[:, :, :2].det().abs().to(mass)
        fits = (moved.flatten(1).sum(1) >= settings.keep * expected).cpu()
        result[left[fits].to(images.device)] = moved[fits.to(images.device)]
        left = left[~fits]
        if not len(left):
            break
    return result


def _mirrored(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Left and right change places in a random share of the images."""
    chosen = (torch.rand(len(images), generator=generator) < share).to(images.device)
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def _resample(images: Tensor, maps: Tensor) -> Tensor:
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_maps(count: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Affine maps (count, 2, 3) from output to input coordinates, in [-1, 1]; drawn on the CPU for every device."""
    share = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    signed = 2 * share - 1
    turn = signed[:, 0] * math.radians(settings.rotate)
    shear = signed[:, 1] * math.radians(settings.shear)
    smallest, largest = settings.scale
    shrink = 1 / (smallest + share[:, 2] * (largest - smallest))  # magnifying reads a smaller part of the input
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).reshape(-1, 2, 2)
    one, zero = torch.ones_like(shear), torch.zeros_like(shear)
    shearing = torch.stack([one, shear.tan(), zero, one], dim=1).reshape(-1, 2, 2)
    linear = shrink[:, None, None] * (rotation @ shearing)
    offset = signed[:, 3:, None] * 2 * settings.translate  # the image is 2 wide in these coordinates
    return torch.cat([linear, offset], dim=2).float()
