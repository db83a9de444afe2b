"""Random maps of training images: the same addresses, the same maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.cards import Augmentation

TRIES = 8


def augment(images: Tensor, settings: Augmentation, addresses: Addresses) -> Tensor:
    """Each image (B, C, H, W) mirrored, rotated, sheared, scaled and moved at random, with zeros outside.

    Mirroring alone interpolates nothing. An affine map that keeps less than settings.keep of an image's brightness in
    the frame is drawn again, at most TRIES times; then the image is not mapped.
    """
    if settings.flip:
        chosen = (addresses.uniform("flip") < settings.flip).to(images.device)
        images = torch.where(chosen[:, None, None, None], images.flip(3), images)
        settings = settings.model_copy(update={"flip": 0.0})
    if settings == Augmentation():
        return images  # interpolation on the identity grid would still round
    shares = addresses.uniform("map", TRIES if settings.keep else 1, 5)
    if not settings.keep:
        return _resample(images, affine_maps(shares[:, 0], settings))
    result, left = images.clone(), torch.arange(len(images))
    mass = images.flatten(1).sum(1)
    for attempt in range(TRIES):
        maps = affine_maps(shares[left, attempt], settings)
        moved = _resample(images[left.to(images.device)], maps)
        # A map that magnifies by s spreads an image over s^2 times the area.
        expected = mass[left.to(mass.device)] / maps[:, :, :2].det().abs().to(mass)
        fits = (moved.flatten(1).sum(1) >= settings.keep * expected).cpu()
        result[left[fits].to(images.device)] = moved[fits.to(images.device)]
        left = left[~fits]
        if not len(left):
            break
    return result


def _resample(images: Tensor, maps: Tensor) -> Tensor:
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def affine_maps(shares: Tensor, settings: Augmentation) -> Tensor:
    """Affine maps (n, 2, 3) from output to input coordinates, in [-1, 1], by uniform numbers (n, 5) in [0, 1)."""
    share = shares.double()
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
