"""Small truths of balls and boxes: what is inside stays, what is outside lands on the edge, steps have length one."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, linprog
from torch import Tensor

from robustbench_lpm.norms import (
    NORMS,
    Norm,
    distance,
    farthest,
    lowest,
    project,
    sparse,
    steepest,
    stepped,
    uniform_in_ball,
)
from robustbench_lpm.protocol.grading import within_budget
from robustbench_lpm.randomness import Addresses

SHAPE = (6, 3, 5, 4)
EPS: dict[Norm, float] = {"linf": 0.05, "l2": 0.3, "l1": 0.4, "l0": 3}
TYPES = {torch.float32: 1e-6, torch.float64: 1e-14}

for_all_norms = pytest.mark.parametrize("norm", NORMS)
for_all_lengths = pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "l0"])  # that a step can have
in_both_precisions = pytest.mark.parametrize("dtype", TYPES)


def noise(seed: int, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def box(seed: int, dtype: torch.dtype) -> Tensor:
    """Images with pixels all over [0, 1], some of them at its ends or tiny."""
    images = (noise(seed, dtype) * 0.6 + 0.5).clamp(0, 1)
    images[:, 0, 0] *= 1e-6
    return images


def away_from_the_box(seed: int, dtype: torch.dtype) -> Tensor:
    return (noise(seed, dtype) * 0.02).clamp(-0.1, 0.1) + 0.5


def scaled(offsets: Tensor, norm: Norm, length: float) -> Tensor:
    return (offsets / distance(offsets, torch.zeros_like(offsets), norm)[:, None, None, None] * length).to(offsets)


@for_all_norms
@in_both_precisions
def test_distance(norm: Norm, dtype: torch.dtype) -> None:
    offsets = noise(0, dtype)
    for i, found in enumerate(distance(offsets, torch.zeros_like(offsets), norm)):
        values = offsets[i].flatten().tolist()
        sizes = [abs(value) for value in values]
        expected = {"linf": max(sizes), "l2": math.sqrt(sum(v * v for v in values)), "l1": sum(sizes), "l0": len(sizes)}
        assert float(found) == pytest.approx(expected[norm], rel=TYPES[dtype])


@for_all_lengths
@in_both_precisions
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.3, 0.99])
def test_what_is_inside_keeps_its_bits(norm: Norm, dtype: torch.dtype, share: float) -> None:
    originals = box(0, dtype)
    images = (originals + scaled(noise(1, dtype), norm, share * EPS[norm])).clamp(0, 1)
    assert torch.equal(project(images, originals, norm, EPS[norm]), images)


@in_both_precisions
def test_tiny_pixels_inside_keep_their_bits(dtype: torch.dtype) -> None:
    """x0 + (x - x0) is not x where x is much smaller than x0."""
    originals = torch.full((1, 1, 2, 2), 0.3, dtype=dtype)
    images = torch.full((1, 1, 2, 2), 1e-9, dtype=dtype)
    for norm in NORMS:
        assert torch.equal(project(images, originals, norm, 4.0), images)


def nearest_in_l1(images: Tensor, originals: Tensor, eps: float) -> NDArray[np.float64]:
    """The nearest point of L1 ball and box, one image after the other: the threshold is found by root finding."""
    found = []
    for image, centre in zip(images.double().numpy(), originals.double().numpy(), strict=True):
        offset = image - centre
        room = np.where(offset > 0, 1 - centre, centre)

        def left(threshold: float, offset: Any = offset, room: Any = room) -> Any:
            return np.clip(np.abs(offset) - threshold, 0, room)

        inside = left(0).sum() <= eps
        threshold = (
            0.0 if inside else brentq(lambda t: left(t).sum() - eps, 0, np.abs(offset).max(), xtol=1e-15, rtol=1e-14)
        )
        found.append(centre + np.sign(offset) * left(threshold))
    return np.stack(found)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("eps", [1e-6, 0.01, 1.2, 10.0, 60.0])
@pytest.mark.parametrize("each", [False, True])
def test_the_l1_projection_is_the_nearest_point(scale: float, eps: float, each: bool) -> None:
    """Of ball and box together, for pixels at the ends of the box too, and with one radius or one for each image."""
    originals = box(0, torch.float64)
    images = originals + scale * noise(1, torch.float64)
    radii = eps * (1 + each * torch.arange(len(images), dtype=torch.float64))
    found = project(images, originals, "l1", radii if each else eps)
    for i, radius in enumerate(radii.tolist()):
        expected = nearest_in_l1(images[i : i + 1], originals[i : i + 1], radius)
        assert np.abs(found[i : i + 1].numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_image_may_have_its_own_radius(norm: Norm) -> None:
    originals = box(0, torch.float32)
    images = originals + noise(1, torch.float32)
    radii = 0.02 * (1 + torch.arange(len(images)))
    found = project(images, originals, norm, radii)
    for i, radius in enumerate(radii.tolist()):
        alone = project(images[i : i + 1], originals[i : i + 1], norm, radius)
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-6, rtol=0)


@for_all_norms
def test_the_farthest_image(norm: Norm) -> None:
    black, white = torch.zeros(1, 3, 4, 5), torch.ones(1, 3, 4, 5)
    assert farthest(norm, 60) == pytest.approx(float(distance(black, white, norm)))


@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0, 7.5, 100.0])
def test_the_lowest_point_in_l1_fills_the_largest_gradients(eps: float) -> None:
    """The linear programme over ball and box, solved by scipy: offsets are p - n with p, n >= 0 within the rooms."""
    originals, gradients = box(0, torch.float64), noise(1, torch.float64)
    gradients[:, 1] = 0
    found = lowest(originals, gradients, "l1", eps)
    for original, gradient, point in zip(originals.flatten(1), gradients.flatten(1), found.flatten(1), strict=True):
        costs = torch.cat([gradient, -gradient]).numpy()
        rooms = [(0, float(room)) for room in torch.cat([1 - original, original])]
        best = linprog(costs, A_ub=np.ones((1, len(costs))), b_ub=[eps], bounds=rooms).fun
        assert float(gradient @ (point - original)) == pytest.approx(best, abs=1e-9)
    assert torch.equal(found[:, 1], originals[:, 1])  # no gradient, no change
    assert distance(found, originals, "l1").max() <= eps + 1e-12


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_sparse_directions(share: float) -> None:
    gradients = noise(0, torch.float32)
    count = max(1, int(share * 60))
    for found in (sparse(gradients, share), sparse(gradients, torch.full((6,), share + 1e-6))):
        sizes = gradients.flatten(1).abs()
        moved = found.flatten(1) != 0
        assert (moved.sum(1) == count).all()
        assert (sizes.where(moved, torch.inf).amin(1) > sizes.where(~moved, 0).amax(1)).all() or share == 1
        assert torch.equal(found.sign(), torch.where(moved.reshape(found.shape), gradients.sign(), 0))
        assert distance(found, torch.zeros_like(found), "l1") == pytest.approx(1, abs=1e-6)


@for_all_lengths
@in_both_precisions
@pytest.mark.parametrize("factor", [1.01, 3.0, 1e4])
def test_what_is_outside_lands_on_the_sphere(norm: Norm, dtype: torch.dtype, factor: float) -> None:
    originals, eps = away_from_the_box(0, dtype), EPS[norm]
    offsets = scaled(noise(1, dtype), norm, factor * eps)
    found = project(originals + offsets, originals, norm, eps)
    rounding = TYPES[dtype] * (60 if norm == "l1" else 1)  # it adds up over the pixels
    assert distance(found, originals, norm) == pytest.approx(eps, rel=0, abs=rounding)
    expected = offsets.clamp(-eps, eps) if norm == "linf" else offsets / factor
    if norm == "l1":
        expected = torch.from_numpy(nearest_in_l1(originals + offsets, originals, eps)).to(dtype) - originals
    assert found - originals == pytest.approx(expected, rel=0, abs=rounding)


@for_all_norms
@in_both_precisions
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_projections_keep_to_ball_and_box(norm: Norm, dtype: torch.dtype, scale: float) -> None:
    originals = box(0, dtype)
    found = project(originals + scale * noise(1, dtype), originals, norm, EPS[norm])
    assert found.min() >= 0
    assert found.max() <= 1
    assert distance(found, originals, norm).max() <= EPS[norm] + TYPES[dtype]


@cache
def photograph(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image with pixels all over [0, 1], a mask of half of them, and a random direction."""
    generator = torch.Generator().manual_seed(side)
    original, direction = (torch.rand(1, 3, side, side, generator=generator) for _ in range(2))
    return original, torch.rand(1, 1, side, side, generator=generator) < 0.5, direction - 0.5


