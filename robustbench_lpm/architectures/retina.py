"""Retinas, which sample an image around a fixation; and the padding of log-polar maps.

Coordinates are normalised: x to the right and y down, both in [-1, 1] over the image, whatever its size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustbench_lpm.allocator import to_device


class Retina(nn.Module):
    """Samples images on fixed patterns of points around a fixation, zeros outside the image.

    Args:
        patterns: each the points (u · height, u · width, 2) as (x, y) around the origin, in float64, and u: a cell of
            the glimpse is the mean of u x u samples. The glimpses of several patterns are stacked as channels.
        align_corners: as in torch's grid_sample.
    """

    def __init__(self, patterns: Sequence[tuple[Tensor, int]], *, align_corners: bool = False) -> None:
        super().__init__()
        self.points, self.oversampling = zip(*patterns, strict=True)
        self.align_corners = align_corners
        self._patterns: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    @property
    def height(self) -> int:
        """Rows of a glimpse."""
        return len(self.points[0]) // self.oversampling[0]

    def patterns(self, like: Tensor) -> list[Tensor]:
        """The patterns in the precision and on the device of a tensor.

        They are not buffers: a module moved to float64 needs them at full precision, not widened from float32.
        """
        key = (like.dtype, like.device)
        if key not in self._patterns:
            self._patterns[key] = [to_device(points.to(like.dtype), like.device) for points in self.points]
        return self._patterns[key]

    def sample(self, images: Tensor, fixations: Tensor, pattern: Tensor) -> Tensor:
        """Bilinear samples (R · B, C, rows, columns) of images (B, C, *, *) on pattern + fixations (R · B, 2).

        Row i of the fixations belongs to image i mod B. Images with several fixations are not copied: their grids are
        stacked, and one pass collects the gradients of all.
        """
        batch, looks, height = len(images), len(fixations) // len(images), len(pattern)
        grid = pattern + fixations.unflatten(0, (looks, batch)).transpose(0, 1)[:, :, None, None, :]
        samples = F.grid_sample(
            images, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=self.align_corners
        )
        if looks == 1:
            return samples
        return samples.unflatten(2, (looks, height)).movedim(2, 0).flatten(0, 1)

    def forward(self, images: Tensor, fixations: Tensor) -> Tensor:
        """Glimpses (R · B, C · patterns, height, width) of images (B, C, *, *) at fixations (R · B, 2)."""
        samples = [self.sample(images, fixations, pattern) for pattern in self.patterns(images)]
        cells = [F.avg_pool2d(s, u) if u > 1 else s for s, u in zip(samples, self.oversampling, strict=True)]
        return torch.cat(cells, dim=1) if len(cells) > 1 else cells[0]


def log_polar_retina(
    height: int,
    width: int,
    r_min: float,
    r_max: float,
    *,
    oversampling: int = 1,
    inner_rows: int = 0,
    align_corners: bool = False,
) -> Retina:
    """Log-polar sampling (Kiritani and Ono 2020): rows are radii in geometric progression, columns are angles.

    Glimpses are (B, C, inner_rows + height, width); the angle starts at x and turns towards y, its end excluded.
    `inner_rows` puts a disc of that many rows inside r_min, whose rings all cover the same area.
    """
    if not 0 < r_min < r_max:
        raise ValueError("a log-polar retina needs 0 < r_min < r_max")
    if height * oversampling < 2 or width < 1 or oversampling < 1 or inner_rows < 0:
        raise ValueError("a log-polar retina needs at least two radii and one angle")
    rings, disc, columns = oversampling * height, oversampling * inner_rows, oversampling * width
    radii = r_min * (r_max / r_min) ** (torch.arange(rings, dtype=torch.float64) / (rings - 1))
    if disc:
        radii = torch.cat([r_min * (torch.arange(disc, dtype=torch.float64) / disc).sqrt(), radii])
    angles = 2 * math.pi * torch.arange(columns, dtype=torch.float64) / columns
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return Retina([(radii[:, None, None] * directions, oversampling)], align_corners=align_corners)


def rectangular_retina(patch: int, scales: int, extent: float, *, align_corners: bool = False) -> Retina:
    """Square patches of growing extent around the fixation, all of the same number of cells (Mnih et al. 2014).

    Patch s covers [-extent · 2^s, extent · 2^s]²; each of its patch x patch cells averages 2^s x 2^s samples. Glimpses
    are (B, C · scales, patch, patch).
    """
    factors = [2**scale for scale in range(scales)]
    patterns = [(_cells(patch * u, patch * u, extent * u), u) for u in factors]
    return Retina(patterns, align_corners=align_corners)


def cartesian_retina(
    height: int, width: int, extent: float, *, oversampling: int = 1, align_corners: bool = False
) -> Retina:
    """One rectangle of evenly spaced samples: the control of a log-polar retina of as many samples.

    Glimpses (B, C, height, width) cover [-extent, extent]² around the fixation.
    """
    if height < 1 or width < 1 or oversampling < 1 or extent <= 0:
        raise ValueError("a rectangular retina needs at least one row, one column and an extent > 0")
    points = _cells(oversampling * height, oversampling * width, extent)
    return Retina([(points, oversampling)], align_corners=align_corners)


def _cells(rows: int, columns: int, half_width: float) -> Tensor:
    """The centres of rows x columns cells that fill [-half_width, half_width]², (rows, columns, 2), in float64."""
    vertical, horizontal = (
        half_width * ((2 * torch.arange(cells, dtype=torch.float64) + 1) / cells - 1) for cells in (rows, columns)
    )
    y, x = torch.meshgrid(vertical, horizontal, indexing="ij")
    return torch.stack([x, y], dim=-1)


PolarPadding = Literal["polar", "reference"]


class LogPolarPadding(nn.Module):
    """Pads log-polar maps (B, C, radius, angle) so that a convolution of that kernel keeps their size.

    Angles wrap, the outermost radius repeats, and rows beyond the pole are the first rows at the opposite angles.
    "polar" does this exactly: rolling the input along the angle rolls the output. "reference" repeats the original
    code, which wraps first and swaps the halves of the wrapped row, so that its half-turn is off by half the wrap.
    """

    def __init__(self, kernel: tuple[int, int], padding: PolarPadding = "polar") -> None:
        super().__init__()
        if padding not in ("polar", "reference"):
            raise ValueError(f"padding must be 'polar' or 'reference', not '{padding}'")
        kernel_rows, kernel_columns = kernel
        self.pole_rows, self.outer_rows = kernel_rows // 2, (kernel_rows - 1) // 2
        self.wrapped_columns, self.padding = kernel_columns - 1, padding

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, C, H + k_h - 1, W + k_w - 1)."""
        turned = maps.shape[-1] + (self.wrapped_columns if self.padding == "reference" else 0)
        if self.pole_rows and turned % 2:
            raise ValueError(f"the half-turn over the pole needs an even number of angles, not {turned}")
        return _Pad.apply(maps, self.pole_rows, self.outer_rows, self.wrapped_columns, self.padding == "reference")


