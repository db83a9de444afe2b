"""The fifteen corruptions of ImageNet-C at five severities (Hendrycks and Dietterich 2019, arXiv 1903.12261).

The severities are the authors' (github.com/hendrycks/robustness, make_imagenet_c.py), whose images have 224 pixels.
Here images have any size and one or three channels: lengths are shares of the shorter side, so that an image and its
enlargement are corrupted alike, and what covers the image (fog, frost, snow, elastic displacements) is drawn at 224
pixels and resampled. Strengths of noise and of light are unchanged. Pixels stay float32, except in JPEG.

Three differ in kind. Frost is drawn, where the authors blend in photographs. Glass blur moves every pixel by a random
amount, fractions of a pixel too, where theirs swaps neighbours. Elastic displacements, an affine map and a local one,
are applied at once.

The random numbers of an image are those of its address, the same at all severities.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robustbench_lpm.allocator import to_device
from robustbench_lpm.errors import unknown
from robustbench_lpm.randomness import Addresses

SIDE = 224  # pixels, of the images that the severities were chosen for
SEVERITIES = (1, 2, 3, 4, 5)


def corrupted(images: Tensor, name: str, severity: int, addresses: Addresses) -> Tensor:
    """Images (B, C, H, W) in [0, 1], C 1 or 3, under a corruption at a severity of 1 to 5; in the same shape and range.

    addresses: of the images' random numbers, one for each. Raises LpmbenchError for a name that is not in CORRUPTIONS.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    corrupt, severities = CORRUPTIONS[name]
    return corrupt(images, addresses, *severities[severity - 1]).clamp(0, 1)


# Noise


def gaussian_noise(images: Tensor, addresses: Addresses, deviation: float) -> Tensor:
    """Normal noise on every value."""
    return images + deviation * _on(images, addresses.normal("noise", *images.shape[1:]))


def shot_noise(images: Tensor, addresses: Addresses, photons: float) -> Tensor:
    """Every value is the mean of so many Poisson counts of it."""
    uniform = _on(images, addresses.uniform("noise", *images.shape[1:])).double()
    mean = photons * images.double()
    # The count whose distribution function first exceeds the uniform number. 24 bits reach no further than this.
    counts, probability = torch.zeros_like(mean), torch.exp(-mean)
    reached = probability.clone()
    for count in range(1, int(photons + 8 * photons**0.5 + 12)):
        counts += uniform >= reached
        probability *= mean / count
        reached += probability
    return (counts / photons).to(images)


def impulse_noise(images: Tensor, addresses: Addresses, share: float) -> Tensor:
    """A share of the values is 0 or 1 (salt and pepper)."""
    uniform = _on(images, addresses.uniform("noise", *images.shape[1:]))
    return torch.where(uniform < share / 2, 0, torch.where(uniform >= 1 - share / 2, 1, images))


# Blur


def defocus_blur(images: Tensor, addresses: Addresses, radius: float, edge: float) -> Tensor:
    """The mean over a disc, whose edge is softened by a Gaussian of deviation `edge`."""
    reach = torch.arange(-radius - 2, radius + 3)
    places = torch.cartesian_prod(reach, reach)
    disc = (places.square().sum(1) <= radius**2).float()
    soft = _bell(1 if radius <= 8 else 2, edge)
    weights = F.conv2d(disc.reshape(1, 1, len(reach), -1), soft[None, None], padding="same").flatten()
    return _convolved(images, places, weights)


def glass_blur(images: Tensor, addresses: Addresses, sigma: float, reach: float, times: int) -> Tensor:
    """Every pixel is taken from a random place within `reach`, several times, between two blurs."""
    images, scale = _gaussian(images, sigma), _scale(images)
    for iteration in range(times):
        moves = _on(images, addresses.uniform(f"moves {iteration}", *images.shape[2:], 2)) * 2 - 1
        images = _moved(images, reach * scale * moves)
    return _gaussian(images, sigma)


def motion_blur(images: Tensor, addresses: Addresses, radius: float, sigma: float) -> Tensor:
    """The mean along a line in a random direction, within 45 degrees of the horizontal, fading to one side."""
    return _trail(images, radius, sigma, addresses.uniform("angle") * 90 - 45)


