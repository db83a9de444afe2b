"""Corruptions do what their formulas say, more of it at higher severities, and alike at every size."""

from __future__ import annotations

import colorsys
import io
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import poisson
from torch import Tensor

from robustbench_lpm.datasets import corruptions
from robustbench_lpm.datasets.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from robustbench_lpm.errors import LpmbenchError
from robustbench_lpm.randomness import Addresses
from robustbench_lpm.registry.tasks import resolve_data

# Their published severities grow in another respect than the mean squared change; each has a test of its own below.
OTHERWISE = ("frost", "elastic-transform")
LENGTHS = ("defocus-blur", "motion-blur", "zoom-blur", "snow", "frost", "fog", "elastic-transform")


@cache
def panda(size: int = 224) -> Tensor:
    return resolve_data("panda", size=str(size)).read([0]).images[0][None]


def of(count: int, name: str = "", seed: int = 0) -> Addresses:
    return Addresses.of(seed, range(count), "corrupt", stream=name)


def changed(images: Tensor, name: str, severity: int) -> Tensor:
    return corrupted(images, name, severity, of(len(images), name))


def flat(value: float, side: int = 64, count: int = 8) -> Tensor:
    return torch.full((count, 1, side, side), value)


def spot(side: int = 225) -> Tensor:
    image = torch.zeros(1, 1, side, side)
    image[..., side // 2, side // 2] = 1
    return image


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in OTHERWISE])
@pytest.mark.parametrize("images", [panda(64), panda(224), panda(48).mean(1, keepdim=True)], ids=["64", "224", "grey"])
def test_the_change_grows_with_severity(name: str, images: Tensor) -> None:
    several = images.repeat(4, 1, 1, 1)  # four draws
    changes = [float((changed(several, name, severity) - several).square().mean()) for severity in SEVERITIES]
    assert changes[0] > 0
    assert changes == sorted(set(changes))


def test_frost_leaves_less_of_the_image() -> None:
    """From 3 to 4 the image gets darker under equal frost, so that their sum may come nearer to it again; the share of
    the picture that the image does not explain grows."""
    images = panda(64).repeat(8, 1, 1, 1)
    centred = (images - images.mean()).flatten(1)
    shares = []
    for severity in SEVERITIES:
        found = changed(0.4 * images, "frost", severity).flatten(1)  # away from white, where it would be clipped
        found = found - found.mean(1, keepdim=True)
        explained = (found * centred).sum(1).square() / (found.square().sum(1) * centred.square().sum(1))
        shares.append(float(1 - explained.mean()))
    assert shares == sorted(set(shares))


def test_elastic_displacements_are_rougher_and_reach_less_far() -> None:
    """Severities 1 and 2 are mainly affine maps; from there on neighbours are displaced more differently."""
    strains, reaches = [], []
    for local, sigma, affine in CORRUPTIONS["elastic-transform"][1]:
        moves = corruptions._local_moves(of(8), 244 * local, 244 * sigma)
        strains.append(float(moves.diff(dim=1).square().mean()))
        reaches.append(float(corruptions._affine_moves(of(8), 244 * affine).square().mean()))
    assert strains == sorted(set(strains))
    assert max(reaches[2:]) < 0.1 * min(reaches[:2])
    images = panda(64).repeat(8, 1, 1, 1)
    changes = [float((changed(images, "elastic-transform", s) - images).square().mean()) for s in SEVERITIES]
    assert changes[0] < changes[1]
    assert changes[2] < changes[3] < changes[4]


@pytest.mark.parametrize(("severity", "sigma"), [*zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True)])
def test_gaussian_noise_has_its_mean_and_variance(severity: int, sigma: float) -> None:
    noise = corruptions.gaussian_noise(flat(0.5), of(8), *CORRUPTIONS["gaussian-noise"][1][severity - 1]) - 0.5
    n = noise.numel()
    assert abs(float(noise.mean())) < 4 * sigma / n**0.5
    assert float(noise.square().mean()) == pytest.approx(sigma**2, abs=4 * sigma**2 * (2 / n) ** 0.5)


@pytest.mark.parametrize("value", [0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("severity", "photons"), [*zip(SEVERITIES, (60, 25, 12, 5, 3), strict=True)])
def test_shot_noise_is_poisson(severity: int, photons: int, value: float) -> None:
    found = changed(flat(value), "shot-noise", severity)
    counts = np.arange(200)
    seen, weights = np.minimum(counts / photons, 1), poisson.pmf(counts, photons * value)
    mean = float((weights * seen).sum())
    variance = float((weights * (seen - mean) ** 2).sum())
    fourth = float((weights * (seen - mean) ** 4).sum())
    n = found.numel()
    assert float(found.mean()) == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    spread = float((found - mean).square().mean())
    assert spread == pytest.approx(variance, abs=4 * ((fourth - variance**2) / n) ** 0.5)


@pytest.mark.parametrize(("severity", "share"), [*zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True)])
def test_impulses_are_black_and_white_alike(severity: int, share: float) -> None:
    found = changed(flat(0.4), "impulse-noise", severity)
    assert found.unique().tolist() == pytest.approx([0, 0.4, 1])
    for extreme in (0, 1):
        half = share / 2
        error = (half * (1 - half) / found.numel()) ** 0.5
        assert float((found == extreme).double().mean()) == pytest.approx(half, abs=4 * error)