class _Pad(torch.autograd.Function):
    """The padding of `LogPolarPadding` with one copy of the maps each way: concatenations take one for each side.

    The frame around the maps (rows over the pole, the outermost row again, wrapped columns) is written in place.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, pole: int, outer: int, wrapped: int, reference: bool) -> Tensor:
        ctx.frame = (pole, outer, wrapped, reference)
        batch, channels, height, width = maps.shape
        padded = torch.empty(
            (batch, channels, pole + height + outer, wrapped + width),
            dtype=maps.dtype, device=maps.device, memory_format=_layout(maps),
        )  # fmt: skip
        padded[:, :, pole : pole + height, wrapped:] = maps
        padded[:, :, pole + height :, wrapped:] = maps[:, :, -1:]
        if not reference and pole:
            padded[:, :, :pole, wrapped:] = _half_turn(maps[:, :, :pole].flip(2))
        padded[:, :, :, :wrapped] = padded[:, :, :, width:]
        if reference and pole:
            padded[:, :, :pole] = _half_turn(padded[:, :, pole : 2 * pole])
        return padded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        pole, outer, wrapped, reference = ctx.frame
        height, layout = gradients.shape[2] - pole - outer, _layout(gradients)

        def unwrapped(rows: Tensor) -> Tensor:
            inside = rows[..., wrapped:].clone(memory_format=layout)
            if wrapped:
                inside[..., -wrapped:] += rows[..., :wrapped]
            return inside

        maps = unwrapped(gradients[:, :, pole : pole + height])
        if outer:
            maps[:, :, -1:] += unwrapped(gradients[:, :, pole + height :].sum(2, keepdim=True))
        if pole:
            over = gradients[:, :, :pole]
            maps[:, :, :pole] += unwrapped(_half_turn(over)) if reference else _half_turn(unwrapped(over)).flip(2)
        return maps, None, None, None, None


def _half_turn(rows: Tensor) -> Tensor:
    return rows.roll(rows.shape[-1] // 2, dims=-1)


def _layout(maps: Tensor) -> torch.memory_format:
    channels_last = maps.shape[1] > 1 and maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
