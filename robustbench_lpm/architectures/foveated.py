"""A network that sees the whole image, blurred as a log-polar retina at its centre would sample it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustbench_lpm.allocator import to_device
from robustbench_lpm.architectures.cnn import Cnn

TRUNCATION = 4.0  # sigmas after which a Gaussian is truncated
# A blurred copy of an image (B, C, h, w), down @ image @ across: down (h, h), across (w, w), share of a pixel (h, w).
Copy = tuple[Tensor, ...]


class FovealBlur(nn.Module):
    """Blurs an image increasingly with the distance from its centre, as the sample spacing of a log-polar retina grows.

    At radius r (normalised units) a `log_polar_retina` of height H and width W has its samples 2π r / W apart around
    the pole and r ln(r_max / r_min) / (H - 1) apart along a ray. The Gaussian at r has half the larger of the two as
    its standard deviation sigma(r); inside r_min it is sigma(r_min), outside r_max it grows on.

    Every pixel mixes the two of `copies` blurred copies (sigmas in geometric progression) that enclose its sigma, with
    shares linear in sigma², so that the mixture has that variance. The edge of the image repeats outside it. The map
    is linear and differentiable.

    Args:
        height, width, r_min, r_max: of the log-polar retina; H and W.
        copies: at least 2.
    """

    def __init__(self, *, height: int, width: int, r_min: float, r_max: float, copies: int = 8) -> None:
        super().__init__()
        if height < 2 or width < 1 or not 0 < r_min < r_max or copies < 2:
            raise ValueError("a foveal blur needs height >= 2, width >= 1, 0 < r_min < r_max and two copies")
        self.r_min, self.copies = r_min, copies
        self.relative_sigma = max(2 * math.pi / width, math.log(r_max / r_min) / (height - 1)) / 2
        self._prepared: dict[tuple[int, int, torch.dtype, torch.device], list[Copy]] = {}

    def sigma(self, height: int, width: int) -> Tensor:
        """The standard deviation at every pixel of an image of that size, (height, width), normalised, in float64."""
        y, x = ((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (height, width))
        return self.relative_sigma * torch.hypot(y[:, None], x[None, :]).clamp(min=self.r_min)

    def blurred_copies(self, like: Tensor) -> list[Copy]:
        """The copies for images (B, C, h, w), in their precision, made in float64 and kept."""
        key = (like.shape[-2], like.shape[-1], like.dtype, like.device)
        if key not in self._prepared:
            with torch.inference_mode(False):  # otherwise a later backward pass could not use them
                self._prepared[key] = [
                    tuple(to_device(part.to(like.dtype), like.device) for part in copy)
                    for copy in self._make(*like.shape[-2:])
                ]
        return self._prepared[key]

    def _make(self, height: int, width: int) -> list[Copy]:
        sharpest, coarsest = (self.relative_sigma * r for r in (self.r_min, math.sqrt(2)))
        steps = torch.linspace(0, 1, self.copies, dtype=torch.float64)
        sigmas = sharpest * (coarsest / sharpest) ** steps
        shares = hats(self.sigma(height, width).square(), sigmas.square())
        return [
            (gaussian(height, sigma * height / 2), gaussian(width, sigma * width / 2).T, share)
            for sigma, share in zip(sigmas.tolist(), shares, strict=True)
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) to images of the same shape."""
        blurred = torch.zeros_like(images)
        for down, across, share in self.blurred_copies(images):
            blurred = blurred + share * (down @ images @ across)
        return blurred


def gaussian(size: int, sigma: float) -> Tensor:
    """The matrix (size, size), float64, that blurs a line of pixels with a Gaussian of sigma > 0 pixels.

    Pixels outside the line are copies of the nearest one inside: their weights are added to its column.
    """
    reach = max(1, math.ceil(TRUNCATION * sigma))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offsets.double() / sigma).square() / 2)
    columns = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, columns, (weights / weights.sum()).expand(size, -1))


def hats(values: Tensor, knots: Tensor) -> Tensor:
    """For values (...) the shares (len(knots), ...) of linear interpolation between ascending knots."""
    values = values.clamp(knots[0], knots[-1])
    upper = torch.searchsorted(knots, values).clamp(min=1)
    lower_knot, upper_knot = knots[upper - 1], knots[upper]
    share = (values - lower_knot) / (upper_knot - lower_knot)
    shares = torch.zeros(len(knots), *values.shape, dtype=values.dtype)
    shares.scatter_(0, upper[None], share[None])
    return shares.scatter_(0, upper[None] - 1, 1 - share[None])


class FoveatedCnn(nn.Module):
    """`Cnn` behind `FovealBlur`: it sees the whole image as sharply as a log-polar retina at its centre.

    Images (B, channels, size, size) to logits (B, classes).

    Args:
        channels, classes, size, width, hidden, dropout: of the `Cnn`.
        retina_height, retina_width, r_min, r_max: of the retina whose sample spacing the blur follows (`FovealBlur`).
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        retina_height: int,
        retina_width: int,
        r_min: float,
        r_max: float,
        size: int = 32,
        width: int = 32,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blur = FovealBlur(height=retina_height, width=retina_width, r_min=r_min, r_max=r_max)
        self.cnn = Cnn(channels=channels, classes=classes, size=size, width=width, hidden=hidden, dropout=dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.cnn(self.blur(images))