@for_all_lengths
@pytest.mark.parametrize("side", [1, 32, 500])
def test_no_size_and_no_radius_leaves_the_ball(norm: Norm, side: int) -> None:
    """Sums over the pixels of a photograph, and radii near the rounding of a pixel, are not float32's to tell."""
    original, mask, direction = photograph(side)
    for eps in (1e-30, 1e-9, 1e-6, 1e-4, 0.5, 30.0, 1e30):
        moved = torch.where(mask, original + min(2 * eps, 1e6) * scaled(direction, norm, 1.0), original)
        found = within_budget(moved, original, norm, eps, mask)
        assert distance(found, original, norm) <= eps + (1e-6 if norm == "linf" else 1e-12), eps
        assert torch.equal(torch.where(mask, 0, found), torch.where(mask, 0, original)), eps
        within_budget(uniform_in_ball(original, norm, eps, Addresses.of(0, [0], "search")), original, norm, eps, mask)


@pytest.mark.parametrize("eps", [0.5, 3.0, 30.0])
def test_photographs_use_their_budget(eps: float) -> None:
    """Nearly all of a ball in a million dimensions lies at its edge, and so must random points and projections."""
    originals = torch.full((2, 3, 512, 512), 0.5)
    direction = noise(0, torch.float32, tuple(originals.shape))
    assert distance(steepest(direction, "l2"), torch.zeros_like(direction), "l2") == pytest.approx(1, abs=1e-6)
    random = uniform_in_ball(originals, "l2", eps, Addresses.of(0, range(2), "search"))
    for found in (random, project(originals + direction, originals, "l2", eps)):
        assert distance(found, originals, "l2") == pytest.approx(eps, rel=1e-4)


