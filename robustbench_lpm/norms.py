"""Balls of perturbations: distances, projections and random points, for images (B, C, H, W) in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.budgets import NORMS as NORMS
from robustbench_lpm.budgets import Norm as Norm
from robustbench_lpm.randomness import Addresses

SHARE = 0.01  # of the pixels, that an L1 step moves


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape one number per image, (B,), so that it broadcasts over images (B, ...)."""
    return values.reshape(-1, *[1] * (images.dim() - 1))


def distance(images: Tensor, originals: Tensor, norm: Norm) -> Tensor:
    """The norm of images - originals, per image, in float64: (B,). "l0" counts values: a pixel has one per channel."""
    difference = (images.double() - originals.double()).flatten(1)
    if norm in ("l1", "l0"):
        return (difference.abs() if norm == "l1" else (difference != 0).double()).sum(1)
    return difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)


def farthest(norm: Norm, pixels: int) -> float:
    """The largest distance that two images of so many pixels (times channels) can have."""
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels), "l0": float(pixels)}[norm]


def project(images: Tensor, originals: Tensor, norm: Norm, eps: float | Tensor) -> Tensor:
    """The images projected onto the ball of radius eps, or one for each image (B,), around originals and onto the box.

    For "linf", "l1" and "l0" this is the exact Euclidean projection onto the intersection. For "l2" the ball comes
    first and the box second; as originals are in the box, clipping to it never leaves the ball.
    """
    if norm == "l0":
        boxed = images.clamp(0, 1)
        lost, left = ((images.double() - other.double()).square() for other in (originals, boxed))
        return torch.where(largest(lost - left, eps), boxed, originals)
    if norm == "linf":
        radii = per_image(eps.to(originals), images) if isinstance(eps, Tensor) else eps
        return torch.clamp(images, originals - radii, originals + radii).clamp(0, 1)
    # Sums of a photograph's pixels and radii near their rounding are beyond float32.
    centres = originals.double()
    offsets = images.double() - centres
    if norm == "l2":
        lengths = offsets.flatten(1).norm(dim=1)
        offsets *= per_image(eps / lengths.clamp_min(1e-300), images)
    else:
        lengths = distance(images.clamp(0, 1), originals, norm)
        offsets = thresholded(offsets, eps, _rooms(offsets, centres))
    pulled_back = (centres + offsets).to(images)
    # Rounded away from the originals, many pixels together would leave the ball: those go one step back.
    outwards = (pulled_back - centres).abs() > offsets.abs()
    pulled_back = torch.where(outwards, torch.nextafter(pulled_back, originals), pulled_back)
    # Images that are inside already keep their bits, which x0 + (x - x0) would not.
    return torch.where(per_image(lengths > eps, images), pulled_back, images).clamp(0, 1)


def largest(values: Tensor, count: float | Tensor) -> Tensor:
    """Which of the values (B, ...) of each image are among its `count` largest, of equal ones the first."""
    ranks = values.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    most = count[:, None] if isinstance(count, Tensor) else count
    return (ranks + 1 <= most).reshape(values.shape)


def thresholded(offsets: Tensor, eps: float | Tensor, rooms: Tensor | float = math.inf) -> Tensor:
    """The projection of offsets (B, ...) onto the L1 ball of radius eps and the box that leaves each pixel this room.

    rooms: (B, pixels), or one for all; without a box infinite. In float64, for sums of a photograph's pixels.

    Croce and Hein 2021 (arXiv 2103.01208, proposition 2.1): the size of each offset is that of the given one less
    a threshold, clipped to [0, room]. The sum of sizes falls with the threshold, linearly between the sizes and the
    sizes less their rooms; sorted, these show where it is eps.
    """
    sizes = offsets.flatten(1).double().abs()
    radii = eps.double()[:, None] if isinstance(eps, Tensor) else eps
    knots, order = torch.cat([sizes, sizes - rooms], 1).sort(1, descending=True)
    slopes = torch.where(order < sizes.shape[1], 1.0, -1.0).to(sizes)
    values, counts = (slopes * knots).cumsum(1), slopes.cumsum(1)
    last = ((values - counts * knots) <= radii).sum(1, keepdim=True).clamp_min(1) - 1
    value, count = values.gather(1, last), counts.gather(1, last)
    threshold = ((value - radii) / count.clamp_min(1)).clamp_min(0)
    found = (sizes - threshold).clamp_min(0).clamp_max(rooms)
    found *= (radii / found.sum(1, keepdim=True).clamp_min(1e-300)).clamp_max(1)  # the rounding of the sums
    return found.reshape(offsets.shape) * offsets.sign()