def zoom_blur(images: Tensor, addresses: Addresses, end: float, step: float) -> Tensor:
    """The mean of the image and of magnifications about its centre, up to `end`."""
    factors = np.arange(1, end, step)
    total = images.clone()
    for factor in factors:
        affine = torch.eye(2, 3).to(images) / float(factor)
        grid = F.affine_grid(affine.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        total += F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return total / (len(factors) + 1)


# Weather


def snow(
    images: Tensor, addresses: Addresses, mean: float, deviation: float, zoom: float, threshold: float, radius: float,
    sigma: float, share: float,
) -> Tensor:  # fmt: skip
    """Falling flakes, on a whitened image."""
    side = int(np.ceil(SIDE / zoom))
    flakes = mean + deviation * addresses.normal("flakes", SIDE, SIDE)[:, None, :side, :side]
    flakes = F.interpolate(flakes, (SIDE, SIDE), mode="bilinear", align_corners=True)
    flakes = flakes.where(flakes >= threshold, 0).clamp(0, 1)
    flakes = _trail(flakes, radius, sigma, addresses.uniform("angle") * 90 - 135)
    layer = _resampled(_on(images, flakes + flakes.rot90(2, dims=(2, 3))), images)
    white = torch.maximum(images, 1.5 * _grey(images) + 0.5)
    return share * images + (1 - share) * white + layer


def frost(images: Tensor, addresses: Addresses, share: float, strength: float) -> Tensor:
    """Ice that covers the image: bright veins where fractals cross the middle of their range, and a dull ground."""
    veins = [(1 - (2 * _fractal(addresses, 1.45, f"veins {i}") - 1).abs()) ** 16 for i in range(2)]
    ice = 0.7 * torch.maximum(*veins) + 0.6 * _fractal(addresses, 1.7, "ground")
    return share * images + strength * _resampled(_on(images, ice.clamp(0, 1)), images)


def fog(images: Tensor, addresses: Addresses, strength: float, decay: float) -> Tensor:
    """A fractal of light in front of the image, which keeps its highest value."""
    largest = images.amax((1, 2, 3), keepdim=True)
    layer = _resampled(_on(images, _fractal(addresses, decay, "fog")), images)
    return (images + strength * layer) * largest / (largest + strength)


def brightness(images: Tensor, addresses: Addresses, more: float) -> Tensor:
    """The value, in hue, saturation and value, is higher."""
    value = images.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp_min(1e-12)), brighter)


def contrast(images: Tensor, addresses: Addresses, share: float) -> Tensor:
    """Only a share of the difference to the mean of the channel is left."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + share * (images - mean)


# Digital


def elastic_transform(images: Tensor, addresses: Addresses, local: float, sigma: float, affine: float) -> Tensor:
    """A random affine map, and displacements that neighbours share; lengths as shares of 244 pixels, as published."""
    moves = _affine_moves(addresses, 244 * affine) + _local_moves(addresses, 244 * local, 244 * sigma)
    resampled = F.interpolate(moves.movedim(-1, 1), images.shape[2:], mode="bilinear", align_corners=False)
    return _moved(images, _scale(images) * _on(images, resampled).movedim(1, -1))


def pixelate(images: Tensor, addresses: Addresses, share: float) -> Tensor:
    """The image in so many of its pixels, each the mean of its area."""
    width, height = images.shape[3], images.shape[2]
    small = max(1, int(width * share)), max(1, int(height * share))

    def one(channel: Any) -> Any:
        reduced = Image.fromarray(channel).resize(small, Image.Resampling.BOX)
        return np.asarray(reduced.resize((width, height), Image.Resampling.BOX))

    planes = images.cpu().numpy().reshape(-1, height, width)
    return _on(images, torch.from_numpy(np.stack([one(plane) for plane in planes]))).reshape(images.shape)


def jpeg_compression(images: Tensor, addresses: Addresses, quality: int) -> Tensor:
    """The image as a JPEG file gives it back."""

    def one(image: Tensor) -> Tensor:
        bytes_ = (image * 255).round().byte().cpu().movedim(0, -1).squeeze(-1).numpy()
        file = io.BytesIO()
        Image.fromarray(bytes_).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(file))).reshape(*image.shape[1:], -1).movedim(-1, 0) / 255

    return _on(images, torch.stack([one(image) for image in images]))


CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[float, ...], ...]]] = {
    "gaussian-noise": (gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot-noise": (shot_noise, ((60,), (25,), (12,), (5,), (3,))),
    "impulse-noise": (impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "defocus-blur": (defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass-blur": (glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion-blur": (motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom-blur": (zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": (
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": (contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    "elastic-transform": (
        elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": (pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg-compression": (jpeg_compression, ((25,), (18,), (15,), (10,), (7,))),
}


# What they share


def _on(images: Tensor, drawn: Tensor) -> Tensor:
    """Numbers on the device of the images, in their precision."""
    return to_device(drawn, images.device).to(images.dtype)


def _scale(images: Tensor) -> float:
    """The length of one of the 224 pixels, in pixels of the images."""
    return min(images.shape[2:]) / SIDE


def _grey(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W), as JPEG and television have it (ITU-R BT.601)."""
    weights = torch.tensor([0.299, 0.587, 0.114] if images.shape[1] == 3 else [1.0]).to(images)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _resampled(layer: Tensor, images: Tensor) -> Tensor:
    """A layer (B, 1, 224, 224) at the size of the images."""
    return F.interpolate(layer, images.shape[2:], mode="bilinear", antialias=True, align_corners=False)