@for_all_norms
@in_both_precisions
def test_projecting_twice_is_projecting_once(norm: Norm, dtype: torch.dtype) -> None:
    originals = box(0, dtype)
    once = project(originals + noise(1, dtype), originals, norm, EPS[norm])
    twice = project(once, originals, norm, EPS[norm])
    # In l2 rounding may leave a point in float64 outside by an ulp, which the second projection takes off.
    exact = norm == "linf" or dtype is torch.float32
    assert twice == pytest.approx(once, rel=0, abs=0.0 if exact else TYPES[dtype])


@for_all_norms
def test_projections_are_nearest_points_and_l2_stays_in_the_ball(norm: Norm) -> None:
    """No random point of the intersection is nearer than the projection but in l2, as the docstring claims."""
    originals = box(0, torch.float64)
    images = originals + 0.1 * noise(1, torch.float64)
    found = project(images, originals, norm, EPS[norm])
    others = [uniform_in_ball(originals, norm, EPS[norm], Addresses.of(0, range(6), "search", k)) for k in range(50)]
    if norm != "l2":
        assert all((distance(images, other, "l2") >= distance(images, found, "l2")).all() for other in others)
    else:
        assert all((distance(other, originals, "l2") <= EPS["l2"] + 1e-14).all() for other in others)


@in_both_precisions
def test_in_l0_the_nearest_point_keeps_the_changes_that_count(dtype: torch.dtype) -> None:
    """Compared with every choice of three of the six values; a change that leaves the box is clipped to it first."""
    originals = box(0, dtype)[:, :1, :2, :3]
    images = originals + noise(1, dtype)[:, :1, :2, :3]
    found = project(images, originals, "l0", 3)
    kept = torch.tensor(list(combinations(range(6), 3)))
    ways = torch.zeros(len(kept), 6, dtype=torch.bool).scatter(1, kept, True)
    others = [torch.where(way.reshape(1, 2, 3), images.clamp(0, 1), originals) for way in ways]
    nearest = torch.stack([distance(images, other, "l2") for other in others]).amin(0)
    assert distance(images, found, "l2") == pytest.approx(nearest, rel=1e-12)
    assert (distance(found, originals, "l0") <= 3).all()
    radii = torch.arange(len(images))
    assert (distance(project(images, originals, "l0", radii), originals, "l0") <= radii).all()


def test_in_l0_random_points_change_as_many_values_as_they_may() -> None:
    originals = box(0, torch.float64)
    drawn = uniform_in_ball(originals, "l0", 3, Addresses.of(0, range(6), "search"))
    assert distance(drawn, originals, "l0").tolist() == [3] * 6


@for_all_norms
def test_a_ball_of_radius_zero_is_its_centre(norm: Norm) -> None:
    originals = box(0, torch.float32)
    assert torch.equal(project(originals + noise(1, torch.float32), originals, norm, 0.0), originals)
    assert torch.equal(uniform_in_ball(originals, norm, 0.0, Addresses.of(0, range(6), "search")), originals)


