"""Random maps of training images: the same addresses, the same maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.cards import Augmentation

TRIES = 8


def augment(images: Tensor, settings: Augmentation, addresses: Addresses) -> Tensor:
    """Each image (B, C, H, W) mirrored, rotated, sheared, scaled and moved at random, with zeros outside.

    Mirroring alone interpolates nothing. An affine map that keeps less than settings.keep of an image's brightness in
    the frame is drawn again, at most TRIES times; then the image is not mapped.
    """
    if settings.flip:
        chosen = to_device(addresses.uniform("flip") < settings.flip, images.device)
        images = torch.where(chosen[:, None, None, None], images.flip(3), images)
        settings = settings.model_copy(update={"flip": 0.0})
    if settings == Augmentation():
        return images  # interpolation on the identity grid would still round
    tries = TRIES if settings.keep else 1
    shares = addresses.uniform("map", tries, 5)
    maps = affine_maps(shares.flatten(0, 1), settings).unflatten(0, (-1, tries)).transpose(0, 1)
    if not settings.keep:
        return _resample(images, to_device(maps[0], images.device))
    # A map that magnifies by s spreads an image over s^2 times the area.
    shrinks = maps[..., :2].det().abs()
    first_kept = _first_kept if images.device.type == "cpu" else _first_kept_unread
    return first_kept(images, to_device(maps, images.device), to_device(shrinks, images.device), settings.keep)


def _first_kept(images: Tensor, maps: Tensor, shrinks: Tensor, keep: float) -> Tensor:
    """Each image under the first of its maps (tries, B, 2, 3) that keeps enough of its brightness in the frame.

    shrinks: 1 / s^2 of each map, (tries, B). An image that no map suits stays as it is.
    """
    result, left, mass = images.clone(), torch.arange(len(images)), images.flatten(1).sum(1)
    for some, area in zip(maps, shrinks, strict=True):
        moved = _resample(images[left], some[left])
        fits = moved.flatten(1).sum(1) >= keep * (mass[left] / area[left])
        result[left[fits]] = moved[fits]
        left = left[~fits]
        if not len(left):
            break
    return result


def _first_kept_unread(images: Tensor, maps: Tensor, shrinks: Tensor, keep: float) -> Tensor:
    """The same without reading which images fit, which would wait for the device: all are resampled by all maps."""
    result, mass = images, images.flatten(1).sum(1)
    for some, area in zip(maps.flip(0), shrinks.flip(0), strict=True):  # an earlier map takes the place of a later one
        moved = _resample(images, some)
        fits = moved.flatten(1).sum(1) >= keep * (mass / area)
        result = torch.where(fits[:, None, None, None], moved, result)
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
