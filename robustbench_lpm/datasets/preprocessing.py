"""From an 8-bit image to the tensor that is attacked: --size, the centre crop, the padding and its mask."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad

from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.errors import LpmbenchError

Size = int | Literal["original"]


class Cropped(int):
    """A side that `crop-N` asks for: the shorter side becomes N, whatever share a dataset's card crops, bilinearly.

    With N = 224 that is how the reference of RAM-LPM prepares images.
    """

    def __str__(self) -> str:
        return f"crop-{int(self)}"


Fit = Literal["crop", "pad"]  # how an image becomes a square: its middle, or zeros around it
LARGEST = 8192  # pixels; beyond it a typing error would ask for gigabytes
MODES = {1: "L", 3: "RGB"}


def parse_size(text: str) -> Size:
    """ "original", the side in pixels, or "crop-" and that. Raises LpmbenchError for anything else."""
    if text == "original":
        return "original"
    side, kind = (text[5:], Cropped) if text.startswith("crop-") else (text, int)
    if re.fullmatch(r"[0-9]{1,4}", side) and 1 <= int(side) <= LARGEST:
        return kind(side)
    raise LpmbenchError(
        f"Size '{text}' must be 'original' or a number of pixels from 1 to {LARGEST}, such as '224' or 'crop-224'."
    )


def choose_size(images: ImageSet, asked: str | None, default: str, *, keep_shared: bool) -> Size:
    """The given size; else, with keep_shared, "original" if all images share one size; else the default.

    Raises LpmbenchError as `parse_size` does, and for a file whose size must be known and cannot be read.
    """
    kept = not asked and keep_shared and len(images.sizes) == 1
    return parse_size("original" if kept else asked or default)


def told_changes(images: ImageSet, size: Size, crop: float) -> str:
    """The changes by `prepare`, such as "images of 32x32 -> 256 -> crop 224"; "" if there are none."""
    shared = images.sizes[0] if len(images.sizes) == 1 else None
    many = f"images of {shared[0]}x{shared[1]}" if shared else f"images{' of several sizes' * bool(images.sizes)}"
    if size == "original":
        uneven = shared is not None and shared[0] != shared[1]
        return f"{many} -> padded with black to {max(shared)}x{max(shared)}" if shared and uneven else ""
    if shared == (size, size):
        return ""
    side, size, square = round(_before_crop(size, crop)), int(size), shared is not None and shared[0] == shared[1]
    steps = [many]
    if shared is None or min(shared) != side:
        steps.append(f"{side}" if square else f"shorter side {side}")
    if not square or side != size:
        steps.append(f"crop {size}")
    return " -> ".join(steps)


def prepare(image: Image.Image, size: Size, crop: float, channels: int) -> tuple[Tensor, Tensor | None]:
    """The pixels (C, H, W), float32 in [0, 1], and the mask (1, H, W), bool, or None.

    size N: the shorter side is resized to round(N / crop), bicubic, and the centre N x N is kept; with crop = 0.875,
    224 is the usual 256-then-224. An image of N x N stays as it is. "original": no pixel changes, and zeros pad the
    image to a centred square; the mask is True on the image's own pixels and False on the padding, which no attack may
    touch. The mask is None when every pixel is the image's own.
    """
    pixels = as_shares(as_bytes(image, size, crop, channels))
    return pad_to_square(pixels) if size == "original" else (pixels, None)


def as_bytes(image: Image.Image, size: Size, crop: float, channels: int, fit: Fit = "crop") -> Tensor:
    """The pixels (C, H, W), uint8, as `prepare` makes them but without the padding of "original".

    fit, for a size N: "crop" as in `prepare`; "pad" ignores `crop`, pads the image with zeros to a centred square and
    resizes that to N x N, bicubic, so that nothing of the image is lost.
    """
    if image.mode not in MODES.values():
        raise LpmbenchError(f"A dataset must give images in mode 'L' or 'RGB', not '{image.mode}'.")
    image = image.convert(MODES[channels])
    if size == "original" or image.size == (size, size):
        pass
    elif fit == "pad":
        square = ImageOps.expand(image, _margins(image.height, image.width))
        image = square.resize((size, size), Image.Resampling.BICUBIC)
    else:
        resampling = Image.Resampling.BILINEAR if isinstance(size, Cropped) else Image.Resampling.BICUBIC
        image = _centre(_resized(image, round(_before_crop(size, crop)), resampling), size)
    pixels = np.array(image).reshape(image.height, image.width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # Pillow's own memory layout slows convolutions down


def _before_crop(size: int, crop: float) -> float:
    """The shorter side before the centre is cut out."""
    return size if isinstance(size, Cropped) else size / crop


def _resized(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """The shorter side to `side`; the longer is rounded down, as torchvision does."""
    short, long = min(image.size), int(side * max(image.size) / min(image.size))
    size = (side, long) if image.width == short else (long, side)
    return image if image.size == size else image.resize(size, resampling)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def as_shares(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1], bit for bit as torchvision's to_tensor."""
    # CUDA would multiply by the rounded reciprocal of a number; by a tensor of its own it divides.
    return pixels.to(torch.float32).div(torch.full((), 255.0, device=pixels.device))


def pad_to_square(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """(C, H, W) padded to (C, S, S), S = max(H, W), in its middle, and the mask of its place, None if H = W."""
    height, width = pixels.shape[-2:]
    if height == width:
        return pixels, None
    left, top, right, bottom = _margins(height, width)
    margins = (left, right, top, bottom)
    own = torch.ones(1, height, width, dtype=torch.bool)
    return pad(pixels, margins), pad(own, margins)


def _margins(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom: the padding that centres a rectangle in its square."""
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, side - width - left, side - height - top