@for_all_lengths
@in_both_precisions
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-3, 1.0, 1e15])
def test_steepest_directions_have_norm_one(norm: Norm, dtype: torch.dtype, scale: float) -> None:
    gradients = scale * noise(0, dtype)
    found = steepest(gradients, norm)
    assert distance(found, torch.zeros_like(found), norm) == pytest.approx(1.0, rel=0, abs=TYPES[dtype])
    # Of all directions of norm 1 it climbs fastest: its slope is the dual norm of the gradient.
    slope = (found * (gradients / scale)).flatten(1).sum(1)
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]  # a hundredth of these 60 pixels is one
    assert slope == pytest.approx((gradients / scale).flatten(1).norm(p=dual, dim=1), rel=1e-5)


@for_all_lengths
def test_no_gradient_no_step(norm: Norm) -> None:
    gradients = noise(0, torch.float32)
    gradients[2] = 0
    gradients[3, :, 1:] = 0
    found = steepest(gradients, norm)
    assert torch.equal(found[2], torch.zeros_like(found[2]))
    assert torch.equal(found[3, :, 1:], torch.zeros_like(found[3, :, 1:]))
    assert found[3].abs().max() > 0


@for_all_norms
@in_both_precisions
def test_random_points_lie_in_ball_and_box(norm: Norm, dtype: torch.dtype) -> None:
    originals = box(0, dtype)
    found = uniform_in_ball(originals, norm, EPS[norm], Addresses.of(0, range(6), "search"))
    assert found.dtype is dtype
    assert found.min() >= 0
    assert found.max() <= 1
    assert distance(found, originals, norm).max() <= EPS[norm] + 1e-7
    assert distance(found, originals, norm).min() > 0


@for_all_norms
def test_random_points_are_keyed(norm: Norm) -> None:
    """The same key gives the same point, however the batch is split; another key gives another."""
    originals = box(0, torch.float32)
    whole = uniform_in_ball(originals, norm, EPS[norm], Addresses.of(0, range(6), "search"))
    parts = [
        uniform_in_ball(originals[i : i + 2], norm, EPS[norm], Addresses.of(0, [i, i + 1], "search")) for i in (0, 2, 4)
    ]
    assert torch.equal(torch.cat(parts), whole)
    for other in (Addresses.of(1, range(6), "search"), Addresses.of(0, range(6), "search", 1)):
        assert (uniform_in_ball(originals, norm, EPS[norm], other) != whole).flatten(1).any(1).all()


@for_all_lengths
def test_random_points_fill_the_ball_evenly(norm: Norm) -> None:
    """Of a uniform point in d dimensions (radius / eps)^d is uniform on [0, 1], and its direction has no preference."""
    n, d = 4000, 4
    originals = torch.full((n, 1, 2, 2), 0.5, dtype=torch.float64)
    found = uniform_in_ball(originals, norm, EPS[norm], Addresses.of(0, range(n), "search")) - originals
    volume = ((distance(found, torch.zeros_like(found), norm) / EPS[norm]) ** d).sort().values
    ideal = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (volume - ideal).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov and Smirnov, p = 0.001
    # A coordinate's variance in units of eps² in the cube, the ball and the cross-polytope.
    variance = {"linf": 1 / 3, "l2": 1 / (d + 2), "l1": 2 / ((d + 1) * (d + 2))}[norm]
    deviation = EPS[norm] * math.sqrt(variance / n)
    assert found.square().mean(0) == pytest.approx(variance * EPS[norm] ** 2, rel=0.12)
    assert found.mean(0).abs().max() < 4 * deviation


@for_all_lengths
def test_a_step_leads_down_and_in_l1_spares_pixels_without_room(norm: Norm) -> None:
    images, gradients = box(0, torch.float32), noise(1, torch.float32)
    moved = stepped(images, gradients, norm, 0.1)
    if norm != "l1":
        assert torch.equal(moved, images - 0.1 * steepest(gradients, norm))
        return
    stuck = torch.where(gradients > 0, images == 0, images == 1)
    assert stuck.any()  # the test is about something
    assert torch.equal(moved[stuck], images[stuck])
    free = gradients.abs().masked_fill(stuck, 0).flatten(1)
    assert ((moved != images).flatten(1).float().argmax(1) == free.argmax(1)).all()
