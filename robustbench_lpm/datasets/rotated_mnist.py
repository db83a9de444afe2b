"""Rotated MNIST, regenerated: every digit rotated by a random angle (after Larochelle et al., ICML 2007).

The original, mnist-rot-12k, has 12,000 images for training and validation and 50,000 for the test, each rotated
by a random angle; its authors no longer serve its file. This one draws new angles from a seed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robustbench_lpm.datasets.images import ImageSet, from_arrays
from robustbench_lpm.datasets.mnist import MNIST, read_all_digits
from robustbench_lpm.datasets.splits import SPLITS, check_split
from robustbench_lpm.randomness import generator


def rotated_mnist(
    *, data: Path | None, split: str, folder: Path, train: int = 10_000, validation: int = 2_000, test: int = 50_000,
    seed: int = 0,
) -> ImageSet:  # fmt: skip
    """28 x 28 digits, each rotated by an angle uniform on [0, 360) degrees, bilinearly.

    All 70,000 images of MNIST, shuffled by the seed, go to the splits in turn: no digit is in two of them.

    data: the folder of MNIST's four files.
    """
    check_split("rotated-mnist", split)
    digits, labels = read_all_digits(data)
    sizes = {"train": train, "validation": validation, "test": test}
    start = sum(sizes[earlier] for earlier in SPLITS[: SPLITS.index(split)])
    order = torch.randperm(len(digits), generator=generator("rotated-mnist", seed, "order")).numpy()
    own = order[start : start + sizes[split]]
    angles = 360 * torch.rand(len(digits), generator=generator("rotated-mnist", seed, "angles"), dtype=torch.float64)
    upright = from_arrays(digits[own], np.asarray(labels)[own], MNIST.classes)

    def turned(position: int) -> Image.Image:
        angle = float(angles[int(own[position])])
        return upright.read(position).rotate(angle, resample=Image.Resampling.BILINEAR)

    return replace(upright, read=turned)