def _moved(images: Tensor, moves: Tensor) -> Tensor:
    """Images whose pixels come from places displaced by moves (B, H, W, 2), in pixels to the right and down."""
    height, width = images.shape[2:]
    identity = torch.eye(2, 3).to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(identity, list(images.shape), align_corners=False)
    grid = grid + moves * torch.tensor([2 / width, 2 / height]).to(images)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _convolved(images: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of the images moved to places (P, 2) or (B, P, 2), right and down, of 224 pixels.

    A place between pixels counts for its four neighbours (bilinear). Reflected at the border.
    """
    places = places.expand(len(images), *places.shape[-2:]) * _scale(images)
    reach = int(places.abs().max().ceil()) + 1
    size, low = 2 * reach + 1, places.floor()
    kernels = torch.zeros(len(images), size * size)
    share = places - low
    for right in (0, 1):
        for down in (0, 1):
            part = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            position = (low[..., 1] + down + reach) * size + low[..., 0] + right + reach
            kernels.scatter_add_(1, position.long(), part * weights)
    kernels = _on(images, kernels / weights.sum()).reshape(-1, 1, size, size)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    shape = [length + size - 1 for length in padded.shape[2:]]
    product = torch.fft.rfft2(padded, s=shape) * torch.fft.rfft2(kernels, s=shape)
    start = 2 * reach  # of the padding, and of the kernel
    found = torch.fft.irfft2(product, s=shape)
    return found[..., start : start + images.shape[2], start : start + images.shape[3]]


def _bell(reach: int, sigma: float) -> Tensor:
    """A Gaussian on a grid, (2 · reach + 1)², of sum 1."""
    line = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def _gaussian(images: Tensor, sigma: float) -> Tensor:
    reach = int(4 * sigma + 0.5)
    line = torch.arange(-reach, reach + 1)
    return _convolved(images, torch.cartesian_prod(line, line), _bell(reach, sigma).flatten())


def _trail(images: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """The mean along a line from each pixel in a direction (B,), with the weights of half a Gaussian."""
    steps = torch.arange(2 * radius + 1)
    angles = torch.deg2rad(degrees)[:, None]
    places = torch.stack([steps * angles.cos(), steps * angles.sin()], dim=-1)
    return _convolved(images, places, torch.exp(-steps.square() / (2 * sigma**2)))


def _fractal(addresses: Addresses, decay: float, source: str) -> Tensor:
    """A random surface in [0, 1] by midpoint displacement on a torus (diamond-square), (B, 1, 224, 224).

    Fournier, Fussell and Carpenter 1982. Displacements shrink by decay², as in the authors' code, from level to level.
    """
    side, amplitude = 256, 1.0
    random = (addresses.uniform(source, side, side) * 2 - 1).numpy()
    surface, step = np.zeros_like(random), side
    while step >= 2:
        half = step // 2
        corners = surface[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        centres = (pairs + np.roll(pairs, -1, axis=2)) / 4 + amplitude * random[:, half::step, half::step]
        surface[:, half::step, half::step] = centres
        for axis, rows, columns in ((1, slice(0, None, step), slice(half, None, step)),
                                    (2, slice(half, None, step), slice(0, None, step))):  # fmt: skip
            ends = corners + np.roll(corners, -1, axis=3 - axis)
            beside = centres + np.roll(centres, 1, axis=axis)
            surface[:, rows, columns] = (ends + beside) / 4 + amplitude * random[:, rows, columns]
        step, amplitude = half, amplitude / decay**2
    surface -= surface.min((1, 2), keepdims=True)
    surface /= surface.max((1, 2), keepdims=True)
    return torch.from_numpy(surface[:, None, :SIDE, :SIDE].copy())


def _affine_moves(addresses: Addresses, reach: float) -> Tensor:
    """Displacements (B, 224, 224, 2) of an affine map that moves three points by up to `reach` right and down."""
    first, corner, second = ((addresses.uniform("affine", 3, 2) * 2 - 1) * reach)[:, :, None, None].unbind(1)
    third = SIDE // 3
    place = (torch.arange(SIDE) - SIDE / 2) / (2 * third)
    right, down = place[None, None, :, None] + 0.5, place[None, :, None, None] - 0.5
    return corner + right * (first - corner) + down * (corner - second)


def _local_moves(addresses: Addresses, strength: float, sigma: float) -> Tensor:
    """Displacements (B, 224, 224, 2): uniform noise, smoothed with a Gaussian and multiplied."""
    noise = addresses.uniform("local", SIDE, SIDE, 2) * 2 - 1
    smooth = _smoothing(sigma)
    return strength * torch.einsum("ij,bjkc,lk->bilc", smooth, noise, smooth)


@cache
def _smoothing(sigma: float) -> Tensor:
    """The matrix (224, 224) of a Gaussian blur along one axis, reflected at the ends."""
    from scipy.ndimage import gaussian_filter1d

    return torch.from_numpy(gaussian_filter1d(np.eye(SIDE), sigma, axis=0, truncate=3)).float()
