"""What --size does to an image, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robustbench_lpm.datasets.images import ImageSet
from robustbench_lpm.datasets.preprocessing import (
    Cropped,
    Fit,
    Size,
    as_bytes,
    as_shares,
    choose_size,
    pad_to_square,
    parse_size,
    prepare,
    told_changes,
)
from robustbench_lpm.errors import LpmbenchError
from tests.datasets.image_samples import noise_image


@pytest.mark.parametrize(("text", "size"), [("original", "original"), ("1", 1), ("224", 224), ("8192", 8192)])
def test_sizes_are_read(text: str, size: object) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "8193", "224x224", "22.4", " 224", "224\n", "Original", "２２４", "1e3"]
)
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(LpmbenchError, match="must be 'original' or a number of pixels from 1 to 8192"):
        parse_size(text)


SHAPES = [(500, 375), (375, 500), (300, 300), (256, 256), (224, 225), (256, 301), (97, 640)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_224_is_torchvisions_256_then_224(width: int, height: int) -> None:
    image = noise_image(width, width, height)
    pixels, mask = prepare(image, 224, 0.875, 3)
    standard = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    assert torch.equal(pixels, standard(image))
    assert mask is None


@pytest.mark.parametrize("sides", [(300, 500), (500, 301), (224, 224), (100, 130)])
def test_crop_224_is_torchvisions_resize_and_centre_crop(sides: tuple[int, int]) -> None:
    """As the attack script of the RAM-LPM paper prepares images, whatever share a card crops."""
    image = noise_image(0, *sides)
    standard = transforms.Compose([transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor()])
    size = parse_size("crop-224")
    assert str(size) == "crop-224"
    assert torch.equal(prepare(image, size, 0.875, 3)[0], standard(image))


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("side", [1, 32, 224])
def test_an_image_of_the_size_asked_for_stays_as_it_is(side: int, crop: float, fit: Fit) -> None:
    image = noise_image(side, side, side)
    assert torch.equal(as_bytes(image, side, crop, 3, fit), as_bytes(image, "original", crop, 3))


def pictures(*sizes: tuple[int, int], known: bool = True) -> ImageSet:
    """Images of these sizes, (width, height), that nobody may decode to learn them."""

    def read(position: int) -> Image.Image:
        raise AssertionError

    size_of = sizes.__getitem__ if known else None
    return ImageSet(np.zeros(len(sizes), np.int64), (), read, str, size_of=size_of)


SEVERAL = pictures((32, 32), (40, 30), (32, 32))
CHANGES: list[tuple[ImageSet, Size, float, str]] = [
    (pictures((32, 32), (32, 32)), 224, 0.875, "images of 32x32 -> 256 -> crop 224"),
    (pictures((256, 256)), 224, 0.875, "images of 256x256 -> crop 224"),
    (pictures((32, 32)), 64, 1.0, "images of 32x32 -> 64"),
    (pictures((32, 32)), 32, 0.875, ""),
    (pictures((420, 360)), 224, 0.875, "images of 420x360 -> shorter side 256 -> crop 224"),
    (pictures((300, 256)), 224, 0.875, "images of 300x256 -> crop 224"),
    (pictures((420, 360)), Cropped(224), 0.875, "images of 420x360 -> shorter side 224 -> crop 224"),
    (pictures((40, 30)), 30, 1.0, "images of 40x30 -> crop 30"),
    (SEVERAL, 224, 0.875, "images of several sizes -> shorter side 256 -> crop 224"),
    (pictures((32, 32), known=False), 224, 0.875, "images -> shorter side 256 -> crop 224"),
    (pictures((32, 32)), "original", 0.875, ""),
    (SEVERAL, "original", 0.875, ""),
    (pictures((40, 30)), "original", 0.875, "images of 40x30 -> padded with black to 40x40"),
]


@pytest.mark.parametrize(("images", "size", "crop", "told"), CHANGES)
def test_what_is_resized_or_cropped_is_told(images: ImageSet, size: Size, crop: float, told: str) -> None:
    assert told_changes(images, size, crop) == told


@pytest.mark.parametrize(
    ("images", "asked", "keep_shared", "size"),
    [
        (pictures((32, 32), (32, 32)), None, True, "original"),
        (pictures((40, 30), (40, 30)), None, True, "original"),
        (pictures((9, 9)), None, True, "original"),
        (SEVERAL, None, True, 224),
        (pictures((32, 32)), None, False, 224),
        (pictures((32, 32), known=False), None, True, 224),
        (pictures((32, 32)), "64", True, 64),
        (SEVERAL, "original", True, "original"),
    ],
)
def test_images_that_share_one_size_keep_it_unless_another_is_asked_for(
    images: ImageSet, asked: str | None, keep_shared: bool, size: Size
) -> None:
    assert choose_size(images, asked, "224", keep_shared=keep_shared) == size


def test_the_crop_is_the_middle_of_pillows_bicubic() -> None:
    image = noise_image(0, 60, 40)
    pixels, _ = prepare(image, 28, 0.875, 3)
    middle = image.resize((48, 32), Image.Resampling.BICUBIC).crop((10, 2, 38, 30))
    assert torch.equal(pixels, torch.from_numpy(np.array(middle)).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("size", [8, 28, 32, 100])
def test_without_a_crop_a_square_image_is_only_resized(size: int) -> None:
    image = noise_image(0, 28, 28, "L")
    pixels, _ = prepare(image, size, 1.0, 1)
    resized = np.array(image.resize((size, size), Image.Resampling.BICUBIC))
    assert torch.equal(pixels, torch.from_numpy(resized)[None] / 255)


@pytest.mark.parametrize("size", [1, 7, 64, "original"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_float32_between_0_and_1_in_the_channels_asked_for(size: object, mode: str, channels: int) -> None:
    pixels, _ = prepare(noise_image(0, 30, 20, mode), size, 0.875, channels)  # type: ignore[arg-type]
    side = 30 if size == "original" else size
    assert (pixels.dtype, pixels.shape) == (torch.float32, (channels, side, side))
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_black_and_white_reach_0_and_1_exactly() -> None:
    for value, expected in ((0, 0.0), (255, 1.0)):
        pixels, _ = prepare(Image.new("RGB", (50, 40), (value,) * 3), 32, 0.875, 3)
        assert (pixels == expected).all()


def test_grey_is_replicated_and_colour_is_weighted() -> None:
    grey, _ = prepare(noise_image(0, 8, 8, "L"), "original", 1.0, 3)
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    red, _ = prepare(Image.new("RGB", (2, 2), (255, 0, 0)), "original", 1.0, 1)
    assert red[0, 0, 0] == pytest.approx(0.299, abs=1 / 255)  # ITU-R 601


@pytest.mark.parametrize(("width", "height"), [(5, 4), (4, 5), (9, 2), (1, 6)])
def test_original_pads_to_a_centred_square_and_masks_exactly_the_padding(width: int, height: int) -> None:
    image = Image.new("RGB", (width, height), (255, 255, 255))  # so that a pixel is 1 where it is real, else 0
    pixels, mask = prepare(image, "original", 0.875, 3)
    side = max(width, height)
    assert pixels.shape == (3, side, side)
    assert mask is not None
    assert (mask.dtype, mask.shape) == (torch.bool, (1, side, side))
    assert torch.equal(mask.expand(3, -1, -1), pixels == 1)
    assert int(mask.sum()) == width * height
    top, left = (side - height) // 2, (side - width) // 2
    assert mask[0, top : top + height, left : left + width].all()


def test_original_changes_no_pixel() -> None:
    image = noise_image(0, 7, 4)
    pixels, mask = prepare(image, "original", 0.875, 3)
    assert mask is not None
    own = (pixels[:, mask[0]] * 255).round().to(torch.uint8).reshape(3, 4, 7)
    np.testing.assert_array_equal(own.permute(1, 2, 0).numpy(), np.asarray(image))


def test_a_square_original_is_left_alone() -> None:
    pixels, mask = prepare(noise_image(0, 6, 6), "original", 0.875, 3)
    assert mask is None
    assert pad_to_square(pixels)[0] is pixels


def test_modes_that_break_the_contract_are_told() -> None:
    with pytest.raises(LpmbenchError, match="mode 'L' or 'RGB', not 'RGBA'"):
        prepare(Image.new("RGBA", (4, 4)), 4, 1.0, 3)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (41, 60), (50, 50)])
@pytest.mark.parametrize("size", [32, 60, 96])
def test_padding_then_resizing_loses_nothing_of_an_image(width: int, height: int, size: int) -> None:
    image = noise_image(0, width, height)
    side = max(width, height)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    expected = np.array(square.resize((size, size), Image.Resampling.BICUBIC))
    found = as_bytes(image, size, 0.875, 3, "pad")
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("L", 3), ("RGB", 3), ("RGB", 1)])
@pytest.mark.parametrize("size", [24, "original"])
def test_bytes_are_the_pixels_of_to_tensor_and_lie_in_order(mode: str, channels: int, size: Size) -> None:
    image = noise_image(1, 40, 30, mode)
    kept = as_bytes(image, size, 0.875, channels)
    assert kept.is_contiguous()
    pixels, _ = prepare(image, size, 0.875, channels)
    assert torch.equal(pad_to_square(as_shares(kept))[0], pixels)
    assert pixels.is_contiguous()
    if size == "original" and (mode, channels) in [("L", 1), ("RGB", 3)]:
        assert torch.equal(as_shares(kept), transforms.ToTensor()(image))


def test_every_byte_becomes_the_share_of_to_tensor() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert torch.equal(as_shares(torch.from_numpy(every)[None]), transforms.ToTensor()(Image.fromarray(every)))