def _rooms(directions: Tensor, centres: Tensor) -> Tensor:
    """How far each pixel of centres may go in the direction of these signs before it leaves the box: (B, pixels)."""
    return torch.where(directions > 0, 1 - centres, centres).flatten(1)


def lowest(originals: Tensor, gradients: Tensor, norm: Norm, eps: float) -> Tensor:
    """The point of ball and box at which a linear function with these gradients is lowest.

    In "l1" the pixels of the largest gradients go to the end of the box, one after the other, until eps is spent. In
    "l2" it is the lowest point of the ball, clipped to the box. Not for "l0".
    """
    if norm != "l1":
        return project(originals - eps * steepest(gradients, norm), originals, norm, eps)
    sizes, order = gradients.flatten(1).abs().sort(dim=1, descending=True, stable=True)
    rooms = _rooms(-gradients, originals.double()).gather(1, order) * (sizes > 0)
    spent = rooms.minimum((eps - rooms.cumsum(1) + rooms).clamp_min(0))
    offsets = torch.zeros_like(rooms).scatter(1, order, spent).reshape(gradients.shape) * -gradients.sign()
    return project((originals + offsets).to(originals), originals, norm, eps)


def steepest(gradients: Tensor, norm: Norm) -> Tensor:
    """The direction of norm 1 along which a linear function with these gradients grows fastest, per image.

    In "l1" that would be one pixel, which the box leaves little room: there the signs of some of the largest gradients
    share the step (Tramer and Boneh 2019, arXiv 1904.13000, section 3). "l0" bounds no length: there it is that of
    "l2". A zero gradient gives a zero step (the sign of 0 is 0): pixels that no glimpse touched stay as they are.
    """
    if norm == "linf":
        return gradients.sign()
    if norm == "l1":
        return sparse(gradients, SHARE)
    # The squares of gradients of a saturated classifier, 1e-25 and less, underflow: scale them up before the norm.
    largest = gradients.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradients.dtype).tiny)
    scaled = gradients / per_image(largest, gradients)
    return scaled / per_image(scaled.flatten(1).double().norm(dim=1).clamp_min(1).to(scaled), gradients)


def stepped(images: Tensor, gradients: Tensor, norm: Norm, length: float) -> Tensor:
    """The images after a step of this length against the gradients, which may leave ball and box.

    In "l1" pixels that are at the end of the box already leave the step to others.
    """
    if norm == "l1":
        gradients = gradients * torch.where(gradients > 0, images > 0, images < 1)
    return images - length * steepest(gradients, norm)


def sparse(gradients: Tensor, share: float | Tensor) -> Tensor:
    """A direction of L1 norm 1: the signs of the largest gradients, of a share of the pixels (at least one).

    share: one for all or one for each image, (B,).
    """
    sizes = gradients.flatten(1).abs()
    pixels = sizes.shape[1]
    if isinstance(share, Tensor):
        last = (share * pixels).long().clamp(1, pixels) - 1
        least = sizes.sort(1, descending=True).values.gather(1, last[:, None])
    else:
        least = sizes.topk(max(1, int(share * pixels))).values[:, -1:]
    signs = gradients.sign() * (sizes >= least).reshape(gradients.shape)
    return signs / per_image(signs.flatten(1).abs().sum(1).clamp_min(1), gradients)


def uniform_in_ball(originals: Tensor, norm: Norm, eps: float, addresses: Addresses) -> Tensor:
    """originals plus a point drawn uniformly from the ball, clipped to the box; one address per image.

    In "l0" eps values, drawn without replacement, are uniform in [0, 1].
    """
    shape, device = originals.shape[1:], originals.device
    if norm == "l0":
        places, values = (
            to_device(addresses.uniform(source, *shape, device=device), device) for source in ("place", "value")
        )
        return torch.where(largest(places, eps), values.to(originals.dtype), originals)
    if norm == "linf":
        offsets = addresses.uniform("offset", *shape, device=device) * 2 - 1
    elif norm == "l1":
        # Of d + 1 exponential numbers, the shares of the first d in the sum: uniform in the ball's positive part.
        numbers = -torch.log1p(-addresses.uniform("offset", shape.numel() + 1).double())
        offsets = (numbers[:, :-1] / numbers.sum(1, keepdim=True)).reshape(-1, *shape)
        offsets = offsets.float() * addresses.signs("direction", *shape)
    else:
        # A Gaussian direction, and a radius with density d r^(d-1): uniform in volume.
        direction = addresses.normal("direction", *shape, device=device)
        radius = addresses.uniform("radius", device=device) ** (1 / shape.numel())
        offsets = direction * per_image(radius / direction.double().flatten(1).norm(dim=1).float(), direction)
    return project(originals + to_device(offsets, device) * eps, originals, norm, eps)
