"""Affine maps of training images do what the recipe says, and the same at the same key."""

from __future__ import annotations

import math

import pytest
import torch

from robustbench_lpm.randomness import Addresses, generator
from robustbench_lpm.registry.cards import Augmentation
from robustbench_lpm.training.augmentation import affine_maps, augment

IMAGES = torch.rand(6, 1, 8, 8, generator=generator("augmentation"))
ALL = Augmentation(rotate=20, translate=0.1, scale=(0.8, 1.2), shear=10)


def addresses(count: int, epoch: int = 0) -> Addresses:
    return Addresses.of(0, range(count), "augment", epoch)


def maps_of(count: int, settings: Augmentation) -> torch.Tensor:
    return affine_maps(addresses(count).uniform("map", 5), settings)


def test_no_augmentation_changes_no_bit() -> None:
    assert torch.equal(augment(IMAGES, Augmentation(), addresses(6)), IMAGES)


def test_the_smallest_augmentation_changes_almost_nothing() -> None:
    tiny = Augmentation(rotate=1e-6, translate=1e-8, scale=(1.0, 1.0 + 1e-8), shear=1e-6)
    assert torch.allclose(augment(IMAGES, tiny, addresses(6)), IMAGES, atol=1e-5)


def test_the_same_key_gives_the_same_maps_and_another_key_others() -> None:
    first, again, other = (augment(IMAGES, ALL, addresses(6, epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_image_has_a_map_of_its_own() -> None:
    maps = maps_of(50, ALL)
    assert len(torch.unique(maps.flatten(1), dim=0)) == 50


def test_rotations_are_rotations_within_their_angle() -> None:
    linear = maps_of(500, Augmentation(rotate=30))[:, :, :2].double()
    assert torch.allclose(linear @ linear.mT, torch.eye(2).double(), atol=1e-6)
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert -30 <= float(angles.min()) < -28
    assert 28 < float(angles.max()) <= 30


def test_scales_magnify_within_their_range() -> None:
    maps = maps_of(500, Augmentation(scale=(0.5, 2.0)))
    magnification = 1 / maps[:, 0, 0]
    assert 0.5 <= float(magnification.min()) < 0.52
    assert 1.98 < float(magnification.max()) <= 2.0
    assert torch.equal(maps[:, 0, 0], maps[:, 1, 1])


def test_translations_are_shares_of_the_side_along_both_axes() -> None:
    offsets = maps_of(500, Augmentation(translate=0.25))[:, :, 2]
    for axis in (0, 1):  # the side is 2 wide in the grid's coordinates
        assert -0.5 <= float(offsets[:, axis].min()) < -0.48
        assert 0.48 < float(offsets[:, axis].max()) <= 0.5


def test_shear_keeps_areas_and_stays_within_its_angle() -> None:
    linear = maps_of(500, Augmentation(shear=45))[:, :, :2]
    assert torch.allclose(torch.linalg.det(linear), torch.ones(500), atol=1e-6)
    assert float(linear[:, 0, 1].abs().max()) == pytest.approx(math.tan(math.pi / 4), abs=0.03)


def test_a_magnified_image_shows_its_middle() -> None:
    ramp = torch.linspace(-7 / 8, 7 / 8, 8).expand(1, 1, 8, 8)  # grows along x; twice as large it grows half as fast
    assert torch.allclose(augment(ramp, Augmentation(scale=(2.0, 2.0)), addresses(1)), ramp / 2, atol=1e-6)


def test_scales_must_be_ordered() -> None:
    with pytest.raises(ValueError, match="smallest, largest"):
        Augmentation(scale=(1.2, 0.8))


def test_mirroring_moves_pixels_and_resamples_none() -> None:
    images = torch.rand(400, 1, 4, 5, generator=generator("mirrored"))
    result = augment(images, Augmentation(flip=0.25), addresses(400))
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    assert torch.equal(result[mirrored], images[mirrored].flip(3))
    assert torch.equal(result[~mirrored], images[~mirrored])
    assert int(mirrored.sum()) == pytest.approx(100, abs=4 * (400 * 0.25 * 0.75) ** 0.5)


@pytest.mark.parametrize(("share", "expected"), [(0.0, IMAGES), (1.0, IMAGES.flip(3))])
def test_none_or_all_are_mirrored(share: float, expected: torch.Tensor) -> None:
    assert torch.equal(augment(IMAGES, Augmentation(flip=share), addresses(6)), expected)


def test_mirroring_is_keyed_and_comes_before_the_other_maps() -> None:
    both = ALL.model_copy(update={"flip": 1.0})
    assert torch.equal(augment(IMAGES, both, addresses(6)), augment(IMAGES.flip(3), ALL, addresses(6)))


@pytest.mark.parametrize("settings", [ALL, ALL.model_copy(update={"flip": 0.5, "keep": 0.9})])
def test_an_image_s_maps_do_not_depend_on_its_batch(settings: Augmentation) -> None:
    part = augment(IMAGES[[4, 1]], settings, addresses(6).rows([4, 1]))
    assert torch.equal(part, augment(IMAGES, settings, addresses(6))[[4, 1]])


BRIGHT = torch.ones(200, 1, 8, 8)


def test_without_keep_images_leave_the_frame() -> None:
    moved = augment(BRIGHT, Augmentation(translate=0.5), addresses(200))
    assert float(moved.mean((1, 2, 3)).min()) < 0.4


def test_with_keep_enough_of_every_image_stays() -> None:
    moved = augment(BRIGHT, Augmentation(translate=0.5, keep=0.7), addresses(200))
    kept = moved.mean((1, 2, 3))
    assert float(kept.min()) >= 0.7 - 1e-6
    assert len(kept.unique()) > 100  # they still move


def test_an_image_that_no_map_suits_stays_as_it_is() -> None:
    corner = torch.zeros(3, 1, 9, 9)
    corner[:, :, 0, 0] = 1  # doubled in size about the middle, the corner is always outside
    assert torch.equal(augment(corner, Augmentation(scale=(2.0, 2.0), keep=0.5), addresses(3)), corner)


def test_a_magnified_image_may_be_brighter_by_its_area() -> None:
    spot = torch.zeros(1, 1, 32, 32)
    spot[:, :, 12:20, 12:20] = 1
    doubled = augment(spot, Augmentation(scale=(2.0, 2.0), keep=0.95), addresses(1))
    assert float(doubled.sum()) == pytest.approx(4 * float(spot.sum()), rel=0.02)
