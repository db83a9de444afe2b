"""Balls of perturbations: distances, projections and random points, for images (B, C, H, W) in [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.randomness import Addresses

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = ("linf", "l2")


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape one number per image, (B,), so that it broadcasts over images (B, ...)."""
    return values.reshape(-1, *[1] * (images.dim() - 1))


def distance(images: Tensor, originals: Tensor, norm: Norm) -> Tensor:
    """The norm of images - originals, per image, in float64: (B,)."""
    difference = (images.double() - originals.double()).flatten(1)
    return difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)


def project(images: Tensor, originals: Tensor, norm: Norm, eps: float) -> Tensor:
    """The images projected onto the ball of radius eps around originals and onto the box [0, 1].

    For "linf" this is the exact Euclidean projection onto the intersection. For "l2" the ball comes first and the
    box second; as originals are in the box, clipping to it never leaves the ball.
    """
    if norm == "linf":
        return torch.clamp(images, originals - eps, originals + eps).clamp(0, 1)
    # Sums of a photograph's pixels and radii near their rounding are beyond float32.
    centres = originals.double()
    offsets = images.double() - centres
    lengths = offsets.flatten(1).norm(dim=1)
    offsets *= per_image(eps / lengths.clamp_min(1e-300), images)
    pulled_back = (centres + offsets).to(images)
    # Rounded away from the originals, many pixels together would leave the ball: those go one step back.
    outwards = (pulled_back - centres).abs() > offsets.abs()
    pulled_back = torch.where(outwards, torch.nextafter(pulled_back, originals), pulled_back)
    # Images that are inside already keep their bits, which x0 + (x - x0) would not.
    return torch.where(per_image(lengths > eps, images), pulled_back, images).clamp(0, 1)


def steepest(gradients: Tensor, norm: Norm) -> Tensor:
    """The direction of norm 1 along which a linear function with these gradients grows fastest, per image.

    A zero gradient gives a zero step (the sign of 0 is 0): pixels that no glimpse touched stay as they are.
    """
    if norm == "linf":
        return gradients.sign()
    # The squares of gradients of a saturated classifier, 1e-25 and less, underflow: scale them up before the norm.
    largest = gradients.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradients.dtype).tiny)
    scaled = gradients / per_image(largest, gradients)
    return scaled / per_image(scaled.flatten(1).double().norm(dim=1).clamp_min(1).to(scaled), gradients)


def uniform_in_ball(originals: Tensor, norm: Norm, eps: float, addresses: Addresses) -> Tensor:
    """originals plus a point drawn uniformly from the ball, clipped to the box; one address per image."""
    shape = originals.shape[1:]
    if norm == "linf":
        offsets = addresses.uniform("offset", *shape) * 2 - 1
    else:
        # A Gaussian direction, and a radius with density d r^(d-1): uniform in volume.
        direction = addresses.normal("direction", *shape)
        radius = addresses.uniform("radius") ** (1 / shape.numel())
        offsets = direction * per_image(radius / direction.double().flatten(1).norm(dim=1).float(), direction)
    return project(originals + to_device(offsets, originals.device) * eps, originals, norm, eps)