def test_brightness_is_the_value_of_a_colour() -> None:
    image = panda(32).clone()
    image[..., 0, 0] = 0  # black has no hue
    found = changed(image, "brightness", 3)
    for row, column in [(0, 0), (5, 9), (16, 16), (31, 2)]:
        hue, saturation, value = colorsys.rgb_to_hsv(*image[0, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
        assert found[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-6)
    grey = image.mean(1, keepdim=True)
    torch.testing.assert_close(changed(grey, "brightness", 5), (grey + 0.5).clamp(max=1))


def test_contrast_shrinks_about_the_mean_of_a_channel() -> None:
    image = panda(32)
    for severity, share in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        mean = image.flatten(2).mean(2)[..., None, None]
        torch.testing.assert_close(changed(image, "contrast", severity), share * image + (1 - share) * mean)


def test_pixels_are_means_of_blocks() -> None:
    image = panda(64)
    for severity, block in ((3, None), (2, 2), (5, 4)):
        found = changed(image, "pixelate", severity)
        if block:
            means = image.unflatten(3, (-1, block)).unflatten(2, (-1, block)).mean((3, 5))
            torch.testing.assert_close(found, means.repeat_interleave(block, 2).repeat_interleave(block, 3))
        else:  # 64 · 0.4 is 25 whole pixels a side
            assert len(found[0, 0].unique()) <= 25 * 25


def test_a_jpeg_is_what_pillow_makes_of_it() -> None:
    file, pixels = io.BytesIO(), (panda(32)[0].movedim(0, -1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=10)
    expected = torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)[None] / 255
    assert torch.equal(changed(panda(32), "jpeg-compression", 4), expected)


def test_defocus_spreads_a_point_over_a_disc() -> None:
    found = changed(spot(), "defocus-blur", 1)[0, 0] * (224 / 225) ** 2
    rows = torch.arange(225) - 112
    inside = rows[:, None] ** 2 + rows**2 <= 9
    assert float(found[inside].min()) == pytest.approx(1 / 29, rel=0.1)  # 29 pixels are at most three away
    assert float(found.sum()) == pytest.approx(1, rel=0.01)


def test_motion_spreads_a_point_to_one_side() -> None:
    found = corruptions.motion_blur(spot(224).repeat(3, 1, 1, 1), of(3), 15, 8)[:, 0]
    steps = torch.arange(31.0)
    weights = torch.exp(-(steps**2) / (2 * 8**2))
    away = float((weights * steps).sum() / weights.sum())
    places = torch.arange(224) - 112
    right, down = (found.sum(1) * places).sum(1), (found.sum(2) * places).sum(1)
    angles = torch.deg2rad(of(3).uniform("angle") * 90 - 45)
    torch.testing.assert_close(right, away * angles.cos(), rtol=0, atol=0.02)
    torch.testing.assert_close(down, away * angles.sin(), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "name", ["defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "elastic-transform", "contrast"]
)
def test_an_even_image_stays_as_it_is(name: str) -> None:
    torch.testing.assert_close(changed(flat(0.3, 40, 2), name, 5), flat(0.3, 40, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LENGTHS)
def test_an_image_and_its_enlargement_are_corrupted_alike(name: str) -> None:
    large, small = panda(224), F.interpolate(panda(224), (56, 56), mode="area")
    for severity in (3, 5):  # at 1 the disc is smaller than the pixels of the small image
        reduced = F.interpolate(changed(large, name, severity), (56, 56), mode="area")
        apart = float((changed(small, name, severity) - reduced).square().mean())
        assert apart < 0.15 * float((reduced - small).square().mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_size_and_seed(name: str) -> None:
    for shape in [(2, 1, 28, 28), (2, 3, 32, 48), (2, 3, 260, 230)]:
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        for severity in (1, 5):
            found = changed(images, name, severity)
            assert (found.shape, found.dtype) == (images.shape, images.dtype)
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
            assert torch.equal(found, changed(images, name, severity))
            # Not what is beside it, but its own address decides an image.
            alone = corrupted(images[1:], name, severity, of(2, name).rows([1]))
            torch.testing.assert_close(alone, found[1:], rtol=0, atol=2e-6)


def test_random_corruptions_differ_from_image_to_image() -> None:
    images = panda(32).repeat(2, 1, 1, 1)
    fixed = {"defocus-blur", "zoom-blur", "brightness", "contrast", "pixelate", "jpeg-compression"}
    for name in CORRUPTIONS:
        found = changed(images, name, 3)
        assert torch.allclose(found[0], found[1], atol=1e-6) == (name in fixed), name


def test_an_unknown_corruption_is_named() -> None:
    with pytest.raises(LpmbenchError, match="fog"):
        corrupted(panda(32), "fogg", 1, of(1))
