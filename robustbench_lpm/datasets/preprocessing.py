"""From an 8-bit image to the tensor that is attacked: --size, the centre crop, the padding and its mask."""

from __future__ import annotations

import re
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from robustbench_lpm.errors import LpmbenchError

Size = int | Literal["original"]
Fit = Literal["crop", "pad"]  # what makes a square of an image: its middle, or zeros around it
LARGEST = 8192  # pixels; beyond it a typing error would ask for gigabytes
MODES = {1: "L", 3: "RGB"}


def parse_size(text: str) -> Size:
    """ "original", or the side in pixels. Raises LpmbenchError for anything else."""
    if text == "original":
        return "original"
    if re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= LARGEST:
        return int(text)
    raise LpmbenchError(f"Size '{text}' must be 'original' or a number of pixels from 1 to {LARGEST}, such as '224'.")


def prepare(image: Image.Image, size: Size, crop: float, channels: int) -> tuple[Tensor, Tensor | None]:
    """The pixels (C, H, W), float32 in [0, 1], and the mask (1, H, W), bool, or None.

    size N: the shorter side is resized to round(N / crop), bicubic, and the centre N x N is kept; with crop = 0.875,
    224 is the usual 256-then-224. "original": no pixel changes, and zeros pad the image to a centred square; the mask
    is True on the image's own pixels and False on the padding, which no attack may touch. The mask is None when every
    pixel is the image's own.
    """
    pixels = as_shares(as_bytes(image, size, crop, channels))
    return pad_to_square(pixels) if size == "original" else (pixels, None)


def as_bytes(image: Image.Image, size: Size, crop: float, channels: int, fit: Fit = "crop") -> Tensor:
    """The pixels (C, H, W) as they are kept, uint8; unlike `prepare`, "original" pads nothing yet.

    fit, for a size N: "crop" as in `prepare`; "pad" puts zeros around the image to a centred square, and resizes that
    to N x N, bicubic, so that nothing of the image is lost: `crop` then has no say.
    """
    if image.mode not in MODES.values():
        raise LpmbenchError(f"A data set must give images in mode 'L' or 'RGB', not '{image.mode}'.")
    image = image.convert(MODES[channels])
    if size != "original" and fit == "pad":
        square = transforms.pad(image, list(_margins(image.height, image.width)))
        image = transforms.resize(square, [size, size], InterpolationMode.BICUBIC)
    elif size != "original":
        resized = transforms.resize(image, [round(size / crop)], InterpolationMode.BICUBIC)
        image = transforms.center_crop(resized, [size, size])
    return transforms.pil_to_tensor(image).contiguous()  # else strided as Pillow keeps it, which convolutions notice


def as_shares(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1], to the bit as torchvision's to_tensor makes them; on the CPU."""
    return pixels.to(torch.float32).div(255)


def pad_to_square(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """(C, H, W) in the middle of (C, S, S), S = max(H, W), and the mask of where it lies, None when H = W."""
    height, width = pixels.shape[-2:]
    if height == width:
        return pixels, None
    left, top, right, bottom = _margins(height, width)
    margins = (left, right, top, bottom)
    own = torch.ones(1, height, width, dtype=torch.bool)
    return pad(pixels, margins), pad(own, margins)


def _margins(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom: what centres a rectangle in its square."""
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return left, top, side - width - left, side - height - top
