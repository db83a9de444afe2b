"""A contact sheet: the first images of a data set with their labels, as one PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

GAP, CAPTION = 4, 12  # pixels


def contact_sheet(images: NDArray[np.uint8], labels: NDArray[np.integer], columns: int = 12) -> bytes:
    """Grey images (N, H, W), 0 to 255, in rows of so many, each with its label below."""
    count, height, width = images.shape
    rows = -(-count // columns)
    sheet = Image.new("L", (columns * (width + GAP) + GAP, rows * (height + GAP + CAPTION) + GAP), 90)
    pen = ImageDraw.Draw(sheet)
    for position in range(count):
        row, column = divmod(position, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP + CAPTION)
        sheet.paste(Image.fromarray(images[position]), (left, top))
        pen.text((left + width // 2, top + height + 1), str(int(labels[position])), fill=255, anchor="ma")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
